"""The result of a comparison in Redis, and the race for its key.

The API pushes the job first and writes `INITIATED` after it, without a TTL (docs/reference/contract.md). So it may
replace PROCESSING or the answer once, at any later moment. Every write therefore reads the value that it replaces: a
run that has seen INITIATED knows that the API does not write again. A run that has not seen it watches the answer,
and records the answers that are still unconfirmed at its end: later runs restore them until the result expires.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.errors import RedisRefusedError
from runner.logs import logger
from runner.queue import keys
from runner.queue.scripts import refusals

if TYPE_CHECKING:  # imported for its type alone: redis-py takes 130 ms
    from redis import Redis

INITIATED = b"INITIATED"
PROCESSING = b"PROCESSING"
UNANSWERED = (None, INITIATED, PROCESSING)  # the values of a result without an answer
RESULT_SECONDS = 3600

# If the detail was evicted, the answer is lost, and an empty one is better than a client that polls forever.
_LOST = {"error": {"code": "answer_lost", "message": "The answer was lost before the API wrote INITIATED."}}

# KEYS[1] the result; ARGV[1] its TTL in seconds. Sets PROCESSING, unless there is an answer: then the job was delivered
# again, and clients keep the answer. Returns the previous value.
_BEGIN = """
local old = redis.call('GET', KEYS[1])
if not old or old == 'INITIATED' or old == 'PROCESSING' then
    redis.call('SET', KEYS[1], 'PROCESSING', 'EX', ARGV[1])
end
return old
"""

# KEYS[1] the result, also the name of a channel; ARGV[1] the answer, ARGV[2] its TTL in seconds. Writes and
# publishes the answer. Without the right to publish, the answer is still written. Returns the previous value.
_ANSWER = """
local old = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.pcall('PUBLISH', KEYS[1], ARGV[1])
return old
"""

# KEYS[1] a channel. Returns 1 if the user may publish there; the message is empty.
_MAY_PUBLISH = """
local reply = redis.pcall('PUBLISH', KEYS[1], '')
return type(reply) == 'number' and 1 or 0
"""

# KEYS[1] the result; ARGV[1] the answer, ARGV[2] its TTL in seconds, ARGV[3] '1' if the caller holds the lease.
# Replaces INITIATED; the holder of the lease also replaces PROCESSING and a missing value, which are the values after a
# failover that has lost the answer. What it writes is published, as in `_ANSWER`. Returns the previous value.
_CONFIRM = """
local old = redis.call('GET', KEYS[1])
if old == 'INITIATED' or (ARGV[3] == '1' and (not old or old == 'PROCESSING')) then
    redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
    redis.pcall('PUBLISH', KEYS[1], ARGV[1])
