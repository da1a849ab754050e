"""Invalid input gives the state of the contract, one clear log line, and does not harm other jobs."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import pytest

from demo.album import PEOPLE, jpeg, png, portrait
from runner.bake.samples import sample_images
from tests.support.odd_server import OddServer

if TYPE_CHECKING:
    from tests.support.run_tools import Service

PROCESS, COMPARE = "face_embeddings:process", "face_embeddings:compare"
QUICK = {
    "RUNNER_FETCH_READ_TIMEOUT_SECONDS": "0.8",
    "RUNNER_FETCH_TIMEOUT_SECONDS": "4",
    "RUNNER_MAX_IMAGE_BYTES": "2000000",
}


def _portrait(person: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    source, box = PEOPLE[person]
    return portrait(sample_images()[source], box)


def _palette_png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return a PNG with a palette of 256 greys, which OpenCV cannot write."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    height, width = grey.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    colours = bytes(value for value in range(256) for _ in range(3))
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", colours)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _oriented(image: np.ndarray[Any, np.dtype[np.uint8]], orientation: int) -> bytes:
    """Return a JPEG whose EXIF orientation undoes how its pixels are stored."""
    stored = {
        1: image,
        2: cv2.flip(image, 1),
        3: cv2.rotate(image, cv2.ROTATE_180),
        4: cv2.flip(image, 0),
        5: cv2.transpose(image),
        6: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
        7: cv2.flip(cv2.transpose(image), -1),
        8: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    }[orientation]
    return jpeg(np.asarray(stored, np.uint8), orientation=orientation)


class Case(NamedTuple):
    """A photo as it is served, its expected status, and the reason in the log (None: it is not a failure)."""

    path: str
    status: str
    code: str | None


SERVED = [
    Case("status/404", "FAILED", "image_missing"),
    Case("status/403", "FAILED", "image_missing"),
    Case("status/500", "FAILED", "fetch_failed"),
    Case("status/503", "FAILED", "fetch_failed"),
    Case("hang", "FAILED", "fetch_timeout"),
    Case("loop", "FAILED", "url_forbidden"),
    Case("redirect/ada.jpg", "READY", None),
    Case("page.html", "FAILED", "image_format_unsupported"),
    Case("nothing", "FAILED", "image_undecodable"),
    Case("endless", "FAILED", "image_too_many_bytes"),
    Case("truncated.jpg", "FAILED", "image_undecodable"),
    Case("alpha.png", "READY", None),
    Case("deep.png", "READY", None),
    Case("grey.png", "READY", None),
    Case("palette.png", "READY", None),
    Case("ada.webp", "READY", None),
    Case("drawing.svg", "FAILED", "image_format_unsupported"),
    Case("one pixel.png", "NO_FACES_FOUND", None),
    *(Case(f"orientation {n}.jpg", "READY", None) for n in range(1, 9)),
]


@pytest.fixture(scope="module")
def server() -> Iterator[OddServer]:
    ada = _portrait("Ada")
    whole = jpeg(ada)
    files = {
        "ada.jpg": whole,
        "page.html": b"<!doctype html><html><body>Sign in</body></html>",
        "truncated.jpg": whole[: len(whole) // 2],
        "alpha.png": png(np.dstack([ada, np.full(ada.shape[:2], 90, np.uint8)])),
        "deep.png": png(ada.astype(np.uint16) * 257),
        "grey.png": png(cv2.cvtColor(ada, cv2.COLOR_BGR2GRAY)),
        "palette.png": _palette_png(ada),
        "ada.webp": cv2.imencode(".webp", ada, [cv2.IMWRITE_WEBP_QUALITY, 90])[1].tobytes(),
        "drawing.svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "one pixel.png": png(np.full((1, 1, 3), 200, np.uint8)),
        **{f"orientation {n}.jpg": _oriented(ada, n) for n in range(1, 9)},
    }
    with OddServer(files) as found:
        yield found


def test_each_way_to_serve_a_photo_leads_to_its_status(service: Service, server: OddServer) -> None:
    photos = service.api.upload({case.path: server.url(case.path) for case in SERVED})
    service.run(**QUICK)
    statuses = service.api.statuses()
    assert {case.path: statuses[photos[case.path]] for case in SERVED} == {c.path: c.status for c in SERVED}
    for case in SERVED:
        assert service.faces(photos[case.path]) == (case.status == "READY"), case.path
    assert service.leftovers() == {"process dead": sum(case.status == "FAILED" for case in SERVED)}


def test_each_failure_is_logged_in_one_line_with_its_reason(service: Service, server: OddServer) -> None:
    failing = [case for case in SERVED if case.code]
    photos = service.api.upload({case.path: server.url(case.path) for case in failing})
    ended = service.run(**QUICK)
    for case in failing:
        lines = ended.lines(photo=photos[case.path], outcome="dead_lettered")
        assert [line["error"]["code"] for line in lines] == [case.code], case.path
        assert lines[0]["level"] == "warning"
    assert ended.summary["dead_lettered"] == len(failing)


INVALID_PROCESS: dict[str, bytes] = {
    "malformed": b'{"imageUrl": "http://x/',
    "not UTF-8": b'{"id": "\xff\xfe"}',
    "empty": b"",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "no fields": b"{}",
    "null id": b'{"id": null, "imageUrl": "http://x/1.jpg"}',
    "empty id": b'{"id": "", "imageUrl": "http://x/1.jpg"}',
    "numeric id": b'{"id": 5, "imageUrl": "http://x/1.jpg"}',
    "deep nesting": b"[" * 100_000,
}
# These name a photo, so it is known which one failed.
INVALID_URLS: dict[str, object] = {"missing": ..., "null": None, "empty": "", "a list": [], "blank": "  "}


def test_invalid_process_payloads_are_dead_lettered_byte_for_byte(service: Service) -> None:
    for payload in INVALID_PROCESS.values():
        service.redis.rpush(PROCESS, payload)
    ended = service.run("--queues", "process")
    kept = {service.redis.get(key) for key in service.redis.keys(f"{{{PROCESS}}}:dead:payload:*")}
    assert kept == set(INVALID_PROCESS.values())
    assert ended.summary["dead_lettered"] == ended.summary["claimed"] == len(INVALID_PROCESS)
    assert len(ended.lines(code="invalid_job")) == len(INVALID_PROCESS)
    assert service.leftovers() == {"process dead": len(INVALID_PROCESS)}


def test_a_photo_whose_job_has_no_usable_url_fails(service: Service) -> None:
    for photo_id in INVALID_URLS:
        service.connection.execute('INSERT INTO "Photo" (id) VALUES (%s)', (photo_id,))
    for photo_id, url in INVALID_URLS.items():
        job = {"id": photo_id} | ({} if url is ... else {"imageUrl": url})
        service.redis.rpush(PROCESS, json.dumps(job))
    service.run("--queues", "process")
    assert service.api.statuses() == dict.fromkeys(INVALID_URLS, "FAILED")


def test_a_malformed_job_is_dead_lettered_even_if_its_photo_is_deleted(service: Service) -> None:
    service.redis.rpush(PROCESS, json.dumps({"id": "deleted"}))
    ended = service.run("--queues", "process")
    assert (ended.summary["dead_lettered"], ended.summary["photo_gone"]) == (1, 0)
    assert service.leftovers() == {"process dead": 1}


def test_an_unknown_photo_stores_nothing_and_is_not_dead_lettered(service: Service, server: OddServer) -> None:
    service.api.upload({"known": server.url("one pixel.png")})
    service.redis.rpush(PROCESS, json.dumps({"id": "deleted", "imageUrl": server.url("ada.jpg")}))
    before = len(server.requests)
    ended = service.run(RUNNER_CLAIM_SIZE="1")  # only the jobs of the first claim are prefetched
    assert [(line["level"], line["outcome"], line["error"]["code"]) for line in ended.lines(photo="deleted")] == [
        ("warning", "photo_gone", "photo_gone")
    ]
    assert {name: ended.summary[name] for name in ("claimed", "succeeded", "photo_gone", "photos")} == {
        "claimed": 2, "succeeded": 1, "photo_gone": 1, "photos": 1,
    }  # fmt: skip
    assert service.faces("deleted") == 0
    assert server.requests[before:] == ["/one pixel.png"]  # nothing is fetched for deleted photos
    assert service.leftovers() == {}


def test_a_prefetched_image_of_a_deleted_photo_is_not_stored(service: Service, server: OddServer) -> None:
    for name in ("ada.jpg", "status/500", "status/404"):
        service.redis.rpush(PROCESS, json.dumps({"id": f"deleted {name}", "imageUrl": server.url(name)}))
    service.api.upload({"known": server.url("one pixel.png")})
    ended = service.run()
    assert {name: ended.summary[name] for name in ("succeeded", "photo_gone", "dead_lettered", "photos", "faces")} == {
        "succeeded": 1, "photo_gone": 3, "dead_lettered": 0, "photos": 1, "faces": 0,
    }  # fmt: skip
    assert service.faces("deleted ada.jpg") == 0
    assert service.leftovers() == {}


def test_jobs_after_bad_ones_are_not_affected(service: Service, server: OddServer) -> None:
    for payload in INVALID_PROCESS.values():
        service.redis.rpush(PROCESS, payload)
    photos = service.api.upload({"ada.jpg": server.url("ada.jpg")})
    ended = service.run("--max-jobs", str(len(INVALID_PROCESS) + 1))
    assert service.status(photos["ada.jpg"]) == "READY"
    assert ended.summary["claimed"] == len(INVALID_PROCESS) + 1


# Comparisons


def _selfie(person: str = "Ada") -> str:
    return base64.b64encode(jpeg(_portrait(person))).decode()


def _compare(service: Service, job: dict[str, Any]) -> None:
    service.redis.rpush(COMPARE, json.dumps(job))
    service.redis.set(f"match-result:{job['jobId']}", "INITIATED")


BAD_COMPARISONS: dict[str, tuple[dict[str, Any], str]] = {
    "no stored ids": ({"storedIds": ...}, "invalid_job"),
    "null stored ids": ({"storedIds": None}, "invalid_job"),
    "text stored ids": ({"storedIds": "photo"}, "invalid_job"),
    "mixed stored ids": ({"storedIds": ["a", 5]}, "invalid_job"),
    "an empty stored id": ({"storedIds": ["a", ""]}, "invalid_job"),
    "no selfie": ({"selfie": ...}, "invalid_job"),
    "empty selfie": ({"selfie": ""}, "invalid_job"),
    "numeric selfie": ({"selfie": 5}, "invalid_job"),
    "bad base64": ({"selfie": "@@@@"}, "invalid_job"),
    "no image": ({"selfie": base64.b64encode(b"hello there, no image").decode()}, "image_undecodable"),
    "a web page": ({"selfie": base64.b64encode(b"<html></html>").decode()}, "image_format_unsupported"),
    "no face": ({"selfie": base64.b64encode(png(np.zeros((80, 80, 3), np.uint8))).decode()}, "no_face_in_selfie"),
    "threshold text": ({"threshold": "x"}, "invalid_job"),
    "threshold list": ({"threshold": [0.5]}, "invalid_job"),
    "threshold true": ({"threshold": True}, "invalid_job"),
}


def test_every_failed_comparison_is_an_empty_array_with_a_reason_in_its_detail(service: Service) -> None:
    for name, (changes, _) in BAD_COMPARISONS.items():
        job = {"jobId": name, "storedIds": ["photo"], "selfie": _selfie(), "threshold": 0.5} | changes
        _compare(service, {key: value for key, value in job.items() if value is not ...})
    service.run("--queues", "compare")
    for name, (_, word) in BAD_COMPARISONS.items():
        assert service.api.result(name) == [], name
        assert service.redis.ttl(f"match-result:{name}") > 3500
        error = service.api.detail(name)["error"]
        assert isinstance(error, dict)
        assert error["code"] == word, name
        assert len(error["message"]) > 10


def test_a_comparison_without_a_job_id_is_dead_lettered_and_the_next_one_answered(service: Service) -> None:
    for payload in (b"{}", b'{"jobId": null}', b"nonsense", json.dumps({"storedIds": [], "selfie": "x"}).encode()):
        service.redis.rpush(COMPARE, payload)
    _compare(service, {"jobId": "good", "storedIds": [], "selfie": _selfie()})
    ended = service.run()
    assert service.api.result("good") == []
    assert service.api.detail("good")["error"] is None
    assert ended.summary["dead_lettered"] == 4
    assert service.leftovers() == {"compare dead": 4}


def test_thresholds_are_strict_and_duplicate_ids_are_removed(service: Service, server: OddServer) -> None:
    photos = service.api.upload({name: server.url(name) for name in ("ada.jpg", "one pixel.png", "grey.png")})
    service.run()
    ada, _, grey = photos.values()
    ids = [grey, ada, grey, "unknown", *photos.values()]
    thresholds: dict[str, object] = {"null": None, "missing": ..., "-1": -1, "2": 2, "0.5": 0.5, "whole": 1}
    for name, threshold in thresholds.items():
        job = {"jobId": name, "storedIds": ids, "selfie": _selfie()}
        _compare(service, job if threshold is ... else {**job, "threshold": threshold})
    service.run()
    answers = {name: service.api.result(name) for name in thresholds}
    both = [grey, ada]  # in the order of storedIds, without duplicates
    assert answers == {"null": both, "missing": both, "-1": both, "2": [], "0.5": both, "whole": []}
    assert service.api.detail("null")["threshold"] == 0.5
    detail = service.api.detail("0.5")
    assert detail["with_embeddings"] == 2
    assert detail["faces"] == 1
    assert isinstance(detail["scores"], dict)
    assert set(detail["scores"]) == set(both)


def test_a_comparison_with_twenty_thousand_ids_is_answered(service: Service, server: OddServer) -> None:
    photos = service.api.upload({"ada.jpg": server.url("ada.jpg")})
    service.run()
    ids = [f"photo-{n}" for n in range(19_999)]
    ids.insert(12_345, photos["ada.jpg"])
    _compare(service, {"jobId": "big", "storedIds": ids, "selfie": _selfie()})
    ended = service.run()
    assert service.api.result("big") == [photos["ada.jpg"]]
    assert ended.lines(comparison="big", outcome="succeeded")[0]["stage_ms"]["match"] < 5000
