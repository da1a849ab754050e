"""What a release is made from: one commit, exported, with the version written into it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.binaries import ROOT

CHART = Path("helm", "spottmee-worker")
# Versions that semantic versioning (the chart), PEP 440 (the wheel) and container tags all allow.
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-(alpha|beta|rc)\.(0|[1-9]\d*))?")
_UNRELEASED = "Unreleased"


class ReleaseError(Exception):
    """The release cannot be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """An exported commit: its files are in `folder`, `date` is the commit's in seconds since 1970.

    `url` is where the project's repository is published.
    """

    url: str
    version: str
    commit: str
    date: int
    folder: Path
    notes: str


def export(version: str, url: str, folder: Path, *, final: bool, repository: Path = ROOT) -> Source:
    """Export the commit that is checked out into `folder`, with `version` written into package and chart.

    `final` enforces what a published release needs: a clean checkout whose package and changelog have that version.
    Raises `ReleaseError`.
    """
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"VERSION is {version!r}, which is not a version such as 0.2.0 or 0.2.0-rc.1")
    commit, date = _git(repository, "log", "-1", "--format=%H %ct").split()
    if final and _git(repository, "status", "--porcelain"):
        raise ReleaseError("the checkout has uncommitted changes: commit or stash them first")
    folder.mkdir(parents=True, exist_ok=True)
    # Fixed modes, whatever the umask. tarfile's own filter for them needs Python 3.11.4, and Debian 12 has 3.11.2.
    archive = subprocess.run(
        ["git", "-c", "tar.umask=022", "archive", commit], cwd=repository, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "--extract", "--preserve-permissions", f"--directory={folder}"], input=archive, check=True)
    module = folder / "runner" / "__init__.py"
    if final and f'__version__ = "{version}"' not in module.read_text():
        raise ReleaseError(f"runner/__init__.py has another version than {version}: change it, and commit")
    _substitute(module, r'__version__ = ".*"', f'__version__ = "{version}"')
    _substitute(folder / CHART / "Chart.yaml", r"(?m)^version: .*$", f"version: {version}")
    _substitute(folder / CHART / "Chart.yaml", r"(?m)^appVersion: .*$", f'appVersion: "{version}"')
    notes = release_notes((folder / "CHANGELOG.md").read_text(), version, final=final)
    return Source(url, version, commit, int(date), folder, notes)


def release_notes(changelog: str, version: str, *, final: bool) -> str:
    """Return the changelog's section of `version`; a rehearsal falls back to the section of unreleased changes.

    Raises `ReleaseError` if there is no such section.
    """
    sections = dict(re.findall(r"(?ms)^## \[([^\]]+)\][^\n]*\n(.*?)(?=^## \[|^\[[^\]]+\]: |\Z)", changelog))
    notes = sections.get(version) or ("" if final else sections.get(_UNRELEASED, ""))
    if not notes.strip():
        raise ReleaseError(f"CHANGELOG.md has no section [{version}]: rename [{_UNRELEASED}], with today's date")
    return f"{notes.strip()}\n"


def _substitute(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    if count != 1:
        raise ReleaseError(f"{path.name} has {count} lines that match {pattern}, not one: the version has moved")
    path.write_text(text)


def _git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()
