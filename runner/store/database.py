"""Connections to PostgreSQL, with timeouts for every wait, classified errors and bounded retries.

psycopg takes about 100 ms to import: only modules of this package import it, and only commands that need a database
import those.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import PipelineStatus, TransactionStatus

from runner.errors import (
    ENCODING_ADVICE,
    DatabaseUnreachableError,
    JobError,
    LockTimeoutError,
    MissingGrantError,
    SettingsError,
    StatementTimeoutError,
)
from runner.output import redacted
from runner.retry import RetryPolicy, time_spent
from runner.settings import Settings, postgres_conninfo
from runner.store.session import Limits, Session

T = TypeVar("T")

# No statement of a run takes a second on a healthy server; these limits end what hangs on an unhealthy one.
STATEMENT_SECONDS = 60.0
LOCK_SECONDS = 5.0
# A runner that is frozen inside a transaction (a paused node) must not keep its row locks and block the API.
IDLE_IN_TRANSACTION_SECONDS = 60.0
# Per address. libpq takes whole seconds, and at least 2.
CONNECT_TIMEOUT_SECONDS = 10
_SHORTEST_CONNECT_TIMEOUT_SECONDS = 2
# Of a first attempt, even if there would be no time for a second one.
_FIRST_CONNECT_TIMEOUT_SECONDS = 5

_LIMITS = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",  # milliseconds: a peer that vanished is noticed while data is unacknowledged
    # After a failover the name may still lead to the old primary, now read-only: that is a failed connection.
    "target_session_attrs": "read-write",
}

# Without it psycopg uses the database's encoding: with SQL_ASCII, ids are bytes, which never equal the id of a job. As
# a start-up parameter it also works behind PgBouncer, which tracks it for each client.
_ENFORCED = {"client_encoding": "UTF8"}

# libpq gives no SQLSTATE for a refused connection, only a text, in English on every usual image. A text that is not
# recognised counts as transient: a bounded number of retries does no harm.
_REFUSED_FOR_GOOD = (
    r"authentication failed|no password supplied|no pg_hba\.conf entry|(role|database) \"[^\"]*\" does not exist"
    r"|permission denied for database|is not permitted to log in|server does not support SSL"
    r"|certificate verify failed|does not match host name|private key file"
    r"|root certificate file .* does not exist|invalid port |invalid \"?[a-z_]+\"? value|invalid SCRAM \w+ key"
    r"|definition of service .* not found|could not parse network address|setsockopt\(\w+\) failed: Invalid argument"
    r"|invalid command-line argument|invalid value for parameter|unrecognized configuration parameter"
    r"|permission denied to set parameter|parameter \"[^\"]*\" cannot be | requires a value"
    r"|outside the valid range for parameter"
)
_TRANSIENT_CLASSES = ("08", "40", "53", "57", "58")  # connection, rollback, resources, intervention, system
_TRANSIENT_STATES = {
    "55P03",  # lock_not_available: lock_timeout
    "55006",  # object_in_use
    "25006",  # read_only_sql_transaction: a standby, or a primary that is being replaced
    "0A000",  # feature_not_supported: BEGIN READ WRITE on a standby, reached through a pooler
    "25P03",  # idle_in_transaction_session_timeout
    "25P04",  # transaction_timeout
}
_PERMANENT_STATES = {"57P04"}  # database_dropped
# A literal of a statement does not fit its column: values of jobs are never converted from text.
_OF_ANOTHER_TYPE = psycopg.errors.InvalidTextRepresentation
_SETUP_CLASSES = ("28", "3D", "3F", "42")  # authorisation, catalog, schema, access rules and names
_STATES_TO_RECONNECT_AFTER = {"25006", "0A000"}

_LOCK_TIMEOUT = "55P03"
_STATEMENT_TIMEOUT = "57014"

READ_ONLY_ADVICE = (
    "The URL points to a replica, or to a role or database that is read-only: use the primary, or "
    "ALTER ROLE … RESET default_transaction_read_only"
)
RIGHTS_ADVICE = "`spottmee-worker doctor` names the missing GRANT; docs/reference/rights.md lists all of them"

# The error of a pooler that may run each statement on another server connection.
_STATEMENT_POOLING = "transaction blocks not allowed in statement pooling mode"


def connect(
    url: str,
    *,
    seconds: float,
    application_name: str,
    variable: str = "DATABASE_URL",
    statement_seconds: float = STATEMENT_SECONDS,
) -> Session:
    """Return a connection to `url`, trying for at most `seconds` after the first failure.

    `url` may carry Prisma's own parameters; its `schema` names the schema of every table. `variable` is what
    messages call the URL, which they never repeat. `statement_seconds` of 0 sets no limit.

    Raises `SettingsError` at once for what a retry cannot fix (the URL itself, password, role, database), and
    `DatabaseUnreachableError` when the time is up.
    """
    database = Database(url, application_name=application_name, variable=variable, statement_seconds=statement_seconds)
    return retrying(lambda: database.connection, [database], seconds=seconds)


class Database:
    """One database of a run: connects when it is first needed, and reconnects after the connection was lost.

    The constructor does not connect. `connection` is the live connection, for use within `retrying`.
    """

    def __init__(
        self,
        url: str,
        *,
        application_name: str,
        variable: str,
        statement_seconds: float = STATEMENT_SECONDS,
        lock_seconds: float = LOCK_SECONDS,
    ) -> None:
        """Raise `SettingsError` if libpq cannot parse `url`."""
        self.variable = variable
        # Without a handler, psycopg's warnings about lost connections would appear raw on standard error.
        logging.getLogger("psycopg").addHandler(logging.NullHandler())
        self._parameters, self._schema = _parameters(url, application_name, variable)
        self._limits = Limits(statement_seconds, lock=lock_seconds, idle=IDLE_IN_TRANSACTION_SECONDS)
        self._connection: Session | None = None
        self._connect_seconds = CONNECT_TIMEOUT_SECONDS

    @property
    def address(self) -> str:
        """All hosts and ports in the URL."""
        return "/".join(self._parameters.get(name, "") for name in ("host", "hostaddr", "port"))

    @property
    def secrets(self) -> list[str]:
        """The passwords, which must not appear in messages."""
        return [self._parameters[name] for name in ("password", "sslpassword") if name in self._parameters]

    @property
    def connection(self) -> Session:
        """The live connection, opened if there is none. Raises what one attempt of `connect` raises."""
        if self._connection is None or self._connection.closed:
            self._connection = self._open()
        return self._connection

    def connect_within(self, seconds: float) -> None:
        """Let attempts to connect take at most `seconds`, rounded up, within the limits. The URL overrides it."""
        whole = max(_SHORTEST_CONNECT_TIMEOUT_SECONDS, math.ceil(seconds))
        self._connect_seconds = min(CONNECT_TIMEOUT_SECONDS, whole)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def after(self, error: psycopg.Error) -> None:
        """Close the connection if `error` has made it unusable, or if a new one may reach another server."""
        connection = self._connection
        if connection is None:
            return
        # psycopg may leave a lost connection in the middle of a pipeline without marking it as broken.
        state = connection.pgconn
        usable = state.transaction_status == TransactionStatus.IDLE and state.pipeline_status == PipelineStatus.OFF
        if not usable or error.sqlstate is None or error.sqlstate in _STATES_TO_RECONNECT_AFTER:
            self.close()

    def _open(self) -> Session:
        try:
            # No prepared statements: PgBouncer may hand every transaction to another server connection.
            parameters: dict[str, Any] = {"connect_timeout": self._connect_seconds, **self._parameters}
            connection = Session.connect(autocommit=True, prepare_threshold=None, **parameters)
        except psycopg.OperationalError as error:
            if re.search(_REFUSED_FOR_GOOD, str(error)):  # compiled only after a failure
                raise SettingsError(
                    f"{self.variable} was refused by PostgreSQL: {reason(error, self.secrets)}{_advice(error)}"
                ) from None
            raise
        except psycopg.ProgrammingError:  # psycopg's own, which repeats the value of a parameter
            raise SettingsError(f"{self.variable} has a parameter whose value is not valid") from None
        except UnicodeError:  # of the codec for host names
            raise SettingsError(f"{self.variable} has a host name that is not valid; {ENCODING_ADVICE}") from None
        try:
            connection.begin(self._schema, self._limits)
        except psycopg.errors.InsufficientPrivilege:
            user = connection.info.user
            connection.close()
            raise MissingGrantError(self.variable, f'GRANT USAGE ON SCHEMA "{self._schema}" TO "{user}"') from None
        except BaseException as error:
            connection.close()
            if _STATEMENT_POOLING in str(error):
                raise SettingsError(
                    f"{self.variable} points to a connection pooler in statement mode, which allows no transactions: "
                    "set pool_mode = transaction or session for this database there"
                ) from None
            raise
        return connection


def _advice(error: psycopg.OperationalError) -> str:
    """Return what to do about a refused connection, as the end of a message; empty if the refusal says it."""
    if "permission denied for database" in str(error):
        return ". Let the owner of the database run: GRANT CONNECT ON DATABASE … TO … (docs/reference/rights.md)"
    if "does not match host name" in str(error):
        return ". The certificate is for another host name: use one that it contains, or sslmode=verify-ca"
    if "certificate verify failed" in str(error) or "root certificate file" in str(error):
        return ". Name the certificate of its authority: ?sslmode=verify-full&sslrootcert=FILE"
    if "server does not support SSL" in str(error):
        return ". Remove sslmode from the URL, or set it to prefer, if the network may see the data"
    return ""


def photos_database(settings: Settings, application_name: str) -> Database:
    """Return the database with the API's table."""
    return Database(settings.database_url, application_name=application_name, variable="DATABASE_URL")


