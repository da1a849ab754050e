"""The wire format: what is accepted, and that everything else is rejected with a message."""

from __future__ import annotations

import base64
import json
import time

import pytest

from runner.errors import InvalidJobError
from runner.worker.messages import decode_compare, decode_process, subject

SELFIE = base64.b64encode(b"\xff\xd8 a picture").decode()


def compare_payload(**changes: object) -> bytes:
    document = {"jobId": "j1", "storedIds": ["a", "b"], "selfie": SELFIE, "threshold": 0.5} | changes
    return json.dumps({key: value for key, value in document.items() if value != "absent"}).encode()


def process_payload(**changes: object) -> bytes:
    document = {"id": "p1", "imageUrl": "https://storage.example/a b#1?.jpg"} | changes
    return json.dumps({key: value for key, value in document.items() if value != "absent"}).encode()


def test_a_process_job_of_the_api_is_decoded() -> None:
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
def test_a_payload_without_a_valid_photo_id_is_rejected_without_a_subject(payload: bytes) -> None:
    with pytest.raises(InvalidJobError) as caught:
        decode_process(payload)
    assert caught.value.subject is None
    assert str(caught.value).startswith("The payload is not a valid job: ")


@pytest.mark.parametrize("url", ["absent", None, "", "  ", 5, ["https://h/x.jpg"], {}])
def test_an_invalid_url_is_rejected_with_the_photo_as_subject(url: object) -> None:
    with pytest.raises(InvalidJobError) as caught:
        decode_process(process_payload(imageUrl=url))
    assert caught.value.subject == "p1"


def test_a_compare_job_of_the_api_is_decoded() -> None:
    job = decode_compare(compare_payload())
    assert (job.job_id, job.stored_ids, job.threshold) == ("j1", ("a", "b"), 0.5)
    assert job.selfie == b"\xff\xd8 a picture"


@pytest.mark.parametrize(("threshold", "expected"), [("absent", 0.5), (None, 0.5), (-1, -1.0), (2, 2.0), (0, 0.0)])
def test_numeric_and_missing_thresholds_are_accepted(threshold: object, expected: float) -> None:
    assert decode_compare(compare_payload(threshold=threshold)).threshold == expected


@pytest.mark.parametrize("threshold", ["x", "0.5", True, [], {}, 10**400])
def test_thresholds_that_are_not_numbers_are_rejected(threshold: object) -> None:
    with pytest.raises(InvalidJobError, match="threshold"):
        decode_compare(compare_payload(threshold=threshold))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_nan_and_infinity_are_rejected(word: str) -> None:
    payload = compare_payload(threshold=0.5).replace(b'"threshold": 0.5', f'"threshold": {word}'.encode())
    with pytest.raises(InvalidJobError):
        decode_compare(payload)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("storedIds", "absent"), ("storedIds", None), ("storedIds", "a"), ("storedIds", {"a": 1}), ("storedIds", [1]),
        ("storedIds", [""]), ("storedIds", [None]), ("storedIds", ["a\0"]),
        ("selfie", "absent"), ("selfie", None), ("selfie", ""), ("selfie", 5), ("selfie", "a"), ("selfie", "ä"),
        ("selfie", "@@@@"), ("selfie", "===="), ("selfie", "data:image/jpeg;base64,"), ("selfie", "data:"),
        ("selfie", "data:image/svg+xml,%3Csvg%3E"), ("selfie", "AAAA=AAA"), ("selfie", "AA==AA=="), ("selfie", "AAAAA"),
        ("selfie", "AAA=="), ("selfie", "A==="), ("selfie", " \r\n\t"), ("selfie", "AAAA\0"), ("selfie", "AA\xa0AA"),
        ("selfie", [SELFIE]), ("selfie", {"data": SELFIE}), ("selfie", True), ("selfie", "\ud800"),
        ("storedIds", ["a", ["b"]]), ("storedIds", ["x" * 257]), ("storedIds", ["\ud800"]), ("storedIds", True),
    ],
)  # fmt: skip
def test_invalid_fields_are_rejected_with_the_comparison_as_subject(field: str, value: object) -> None:
    with pytest.raises(InvalidJobError, match=field) as caught:
        decode_compare(compare_payload(**{field: value}))
    assert caught.value.subject == "j1"


def test_duplicate_ids_are_removed_and_the_order_is_kept() -> None:
    assert decode_compare(compare_payload(storedIds=["b", "a", "b", "c", "a"])).stored_ids == ("b", "a", "c")


def test_empty_and_large_albums_are_accepted() -> None:
    assert decode_compare(compare_payload(storedIds=[])).stored_ids == ()
    many = [f"photo-{number}" for number in range(20_000)]
    assert decode_compare(compare_payload(storedIds=many)).stored_ids == tuple(many)


def test_selfies_with_a_data_prefix_or_line_breaks_are_decoded() -> None:
    wrapped = "data:image/jpeg;base64," + SELFIE[:4] + "\r\n" + SELFIE[4:]
    assert decode_compare(compare_payload(selfie=wrapped)).selfie == b"\xff\xd8 a picture"


