"""Files that a command writes."""

from __future__ import annotations

import os
from pathlib import Path

from runner.errors import SettingsError


def write_private(path: Path, data: bytes, flag: str) -> None:
    """Write a file that shows people, readable only by its owner. Raises `SettingsError`, which names the `flag`."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123 - a mode
            os.fchmod(file.fileno(), 0o600)  # an existing file would keep its mode
            file.write(data)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({flag}): {error.strerror}") from None


def write(path: Path, data: bytes, flag: str) -> None:
    """Write a file. Raises `SettingsError`, which names the `flag`."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({flag}): {error.strerror}") from None


def check_writable(path: Path, flag: str) -> None:
    """Raise `SettingsError` if a file obviously cannot be written, before the work for it starts."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        why = "it is a folder" if path.is_dir() else "there is no such folder, or it is read-only"
        raise SettingsError(f"{path} cannot be written ({flag}): {why}")