end
return old
"""

# KEYS[1] the unconfirmed answers, a sorted set of job ids by the second in which each expires; ARGV[1] a job id,
# ARGV[2] its TTL in seconds. EXPIRE is called before ZADD too: if it is refused, nothing is added that would never
# expire, and a full Redis refuses no write after it.
_REMEMBER = """
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[1], redis.call('TIME')[1] + ARGV[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""

# KEYS[1] the unconfirmed answers; ARGV[1] limit. Removes the expired ones and returns the others, oldest first.
_UNCONFIRMED = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', redis.call('TIME')[1])
return redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)
"""


class ResultStore:
    """Results of comparisons. Every method is idempotent, even across runners.

    A permanent error of Redis is raised as redis-py's `ResponseError` if it concerns one result, and as
    `RedisRefusedError` if it concerns `unconfirmed`, the sorted set that all comparisons share.
    """

    def __init__(self, redis: Redis, *, unconfirmed: str = keys.unconfirmed()) -> None:
        self._redis = redis
        self._shared = unconfirmed
        self._initiated: set[str] = set()
        self._begin = _script(redis, _BEGIN)
        self._answer = _script(redis, _ANSWER)
        self._confirm = _script(redis, _CONFIRM)
        self._remember = _script(redis, _REMEMBER)
        self._unconfirmed = _script(redis, _UNCONFIRMED)

    def begin(self, job_id: str) -> bool:
        """Set the result to PROCESSING and return whether INITIATED was seen, now or by an earlier runner."""
        old = self._begin(keys=[keys.match_result(job_id)], args=[RESULT_SECONDS])
        kept = {} if old is None else self._read_detail(job_id)
        if old == INITIATED:
            kept["initiated"] = True
            self._write_detail(job_id, kept)
            if "matched" in kept:  # INITIATED had replaced the answer of an earlier runner
                self._replace_unanswered(job_id, kept["matched"], holds_lease=True)
        if kept.get("initiated") is True:
            self._initiated.add(job_id)
        return job_id in self._initiated

    def wait(self, job_id: str, detail: dict[str, Any]) -> None:
        """Write the detail of a comparison that has no answer yet, unless an earlier attempt has given one."""
        kept = self._read_detail(job_id)
        if "matched" not in kept:
            self._write_detail(job_id, {**detail, "initiated": job_id in self._initiated})

    def answer(self, job_id: str, matched_ids: Sequence[str], detail: dict[str, Any]) -> bool:
        """Write and publish the answer, write its detail, and return whether INITIATED has been seen by now.

        `detail` is a JSON object; `initiated` and `matched` are added to it. A failure (`detail["error"]`) never
        replaces the answer of an earlier attempt. If this returns False, the answer must be watched.
        """
        initiated = job_id in self._initiated
        self._initiated.discard(job_id)
        detail = {**detail, "initiated": initiated, "matched": list(matched_ids)}
        if detail.get("error") is not None:
            return self.confirm(job_id, matched_ids, detail) or initiated
        self._write_detail(job_id, detail)  # first: a client that reads the answer finds its detail
        old = self._answer(keys=[keys.match_result(job_id)], args=[_encode(matched_ids), RESULT_SECONDS])
        return initiated or old == INITIATED

    def may_publish(self, job_id: str) -> bool:
        """Return whether answers are published: whether the user may publish on the channel of a result."""
        return bool(_script(self._redis, _MAY_PUBLISH)(keys=[keys.match_result(job_id)], args=[]))

    def confirm(
        self,
        job_id: str,
        matched_ids: Sequence[str],
        detail: dict[str, Any],
        *,
        holds_lease: bool = True,
        owned: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Write the answer again if INITIATED has replaced it, and return whether that was the case.

        The answer is that of the detail key, or `matched_ids` with `detail` if that is lost. The holder of the lease
        also restores an answer that a failover has lost; `owned` is called before that, because `forget` removes the
        lease and the answer.
        """
        old = self._redis.get(keys.match_result(job_id))
        if old not in UNANSWERED or not ((holds_lease and owned()) or (not holds_lease and old == INITIATED)):
            return False
        kept = self._read_detail(job_id)
        if "matched" not in kept:
            kept = {"initiated": old == INITIATED, **kept, **detail, "matched": list(matched_ids)}
            self._write_detail(job_id, kept)
        return self._replace_unanswered(job_id, kept["matched"], holds_lease=holds_lease) == INITIATED

    def remember(self, job_id: str) -> None:
        """Record that the answer may still be overwritten, for later runs to `restore`."""
        with refusals(f"writing {self._shared}"):
            self._remember(keys=[self._shared], args=[job_id, RESULT_SECONDS])

    def check(self) -> None:
        """Raise `RedisRefusedError` if Redis refuses the sorted set of unconfirmed answers. Changes nothing."""
        with refusals(f"reading {self._shared}"):
            self._redis.zrem(self._shared, "")

    def restore(self, limit: int = 1000) -> list[str]:
        """Restore the answers that INITIATED has replaced since their run ended, and return their job ids."""
        with refusals(f"reading {self._shared}"):
            pending = [raw.decode() for raw in self._unconfirmed(keys=[self._shared], args=[limit])]
        restored = [job_id for job_id in pending if self._restored(job_id)]
        if restored:
            self._redis.zrem(self._shared, *restored)
        return restored

    def _restored(self, job_id: str) -> bool:
        try:
            with refusals(f"restoring {keys.match_result(job_id)}"):
                return self.confirm(job_id, [], _LOST, holds_lease=False)
        except RedisRefusedError as error:  # a key of another type under the name of one result must not end every run
            logger().warning("answer not restored", extra={"comparison": job_id, "error": error.document()})
            return False

    def _replace_unanswered(self, job_id: str, matched_ids: Sequence[str], *, holds_lease: bool) -> bytes | None:
        args: list[str | int] = [_encode(matched_ids), RESULT_SECONDS, int(holds_lease)]
        old: bytes | None = self._confirm(keys=[keys.match_result(job_id)], args=args)
        return old

    def _read_detail(self, job_id: str) -> dict[str, Any]:
        """Return the detail, empty if there is none or something else has written it."""
        text = self._redis.get(keys.match_result_detail(job_id))
        try:
            document = json.loads(text) if isinstance(text, bytes) else {}
            json.dumps(document, ensure_ascii=False).encode()  # a lone surrogate could not be written again
        except (ValueError, RecursionError):
            return {}
        if not isinstance(document, dict):
            return {}
        matched = document.get("matched", [])
        return document if isinstance(matched, list) and all(isinstance(one, str) for one in matched) else {}

    def _write_detail(self, job_id: str, document: dict[str, Any]) -> None:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        self._redis.set(keys.match_result_detail(job_id), text, ex=RESULT_SECONDS)


