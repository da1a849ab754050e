"""The schema of the embeddings database: numbered SQL files, applied only by `spottmee-worker migrate`.

A run only checks. The files are `migrations/NNNN_name.sql`, with `{faces}` for the schema of the tables and
`{vector}` for that of pgvector; one that has been released is never changed.

A migration that is compatible with older programs (a new index, a new column with a default) begins with the line
`-- compatible-from: N`: programs that know version N or later continue to work. Without it, only programs that know
the migration itself do. The number is stored in the database, where older programs read it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from runner.errors import SchemaError
from runner.store.session import Session, identifier

# Any number that no other program of the same database uses for its advisory locks: "spottmee" in ASCII.
_LOCK = int.from_bytes(b"spottmee")
_OLDEST_PGVECTOR = (0, 7)  # the first with halfvec

_VERSIONS = """
CREATE TABLE IF NOT EXISTS {faces}.spottmee_schema (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
_COMPATIBILITY = "ALTER TABLE {faces}.spottmee_schema ADD COLUMN IF NOT EXISTS compatible_from integer"
_APPLIED = "INSERT INTO {faces}.spottmee_schema (version, name, compatible_from) VALUES (%s, %s, %s)"
# As JSON, because the first version's table lacks the column.
_CURRENT = """
SELECT coalesce(max(version), 0),
       coalesce(max(coalesce((to_jsonb(applied) ->> 'compatible_from')::integer, version)), 0),
       to_regclass(%s) IS NOT NULL
  FROM {faces}.spottmee_schema AS applied
"""
_HAS_SCHEMA = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)"
# Where pgvector is created: not in the schema of one installation, whose removal would break all others.
_SHARED_SCHEMA = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public' AND has_schema_privilege(oid, 'USAGE'))
"""
# Earlier versions found tables along the search path: in the schema of pgvector, or, behind a pooler, in `public`.
_ELSEWHERE = """
SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relname = 'faces' AND c.relkind = 'r' AND n.nspname IN ('public', %s) AND n.nspname <> %s
   AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
   AND EXISTS (SELECT FROM pg_class AS v WHERE v.relnamespace = n.oid AND v.relname = 'spottmee_schema')
 ORDER BY 1
"""
_READABLE_PHOTOS = """
SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE n.nspname = %s AND c.relname = 'Photo'
                  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