def embeddings_database(settings: Settings, application_name: str) -> Database:
    """Return the database with the embeddings."""
    return Database(
        settings.embeddings_database_url, application_name=application_name, variable=settings.embeddings_variable
    )


def _parameters(url: str, application_name: str, variable: str) -> tuple[dict[str, str], str | None]:
    try:
        conninfo, schema = postgres_conninfo(url)
    except ValueError as error:
        raise SettingsError(f"{variable} {error}") from None
    try:
        given = conninfo_to_dict(conninfo)
    except (psycopg.ProgrammingError, UnicodeDecodeError) as error:
        # libpq's text quotes the part that it stumbled over, which may be the password. What looks like the name of
        # a parameter is repeated, unless an @ shows that it is a piece of a password with a ? in it.
        pattern = r'invalid URI query parameter: "([a-z][a-z_]{1,40})"'
        name = re.search(pattern, str(error)) if "@" not in urlsplit(url).query else None
        what = f"has an unknown parameter {name[1]}" if name else "is malformed"
        raise SettingsError(f"{variable} {what}; {ENCODING_ADVICE}") from None
    return {
        **_LIMITS,
        "application_name": application_name,
        **{name: str(value) for name, value in given.items() if value is not None},
        **_ENFORCED,
    }, schema


def is_transient(error: BaseException) -> bool:
    """Return whether the same work can succeed later, or on another connection.

    Transient are a lost or refused connection, deadlock, serialisation failure, shutdown, lock and statement
    timeouts, a read-only server (failover), and every lack of resources: connections, memory, disk.
    """
    if not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate
    if state is None:
        # psycopg's own: a connection that is lost or closed, unlike a wrong call.
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    if state in _PERMANENT_STATES:
        return False
    return state in _TRANSIENT_STATES or state[:2] in _TRANSIENT_CLASSES


