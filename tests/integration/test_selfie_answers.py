"""What a guest's front end gets: why a selfie failed, which face matched, and the answer as a message."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from redis import Redis

from demo.album import PEOPLE, jpeg, png, portrait, side_by_side
from demo.images import ImageServer
from runner.bake.samples import sample_images
from runner.queue import keys
from tests.support.queue_tools import LEASE_SECONDS, pass_time, queue_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tests.support.run_tools import Service

COMPARE = "face_embeddings:compare"
HEIGHT = 320


def _portrait(person: str, height: int = HEIGHT) -> NDArray[np.uint8]:
    source, box = PEOPLE[person]
    return portrait(sample_images()[source], box, height=height)


def _beside(large: NDArray[np.uint8], small: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return both in one image, the smaller one with grey above it."""
    above = np.full((large.shape[0] - small.shape[0], small.shape[1], 3), 128, np.uint8)
    return side_by_side(large, np.vstack([above, small]))


@pytest.fixture(scope="module")
def images() -> Iterator[ImageServer]:
    photos = {
        "ada.jpg": jpeg(_portrait("Ada")),
        "hal.jpg": jpeg(_portrait("Hal")),
        "both.jpg": jpeg(side_by_side(_portrait("Ada"), _portrait("Hal"))),
    }
    with ImageServer(photos) as server:
        yield server


@pytest.fixture
def photos(service: Service, images: ImageServer) -> dict[str, str]:
    """Photo ids by name, processed."""
    found = service.api.upload({name: images.url(name) for name in ("ada.jpg", "hal.jpg", "both.jpg")})
    service.run("--queues", "process")
    return found


def _payloads(redis: Redis) -> list[bytes]:
    found: Any = redis.keys(f"{{{COMPARE}}}:dead:payload:*")
    return list(found)


def test_each_failure_of_a_selfie_has_its_code_and_keeps_no_payload(service: Service) -> None:
    ada = jpeg(_portrait("Ada"))
    selfies = {
        "no_face_in_selfie": png(np.zeros((80, 80, 3), np.uint8)),
        "several_faces_in_selfie": jpeg(side_by_side(_portrait("Ada"), _portrait("Hal"))),
        "image_undecodable": ada[:900],
        "image_format_unsupported": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "image_too_many_bytes": ada + b"\0" * 200_000,
        "image_too_many_pixels": png(np.zeros((1200, 1200, 3), np.uint8)),
    }
    jobs = {code: service.api.compare(data, ["photo"]) for code, data in selfies.items()}
    invalid = {"jobId": "invalid", "storedIds": ["photo"], "selfie": "@@@@"}
    service.redis.rpush(COMPARE, json.dumps(invalid))
    service.run(RUNNER_SELFIE_FACES="one", RUNNER_MAX_IMAGE_BYTES="200000", RUNNER_MAX_IMAGE_PIXELS="1000000")
    for code, job in [*jobs.items(), ("invalid_job", "invalid")]:
        error = service.api.detail(job)["error"]
        assert isinstance(error, dict)
        assert (service.api.result(job), error["code"]) == ([], code)
    assert service.leftovers() == {"compare dead": 5}
    assert _payloads(service.redis) == []


def test_the_payload_of_a_comparison_that_may_succeed_later_is_kept(service: Service) -> None:
    service.redis.rpush(COMPARE, json.dumps({"jobId": "j", "storedIds": ["a"], "selfie": "aaaa"}))
    for number in range(3):  # runs that die while they process the job
        assert len(queue_of(service.redis, f"dead-{number}", name="compare").claim(1, in_flight=0)) == 1
        pass_time(service.redis, LEASE_SECONDS + 1, "compare")
    service.run("--queues", "compare")
    assert service.leftovers() == {"compare dead": 1}
    assert len(_payloads(service.redis)) == 1


