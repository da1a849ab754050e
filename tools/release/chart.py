"""The chart of a release: gets version, image repository and digests, is packaged, and is pushed to a registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tools.binaries import HELM_4
from tools.release.images import Registry, tag_of
from tools.release.packages import normalise
from tools.release.source import CHART, ReleaseError, Source
from tools.render import helm


def package_chart(
    source: Source,
    registry: Registry,
    digests: Mapping[str, str],
    architectures: Mapping[str, Sequence[str]],
    out: Path,
) -> Path:
    """Write where the images are into the exported chart, package it into `out`, and return the archive.

    `digests` and `architectures` have an entry for each flavour that was pushed. Raises `ReleaseError`.
    """
    folder = source.folder / CHART
    _write_images(folder / "values.yaml", registry, digests, architectures)
    _write_metadata(folder / "Chart.yaml", source, registry, digests)
    helm(HELM_4, "lint", "--strict", str(folder))
    helm(HELM_4, "package", str(folder), "--destination", str(out))
    archive = out / f"{CHART.name}-{source.version}.tgz"
    normalise(archive, source.date)
    return archive


def push_chart(registry: Registry, archive: Path) -> str:
    """Push the packaged chart to REGISTRY/charts, and return its digest there, sha256:… Raises `HelmError`."""
    plain = ["--plain-http"] if registry.plain else []
    shown = helm(HELM_4, "push", str(archive), f"oci://{registry.address}/charts", *plain)
    return shown.partition("Digest: ")[2].strip()


def _write_images(
    path: Path, registry: Registry, digests: Mapping[str, str], architectures: Mapping[str, Sequence[str]]
) -> None:
    text = path.read_text()
    for old, new in [
        ("  repository: spottmee-worker\n", f"  repository: {registry.repository}\n"),
        *((f'    {flavour}: ""\n', f"    {flavour}: {digest}\n") for flavour, digest in digests.items()),
        *((f"    {name}: []\n", f"    {name}: [{', '.join(there)}]\n") for name, there in architectures.items()),
    ]:
        if text.count(old) != 1:
            raise ReleaseError(f"{path.name} has {text.count(old)} lines {old.strip()!r}, not one: the value has moved")
        text = text.replace(old, new)
    path.write_text(text)


def _write_metadata(path: Path, source: Source, registry: Registry, digests: Mapping[str, str]) -> None:
    chart = yaml.safe_load(path.read_text())
    images = [
        {"name": flavour, "image": f"{registry.repository}:{tag_of(source, flavour)}@{digest}"}
        for flavour, digest in digests.items()
    ]
    chart |= {"home": source.url, "sources": [source.url], "icon": f"{source.url}/raw/main/docs/icon.svg"}
    chart["annotations"] |= {
        "artifacthub.io/images": yaml.safe_dump(images),
        "artifacthub.io/prerelease": "true" if "-" in source.version else "false",
        "artifacthub.io/links": yaml.safe_dump([{"name": "changelog", "url": f"{source.url}/blob/main/CHANGELOG.md"}]),
    }
    path.write_text(yaml.safe_dump(chart, sort_keys=False, allow_unicode=True))