@pytest.mark.parametrize("text", ["-_-_", "+/+/", "-_-_AA", "+/+/AA==", " +/\r\n+/\tAA =="])
def test_selfies_in_either_base64_alphabet_are_decoded_with_or_without_padding(text: str) -> None:
    assert decode_compare(compare_payload(selfie=text)).selfie[:3] == b"\xfb\xff\xbf"


def test_the_last_of_duplicate_keys_wins_as_in_the_api() -> None:
    job = decode_process(b'{"id": "first", "id": "last", "imageUrl": "http://h/x", "imageUrl": "http://h/y"}')
    assert (job.photo_id, job.image_url) == ("last", "http://h/y")
    with pytest.raises(InvalidJobError):
        decode_process(b'{"id": "first", "id": null, "imageUrl": "http://h/x"}')


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_utf_8_16_and_32_are_decoded(encoding: str) -> None:
    assert decode_process('{"id": "ü写🎉", "imageUrl": "http://h/x"}'.encode(encoding)).photo_id == "ü写🎉"


@pytest.mark.parametrize(
    "payload",
    [
        b'{"id": "\xff\xfe", "imageUrl": "http://h/x"}', b'{"id": "\xed\xa0\x80", "imageUrl": "http://h/x"}',
        b'{"id": "p1", "imageUrl": "http://h/x"', b'{"id": "p1", "imageUrl": "http://h/x"}}', b"{'id': 'p1'}",
        b'{"id": "p1", "imageUrl": "http://h/x",}', b'{"id": "a\nb", "imageUrl": "http://h/x"}', b"\0", b" ", b"{}",
        b'{"id": "p1", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"id":' * 100_000,
        b'{"id": ' + b"9" * 5000 + b"}",
        b'{"ID": "p1", "imageUrl": "http://h/x"}', '{"id": "p1"}'.encode("utf-16")[:-1], b"\xff\xfe{", b"\xef\xbb\xbf",
    ],
)  # fmt: skip
def test_payloads_that_are_not_json_objects_are_rejected(payload: bytes) -> None:
    with pytest.raises(InvalidJobError):
        decode_process(payload)
    with pytest.raises(InvalidJobError):
        decode_compare(payload)


def test_unknown_fields_are_ignored() -> None:
    extra = {"a": [None, True, 1e300, "x" * 100_000], "threshold": "x", "selfie": 5}
    assert decode_process(process_payload(**extra)).photo_id == "p1"


def test_a_large_album_is_decoded_quickly() -> None:
    many = [f"3f2504e0-4f89-41d3-9a0c-{number:012}" for number in range(20_000)]
    payload = compare_payload(storedIds=many, selfie=base64.b64encode(b"x" * 5_000_000).decode())
    began = time.process_time()
    assert len(decode_compare(payload).stored_ids) == 20_000
    assert time.process_time() - began < 0.5


def test_reprs_and_errors_contain_neither_selfie_nor_url() -> None:
    assert SELFIE not in repr(decode_compare(compare_payload()))
    assert "a picture" not in repr(decode_compare(compare_payload()))
    assert "storage.example" not in repr(decode_process(process_payload()))
    with pytest.raises(InvalidJobError) as caught:
        decode_compare(compare_payload(selfie="c2VjcmV0!"))
    assert "c2VjcmV0" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("field", "beginning", "expected"),
    [
        ("id", b'{"id": "p1", "imageUrl": "https://h/aaa', "p1"),
        ("id", b' { "imageUrl" : "https://h/a\\"id\\": \\"p2" , "id" : "p1"', "p1"),
        ("id", b'{"imageUrl": "https://h/aaaaaaaaa', None),
        ("id", b'{"x": {"id": "p2"}, "y": [1, "id"], "id": "p1"', "p1"),
        ("jobId", b'{"jobId": "j1", "storedIds": ["a", "b', "j1"),
        ("jobId", b'{"jobId": "j1', None),
        ("jobId", b'{"id": "p1", "storedIds": ["a', None),
        ("jobId", b'{"jobId": 5, "selfie": "', None),
        ("jobId", b'{"jobId": "", "selfie": "', None),
        ("jobId", b'{"jobId" "j1"}', None),
        ("jobId", b'{"storedIds": [,], "jobId": "j1"}', "j1"),
        ("jobId", b'{"storedIds": [,], "jobId": "j1", "jobId": "j2"}', None),
        ("jobId", b'{"storedIds": [,"\\"jobId\\": \\"j2\\""], "x": 1}', None),
        ("jobId", b'{"x": NaN, "jobId": "j\\u00e91"}', "jé1"),
        ("jobId", b'{"x": ' + b'"jobId":' * 100_000, None),
        ("jobId", b'{"x": {"jobId": "j1"}}', None),
        ("jobId", b"[" * 100_000, None),
        ("jobId", b'{"a": ' + b"[" * 100_000, None),
        ("jobId", b"\xff\x00", None),
        ("jobId", b"", None),
    ],
)
def test_the_subject_is_read_from_the_start_of_a_payload(field: str, beginning: bytes, expected: str | None) -> None:
    assert subject(field, beginning) == expected