def _is_read_only(error: psycopg.Error) -> bool:
    return error.sqlstate in _STATES_TO_RECONNECT_AFTER or "session is read-only" in str(error)


def _timeout_of_job(error: psycopg.Error, secrets: Sequence[str]) -> JobError | None:
    """Return the timeout that one job has caused, or None if `error` is not such a timeout.

    A lock on a whole table concerns every job: PostgreSQL reports where the statement names the table.
    """
    if error.sqlstate == _STATEMENT_TIMEOUT:
        return StatementTimeoutError(reason(error, secrets))
    if error.sqlstate == _LOCK_TIMEOUT and error.diag.statement_position is None:
        return LockTimeoutError(reason(error, secrets))
    return None


def retrying(work: Callable[[], T], databases: Sequence[Database], *, seconds: float, of_jobs: bool = False) -> T:
    """Return the result of `work`, which is retried after transient errors for `seconds` from the first failure.

    `databases` are those that `work` uses; lost connections are dropped before the next attempt. `work` must be atomic
    or idempotent. `RetryPolicy` defines the delays; new connections use up no more than the time that is left, but
    at least 2 s, and the first ones 5 s. With `of_jobs`, timeouts of statements and of row locks are not retried:
    they end jobs, not the run.

    Raises `DatabaseUnreachableError` when the time is up, `SettingsError` if the server refuses the statements
    themselves (a missing privilege, table or column, which no job causes), `JobError` for the timeouts of `of_jobs`,
    and every other error unchanged.
    """
    secrets = [secret for database in databases for secret in database.secrets]

    def attempt() -> T:
        try:
            return work()
        except psycopg.Error as error:
            for database in databases:
                database.after(error)
            if of_jobs and (timeout := _timeout_of_job(error, secrets)) is not None:
                raise timeout from None
            raise

    def allow(left: float) -> None:
        for database in databases:
            database.connect_within(left)

    allow(max(_FIRST_CONNECT_TIMEOUT_SECONDS, seconds))
    began = time.monotonic()
    try:
        return RetryPolicy(seconds, is_transient).call(attempt, before_retry=allow)
    except psycopg.Error as error:
        names = " or ".join(dict.fromkeys(database.variable for database in databases))
        shown = reason(error, secrets)
        if is_transient(error):
            advice = f". {READ_ONLY_ADVICE}" if _is_read_only(error) else ""
            spent = time_spent(time.monotonic() - began)
            raise DatabaseUnreachableError(f"{names}: {shown} ({spent}){advice}") from None
        if (error.sqlstate or "")[:2] in _SETUP_CLASSES or isinstance(error, _OF_ANOTHER_TYPE):
            advice = f". {RIGHTS_ADVICE}" if isinstance(error, psycopg.errors.InsufficientPrivilege) else ""
            raise SettingsError(f"{names}: PostgreSQL refuses a statement of this program: {shown}{advice}") from None
        raise


def reason(error: psycopg.Error, secrets: Sequence[str] = ()) -> str:
    """Return one line that describes the error, without any part of a URL or a job, and without `secrets`.

    libpq's message about a host may quote a piece of a password whose special characters were not encoded.
    """
    return redacted(_reason(error), secrets)


def _reason(error: psycopg.Error) -> str:
    if error.sqlstate is not None:
        return f"{error.diag.message_primary} (SQLSTATE {error.sqlstate})"
    text = str(error).strip() or type(error).__name__
    failed = text.splitlines()[0].removeprefix("connection failed: ")
    if "FATAL:" in failed:
        return failed.partition("FATAL:")[2].strip()
    # From the first quotation mark to the last: the quoted text may contain quotation marks and line breaks.
    unquoted = re.sub(r"\".*\"|'.*'", "…", text, flags=re.DOTALL)
    return unquoted.splitlines()[0].removeprefix("connection failed: ")
