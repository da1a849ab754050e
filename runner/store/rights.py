"""The rights in PostgreSQL that the commands need. Each is tried in a transaction that is rolled back.

docs/reference/rights.md documents them; a test keeps both in sync.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from pgvector import HalfVector
from psycopg import sql

from runner.store.embeddings import EMBEDDING_SIZE, register
from runner.store.session import Schemas, Session

COMMANDS = ("run", "sweep", "reprocess", "forget", "import-legacy", "migrate")

# Statements that need one right each, and change nothing; the parameter is the id of a photo that does not exist.
_READ_PHOTOS = 'SELECT id, status::text FROM {photos}."Photo" WHERE id = %s'
_WRITE_PHOTOS = 'UPDATE {photos}."Photo" SET status = DEFAULT WHERE %s::text IS NULL'
_READ_VERSION = "SELECT max(version), %s::text FROM {faces}.spottmee_schema"
_READ_FACES = "SELECT embedding OPERATOR({vector}.<#>) embedding FROM {faces}.faces WHERE photo_id = %s"
_DELETE_FACES = "DELETE FROM {faces}.faces WHERE %s::text IS NULL"
_INSERT_FACE = "INSERT INTO {faces}.faces (photo_id, model, face_index, embedding) VALUES (%s, 'doctor', 0, %s)"
_CREATE_SCHEMA = "CREATE SCHEMA {faces}"
_CREATE_TABLE = "CREATE TABLE {faces}.{table} ()"
_CREATE_EXTENSION = "CREATE EXTENSION vector SCHEMA {faces}"

_USABLE = "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s"
_CAN_HAVE_EXTENSION = """
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector' AND installed_version IS NULL)
"""
# Tables of this program that another role owns: only their owner may alter them.
_OTHER_OWNERS = """
SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class
 WHERE relname IN ('faces', 'spottmee_schema') AND relkind IN ('r', 'p')
   AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND NOT pg_has_role(relowner, 'USAGE')
"""
_NAMES = "SELECT current_user::text, current_database()::text"


@dataclass(frozen=True, slots=True)
class Missing:
    """A statement that grants what is missing, and the commands that need it."""

    grant: str
    commands: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Right:
    """`statement` needs the right of `grant`, and USAGE on the `schemas`."""

    grant: LiteralString
    statement: LiteralString
    schemas: Callable[[Schemas], Sequence[str]]
    commands: tuple[str, ...]


def _of_photos(schemas: Schemas) -> Sequence[str]:
    return [schemas.photos]


def _of_faces(schemas: Schemas) -> Sequence[str]:
    return [schemas.faces, schemas.vector or schemas.faces]


_STORING = ("run", "sweep", "reprocess", "forget", "import-legacy")
_PHOTOS = (
    _Right('GRANT SELECT ON {photos}."Photo" TO {user}', _READ_PHOTOS, _of_photos, _STORING),
    _Right('GRANT UPDATE (status) ON {photos}."Photo" TO {user}', _WRITE_PHOTOS, _of_photos, ("run", "forget")),
)
_FACES = (
    _Right("GRANT SELECT ON {faces}.spottmee_schema TO {user}", _READ_VERSION, _of_faces, COMMANDS),
    _Right("GRANT SELECT ON {faces}.faces TO {user}", _READ_FACES, _of_faces, _STORING),
    _Right("GRANT DELETE ON {faces}.faces TO {user}", _DELETE_FACES, _of_faces, ("run", "sweep", "forget")),
    _Right("GRANT INSERT ON {faces}.faces TO {user}", _INSERT_FACE, _of_faces, ("run", "import-legacy")),
)
_USAGE = "GRANT USAGE ON SCHEMA {schema} TO {user}"
_POLICY = "CREATE POLICY worker ON {faces}.faces TO {user} USING (true) WITH CHECK (true)"
_CREATE_IN_SCHEMA = "GRANT USAGE, CREATE ON SCHEMA {faces} TO {user}"
_CREATE_IN_DATABASE = "GRANT CREATE ON DATABASE {database} TO {user}"
_EXTENSION = "CREATE EXTENSION vector"
_MEMBERSHIP = "GRANT {owner} TO {user}"


def missing_of_photos(session: Session) -> list[Missing]:
    """Return the rights to the API's table that the role lacks. Changes nothing."""
    with session.rolled_back():
        return [found for right in _PHOTOS if (found := _tried(session, right)) is not None]