def _script(redis: Redis, text: str) -> Callable[..., Any]:
    """Return a function that sends the whole script: after a failover no server has it in its cache."""

    def call(*, keys: list[str], args: list[str | int]) -> Any:
        return redis.eval(text, len(keys), *keys, *args)

    return call


def _encode(matched_ids: Sequence[str]) -> str:
    return json.dumps(list(matched_ids), ensure_ascii=False, separators=(",", ":"))


class ResultWatch:
    """Watches answers that INITIATED may still overwrite, each for a limited time, without blocking.

    The caller keeps the lease of a watched job, and acknowledges it when `poll` or `leave` names it.
    """

    POLL_SECONDS = 0.1

    def __init__(self, results: ResultStore, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._results = results
        self._seconds = seconds
        self._clock = clock
        self._pending: dict[str, _Watched] = {}
        self._next_poll = 0.0

    def __len__(self) -> int:
        return len(self._pending)

    def add(
        self,
        job_id: str,
        matched_ids: Sequence[str],
        detail: dict[str, Any],
        *,
        owned: Callable[[], bool] = lambda: True,
    ) -> None:
        """Watch an answer, with the arguments of `ResultStore.answer`; `owned` returns whether the lease is ours."""
        self._pending[job_id] = _Watched(self._clock() + self._seconds, list(matched_ids), detail, owned)

    def poll(self) -> list[str]:
        """Check every watched answer, at most every `POLL_SECONDS`, and return the jobs that need no more watching.

        Those are confirmed (INITIATED was seen), or their time is up, in which case they are recorded for `restore`.
        """
        now = self._clock()
        if not self._pending or now < self._next_poll:
            return []
        self._next_poll = now + self.POLL_SECONDS
        return [job_id for job_id in list(self._pending) if self._settled(job_id, now)]

    def leave(self) -> list[str]:
        """Check once more, record unconfirmed answers for `restore`, and return every watched job."""
        return [job_id for job_id in list(self._pending) if self._settled(job_id, math.inf)]

    def forget(self, job_id: str) -> None:
        """Stop watching: another runner owns the lease."""
        self._pending.pop(job_id, None)

    def _settled(self, job_id: str, now: float) -> bool:
        watched = self._pending[job_id]
        if not self._results.confirm(job_id, watched.matched_ids, watched.detail, owned=watched.owned):
            if now < watched.until:
                return False
            if watched.owned():
                self._results.remember(job_id)
        del self._pending[job_id]
        return True


class _Watched(NamedTuple):
    until: float
    matched_ids: list[str]
    detail: dict[str, Any]
    owned: Callable[[], bool]
