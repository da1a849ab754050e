"""Payloads too large for memory: each is dead-lettered with its final status, and no other job is delayed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from runner.queue import keys
from runner.queue.dead_letters import DeadLetters
from runner.queue.leases import CLAIM_BYTES
from tests.support.queue_tools import pass_time, queue_of

if TYPE_CHECKING:
    from tests.support.run_tools import Service


def test_an_oversized_payload_is_dead_lettered_and_its_subject_gets_a_final_status(service: Service) -> None:
    (photo_id,) = service.api.upload({"a": "http://127.0.0.1:1/a.jpg"}).values()
    job_id = service.api.compare(b"selfie", [photo_id])
    service.redis.delete(keys.list_key("process"), keys.list_key("compare"))
    filler = "x" * (CLAIM_BYTES + 1)
    process = json.dumps({"id": photo_id, "imageUrl": filler})
    service.redis.rpush(keys.list_key("process"), process)
    service.redis.rpush(keys.list_key("compare"), json.dumps({"jobId": job_id, "storedIds": [], "selfie": filler}))
    ended = service.run()
    assert (ended.summary["claimed"], ended.summary["dead_lettered"]) == (2, 2)
    assert service.status(photo_id) == "FAILED"
    assert service.redis.get(keys.match_result(job_id)) == b"[]"
    (letter,) = DeadLetters(service.redis, "process").all()
    assert (letter.code, letter.bytes) == ("payload_too_large", len(process))
    assert DeadLetters(service.redis, "process").payload(letter.id) == process.encode()


def test_a_job_without_attempts_left_is_dead_lettered_without_being_decoded(service: Service) -> None:
    """Two large payloads whose runners died: the last claim returns only their starts, which suffice."""
    (photo_id,) = service.api.upload({"a": "http://127.0.0.1:1/a.jpg"}).values()
    job_id = service.api.compare(b"selfie", [photo_id])
    service.redis.delete(keys.list_key("process"), keys.list_key("compare"))
    service.redis.rpush(keys.list_key("process"), json.dumps({"id": photo_id, "imageUrl": "x" * 100_000}))
    service.redis.rpush(
        keys.list_key("compare"), json.dumps({"jobId": job_id, "storedIds": [], "selfie": "A" * 100_000})
    )
    for name in ("process", "compare"):
        for number in range(3):
            assert len(queue_of(service.redis, f"dead-{number}", name=name).claim(1, in_flight=0)) == 1
            pass_time(service.redis, 31, name)
    ended = service.run()
    assert ended.summary["dead_lettered"] == 2
    assert service.status(photo_id) == "FAILED"
    assert service.redis.get(keys.match_result(job_id)) == b"[]"
    for name in ("process", "compare"):
        (letter,) = DeadLetters(service.redis, name).all()
        assert (letter.code, letter.attempts) == ("too_many_attempts", 4)
