"""A connection that qualifies every object with its schema, and leaves no session state on the server.

Behind a pooler in transaction mode, the next transaction may run over another server connection, and this one then
belongs to another client. Nothing is therefore set for a session: timeouts and planner settings are set per
transaction, together with its BEGIN, and no statement depends on `search_path`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import Cursor, IsolationLevel, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_BEGIN_READ_ONLY = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"
# No statement here needs a search path; triggers of the API's table may depend on the one that Prisma sets.
# With fewer digits, PostgreSQL rounds the numbers that it sends as text.
_SETTINGS = """
SELECT set_config('statement_timeout', {statement}, true), set_config('lock_timeout', {lock}, true),
       set_config('idle_in_transaction_session_timeout', {idle}, true),
       set_config('random_page_cost', '1.1', true), set_config('jit', 'off', true),
       set_config('extra_float_digits', '1', true),
       set_config('search_path', {path}, true),
       set_config('transaction_read_only', {read_only}, true)
"""
# Otherwise a role set by another client of the pooler would decide what is visible and allowed here.
_OWN_ROLE = "SET LOCAL role TO DEFAULT"
# A server that protects itself (its disk is nearly full) makes read-only the default, which must apply here too.
_OWN_MODE = "SET LOCAL default_transaction_read_only TO DEFAULT"
_MODE = """
CASE current_setting('transaction_read_only') WHEN 'on' THEN 'on'
     ELSE current_setting('default_transaction_read_only') END
"""
_UNLIMITED = f"""
{_OWN_ROLE}; {_OWN_MODE}; SELECT set_config('transaction_read_only', {_MODE}, true);
SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0
"""
# The role's own path, even if another client of a pooler has set one for the session.
_OWN_PATH = "SET LOCAL search_path TO DEFAULT"
# Subqueries instead of joins: planning joins takes 3 ms on a new connection, all of this 1 ms.
# If the URL names no schema, the role's path is searched, as PostgreSQL does for unqualified names.
_LOCATE = """
SELECT names,
       (SELECT nspname::text FROM pg_namespace
         WHERE oid = (SELECT extnamespace FROM pg_extension WHERE extname = 'vector')),
       (SELECT ARRAY[name, status, coalesce(dated, 'false')] FROM (
            SELECT name, position,
                   (SELECT (SELECT (SELECT nspname::text FROM pg_namespace WHERE oid = typnamespace)
                              FROM pg_type WHERE oid = atttypid AND typname = 'PhotoStatus')
                      FROM pg_attribute
                     WHERE attrelid = to_regclass(format('%I."Photo"', name)) AND attname = 'status') AS status,
                   (SELECT has_column_privilege(attrelid, attnum, 'SELECT')::text
                      FROM pg_attribute
                     WHERE attrelid = to_regclass(format('%I."Photo"', name)) AND attname = 'created_at'
                       AND atttypid = 'timestamp'::regtype) AS dated
              FROM unnest(names) WITH ORDINALITY AS place (name, position)) AS found
         WHERE status IS NOT NULL ORDER BY position LIMIT 1),
       (SELECT name FROM unnest(names) WITH ORDINALITY AS place (name, position)
         WHERE to_regclass(format('%I.spottmee_schema', name)) IS NOT NULL ORDER BY position LIMIT 1),
       pg_backend_pid(), extract(epoch FROM clock_timestamp())::float8
  FROM (SELECT CASE WHEN {named}::text IS NULL THEN current_schemas(false)::text[]
                    ELSE ARRAY[{named}::text] END AS names) AS path
"""


class Schemas(NamedTuple):
    """The schemas of objects, which `{photos}`, `{status}`, `{faces}` and `{vector}` stand for in a statement.

    They are those of the table "Photo", its type "PhotoStatus", this program's own tables, and pgvector.

    `named` is the schema that the URL names, or `None`: then `photos` and `faces` are looked up along the role's own
    search path, and what does not exist belongs in the first schema of it. `vector` is `None` where the database has
    no pgvector. `has_created_at` says whether this role may read when a photo was uploaded.
    """

    named: str | None
    path: tuple[str, ...]
    photos: str
    status: str
    faces: str
    vector: str | None
    has_photos: bool
    has_created_at: bool
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
            photos=quoted(self.photos),
            status=quoted(self.status),
            faces=quoted(self.faces),
            vector=quoted(self.vector or self.faces),
            **parts,
        )


def identifier(*names: str) -> sql.Identifier:
    """Return a name, or several joined by dots, for a statement with parameters, in which a % must be doubled."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


