"""The schema of the embeddings database: numbered SQL files, applied by `spottmee-worker migrate` alone.

A run only checks. The files are `migrations/NNNN_name.sql`; one that has been released is never changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from runner.errors import SchemaError

if TYPE_CHECKING:
    from psycopg import Connection

# Any number that no other program of the same database uses for its advisory locks: "spottmee" in ASCII.
_LOCK = int.from_bytes(b"spottmee")
_OLDEST_PGVECTOR = (0, 7)  # the first with halfvec

_VERSIONS = """
CREATE TABLE IF NOT EXISTS spottmee_schema (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
# Where the extension is already there, its types must be found from the new schema too.
_FIND_PGVECTOR = """
SELECT set_config('search_path', concat_ws(', ', current_setting('search_path'), quote_ident(n.nspname)), false)
  FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    version: int
    name: str

    def text(self) -> str:
        """Return its SQL."""
        return (_folder() / self.name).read_text(encoding="utf-8")


def _folder() -> resources.abc.Traversable:
    return resources.files("runner.store") / "migrations"


def migrations() -> list[Migration]:
    """Return every migration of this version, oldest first."""
    names = sorted(file.name for file in _folder().iterdir() if file.name.endswith(".sql"))
    return [Migration(int(name.partition("_")[0]), name) for name in names]


def current_version(connection: Connection) -> int:
    """Return the version of the database that `connection` leads to, 0 when nothing was ever applied."""
    if connection.execute("SELECT to_regclass('spottmee_schema')").fetchone() == (None,):
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM spottmee_schema").fetchone()
    return int(row[0]) if row else 0


def check(connection: Connection) -> None:
    """Raise `SchemaError` unless the database is at exactly the version of this program."""
    have, want = current_version(connection), migrations()[-1].version
    if have == want:
        return
    if have > want:
        raise SchemaError(
            f"it is at version {have}, made by a newer spottmee-worker, and this one knows {want}: "
            "deploy the newer version here too"
        )
    state = f"it is at version {have}" if have else "it has none"
    raise SchemaError(f"{state}, and this version needs {want}")


def migrate(connection: Connection, schema: str | None = None) -> list[str]:
    """Bring the database to the version of this program and return the names of the files that were applied.

    `connection` must be in autocommit. Each file is one transaction under an advisory lock, so several of these at
    once wait for each other. `schema` is the one that the URL names; it is created where it does not exist. Raises
    `SchemaError` where the database is newer, where pgvector is missing or too old, and where the role may not do
    what a migration asks for.
    """
    applied = []
    try:
        while (name := _apply_next(connection, schema)) is not None:
            applied.append(name)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(
            f"the role of this connection may not bring it there ({error.diag.message_primary}): run the command "
            "with a role that may, or let such a role type `CREATE EXTENSION vector` first"
        ) from None
    return applied


def _apply_next(connection: Connection, schema: str | None) -> str | None:
    """Apply the oldest missing migration and return its name, or None when there is none."""
    known = migrations()
    with connection.transaction():
        # A migration may take longer than ordinary work, and so may waiting for another one. The lock is the
        # transaction's own: it also holds behind PgBouncer.
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("SET LOCAL lock_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        have = current_version(connection)
        if have >= known[-1].version:
            check(connection)
            return None
        if have == 0:
            _prepare(connection, schema)
        migration = next(migration for migration in known if migration.version > have)
        connection.execute(migration.text())
        connection.execute(
            "INSERT INTO spottmee_schema (version, name) VALUES (%s, %s)", (migration.version, migration.name)
        )
    return migration.name


def _prepare(connection: Connection, schema: str | None) -> None:
    _check_pgvector(connection)
    if schema is not None and connection.execute("SELECT current_schema()").fetchone() == (None,):
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        connection.execute(_FIND_PGVECTOR)
    connection.execute(_VERSIONS)


def _check_pgvector(connection: Connection) -> None:
    row = connection.execute(
        "SELECT coalesce((SELECT extversion FROM pg_extension WHERE extname = 'vector'), default_version)"
        " FROM pg_available_extensions WHERE name = 'vector'"
    ).fetchone()
    if row is None:
        raise SchemaError("its server has no pgvector: install it there (package postgresql-NN-pgvector)")
    version = tuple(int(part) for part in str(row[0]).split(".")[:2])
    if version < _OLDEST_PGVECTOR:
        raise SchemaError(
            f"its pgvector is {row[0]}, and halfvec needs 0.7 or newer: upgrade it on the server, "
            "`ALTER EXTENSION vector UPDATE`, then this again"
        )
