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


def may_hold_selfie(payload: bytes) -> bool:
    """Return whether a payload has the field of a selfie, even in malformed JSON, or is too large for a photo's job."""
    if len(payload) > _LARGEST_PHOTO_JOB or _SELFIE.search(payload):
        return True
    if b"\\u" not in payload:
        return False
    try:
        return "selfie" in json.dumps(json.loads(payload), ensure_ascii=False).lower()
    except (ValueError, RecursionError):
        return True
