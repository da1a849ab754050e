"""Every error of the project: one hierarchy, with exit codes and stable words.

Two families. A `RunnerError` ends the command, with its `exit_code`. A `JobError` ends one job and never the
run: its `word` is the stable name that result details, dead letters and logs carry, and its type says whether
trying again can help. The docstring of a class is the message; a detail may follow it.
"""

from __future__ import annotations

import inspect
from typing import ClassVar

from runner.output import printable

# What every message about a malformed URL ends with; it repeats no part of the URL.
ENCODING_ADVICE = (
    "special characters in a user name or password (/ # ? @ : %) must be %-encoded: / is %2F, # is %23, ? is %3F"
)

# What to do about photos that row-level security hides.
ROW_SECURITY_ADVICE = (
    "let the role of DATABASE_URL bypass it (ALTER ROLE … BYPASSRLS), or give it policies for SELECT and UPDATE with "
    "USING (true)"
)
NO_VISIBLE_ROW = f'row-level security hides every row of "Photo" from this role: {ROW_SECURITY_ADVICE}'


class SpottmeeError(Exception):
    """Something went wrong."""

    word: ClassVar[str] = "error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        """Return the sentence of the class and, where given, what it happened to, as one printable line."""
        sentence = " ".join((inspect.getdoc(type(self)) or "").split())
        return printable(f"{sentence.rstrip('.')}: {self.detail}" if self.detail else sentence)


def place(error: BaseException) -> str:
    """Return file and line at which `error` was raised: all of an unforeseen error that may be told.

    Its message may hold anything, a selfie or a password among it.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"


class RunnerError(SpottmeeError):
    """The command could not do its work."""

    exit_code: ClassVar[int] = 1


class SettingsError(RunnerError):
    """The settings are wrong."""

    word = "settings"
    exit_code = 2


class MissingRightError(SettingsError):
    """The Redis user of REDIS_URL lacks a right."""

    word = "redis_right_missing"

    def __init__(self, grant: str, cause: str) -> None:
        """Keep what `ACL SETUSER` has to grant: words such as +hset or ~face_embeddings:*."""
        super().__init__(f"grant {grant} (ACL in docs/reference/redis-keys.md); {cause}")
        self.grant = grant


class UsageError(RunnerError):
    """The command cannot do what its arguments ask for."""

    word = "usage"
    exit_code = 2


class SchemaError(RunnerError):
    """The embeddings database does not have the schema that this version needs; run `spottmee-worker migrate`."""

    word = "schema"
    exit_code = 3


class ModelError(RunnerError):
    """The model pack cannot be used."""

    word = "model"
    exit_code = 4


class CheckFailedError(RunnerError):
    """The command ran, and what it checked does not hold."""

    word = "check_failed"
    exit_code = 5


class UnreachableError(RunnerError):
    """A server could not be reached; trying again later can help."""

    word = "unreachable"
    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class RedisUnreachableError(UnreachableError):
    """Redis could not be used (REDIS_URL)."""

    word = "redis_unreachable"


class RedisFullError(RedisUnreachableError):
    """Redis is full and refuses writes: raise its maxmemory, or free memory."""

    word = "redis_full"


class RedisRefusedError(RunnerError):
    """Redis answered an operation on a list with an error that trying again does not change."""

    word = "redis_refused"


class DatabaseUnreachableError(UnreachableError):
    """PostgreSQL could not be used."""

    word = "database_unreachable"


class ClusterError(RunnerError):
    """The Kubernetes API could not be used."""

    word = "cluster"
    exit_code = 6


class PhotosInvisibleError(RunnerError):
    """Photos cannot be seen in the API's table (DATABASE_URL)."""

    word = "photos_invisible"
    exit_code = 7


class StuckError(RunnerError):
    """A job did not come back from native code; the run ended so that another runner can take it over."""

    word = "stuck"
    exit_code = 76


class JobError(SpottmeeError):
    """The job could not be done."""

    transient: ClassVar[bool] = False
    # False where the job ended as it should all the same: there is no dead letter for it.
    is_fault: ClassVar[bool] = True
    # The photo id or job id, where there is no decoded job to ask and the payload still shows one.
    subject: str | None = None


class PermanentJobError(JobError):
    """The job can never be done."""


class TransientJobError(JobError):
    """The job could not be done now."""

    transient = True


class InvalidJobError(PermanentJobError):
    """The payload is no valid job."""

    word = "invalid_job"

    def __init__(self, detail: str, *, subject: str | None = None) -> None:
        """Keep the `subject`, where it is known."""
        super().__init__(detail)
        self.subject = subject


class PoisonJobError(PermanentJobError):
    """The job ended its runner too many times."""

    word = "too_many_attempts"


class ExpiredJobError(PermanentJobError):
    """The comparison waited for longer than its result would have been kept."""

    word = "expired"


class PhotoGoneError(PermanentJobError):
    """The photo is not in the API's table: it was deleted, or this role cannot see it."""

    word = "photo_gone"
    is_fault = False


class LeaseLostError(TransientJobError):
    """Another runner has taken the lease over; this one's work on the job was dropped."""

    word = "lease_lost"


class ForbiddenUrlError(PermanentJobError):
    """The image URL is not one that this runner may fetch."""

    word = "url_forbidden"


class ImageMissingError(PermanentJobError):
    """The image server says that the image is not there."""

    word = "image_missing"


class FetchError(TransientJobError):
    """The image could not be fetched."""

    word = "fetch_failed"


class FetchTimeoutError(FetchError):
    """The image server was too slow."""

    word = "fetch_timeout"


class ImageTooManyBytesError(PermanentJobError):
    """The image has more bytes than allowed (RUNNER_MAX_IMAGE_BYTES)."""

    word = "image_too_many_bytes"


class ImageTooManyPixelsError(PermanentJobError):
    """The image has more pixels than allowed (RUNNER_MAX_PIXELS)."""

    word = "image_too_many_pixels"


class ImageUndecodableError(PermanentJobError):
    """The bytes are no image that can be decoded."""

    word = "image_undecodable"


class TooManyFacesError(PermanentJobError):
    """The photo has more faces than allowed (RUNNER_MAX_FACES)."""

    word = "too_many_faces"


class PhotoTimeoutError(TransientJobError):
    """The photo took longer than allowed (RUNNER_PHOTO_SECONDS)."""

    word = "photo_timeout"


class OutOfMemoryError(TransientJobError):
    """There was not enough memory for this job."""

    word = "out_of_memory"


class UnstorableError(PermanentJobError):
    """The database refuses what was computed for this photo."""

    word = "unstorable"


class NoFaceInSelfieError(PermanentJobError):
    """No face was found in the selfie."""

    word = "no_face_in_selfie"
    is_fault = False


class UnexpectedJobError(TransientJobError):
    """Something unforeseen went wrong."""

    word = "unexpected"