@pytest.mark.parametrize(
    ("setting", "matched", "compared"), [("all", ["ada.jpg", "hal.jpg", "both.jpg"], 2), ("largest", None, 1)]
)
def test_all_faces_of_a_selfie_are_compared_or_the_largest(
    service: Service, photos: dict[str, str], setting: str, matched: list[str] | None, compared: int
) -> None:
    selfie = jpeg(_beside(_portrait("Hal", 480), _portrait("Ada", 240)))
    job = service.api.compare(selfie, list(photos.values()))
    service.run(RUNNER_SELFIE_FACES=setting)
    expected = [photos[name] for name in matched or ["hal.jpg", "both.jpg"]]
    assert service.api.result(job) == expected
    detail = service.api.detail(job)
    assert (detail["faces"], detail["faces_compared"]) == (2, compared)
    assert detail["error"] is None


def test_matches_say_which_face_of_the_photo_matches_which_of_the_selfie(
    service: Service, photos: dict[str, str]
) -> None:
    job = service.api.compare(jpeg(_portrait("Hal")), list(photos.values()))
    service.run()
    detail: dict[str, Any] = dict(service.api.detail(job))
    matches = {match["photo_id"]: match for match in detail["matches"]}
    assert list(matches) == service.api.result(job) == [photos["hal.jpg"], photos["both.jpg"]]
    width = _portrait("Ada").shape[1]
    both = matches[photos["both.jpg"]]
    x1, y1, x2, y2 = both["box"]
    assert width <= x1 < x2, "Hal is the one on the right"
    assert 0 <= y1 < y2 <= HEIGHT
    assert both["selfie_face"] == 0
    assert {photo: match["score"] for photo, match in matches.items()} == detail["scores"]
    row = service.connection.execute(
        "SELECT box FROM faces WHERE photo_id = %s AND face_index = %s", (photos["both.jpg"], both["face_index"])
    ).fetchone()
    assert row is not None
    assert both["box"] == pytest.approx(row[0], abs=0.06)


def _messages(redis: Redis, channel: str) -> Any:
    listener: Any = redis.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(channel)
    listener.get_message(timeout=1)
    return listener


def test_an_answer_is_published_when_it_is_written(service: Service, photos: dict[str, str]) -> None:
    job = service.api.compare(jpeg(_portrait("Ada")), list(photos.values()))
    with _messages(service.redis, keys.match_result(job)) as listener:
        running = service.start("run")
        message = None
        while message is None:
            assert running.poll() is None
            message = listener.get_message(timeout=0.05)
        assert message["data"] == service.redis.get(keys.match_result(job)), "who gets the message finds the answer"
        running.communicate()
        assert json.loads(message["data"]) == [photos["ada.jpg"], photos["both.jpg"]]


def test_failures_and_restored_answers_are_published(service: Service) -> None:
    job = service.api.compare(b"no image", ["photo"])
    with _messages(service.redis, keys.match_result(job)) as listener:
        service.run()
        assert listener.get_message(timeout=1)["data"] == b"[]"


def test_an_answer_is_stored_where_the_user_may_not_publish(service: Service, photos: dict[str, str]) -> None:
    admin: Any = service.redis
    job = service.api.compare(jpeg(_portrait("Ada")), list(photos.values()))
    for name, rules in (("no-command", ["allchannels", "-publish"]), ("no-channel", ["resetchannels"])):
        admin.execute_command("ACL", "SETUSER", name, "on", ">x", "~*", "+@all", *rules)
    url = service.environment["REDIS_URL"]
    try:
        ended = service.run(REDIS_URL=url.replace("redis://", "redis://no-command:x@"))
        assert ended.summary["comparisons"] == 1
        assert service.api.result(job) == [photos["ada.jpg"], photos["both.jpg"]]
        again = service.api.compare(base64.b64decode("aaaa"), ["photo"])
        service.run(REDIS_URL=url.replace("redis://", "redis://no-channel:x@"))
        assert service.api.result(again) == []
        for name in ("no-command", "no-channel"):
            doctor = service.command("doctor", REDIS_URL=url.replace("redis://", f"redis://{name}:x@")).output
            assert "not published: grant +publish and &match-result:*" in doctor
        assert "not published" not in service.command("doctor").output
    finally:
        admin.execute_command("ACL", "DELUSER", "no-command", "no-channel")