"""
_ANY_FACE = "SELECT EXISTS (SELECT FROM {elsewhere}.faces)"
_FACE_OF_PHOTOS = """
SELECT EXISTS (SELECT FROM {elsewhere}.faces AS face JOIN {schema}."Photo" AS photo ON photo.id = face.photo_id)
"""
# Not `importlib.resources`, which takes 3 ms of each start.
_FOLDER = Path(__file__).with_name("migrations")


class Migration(NamedTuple):
    """One numbered file."""

    version: int
    name: str

    def text(self) -> str:
        """Return its SQL."""
        return (_FOLDER / self.name).read_text(encoding="utf-8")

    @property
    def compatible_from(self) -> int:
        """The lowest version that a program must know to work with the schema after this migration."""
        declared = re.match(r"-- compatible-from: (\d+)\n", self.text())
        return int(declared[1]) if declared else self.version


def migrations() -> list[Migration]:
    """Return every migration of this version, oldest first."""
    names = sorted(file.name for file in _FOLDER.iterdir() if file.name.endswith(".sql"))
    return [Migration(int(name.partition("_")[0]), name) for name in names]


def current_version(connection: Session) -> int:
    """Return the version of the schema that `connection` uses, 0 if no migration was ever applied.

    Raises `SchemaError` if a version is recorded but its table is missing.
    """
    return _versions(connection)[0]


def _versions(connection: Session) -> tuple[int, int]:
    """Return the version of the schema, and the lowest version that a program must know to work with it."""
    schemas = connection.schemas if connection.schemas.has_versions else connection.locate()
    if not schemas.has_versions:
        return 0, 0
    row = connection.query(_CURRENT, (schemas.compose("{faces}.faces").as_string(connection),)).fetchone()
    version, compatible_from, has_faces = row or (0, 0, False)
    if version and not has_faces:
        raise SchemaError(
            f'schema "{schemas.faces}" has the table spottmee_schema without the table faces: move or restore faces '
            "there, or drop spottmee_schema to start over"
        )
    return int(version), int(compatible_from)


def check(connection: Session) -> None:
    """Raise `SchemaError` unless the schema has the version of this program, or a newer one compatible with it."""
    (have, needed), want = _versions(connection), migrations()[-1].version
    place = f'schema "{connection.schemas.faces}"'
    if needed > want:
        raise SchemaError(
            f"{place} is at version {have}, made by a newer spottmee-worker, for programs that know version {needed}, "
            f"and this one knows {want}: deploy the newer version here too"
        )
    if have < want:
        state = f"{place} is at version {have}" if have else f"{place} has none"
        raise SchemaError(f"{state}, and this version needs {want}{_hint(connection) if not have else ''}")
    if connection.schemas.vector is None and connection.locate().vector is None:
        raise SchemaError("its database no longer has the extension vector: restore it together with the table faces")


def migrate(connection: Session, *, new: bool = False) -> list[str]:
    """Bring the schema to the version of this program and return the names of the files that were applied.

    A newer schema that this program can work with is left unchanged.

    Each file is one transaction under an advisory lock, so that concurrent migrations wait for each other. The schema
    that the URL names is created where it does not exist. Raises `SchemaError` where the schema is newer, where
    pgvector is missing or too old, where the role lacks a privilege, and where the embeddings seem to be in another
    schema, unless `new` says that a new table is wanted.
    """
    applied = []
    try:
        while (name := _apply_next(connection, new=new)) is not None:
            applied.append(name)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(
            f"the role of this connection may not bring it there ({error.diag.message_primary}): run the command "
            "with a role that may, or let such a role type `CREATE EXTENSION vector` first; `spottmee-worker doctor "
            "--for migrate` names the missing GRANT"
        ) from None
    return applied


def _apply_next(connection: Session, *, new: bool) -> str | None:
    """Apply the oldest missing migration and return its name, or None when there is none."""
    known = migrations()
    with connection.unlimited():
        # The lock is the transaction's own: it also holds behind PgBouncer.
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.locate()  # another process may have migrated in the meantime
        have = current_version(connection)
        if have >= known[-1].version:
            check(connection)
            return None
        if have == 0:
            _prepare(connection, new=new)
        migration = next(migration for migration in known if migration.version > have)
        connection.execute(_composed(connection, migration.text()))
        connection.query(_COMPATIBILITY)
        connection.query(_APPLIED, (migration.version, migration.name, migration.compatible_from))
    connection.locate()
    return migration.name


def _composed(connection: Session, text: str) -> sql.Composed:
    """Return the SQL of a migration with the schemas in it; pgvector may have to be created by it."""
    schemas = connection.schemas
    if schemas.vector is None and connection.query(_SHARED_SCHEMA).fetchone() == (True,):
        schemas = schemas._replace(vector="public")
    return schemas.compose(text)


def _prepare(connection: Session, *, new: bool) -> None:
    _check_pgvector(connection)
    if not _schema_exists(connection):
        connection.query("CREATE SCHEMA {faces}")
    elif not new and (advice := _elsewhere(connection)) is not None:
        raise SchemaError(advice)
    connection.query(_VERSIONS)


def _schema_exists(connection: Session) -> bool:
    return connection.query(_HAS_SCHEMA, (connection.schemas.faces,)).fetchone() == (True,)


def _hint(connection: Session) -> str:
    """Return what a missing schema may mean, as the end of a sentence."""
    if not _schema_exists(connection):
        return "; there is no such schema: is ?schema= the right one?"
    advice = _elsewhere(connection)
    return f". {advice}" if advice else ""


def _elsewhere(connection: Session) -> str | None:
    """Return what to do about embeddings that an earlier version may have stored for this URL in another schema.

    They belong to another installation if this schema has its own photos, and none of them has such embeddings.
    """
    schemas = connection.schemas
    for row in connection.query(_ELSEWHERE, (schemas.vector, schemas.faces)).fetchall():
        if not _exists(connection, _ANY_FACE, row[0]):
            continue
        if not _readable_photos(connection, schemas.faces):
            return _advice(connection, row[0], shared=False)
        if _exists(connection, _FACE_OF_PHOTOS, row[0], schemas.faces):
            shared = _readable_photos(connection, row[0]) and _exists(connection, _FACE_OF_PHOTOS, row[0], row[0])
            return _advice(connection, row[0], shared=shared)
    return None


def _readable_photos(connection: Session, schema: str) -> bool:
    return connection.query(_READABLE_PHOTOS, (schema,)).fetchone() == (True,)


def _exists(connection: Session, question: LiteralString, elsewhere: str, schema: str | None = None) -> bool:
    answer = connection.query(
        question, elsewhere=identifier(elsewhere), schema=identifier(schema or elsewhere)
    ).fetchone()
    return answer == (True,)


def _advice(connection: Session, elsewhere: str, *, shared: bool) -> str:
    move = (
        "ALTER TABLE {elsewhere}.faces SET SCHEMA {faces}; ALTER TABLE {elsewhere}.spottmee_schema SET SCHEMA {faces};"
    )
    copy = (
        "INSERT INTO {faces}.faces SELECT f.* FROM {elsewhere}.faces AS f "
        'JOIN {photos}."Photo" AS p ON p.id = f.photo_id;'
    )
    own, other = connection.schemas.faces, sql.Identifier(elsewhere)
    statements = connection.schemas.compose(copy if shared else move, elsewhere=other).as_string(connection)
    found = f'Schema "{elsewhere}" of the same database has embeddings'
    if shared:
        return (
            f"{found} of this installation's photos and of others: earlier versions stored both there. Stop the "
            f"runners, make the table with `spottmee-worker migrate --ignore-other-schemas`, and copy: {statements}"
        )
    return (
        f"{found}, which earlier versions used for this URL too. If they are this installation's, let a role that "
        f'owns the tables move them to "{own}": {statements} If they are another\'s, make an empty table: '
        "`spottmee-worker migrate --ignore-other-schemas`"
    )


def _check_pgvector(connection: Session) -> None:
    row = connection.query(
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
