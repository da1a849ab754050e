"""All exceptions of the project, in one hierarchy, with their exit codes and error codes.

There are two families. A `RunnerError` ends the command with its `exit_code`. A `JobError` ends one job and never the
run: its `code` is the stable error code in results, dead letters and logs, and its type decides whether the job is
retried. The docstring of a class is its message; a detail may follow it.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import ClassVar

from runner.output import printable

# The end of every message about a malformed URL. It repeats no part of the URL, which may hold a password.
ENCODING_ADVICE = (
    "special characters in a user name or password (/ # ? @ : %) must be %-encoded: / is %2F, # is %23, ? is %3F"
)

# What to do about photos that row-level security hides.
ROW_SECURITY_ADVICE = (
    "let the role of DATABASE_URL bypass it (ALTER ROLE … BYPASSRLS), or give it policies for SELECT and UPDATE with "
    "USING (true)"
)
NO_VISIBLE_ROW = f'row-level security hides every row of "Photo" from this role: {ROW_SECURITY_ADVICE}'


@cache
def _docstrings() -> dict[str, str]:
    """Return class → docstring, read from this file, because `python -OO` removes docstrings."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    return {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.ClassDef)}


class SpottmeeError(Exception):
    """An error occurred."""

    code: ClassVar[str] = "error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        """Return the message of the class and the detail, if there is one, as one printable line."""
        texts = (kind.__doc__ or _docstrings().get(kind.__name__) for kind in type(self).__mro__)
        message = " ".join(next(filter(None, texts), "").split())
        return printable(f"{message.rstrip('.')}: {self.detail}" if self.detail else message)

    def document(self) -> dict[str, str]:
        """Return the error as JSON carries it: the stable code, and the message for people."""
        return {"code": self.code, "message": str(self)}


def place(error: BaseException) -> str:
    """Return the file and line at which `error` was raised.

    Nothing else of an unexpected error is shown: its message may contain a selfie or a password.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"


class RunnerError(SpottmeeError):
    """The command failed."""

    exit_code: ClassVar[int] = 1


class SettingsError(RunnerError):
    """The settings are not valid."""

    code = "settings"
    exit_code = 2


class MissingRightError(SettingsError):
    """The Redis user in REDIS_URL lacks a permission."""

    code = "redis_permission_missing"

    def __init__(self, grant: str, cause: str) -> None:
        """Store what `ACL SETUSER` has to grant, such as +hset or ~face_embeddings:*."""
        super().__init__(f"grant {grant} (ACL in docs/reference/redis-keys.md); {cause}")
        self.grant = grant


class MissingGrantError(SettingsError):
    """The PostgreSQL role lacks a privilege."""

    code = "postgres_right_missing"

    def __init__(self, variable: str, grants: str) -> None:
        """Store the statements that a privileged role has to run."""
        super().__init__(f"let the owner of the database of {variable} run: {grants} (docs/reference/rights.md)")
        self.grants = grants


class UsageError(RunnerError):
    """The command cannot run with these arguments."""

    code = "usage"
    exit_code = 2


class SchemaError(RunnerError):
    """The embeddings database does not have the schema that this version needs; run `spottmee-worker migrate`."""

    code = "schema"
    exit_code = 3


class ModelError(RunnerError):
    """The model pack cannot be used."""

    code = "model"
    exit_code = 4


class DeviceError(RunnerError):
    """The GPU cannot be used, and RUNNER_PROVIDERS does not allow the CPU; try again later."""

    code = "device_unavailable"
    exit_code = 75  # the next pod may get a node whose device works


class CheckFailedError(RunnerError):
    """The command did not succeed."""

    code = "check_failed"
    exit_code = 5


class UnreachableError(RunnerError):
    """A server is unreachable; try again later."""

    code = "unreachable"
    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class RedisUnreachableError(UnreachableError):
    """Redis is unavailable (REDIS_URL)."""

    code = "redis_unreachable"


class RedisFullError(RedisUnreachableError):
    """Redis is full and refuses writes: raise its maxmemory, or free memory."""

    code = "redis_full"


class RedisRefusedError(RunnerError):
    """Redis rejected an operation on a queue, and a retry would not help."""

    code = "redis_refused"


class DatabaseUnreachableError(UnreachableError):
    """PostgreSQL is unavailable."""

    code = "database_unreachable"


class ClusterError(RunnerError):
    """The Kubernetes API could not be used."""

    code = "cluster"
    exit_code = 6


