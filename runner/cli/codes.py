"""The error codes that --code selects dead letters by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runner.error_codes import job_error_codes
from runner.errors import UsageError
from runner.queue.dead_letters import DeadLetters


def check_codes(codes: Sequence[str], queues: Iterable[DeadLetters], also: str | None = None) -> None:
    """Raise `UsageError` for a code that is neither one of this version, nor that of a dead letter, nor `also`.

    A dead letter may have a code of another version.
    """
    known = {*job_error_codes(), *([also] if also else [])}
    if known.issuperset(codes):
        return
    known |= {dead_letter.code for queue in queues for dead_letter in queue.all()}
    if unknown := sorted(set(codes) - known):
        raise UsageError(f"--code: {unknown[0]!r} is not an error code; known are {', '.join(sorted(known))}")