class Limits(NamedTuple):
    """Seconds after which the server ends a statement, a wait for a lock, and an idle transaction.

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
    _clock_ahead: float
    _inside = False
    _is_pooled = False

    @property
    def schemas(self) -> Schemas:
        """The schemas that `locate` found last."""
        return self._schemas

    def clock_at(self, moment: float) -> float:
        """Return PostgreSQL's clock at a `time.monotonic`, in seconds since 1970; never later than it will be."""
        return self._clock_ahead + moment

    def begin(self, named: str | None, limits: Limits) -> None:
        """Find the schemas, of which the URL names `named`. Called once, before anything else."""
        # The session defaults that other clients of a pooler have set must not apply to these transactions.
        self.isolation_level = IsolationLevel.READ_COMMITTED
        self.read_only = False
        self._limits = limits
        self._locate(named)

    def locate(self) -> Schemas:
        """Look up the objects again, because some of them may have been created."""
        return self._locate(self._schemas.named)

    def _locate(self, named: str | None) -> Schemas:
        outermost = self.pgconn.transaction_status == TransactionStatus.IDLE
        statements = [
            *([*self._opening(), self._compose_settings(())] if outermost else []),
            sql.SQL(_OWN_PATH),
            sql.SQL(_LOCATE).format(named=sql.Literal(named)),
        ]
        try:
            # One message, because a pipeline loses the error with which a server ends a connection: a pooler in
            # statement mode ends this one, as the transaction is still open after the message.
            cursor = self.execute(sql.SQL(";").join(statements))
            while cursor.nextset():
                pass
            row = cursor.fetchone()
        finally:
            if outermost and not self.closed:
                self.rollback()
        assert row is not None  # noqa: S101 - a SELECT from one row returns one row
        path, vector, photos, faces, process, clock = row
        self._clock_ahead = clock - time.monotonic()
        self._is_pooled = process != self.info.backend_pid  # a pooler reports a number of its own
        first = path[0] if path else "public"
        table, status, dated = photos or (first, first, "false")
        self._schemas = Schemas(
            named=named,
            path=tuple(path),
            photos=table,
            status=status,
            faces=faces or first,
            vector=vector,
            has_photos=photos is not None,
            has_created_at=dated == "true",
            has_versions=faces is not None,
        )
        self._settings = self._compose_settings([*path, *([vector] if vector and vector not in path else [])])
        return self._schemas

    def _opening(self) -> tuple[sql.SQL, ...]:
        begin = _BEGIN_READ_ONLY if self.read_only else _BEGIN
        return sql.SQL(begin), sql.SQL(_OWN_ROLE), sql.SQL(_OWN_MODE)

    def _compose_settings(self, path: Sequence[str]) -> sql.Composed:
        def milliseconds(seconds: float) -> sql.Literal:
            return sql.Literal(f"{round(seconds * 1000)}ms")

        return sql.SQL(_SETTINGS).format(
            statement=milliseconds(self._limits.statement),
            lock=milliseconds(self._limits.lock),
            idle=milliseconds(self._limits.idle),
            read_only=sql.SQL(_MODE),
            path=sql.Literal(sql.SQL(", ").join(map(sql.Identifier, path)).as_string(self)),
        )

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Run the block in one transaction, under the limits; inside another transaction, join it.

        Statements are sent when a result is first read, and at the end: BEGIN, the settings, a statement and COMMIT
        are one round trip. Results may be read afterwards. An error may be raised by a later statement than the one
        that caused it.

        Behind a pooler, COMMIT has a round trip of its own: PgBouncer 1.18 (Debian 12) sometimes does not free the
        server after a transaction that ends in a pipeline, and then other clients of the pool wait for it.
        """
        if self._inside or self.pgconn.transaction_status != TransactionStatus.IDLE:
            yield
            return
        self._inside = True
        try:
            with self.pipeline():
                for statement in self._opening():
                    self.execute(statement)
                self.execute(self._settings)
                yield
                if not self._is_pooled:
                    self.execute("COMMIT")
            if self._is_pooled:
                self.execute("COMMIT")
        except BaseException:
            try:
                self.rollback()
            except psycopg.Error:  # otherwise later statements would join a transaction that is never committed
                self.close()
            raise
        finally:
            self._inside = False

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Run the block in one transaction without time limits: a migration may take long."""
        with self.transaction():
            self.execute(_UNLIMITED)
            yield

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        """Run the block in one transaction, under the limits, and roll it back."""
        with self.transaction(force_rollback=True):
            for statement in self._opening()[1:]:
                self.execute(statement)
            self.execute(self._settings)
            yield

    def query(
        self,
        text: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        **parts: sql.Composable,
    ) -> Cursor[TupleRow]:
        """Execute one statement, with the schemas in it (see `Schemas.statement`), under the limits."""
        with self.bounded():
            return self.execute(self._schemas.statement(text, **parts), parameters)

    def one_row(
        self,
        text: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        **parts: sql.Composable,
    ) -> TupleRow:
        """Return the row of a statement that always has one: a SELECT without FROM, or an aggregate."""
        row = self.query(text, parameters, **parts).fetchone()
        assert row is not None  # noqa: S101 - as documented
        return row
