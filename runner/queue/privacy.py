"""Detection of payloads that may hold a selfie, in any list."""

from __future__ import annotations

import json
import re

# A selfie is kept no longer than the result that it was sent for: 3600 s from the answer on, and a job is dead-lettered
# within a minute of it.
SELFIE_SECONDS = 3540
# A URL has 8,192 characters at most (`images/urls.py`), of up to 6 bytes each in JSON.
_LARGEST_PHOTO_JOB = 64 * 2**10
_SELFIE = re.compile(rb"selfie", re.IGNORECASE)
_LONGEST_ID = 256


def may_hold_selfie(payload: bytes) -> bool:
    """Return whether a payload has the field of a selfie, even in malformed JSON, or is too large for a photo's job."""
    if len(payload) > _LARGEST_PHOTO_JOB:
        return True
    try:
        # Objects become tuples of all their fields: a dictionary would lose all but the last of the same name.
        document = json.loads(payload, object_pairs_hook=tuple)
        if isinstance(document, tuple):
            document = [(name, _revealing(name, value)) for name, value in document]
        return "selfie" in json.dumps(document, ensure_ascii=False).lower()
    except (ValueError, RecursionError):
        return _SELFIE.search(payload) is not None or b"\\u" in payload


def _revealing(name: str, value: object) -> object:
    """Return `value` without the names in a photo's job: its id, and the path of its URL."""
    if name == "id" and isinstance(value, str) and len(value) <= _LONGEST_ID:
        return None
    if name == "imageUrl" and isinstance(value, str) and value.startswith(("http://", "https://")):
        return value.partition("?")[2]
    return value
