"""Software bills of materials in CycloneDX: of the wheel from the lock, of an image from what is installed in it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

_PINNED = re.compile(r"(?m)^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)")


def locked(lock: Path) -> Iterator[Component]:
    """Yield a component for each package that a lock pins."""
    pins = {(match["name"], match["version"]) for match in _PINNED.finditer(lock.read_text())}
    for name, version in sorted(pins):
        yield _component(PackageURL("pypi", name=name, version=version))


def installed(root: Path) -> Iterator[Component]:
    """Yield a component for each Debian and Python package in an image's root file system."""
    status = root / "var" / "lib" / "dpkg" / "status"
    release = dict(re.findall(r"(?m)^(ID|VERSION_ID)=\"?([^\"\n]*)", (root / "etc" / "os-release").read_text()))
    for block in status.read_text().split("\n\n") if status.exists() else ():
        fields = dict(line.split(": ", 1) for line in block.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        if fields.get("Status") == "install ok installed":
            qualifiers = {
                "arch": fields["Architecture"],
                "distro": f"{release['ID']}-{release.get('VERSION_ID', '')}",
                **_upstream(fields.get("Source", "")),
            }
            yield _component(
                PackageURL("deb", release["ID"], fields["Package"], fields["Version"], qualifiers=qualifiers)
            )
    folders = [str(path) for path in (root / "opt" / "spottmee-worker").glob("lib/python3*/site-packages")]
    packages = {(package.name, package.version) for package in distributions(path=folders)}
    for name, version in sorted(packages):
        yield _component(PackageURL("pypi", name=name.lower(), version=version))


def write(path: Path, *, subject: str, version: str, sha256: str, components: Iterable[Component]) -> None:
    """Write the bill of materials of `subject`, the same bytes for the same content."""
    bom = Bom(components=components, serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{subject}@{sha256}"))
    bom.metadata.component = Component(
        name=subject,
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=subject,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256.removeprefix("sha256:"))],
    )
    bom.register_dependency(bom.metadata.component, bom.components)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]
    path.write_text(json.dumps(document, indent=2) + "\n")


def _upstream(source: str) -> dict[str, str]:
    """Return the qualifier for dpkg's field Source, `NAME` or `NAME (VERSION)`: Debian's advisories name sources."""
    return {"upstream": "@".join(re.findall(r"[^\s()]+", source))} if source else {}


def _component(url: PackageURL) -> Component:
    return Component(name=url.name, version=url.version, type=ComponentType.LIBRARY, purl=url, bom_ref=url.to_string())
