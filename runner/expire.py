"""Clean-up of comparisons, at the end of every run and in `sweep`.

Comparisons that were not processed in time are answered with `[]`, and their selfies deleted; answers that INITIATED
has overwritten are restored.
"""

from __future__ import annotations

from redis import Redis

from runner.errors import ExpiredJobError
from runner.queue.expiry import WAIT_SECONDS, Expiry
from runner.queue.hosts import Hosts
from runner.queue.parking import Parking
from runner.store.results import ResultStore
from runner.worker.kinds import COMPARISON, PHOTO
from runner.worker.messages import subject


def expire_comparisons(redis: Redis, *, seconds: float = WAIT_SECONDS, dry_run: bool = False) -> int:
    """Expire the comparisons that have waited for `seconds`, and return how many; with `dry_run` only count up to 100.

    The answer is written first: after a crash in between, the next call completes the work. An existing
    answer stays. Parked comparisons whose album has taken too long are woken: they are answered by a run, or
    expire here if none starts. So are photos that have waited for their image server for too long. Answers that
    INITIATED has overwritten are restored. Idempotent, and safe while runners are active. Raises what Redis raises.
    """
    expiry, results = Expiry(redis, COMPARISON.queue, seconds=seconds), ResultStore(redis)
    if not dry_run:
        Parking(redis, COMPARISON.queue).wake_overdue()
        results.restore()
        Hosts(redis, PHOTO.queue).check()
    error = ExpiredJobError(f"{seconds:g} s")
    found, removed = expiry.find(), 0
    if dry_run:
        return len(found)
    while found:
        before = removed
        for job in found:
            job_id = subject(COMPARISON.id_field, job.beginning)
            if job_id is not None:
                results.answer(job_id, [], {"error": error.document()})
            removed += expiry.remove(job, error.code, str(error))
        found = expiry.find() if removed > before else []
    return removed
