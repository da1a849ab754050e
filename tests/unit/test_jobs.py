"""Payloads from the wire: what is accepted, and that everything else is refused with a sentence."""

from __future__ import annotations

import base64
import json

import pytest

from runner.errors import InvalidJobError
from runner.jobs import decode_compare, decode_process

SELFIE = base64.b64encode(b"\xff\xd8 a picture").decode()


def compare_payload(**changes: object) -> bytes:
    document = {"jobId": "j1", "storedIds": ["a", "b"], "selfie": SELFIE, "threshold": 0.5} | changes
    return json.dumps({key: value for key, value in document.items() if value != "absent"}).encode()


def process_payload(**changes: object) -> bytes:
    document = {"id": "p1", "imageUrl": "https://storage.example/a b#1?.jpg"} | changes
    return json.dumps({key: value for key, value in document.items() if value != "absent"}).encode()


def test_process_job_as_the_api_sends_it() -> None:
    job = decode_process(process_payload())
    assert (job.photo_id, job.image_url) == ("p1", "https://storage.example/a b#1?.jpg")


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"nonsense", b"\xff\xfe", b"[]", b"null", b'"text"', b"1", b"NaN", b"[" * 100_000, b"9" * 5000,
        process_payload(id="absent"), process_payload(id=None), process_payload(id=""), process_payload(id=7),
        process_payload(id=["p1"]), process_payload(id="p\0"), process_payload(id="x" * 257),
        b'{"id": "\\ud800", "imageUrl": "https://h/x.jpg"}',
    ],
)  # fmt: skip
def test_payloads_without_a_usable_photo_id(payload: bytes) -> None:
    with pytest.raises(InvalidJobError) as caught:
        decode_process(payload)
    assert caught.value.subject is None
    assert str(caught.value).startswith("The payload is no valid job: ")


@pytest.mark.parametrize("url", ["absent", None, "", "  ", 5, ["https://h/x.jpg"], {}])
def test_a_bad_url_still_names_the_photo(url: object) -> None:
    with pytest.raises(InvalidJobError) as caught:
        decode_process(process_payload(imageUrl=url))
    assert caught.value.subject == "p1"


def test_compare_job_as_the_api_sends_it() -> None:
    job = decode_compare(compare_payload())
    assert (job.job_id, job.stored_ids, job.threshold) == ("j1", ("a", "b"), 0.5)
    assert job.selfie == b"\xff\xd8 a picture"


@pytest.mark.parametrize(("threshold", "expected"), [("absent", 0.5), (None, 0.5), (-1, -1.0), (2, 2.0), (0, 0.0)])
def test_thresholds_that_are_numbers_or_missing(threshold: object, expected: float) -> None:
    assert decode_compare(compare_payload(threshold=threshold)).threshold == expected


@pytest.mark.parametrize("threshold", ["x", "0.5", True, [], {}, 10**400])
def test_thresholds_that_are_no_numbers(threshold: object) -> None:
    with pytest.raises(InvalidJobError, match="threshold"):
        decode_compare(compare_payload(threshold=threshold))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_thresholds_that_json_has_not(word: str) -> None:
    payload = compare_payload(threshold=0.5).replace(b'"threshold": 0.5', f'"threshold": {word}'.encode())
    with pytest.raises(InvalidJobError):
        decode_compare(payload)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("storedIds", "absent"), ("storedIds", None), ("storedIds", "a"), ("storedIds", {"a": 1}), ("storedIds", [1]),
        ("storedIds", [""]), ("storedIds", [None]), ("storedIds", ["a\0"]),
        ("selfie", "absent"), ("selfie", None), ("selfie", ""), ("selfie", 5), ("selfie", "a"), ("selfie", "ä"),
        ("selfie", "@@@@"), ("selfie", "===="), ("selfie", "data:image/jpeg;base64,"),
    ],
)  # fmt: skip
def test_other_bad_fields_still_name_the_comparison(field: str, value: object) -> None:
    with pytest.raises(InvalidJobError, match=field) as caught:
        decode_compare(compare_payload(**{field: value}))
    assert caught.value.subject == "j1"


def test_repeated_ids_count_once_and_keep_their_order() -> None:
    assert decode_compare(compare_payload(storedIds=["b", "a", "b", "c", "a"])).stored_ids == ("b", "a", "c")


def test_an_album_may_be_empty_or_large() -> None:
    assert decode_compare(compare_payload(storedIds=[])).stored_ids == ()
    many = [f"photo-{number}" for number in range(20_000)]
    assert decode_compare(compare_payload(storedIds=many)).stored_ids == tuple(many)


def test_a_selfie_may_be_a_data_url_or_hold_line_breaks() -> None:
    wrapped = "data:image/jpeg;base64," + SELFIE[:4] + "\r\n" + SELFIE[4:]
    assert decode_compare(compare_payload(selfie=wrapped)).selfie == b"\xff\xd8 a picture"


def test_neither_selfie_nor_url_shows_in_a_repr_or_error() -> None:
    assert SELFIE not in repr(decode_compare(compare_payload()))
    assert "a picture" not in repr(decode_compare(compare_payload()))
    assert "storage.example" not in repr(decode_process(process_payload()))
    with pytest.raises(InvalidJobError) as caught:
        decode_compare(compare_payload(selfie="c2VjcmV0!"))
    assert "c2VjcmV0" not in str(caught.value) + repr(caught.value)