class PhotosInvisibleError(RunnerError):
    """Photos are not visible in the API's table (DATABASE_URL)."""

    code = "photos_invisible"
    exit_code = 7


class StuckError(RunnerError):
    """Native code did not return for a job; the run ended so that another runner can retry it."""

    code = "stuck"
    exit_code = 76


class JobError(SpottmeeError):
    """The job failed."""

    transient: ClassVar[bool] = False
    # False for an expected outcome: the job is not dead-lettered.
    is_fault: ClassVar[bool] = True
    # The photo id or job id of a payload that could not be decoded, if one can be read from it.
    subject: str | None = None


class PermanentJobError(JobError):
    """The job failed permanently."""


class TransientJobError(JobError):
    """The job failed, and can be retried."""

    transient = True


class InvalidJobError(PermanentJobError):
    """The payload is not a valid job."""

    code = "invalid_job"

    def __init__(self, detail: str, *, subject: str | None = None) -> None:
        """Store the `subject`, if it is known."""
        super().__init__(detail)
        self.subject = subject


class PayloadTooLargeError(InvalidJobError):
    """The payload is larger than a runner takes."""

    code = "payload_too_large"


class PoisonJobError(PermanentJobError):
    """The job has used up its attempts without a result: its runner died."""

    code = "too_many_attempts"


class ExpiredJobError(PermanentJobError):
    """The comparison expired: it waited longer than a result is kept."""

    code = "expired"


class PhotoGoneError(PermanentJobError):
    """The photo is not in the API's table: it was deleted, or this role cannot see it."""

    code = "photo_gone"
    is_fault = False


class LeaseLostError(TransientJobError):
    """Another runner has taken over the lease; the work of this runner was discarded."""

    code = "lease_lost"


class ForbiddenUrlError(PermanentJobError):
    """The image URL is not one that this runner may fetch."""

    code = "url_forbidden"


class ImageMissingError(PermanentJobError):
    """The image does not exist on its server."""

    code = "image_missing"


class FetchError(TransientJobError):
    """The image could not be fetched."""

    code = "fetch_failed"

    def __init__(self, detail: str = "", *, pause_seconds: float = 0.0, was_asked: bool = True) -> None:
        """Store the server's Retry-After in seconds (0: none), and whether a request was sent."""
        super().__init__(detail)
        self.pause_seconds = pause_seconds
        self.was_asked = was_asked


class FetchTimeoutError(FetchError):
    """The image server was too slow."""

    code = "fetch_timeout"


class ImageTooManyBytesError(PermanentJobError):
    """The image has more bytes than allowed (RUNNER_MAX_IMAGE_BYTES)."""

    code = "image_too_many_bytes"


class ImageTooManyPixelsError(PermanentJobError):
    """The image has more pixels than allowed (RUNNER_MAX_IMAGE_PIXELS)."""

    code = "image_too_many_pixels"


class ImageUndecodableError(PermanentJobError):
    """The file is not an image that can be decoded."""

    code = "image_undecodable"


class LockTimeoutError(TransientJobError):
    """A row of PostgreSQL that the job needs stayed locked by another transaction (RUNNER_LOCK_TIMEOUT_SECONDS)."""

    code = "lock_timeout"


class StatementTimeoutError(TransientJobError):
    """PostgreSQL did not finish a statement of the job in time (RUNNER_STATEMENT_TIMEOUT_SECONDS)."""

    code = "statement_timeout"


class ImageFormatError(ImageUndecodableError):
    """The file is of a format that is not decoded."""

    code = "image_format_unsupported"


class TooManyFacesError(PermanentJobError):
    """The photo has more faces than allowed (RUNNER_MAX_FACES)."""

    code = "too_many_faces"


class PhotoTimeoutError(TransientJobError):
    """The photo took longer than allowed (RUNNER_PHOTO_TIMEOUT_SECONDS)."""

    code = "photo_timeout"


class OutOfMemoryError(TransientJobError):
    """There was not enough memory for this job."""

    code = "out_of_memory"


class UnstorableError(PermanentJobError):
    """The database rejects the embeddings of this photo."""

    code = "embeddings_rejected"


class NoFaceInSelfieError(PermanentJobError):
    """No face was found in the selfie."""

    code = "no_face_in_selfie"
    is_fault = False


class SeveralFacesInSelfieError(PermanentJobError):
    """The selfie shows several faces, and RUNNER_SELFIE_FACES allows only one."""

    code = "several_faces_in_selfie"
    is_fault = False


class UnexpectedJobError(TransientJobError):
    """An unexpected error occurred."""

    code = "unexpected"
