"""A release: its version, notes, packages and bills of materials."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from runner import __version__
from tools.binaries import ROOT
from tools.release import provenance, sbom
from tools.release.packages import build_packages, normalise
from tools.release.source import CHART, ReleaseError, Source, export, release_notes

URL = "https://example.invalid/spottmee-worker"
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- new\n\n## [0.1.0] - 2026-01-01\n\n- first\n\n[0.1.0]: x\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of its own with this checkout's files, so that it can be committed to."""
    folder = tmp_path / "repository"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "runner", "helm", "requirements", "*.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in [*names, "CHANGELOG.md", "README.md", "LICENSE", "Dockerfile"]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "All"]):
        who = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
        subprocess.run(["git", *who, *command], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize(
    "version", ["", "1", "v1.0.0", "1.0.0+linux", "01.0.0", "1.0.0-", "1.0.0-x.1", "latest", "1.0.0\n"]
)
def test_a_version_that_no_tag_and_no_chart_could_have_is_refused(version: str, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="is not a version such as"):
        export(version, URL, tmp_path / "export", final=False)


def test_the_version_is_written_into_package_and_chart(repository: Path, tmp_path: Path) -> None:
    source = export("7.8.9-rc.1", URL, tmp_path / "export", final=False, repository=repository)
    assert '__version__ = "7.8.9-rc.1"' in (source.folder / "runner" / "__init__.py").read_text()
    chart = (source.folder / CHART / "Chart.yaml").read_text().splitlines()
    assert {"version: 7.8.9-rc.1", 'appVersion: "7.8.9-rc.1"'} <= set(chart)


def test_a_published_release_needs_a_clean_checkout_of_that_version(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="has another version than 7"):
        export("7.8.9", URL, tmp_path / "one", final=True, repository=repository)
    (repository / "README.md").write_text("changed")
    with pytest.raises(ReleaseError, match="uncommitted changes"):
        export(__version__, URL, tmp_path / "two", final=True, repository=repository)


def test_a_folder_without_a_commit_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="git log failed: fatal: not a git repository"):
        export("1.0.0", URL, tmp_path / "export", final=False, repository=tmp_path)


def test_the_notes_are_the_changelogs_section_of_the_version() -> None:
    assert release_notes(CHANGELOG, "0.1.0", final=True) == "- first\n"
    assert release_notes(CHANGELOG, "0.2.0", final=False) == "### Added\n\n- new\n"
    with pytest.raises(ReleaseError, match=r"no section \[0\.2\.0\]"):
        release_notes(CHANGELOG, "0.2.0", final=True)


def test_another_path_umask_and_time_give_the_same_packages(repository: Path, tmp_path: Path) -> None:
    checksums = []
    for number, mask in enumerate((0o022, 0o077)):
        before = os.umask(mask)
        try:
            folder, out = tmp_path / ("deep/" * number + "export"), tmp_path / f"out-{number}"
            out.mkdir()
            packages = build_packages(export("0.9.0", URL, folder, final=False, repository=repository), out)
        finally:
            os.umask(before)
        for path in repository.rglob("*.py"):
            os.utime(path, (number, number))
        checksums.append({path.name: provenance.sha256(path) for path in packages})
    assert checksums[0] == checksums[1]
    assert set(checksums[0]) == {"spottmee_worker-0.9.0-py3-none-any.whl", "spottmee_worker-0.9.0.tar.gz"}


def test_a_package_that_cannot_be_built_is_named_with_the_reason(repository: Path, tmp_path: Path) -> None:
    source = export("0.9.0", URL, tmp_path / "export", final=False, repository=repository)
    (source.folder / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(ReleaseError, match="the packages could not be built"):
        build_packages(source, tmp_path)


def test_a_normalised_archive_names_no_user_and_has_one_date(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("text")
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as files:
        files.add(tmp_path / "folder", "folder")
    normalise(archive, 1_000_000)
    assert archive.stat().st_mtime == 1_000_000
    with tarfile.open(archive) as files:
        entries = files.getmembers()
        assert [(entry.name, entry.mode, entry.mtime, entry.uname) for entry in entries] == [
            ("folder", 0o755, 1_000_000, ""),
            ("folder/file", 0o644, 1_000_000, ""),
        ]
        content = files.extractfile("folder/file")
        assert content is not None
        assert content.read() == b"text"


def test_the_bill_of_materials_lists_each_locked_package_and_is_valid(tmp_path: Path) -> None:
    components = list(sbom.locked(ROOT / "requirements" / "run-cpu.txt"))
    texts = []
    for name in ("one", "two"):
        sbom.write(tmp_path / name, subject="wheel", version="1.0.0", sha256="0" * 64, components=components)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(texts[0]) is None
    urls = {component.purl.to_string() for component in components if component.purl}
    assert any(url.startswith("pkg:pypi/onnxruntime@1.24") for url in urls)
    assert len(urls) == len(components) > 10


def test_the_bill_of_materials_of_an_image_lists_debian_and_python_packages(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    (tmp_path / "var" / "lib" / "dpkg").mkdir(parents=True)
    (tmp_path / "var" / "lib" / "dpkg" / "status").write_text(
        "Package: libc6\nStatus: install ok installed\nSource: glibc\nArchitecture: amd64\nVersion: 2.36-9\n\n"
        "Package: bsdutils\nStatus: install ok installed\nArchitecture: amd64\nSource: util-linux (2.38)\n"
        "Version: 1:2.38\n\n"
        "Package: dash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 0.5\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n"
    )
    package = tmp_path / "opt/spottmee-worker/lib/python3.11/site-packages/Thing-1.2.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: Thing\nVersion: 1.2\n")
    urls = [component.purl.to_string() for component in sbom.installed(tmp_path) if component.purl]
    assert urls == [
        "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12&upstream=glibc",
        "pkg:deb/debian/bsdutils@1:2.38?arch=amd64&distro=debian-12&upstream=util-linux%402.38",
        "pkg:deb/debian/dash@0.5?arch=amd64&distro=debian-12",
        "pkg:pypi/thing@1.2",
    ]


def test_the_provenance_names_commit_materials_and_every_artefact(tmp_path: Path) -> None:
    source = Source(URL, "1.0.0", "c" * 40, 0, ROOT, "")
    document = provenance.statement(
        source, {"wheel": "a" * 64, "image": f"sha256:{'b' * 64}"}, builder="here", base="debian"
    )
    assert document["subject"] == [
        {"name": "image", "digest": {"sha256": "b" * 64}},
        {"name": "wheel", "digest": {"sha256": "a" * 64}},
    ]
    materials = document["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert materials[0] == {"uri": f"git+{URL}", "digest": {"gitCommit": "c" * 40}}
    assert {item["uri"]: item["digest"]["sha256"] for item in materials[1:]}["file:Dockerfile"] == provenance.sha256(
        ROOT / "Dockerfile"
    )
