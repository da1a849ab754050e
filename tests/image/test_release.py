"""A release rehearsed: pushed to a registry on this machine, twice, and installed from there.

`make release-test` runs it, with the images in RELEASE_IMAGES (cpu-amd64 cpu-arm64 gpu-amd64).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from demo.servers import free_port
from tools.binaries import HELM_4
from tools.image_base import ROOT, Engine
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
COSIGN = "github.com/sigstore/cosign/v2/cmd/cosign@v2.6.1"
TRUSTED_ROOT = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
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


@dataclass(frozen=True, slots=True)
class Signer:
    """The program cosign, and the folder with the throw-away key and a wrapper that signs with it."""

    program: str
    folder: Path

    def verify(self, *arguments: str) -> None:
        """Run one of cosign's verifications, and fail with what it said."""
        verb, *rest = arguments
        _output([self.program, verb, f"--key={self.folder / 'cosign.pub'}", "--insecure-ignore-tlog", *rest])


def _output(command: Sequence[str], cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    chart = (made.out / "CHART").read_text().strip()
    rendered = helm(HELM_4, "template", "faces", f"oci://{chart}", "--plain-http")
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
    digests = {subject["name"]: subject["digest"]["sha256"] for subject in subjects}
    pushed = [line for name in ("IMAGES", "CHART") for line in (made.out / name).read_text().splitlines()]
    assert digests == {name: files[name] for name in files if name.endswith((".whl", ".tgz", ".tar.gz"))} | dict(
        line.split("@sha256:") for line in pushed
    )
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


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """cosign with a throw-away key in place of the workflow's identity, and without the public transparency log."""
    program = shutil.which("cosign")
    if program is None or not re.search(r"GitVersion:\s+v2\.6\.", _output([program, "version"])):
        pytest.skip(f"cosign 2.6 is not in PATH: GOBIN=/usr/local/bin go install {COSIGN}")
    _output([program, "generate-key-pair"], cwd=tmp_path, COSIGN_PASSWORD="")
    (tmp_path / "root.json").write_text(json.dumps({"mediaType": TRUSTED_ROOT}))
    folder = tmp_path / "bin"
    folder.mkdir()
    wrapper = folder / "cosign"
    wrapper.write_text(
        f'#!/bin/sh\nverb=$1\nshift\nexec {program} "$verb" --key {tmp_path}/cosign.key --tlog-upload=false "$@"\n'
    )
    wrapper.chmod(0o755)
    return Signer(program, tmp_path)


def test_what_the_workflow_signs_can_be_verified(made: Made, signer: Signer) -> None:
    folder = signer.folder / "dist" / VERSION
    shutil.copytree(made.out, folder)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
    (step,) = (step for step in workflow["jobs"]["publish"]["steps"] if step.get("name") == "Sign")
    path = f"{signer.folder / 'bin'}:{os.environ['PATH']}"
    _output(["bash", "-e", "-c", step["run"]], cwd=signer.folder, PATH=path, VERSION=VERSION, COSIGN_PASSWORD="")
    for name in (folder / "IMAGES").read_text().split() + (folder / "CHART").read_text().split():
        signer.verify("verify", name)
    sums = folder / "SHA256SUMS"
    bundle = ("--new-bundle-format", f"--trusted-root={signer.folder / 'root.json'}")
    signer.verify("verify-blob", *bundle, f"--bundle={sums}.sigstore.json", str(sums))
    proven = [*bundle, f"--bundle={folder / 'provenance.sigstore.json'}", "--type=slsaprovenance1"]
    for archive in (*folder.glob("*.whl"), *folder.glob("*.tar.gz"), *folder.glob("*.tgz")):
        signer.verify("verify-blob-attestation", *proven, str(archive))
    sums.write_text(f"{sums.read_text()}\n")
    with pytest.raises(AssertionError, match="invalid signature"):
        signer.verify("verify-blob", *bundle, f"--bundle={sums}.sigstore.json", str(sums))


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
