"""A release rehearsed: pushed to a registry on this machine, twice, and installed from there.

`make release-test` runs it, with the images in RELEASE_IMAGES (cpu-amd64 cpu-arm64 gpu-amd64).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from demo.servers import free_port
from tools.binaries import HELM_4
from tools.image_base import Engine
from tools.release.__main__ import Release, main, variants_named
from tools.release.images import Registry, push_index
from tools.release.provenance import sha256
from tools.release.registry import local_registry
from tools.release.source import ReleaseError, Source, export
from tools.render import helm

IMAGES = os.environ.get("RELEASE_IMAGES", "")

pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not IMAGES, reason="builds images three times: make release-test"),
]

VERSION = "9.8.7-rc.1"
URL = "https://example.invalid/spottmee-worker"


@dataclass(frozen=True, slots=True)
class Made:
    """A release that was made, and where."""

    registry: Registry
    out: Path

    def images(self) -> dict[str, str]:
        """Return the digest of each index by tag."""
        names = (line.rsplit("/", 1)[1].partition("@") for line in (self.out / "IMAGES").read_text().splitlines())
        return {tag: digest for tag, _, digest in names}


def _make(engine: Engine, registry: Registry, folder: Path) -> Made:
    out = folder / "out"
    out.mkdir(parents=True)
    source = export(VERSION, URL, folder / "sources", final=False)
    Release(source, engine, registry, out).make(variants_named(IMAGES))
    return Made(registry, out)


@pytest.fixture(scope="module")
def made(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with local_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield _make(engine, registry, tmp_path_factory.mktemp("one"))


def test_the_images_come_from_the_registry_by_the_digest_that_the_chart_names(engine: Engine, made: Made) -> None:
    chart = f"oci://{made.registry.address}/charts/spottmee-worker"
    rendered = helm(HELM_4, "template", "faces", chart, "--version", VERSION, "--plain-http")
    name = f"{made.registry.repository}:{VERSION}@{made.images()[f'spottmee-worker:{VERSION}']}"
    assert f'image: "{name}"' in rendered
    pinned = name.replace(f":{VERSION}@", "@")
    engine.podman("pull", "--quiet", "--tls-verify=false", pinned)
    label = engine.podman(
        "image", "inspect", pinned, "--format", "{{index .Labels `org.opencontainers.image.version`}}"
    )
    assert label == VERSION
    engine.podman("rmi", pinned)


def test_checksums_provenance_and_valid_bills_of_materials_cover_every_artefact(made: Made) -> None:
    lines = (line.partition("  ") for line in (made.out / "SHA256SUMS").read_text().splitlines())
    listed = {name: checksum for checksum, _, name in lines}
    files = {path.name: sha256(path) for path in made.out.iterdir() if path.name != "SHA256SUMS"}
    assert listed == files
    subjects = json.loads((made.out / "provenance.json").read_text())["subject"]
    digests = {subject["name"].rsplit("/", 1)[-1]: subject["digest"]["sha256"] for subject in subjects}
    assert digests == {name: files[name] for name in files if name.endswith((".whl", ".tgz", ".tar.gz"))} | {
        name: digest.removeprefix("sha256:") for name, digest in made.images().items()
    }
    boms = [path for path in made.out.iterdir() if path.name.endswith(".cdx.json")]
    assert len(boms) == 1 + len(IMAGES.split())
    for path in boms:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text()) is None
    image = next(path for path in boms if f"-{VERSION}-" in path.name)
    names = {component["name"] for component in json.loads(image.read_text())["components"]}
    assert {"libc6", "onnxruntime", "opencv-python-headless", "spottmee-worker"} <= names


def test_the_chart_names_its_images_and_its_home(made: Made) -> None:
    shown = helm(HELM_4, "show", "chart", str(made.out / f"spottmee-worker-{VERSION}.tgz"))
    assert {f"version: {VERSION}", f"appVersion: {VERSION}", f"home: {URL}"} <= set(shown.splitlines())
    for tag, digest in made.images().items():
        assert f"{tag}@{digest}" in shown


def test_a_second_release_of_the_commit_has_the_same_digests(engine: Engine, made: Made, tmp_path: Path) -> None:
    again = _make(engine, made.registry, tmp_path / "another" / "path")
    different = {path.name for path in made.out.iterdir() if sha256(path) != sha256(again.out / path.name)}
    assert different == set()


def test_an_index_that_the_registry_did_not_take_is_an_error(engine: Engine, tmp_path: Path) -> None:
    source = Source(URL, VERSION, "c" * 40, 0, tmp_path, "")
    nobody = Registry(f"127.0.0.1:{free_port()}", plain=True)
    with pytest.raises(ReleaseError, match=r"was not pushed: check that 127\.0\.0\.1:\d+ answers, and log in"):
        push_index(engine, nobody, source, "cpu", [engine.make_base()])


def test_a_release_that_cannot_be_made_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").write_text("")
    assert main(["1.0.0", "--out", str(tmp_path)]) == 2
    assert "is not empty: remove it" in capsys.readouterr().err
    assert main(["not-a-version", "--out", str(tmp_path / "out")]) == 2
    assert "is not a version such as" in capsys.readouterr().err
