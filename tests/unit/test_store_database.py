"""Which PostgreSQL errors are transient, what is retried, and what a message may contain."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from runner.errors import DatabaseUnreachableError, SettingsError
from runner.store.database import Database, connect, is_transient, reason, retrying
from tests.support.failing import Failing

TRANSIENT = [
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.ConnectionFailure,
    errors.TooManyConnections,
    errors.ReadOnlySqlTransaction,
    errors.FeatureNotSupported,  # BEGIN READ WRITE on a standby
    errors.DiskFull,
    errors.OutOfMemory,
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.IdleInTransactionSessionTimeout,
    errors.IoError,
    errors.OperationalError,
    errors.InterfaceError,
]
PERMANENT = [
    errors.UniqueViolation,
    errors.CheckViolation,
    errors.StringDataRightTruncation,
    errors.InvalidTextRepresentation,
    errors.UndefinedTable,
    errors.InsufficientPrivilege,
    errors.DatabaseDropped,
    errors.InFailedSqlTransaction,
    errors.ProgrammingError,
    errors.DataError,
]


@pytest.mark.parametrize("kind", TRANSIENT)
def test_temporary_failures_are_transient(kind: type[psycopg.Error]) -> None:
    assert is_transient(kind("…"))


@pytest.mark.parametrize("kind", PERMANENT)
def test_permanent_failures_are_not_transient(kind: type[psycopg.Error]) -> None:
    assert not is_transient(kind("…"))


def unused_database(variable: str = "DATABASE_URL") -> Database:
    return Database("postgresql://localhost/x", application_name="test", variable=variable)


def test_work_is_retried_until_it_succeeds() -> None:
    work = Failing(errors.DeadlockDetected(), errors.SerializationFailure(), errors.OperationalError())
    assert retrying(work, [unused_database()], seconds=30) == "done"
    assert work.calls == 4


def test_work_that_succeeds_is_called_once() -> None:
    work = Failing()
    assert retrying(work, [unused_database()], seconds=30) == "done"
    assert work.calls == 1


def test_permanent_failures_are_not_retried() -> None:
    work = Failing(errors.UniqueViolation())
    with pytest.raises(errors.UniqueViolation):
        retrying(work, [unused_database()], seconds=30)
    assert work.calls == 1


def test_a_permanent_failure_after_a_transient_one_is_raised() -> None:
    work = Failing(errors.DeadlockDetected(), errors.UniqueViolation())
    with pytest.raises(errors.UniqueViolation):
        retrying(work, [unused_database()], seconds=30)
    assert work.calls == 2


def test_a_statement_that_the_server_refuses_is_a_settings_error() -> None:
    work = Failing(errors.InsufficientPrivilege())
    with pytest.raises(SettingsError, match="EMBEDDINGS_DATABASE_URL"):
        retrying(work, [unused_database("EMBEDDINGS_DATABASE_URL")], seconds=30)
    assert work.calls == 1


def test_the_time_for_retries_is_bounded_and_every_variable_named() -> None:
    work = Failing(*[errors.DeadlockDetected() for _ in range(1000)])
    databases = [unused_database(), unused_database("EMBEDDINGS_DATABASE_URL")]
    with pytest.raises(DatabaseUnreachableError, match="DATABASE_URL or EMBEDDINGS_DATABASE_URL"):
        retrying(work, databases, seconds=0.5)
    assert 2 <= work.calls < 50


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter%zz2@localhost/x",
        "postgresql://user:hunter2@localhost:hunter2/x",
        "postgresql://user:p@hunter2@localhost:1/x",
        "postgresql://user:hunter2@localhost:1/x",
        "postgresql://user:p?hunter2=1@localhost/x",
        "postgresql://user:hunter2@localhost/x?a=1&&=hunter2",
        "postgresql://user:hunter2%ff@localhost:1/x",
        "postgresql://user:hunter2@..:1/x",
        "postgresql://user@localhost:1/x?password=hunter2",
        "postgresql://user:hunter2/@localhost:1/x",
    ],
)
def test_no_message_contains_a_password(url: str) -> None:
    with pytest.raises((SettingsError, DatabaseUnreachableError)) as caught:
        connect(url, seconds=0, application_name="test", variable="SOME_URL")
    assert "hunter2" not in str(caught.value)
    assert "SOME_URL" in str(caught.value)


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(SettingsError, match="unknown parameter shcema"):
        Database("postgresql://h/x?shcema=a", application_name="test", variable="DATABASE_URL")


def test_parameters_of_prisma_are_accepted() -> None:
    url = "postgresql://h/x?schema=a&connection_limit=5&pool_timeout=0&pgbouncer=true&sslmode=disable"
    Database(url, application_name="test", variable="DATABASE_URL").close()


def test_messages_of_the_server_are_kept_without_quotations_of_the_client() -> None:
    refused = errors.OperationalError('connection failed: connection to server at "h", port 1 failed: FATAL:  too many')
    assert reason(refused) == "too many"
    unresolved = errors.OperationalError("failed to resolve host 'ss@word': [Errno -2] Name or service not known")
    assert reason(unresolved) == "failed to resolve host …: [Errno -2] Name or service not known"