def missing_of_embeddings(session: Session) -> list[Missing]:
    """Return the rights to the embeddings, and those to migrate, that the role lacks. Changes nothing."""
    register(session)
    with session.rolled_back():
        found = [_tried(session, right) for right in _FACES] if session.schemas.has_versions else []
        return [one for one in (*found, *_missing_to_migrate(session)) if one is not None]


def grants(missing: Collection[Missing], commands: Collection[str]) -> str:
    """Return the statements that grant what any of the `commands` lacks, empty if none lacks anything."""
    wanted = (one.grant for one in missing if one.commands.intersection(commands))
    return "; ".join(dict.fromkeys(wanted))


def _tried(session: Session, right: _Right) -> Missing | None:
    token = f"doctor-{secrets.token_hex(8)}"
    embedding = [HalfVector([1.0] + [0.0] * (EMBEDDING_SIZE - 1))] if right.statement == _INSERT_FACE else []
    refusal = _refusal(session, lambda: session.query(right.statement, [token, *embedding]))
    if refusal is None:
        return None
    schema = _unusable(session, right.schemas(session.schemas))
    if schema is not None:
        text = _composed(session, _USAGE, schema=sql.Identifier(schema))
    elif "row-level security" in (refusal.diag.message_primary or ""):
        text = _composed(session, _POLICY)
    else:
        text = _composed(session, right.grant)
    return Missing(text, frozenset(right.commands))


def _missing_to_migrate(session: Session) -> list[Missing]:
    schema = session.schemas.faces
    usable = session.execute(_USABLE, (schema,)).fetchone()
    needed: list[str] = []
    if usable is None:
        if _refusal(session, lambda: session.query(_CREATE_SCHEMA)):
            needed.append(_composed(session, _CREATE_IN_DATABASE))
    else:
        table = sql.Identifier(f"spottmee_doctor_{secrets.token_hex(8)}")
        if _refusal(session, lambda: session.query(_CREATE_TABLE, table=table)):
            needed.append(_composed(session, _CREATE_IN_SCHEMA))
        if session.execute(_CAN_HAVE_EXTENSION).fetchone() == (True,) and _refusal(
            session, lambda: session.query(_CREATE_EXTENSION)
        ):
            needed.append(_EXTENSION)
    for (owner,) in session.execute(_OTHER_OWNERS, (schema,)).fetchall():
        needed.append(_composed(session, _MEMBERSHIP, owner=sql.Identifier(owner)))
    return [Missing(text, frozenset({"migrate"})) for text in needed]


def _refusal(session: Session, work: Callable[[], object]) -> psycopg.errors.InsufficientPrivilege | None:
    """Do `work`, roll it back, and return the error if the role lacks a right for it.

    A table that is missing lacks no right: the check of the schema says what to do about it.
    """
    try:
        with session.transaction(force_rollback=True):
            work()
    except psycopg.errors.InsufficientPrivilege as error:
        return error
    except psycopg.errors.UndefinedTable:
        return None
    return None


def _unusable(session: Session, schemas: Sequence[str]) -> str | None:
    """Return the first of the schemas that the role may not use."""
    usable = {name: session.execute(_USABLE, (name,)).fetchone() for name in schemas}
    return next((name for name in schemas if usable[name] == (False,)), None)


def _composed(session: Session, text: LiteralString, **parts: sql.Composable) -> str:
    user, database = session.execute(_NAMES).fetchone() or ("", "")
    return session.schemas.compose(
        text, user=sql.Identifier(user), database=sql.Identifier(database), **parts
    ).as_string(session)
