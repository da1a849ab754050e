"""The error codes that a dead letter can have."""

from __future__ import annotations

import inspect

from runner import errors
from runner.errors import JobError


def job_error_codes() -> dict[str, bool]:
    """Return each error code that a dead letter can have → whether a retry can help."""
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, JobError)]
    return {one.code: one.transient for one in classes if one.code != errors.SpottmeeError.code}
