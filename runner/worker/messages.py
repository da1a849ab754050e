"""Decodes and validates the wire format of both kinds of job (docs/reference/contract.md).

Decoding only ever raises `InvalidJobError`. Its message names the field and never repeats the value, because payloads
contain selfies.
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Any, NamedTuple, NoReturn

from runner.errors import InvalidJobError
from runner.output import is_utf8

DEFAULT_THRESHOLD = 0.5
MAX_ID_LENGTH = 256
# Compiled only for a payload that is not valid JSON.
_FIELD = r'\s*[{,]\s*(?=")'
_END = r"\s*}\s*$"
_COLON = r"\s*:\s*"
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


class ProcessJob(NamedTuple):
    """Detect and embed the faces of one photo."""

    photo_id: str
    image_url: str  # may carry a signature in its query

    def __repr__(self) -> str:
        return f"ProcessJob({self.photo_id!r})"


class CompareJob(NamedTuple):
    """Find the photos that show the person of a selfie.

    `stored_ids` keeps the order of the album, without duplicates. A match has a cosine
    similarity strictly above `threshold`.
    """

    job_id: str
    stored_ids: tuple[str, ...]
    selfie: bytes
    threshold: float

    def __repr__(self) -> str:
        return f"CompareJob({self.job_id!r})"


def decode_process(payload: bytes) -> ProcessJob:
    """Return the process job that `payload` holds, or raise `InvalidJobError`."""
    document = _object(payload)
    photo_id = _identifier(document, "id", subject=None)
    url = document.get("imageUrl")
    if not isinstance(url, str) or not url.strip():
        _reject("imageUrl must be a non-empty string", subject=photo_id)
    return ProcessJob(photo_id=photo_id, image_url=url)


def decode_compare(payload: bytes) -> CompareJob:
    """Return the compare job that `payload` holds, or raise `InvalidJobError`."""
    document = _object(payload)
    job_id = _identifier(document, "jobId", subject=None)
    return CompareJob(
        job_id=job_id,
        stored_ids=_stored_ids(document.get("storedIds"), job_id),
        selfie=_selfie(document.get("selfie"), job_id),
        threshold=_threshold(document.get("threshold"), job_id),
    )


def subject(name: str, beginning: bytes) -> str | None:
    """Return the id in the field `name` from a payload that is truncated or not valid JSON, or None if it has none.

    After a syntax error, the field is recognised if it occurs once.
    """
    text, place, decoder = beginning.decode(errors="replace"), 0, json.JSONDecoder()
    try:
        while opening := re.compile(_FIELD).match(text, place):
            key, place = decoder.raw_decode(text, opening.end())
            colon = re.compile(_COLON).match(text, place)
            if colon is None:
                break
            value, place = decoder.raw_decode(text, colon.end())
            if key == name:
                return _identifier({name: value}, name, subject=None)
    except InvalidJobError:
        return None
    except (ValueError, RecursionError):
        pass
    return None if re.compile(_END).match(text, place) else _subject_behind_error(name, text)


def _subject_behind_error(name: str, text: str) -> str | None:
    found = re.findall(rf'(?<!\\)"{name}"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.){{1,{6 * MAX_ID_LENGTH}}}")', text)
    if len(found) != 1:
        return None
    try:
        return _identifier({name: json.loads(found[0])}, name, subject=None)
    except (ValueError, InvalidJobError):
        return None


def fields(payload: bytes) -> dict[str, Any]:
    """Return the fields of a complete payload, none if it is not a JSON object. Nothing is validated."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def check_identifier(value: str) -> None:
    """Raise `InvalidJobError` unless `value` can be the id of a photo or of a comparison."""
    _identifier({"the id": value}, "the id", subject=None)


def _object(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        kind = "nested too deeply" if isinstance(error, RecursionError) else "not valid JSON"
        raise InvalidJobError(f"the payload is {kind}") from None
    if not isinstance(document, dict):
        raise InvalidJobError("the payload is JSON, but not an object")
    return document


def _no_constant(_name: str) -> NoReturn:
    raise ValueError


def _reject(message: str, *, subject: str | None) -> NoReturn:
    raise InvalidJobError(message, subject=subject)


def _identifier(document: dict[str, Any], name: str, *, subject: str | None) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        _reject(f"{name} must be a non-empty string", subject=subject)
    _check_identifier(value, name, subject=subject)
    return value


def _check_identifier(value: str, name: str, *, subject: str | None) -> None:
    if len(value) > MAX_ID_LENGTH:
        _reject(f"{name} is longer than {MAX_ID_LENGTH} characters", subject=subject)
    # PostgreSQL cannot store NUL, and UTF-8 cannot encode lone surrogates.
    if "\0" in value or not is_utf8(value):
        _reject(f"{name} contains a character that is not valid in an id", subject=subject)


def _stored_ids(value: object, job_id: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        _reject("storedIds must be a list of strings", subject=job_id)
    for identifier in value:
        if not isinstance(identifier, str) or not identifier:
            _reject("storedIds must contain only non-empty strings", subject=job_id)
        _check_identifier(identifier, "an id of storedIds", subject=job_id)
    return tuple(dict.fromkeys(value))


def _selfie(value: object, job_id: str) -> bytes:
    """Return the bytes of a selfie: base64 in either alphabet (RFC 4648), padded or not, as Node reads it."""
    if not isinstance(value, str) or not value:
        _reject("selfie must be a non-empty string of base64", subject=job_id)
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        digits = encoded.encode("ascii").translate(_STANDARD_ALPHABET, delete=b" \t\r\n")
        if len(digits) % 4 and not digits.endswith(b"="):
            digits += b"=" * (-len(digits) % 4)
        selfie = base64.b64decode(digits, validate=True)
    except ValueError:  # includes binascii.Error and UnicodeEncodeError
        _reject("selfie is not valid base64", subject=job_id)
    if not selfie:
        _reject("selfie is empty", subject=job_id)
    return selfie


def _threshold(value: object, job_id: str) -> float:
    if value is None:
        return DEFAULT_THRESHOLD
    # bool is a subclass of int in Python, but not a number in JSON.
    if isinstance(value, bool) or not isinstance(value, int | float):
        _reject("threshold must be a number or null", subject=job_id)
    try:
        threshold = float(value)
    except OverflowError:
        threshold = math.inf
    if not math.isfinite(threshold):
        _reject("threshold must be a finite number", subject=job_id)
    return threshold
