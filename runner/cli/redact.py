"""Redacts payloads for display: no selfie, no credentials or signature of a URL, no long text."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_LONGEST_TEXT = 300
_MOST_ITEMS = 10
_DEEPEST = 6
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
_QUERY = re.compile(r"[?#]")


def shown(payload: bytes) -> Any:
    """Return the JSON object in `payload`, with secret and long values replaced by their length.

    For a payload that is not a JSON object, and may be a damaged selfie, return its size and SHA-256 only.
    """
    try:
        document = json.loads(payload, parse_constant=str)  # NaN and Infinity are not valid JSON output
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return {"unreadable": f"{len(payload)} bytes, not a JSON object", "sha256": _sha256(payload)}
    return _shown(document, "", 0)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shown(value: Any, name: str, depth: int) -> Any:
    if depth > _DEEPEST:
        return "…"
    if "selfie" in name.lower():
        return f"({len(value)} characters, not shown)" if isinstance(value, str) else "(not shown)"
    if isinstance(value, dict):
        found = {_text(str(key)): _shown(part, str(key), depth + 1) for key, part in list(value.items())[:_MOST_ITEMS]}
        return found | ({"…": f"{len(value)} fields in all"} if len(value) > _MOST_ITEMS else {})
    if isinstance(value, list):
        kept = [_shown(part, "", depth + 1) for part in value[:_MOST_ITEMS]]
        return [*kept, f"… {len(value)} in all"] if len(value) > _MOST_ITEMS else kept
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return _text(value, is_url="url" in name.lower()) if isinstance(value, str) else value


def _text(text: str, *, is_url: bool = False) -> str:
    # A URL without a scheme, for which its job was dead-lettered, still has its signature.
    text = _url(text) if is_url or _URL.match(text) else text
    # A data: URL or a long text may be an image, whatever its name.
    return text if len(text) <= _LONGEST_TEXT and not text.startswith("data:") else f"({len(text)} characters)"


def _url(url: str) -> str:
    """Return `url`, even if malformed, without user, password, query and fragment, which may contain a signature."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"(a URL of {len(url)} characters that cannot be parsed)"
    if not parts.netloc:
        plain = _QUERY.split(url, maxsplit=1)[0].rpartition("@")[2]
        return plain if plain == url else f"{plain} (more, not shown)"
    secret = "@" in parts.netloc or parts.query or parts.fragment
    plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return f"{plain} (more, not shown)" if secret else plain
