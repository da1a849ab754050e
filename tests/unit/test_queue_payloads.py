"""Payloads as shown to people: without selfies and credentials."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.redact import shown
from runner.queue.privacy import may_hold_selfie

SELFIE = base64.b64encode(random.Random(1).randbytes(3000)).decode()


def test_a_comparison_is_shown_without_its_selfie() -> None:
    ids = [f"photo-{number}" for number in range(2345)]
    document = shown(json.dumps({"jobId": "j", "storedIds": ids, "selfie": SELFIE, "threshold": 0.5}).encode())
    assert document == {
        "jobId": "j",
        "storedIds": [*ids[:10], "… 2345 in all"],
        "selfie": "(4000 characters, not shown)",
        "threshold": 0.5,
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h/albums/a b.jpg", "https://h/albums/a b.jpg"),
        ("https://u:hunter2@h/a.jpg", "https://h/a.jpg (more, not shown)"),
        ("https://h/a.jpg?X-Goog-Signature=hunter2", "https://h/a.jpg (more, not shown)"),
        ("https://h/a.jpg#hunter2", "https://h/a.jpg (more, not shown)"),
        (" HTTPS://u:hunter2@h/a", "https://h/a (more, not shown)"),
        ("http://[hunter2", "(a URL of 15 characters that cannot be parsed)"),
        ("data:image/jpeg;base64,hunter2", "(30 characters)"),
    ],
)
def test_urls_are_shown_without_user_and_query(url: str, expected: str) -> None:
    assert shown(json.dumps({"imageUrl": url, "id": "p"}).encode()) == {"imageUrl": expected.strip(), "id": "p"}


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps({"selfie": SELFIE}).encode()[:-5],
        json.dumps([SELFIE]).encode(),
        json.dumps(SELFIE).encode(),
        SELFIE.encode(),
        b"\xff" + SELFIE.encode(),
        b"[" * 100_000,
        b"",
        b"1" * 5000,
    ],
)
def test_a_payload_that_is_not_an_object_is_shown_as_size_and_hash(payload: bytes) -> None:
    document = shown(payload)
    assert set(document) == {"unreadable", "sha256"}
    assert str(len(payload)) in document["unreadable"]


@pytest.mark.parametrize(
    "document",
    [
        {"Selfie": SELFIE},
        {"selfie": [SELFIE[:200], SELFIE[200:400]]},
        {"selfie": {"data": SELFIE[:200]}},
        {"job": {"mySelfie": SELFIE[:100]}},
        {"jobId": SELFIE},
        {"storedIds": [SELFIE]},
        {SELFIE: 1},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": SELFIE[:100]}}}}}}},
    ],
)
def test_a_selfie_is_hidden_in_every_position(document: dict[str, Any]) -> None:
    payload = json.dumps(document).encode()
    assert SELFIE[20:60] not in json.dumps(shown(payload))
    assert SELFIE[220:260] not in json.dumps(shown(payload))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_payload_is_shown_as_json_of_bounded_size(payload: bytes) -> None:
    text = json.dumps(shown(payload), allow_nan=False)
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"imageUrl": "https://h/a", "id": "p"}', False),
        (b'{"selfie": "', True),
        (b'{"sElFiE": 1}', True),
        (b'{"\\u0073elfie": 1}', True),
        (b'{"imageUrl": "https://h/selfie_1.jpg", "id": "selfie_1"}', False),
        (b'{"imageUrl": "https://h/\\u0073elfie_1.jpg", "id": "p", "size": 3}', False),
        (b'{"imageUrl": "https://h/selfie_1.jpg", "id": "p"', True),
        (b'["https://h/selfie_1.jpg"]', True),
        (b'{"imageUrl": "https://h/selfie_1.jpg?selfie=AAAA", "id": "p"}', True),
        (b'{"imageUrl": "https://h/a", "id": "' + b"a" * 256 + b'selfie"}', True),
        (b'{"imageUrl": "https://h/a", "id": "p", "mySelfie": ""}', True),
        (b'{"imageUrl": "https://h/a", "id": "p", "job": [{"selfie": ""}]}', True),
        (b'{"imageUrl": {"selfie": ""}, "imageUrl": "https://h/a", "id": "p"}', True),
        (b'{"imageUrl": "https://h/a", "id": "p", "job": "{\\"selfie\\": 1}"}', True),
        (b'{"imageUrl": "data:image/png;name=selfie;base64,AAAA", "id": "p"}', True),
        ('{"imageUrl": "https://h/a", "selfie": ""}'.encode("utf-16"), True),
    ],
)
def test_payloads_that_may_hold_a_selfie_are_detected(payload: bytes, expected: bool) -> None:
    assert may_hold_selfie(payload) is expected
