"""A connection that names everything it uses, and leaves no setting behind on the server.

Behind a pooler in transaction mode the next transaction may run over another server connection, and this one
belongs to another client. So nothing is set for a session: the time limits and the planner's settings are those of
a transaction, sent in the same message as its BEGIN, and no statement depends on `search_path`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import IsolationLevel, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from psycopg import Cursor

# Tables of the API's own migrations run with any path; triggers of theirs may depend on the one that Prisma sets.
_SETTINGS = """
SELECT set_config('statement_timeout', {statement}, true), set_config('lock_timeout', {lock}, true),
       set_config('idle_in_transaction_session_timeout', {idle}, true),
       set_config('random_page_cost', '1.1', true), set_config('jit', 'off', true),
       set_config('search_path', {path}, true)
"""
# The role's own path, also where another client of a pooler has set one for the session.
_OWN_PATH = "SET LOCAL search_path TO DEFAULT"
# Where a URL names no schema, the role's path is looked through, as PostgreSQL does for a name without a schema.
_LOCATE = """
SELECT names,
       (SELECT n.nspname::text FROM pg_catalog.pg_extension AS e
          JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector'),
       ARRAY(SELECT n.nspname::text FROM pg_catalog.pg_class AS c
               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
               JOIN pg_catalog.pg_type AS t ON t.typnamespace = n.oid AND t.typname = 'PhotoStatus'
              WHERE n.nspname = ANY(names) AND c.relname = 'Photo' AND c.relkind IN ('r', 'p', 'f', 'v')
              ORDER BY array_position(names, n.nspname::text)),
       ARRAY(SELECT n.nspname::text FROM pg_catalog.pg_class AS c
               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
              WHERE n.nspname = ANY(names) AND c.relname = 'spottmee_schema' AND c.relkind = 'r'
              ORDER BY array_position(names, n.nspname::text))
  FROM (SELECT CASE WHEN %(named)s::text IS NULL THEN current_schemas(false)::text[]
                    ELSE ARRAY[%(named)s::text] END AS names) AS path
"""


@dataclass(frozen=True, slots=True)
class Schemas:
    """Where the objects of this program lie: what `{photos}`, `{faces}` and `{vector}` stand for in its statements.

    `named` is the schema that the URL names, `None` where it names none: then `photos` and `faces` are found along
    the role's own search path, and what is not found belongs into the first schema of it. `vector` is `None` where
    the database has no pgvector.
    """

    named: str | None
    path: tuple[str, ...]
    photos: str
    faces: str
    vector: str | None
    has_photos: bool
    has_versions: bool

    def compose(self, text: LiteralString, **parts: sql.Composable) -> sql.Composed:
        """Return `text` with the schemas, and `parts`, in their places; to be executed without parameters."""
        return self._composed(text, sql.Identifier, parts)

    def statement(self, text: LiteralString, **parts: sql.Composable) -> sql.Composed:
        """Return `text` as `compose` does, to be executed with parameters."""
        return self._composed(text, identifier, parts)

    def _composed(
        self, text: LiteralString, quoted: Callable[[str], sql.Identifier], parts: Mapping[str, sql.Composable]
    ) -> sql.Composed:
        return sql.SQL(text).format(
            photos=quoted(self.photos), faces=quoted(self.faces), vector=quoted(self.vector or self.faces), **parts
        )


def identifier(*names: str) -> sql.Identifier:
    """Return a name, or several joined by dots, for a statement with parameters: there a % must be doubled."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds after which the server ends a statement, a wait for a lock, and a transaction that does nothing.

    0 is no limit.
    """

    statement: float
    lock: float
    idle: float


class Session(psycopg.Connection[TupleRow]):
    """A connection in autocommit, as `runner.store.database` opens them."""

    _limits: Limits
    _schemas: Schemas
    _settings: sql.Composed
    _inside = False

    @property
    def schemas(self) -> Schemas:
        """Where the objects of this program were when `locate` last looked."""
        return self._schemas

    def begin(self, named: str | None, limits: Limits) -> None:
        """Find the schemas, of which the URL names `named`. Called once, before anything else."""
        # What other clients of a pooler have set as the default of their session is no rule for these transactions.
        self.isolation_level = IsolationLevel.READ_COMMITTED
        self.read_only = False
        self._limits = limits
        self._locate(named)

    def locate(self) -> Schemas:
        """Look again where the objects are, after some of them may have been created."""
        return self._locate(self._schemas.named)

    def _locate(self, named: str | None) -> Schemas:
        self._settings = self._compose_settings(())
        with self.bounded():
            self.execute(_OWN_PATH)
            cursor = self.execute(_LOCATE, {"named": named})
            # Seen from here, a pooler in statement mode ends the connection: it allows no transactions.
            with self.pipeline():
                pass
        row = cursor.fetchone()
        assert row is not None  # noqa: S101 - a SELECT from one row returns one row
        path, vector, photos, versions = row
        first = path[0] if path else "public"
        self._schemas = Schemas(
            named=named,
            path=tuple(path),
            photos=photos[0] if photos else first,
            faces=versions[0] if versions else first,
            vector=vector,
            has_photos=bool(photos),
            has_versions=bool(versions),
        )
        self._settings = self._compose_settings([*path, *([vector] if vector and vector not in path else [])])
        return self._schemas

    def _compose_settings(self, path: Sequence[str]) -> sql.Composed:
        def milliseconds(seconds: float) -> sql.Literal:
            return sql.Literal(f"{round(seconds * 1000)}ms")

        return sql.SQL(_SETTINGS).format(
            statement=milliseconds(self._limits.statement),
            lock=milliseconds(self._limits.lock),
            idle=milliseconds(self._limits.idle),
            path=sql.Literal(sql.SQL(", ").join(map(sql.Identifier, path)).as_string(self)),
        )

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Make one transaction of what is done inside, under the limits; within another one, take part in that.

        What is executed is sent when a result is first read, and at the end: BEGIN, the settings, a statement and
        COMMIT are one round trip. Results may be read afterwards. An error may come out at a later statement than
        the one that caused it.
        """
        if self._inside or self.pgconn.transaction_status != TransactionStatus.IDLE:
            yield
            return
        self._inside = True
        try:
            with self.pipeline():
                self.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED {'READ ONLY' if self.read_only else 'READ WRITE'}")
                self.execute(self._settings)
                yield
                self.execute("COMMIT")
        except BaseException:
            if not self.closed and self.pgconn.transaction_status != TransactionStatus.IDLE:
                self.rollback()
            raise
        finally:
            self._inside = False

    def query(
        self,
        text: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        **parts: sql.Composable,
    ) -> Cursor[TupleRow]:
        """Execute one statement, with the schemas in it (see `Schemas.statement`), under the limits."""
        with self.bounded():
            return self.execute(self._schemas.statement(text, **parts), parameters)
