"""Deleted photos: a trigger on the API's table removes their embeddings in the same transaction.

It needs embeddings and photos in one database, and a role that may create triggers on the API's table. Without it,
`sweep` removes them later.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from runner.store.session import Schemas, Session

TRIGGER = "spottmee_photos_deleted"
# Written as the function's comment. Changed with the function, so that `migrate` replaces that of an earlier version.
_VERSION = "spottmee-worker 1"
# While a CREATE TRIGGER waits, every later write to the API's table waits behind it.
_LOCK_SECONDS = 2

# It never fails, because the API's own DELETE must not fail. It runs with the rights of the role that owns the
# embeddings, whichever role deletes, and does not depend on a search path.
_FUNCTION = """
CREATE OR REPLACE FUNCTION {faces}.spottmee_photos_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $spottmee$
BEGIN
    DELETE FROM {faces}.faces WHERE photo_id = ANY (ARRAY(SELECT id::text FROM gone));
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'the embeddings of deleted photos were not removed (spottmee-worker sweep removes them): %', SQLERRM;
    RETURN NULL;
END $spottmee$;
REVOKE ALL ON FUNCTION {faces}.spottmee_photos_deleted() FROM PUBLIC;
COMMENT ON FUNCTION {faces}.spottmee_photos_deleted() IS {version};
"""
_TRIGGER = """
CREATE TRIGGER spottmee_photos_deleted AFTER DELETE ON {photos}."Photo" REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT EXECUTE FUNCTION {faces}.spottmee_photos_deleted()
"""
# The server's identifier tells servers apart whose databases have the same number.
_DATABASE = """
SELECT CASE WHEN has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE')
            THEN (SELECT system_identifier::text FROM pg_control_system()) END,
       (SELECT oid::text FROM pg_database WHERE datname = current_database()), current_database()
"""
_STATE = """
SELECT p.oid IS NOT NULL AND obj_description(p.oid, 'pg_proc') = %(version)s,
       t.oid IS NOT NULL, coalesce(t.tgenabled IN ('O', 'A'), false) AND t.tgfoid = p.oid,
       c.relkind IN ('r', 'p'), has_table_privilege(c.oid, 'TRIGGER'), current_user::text
  FROM pg_class AS c
  LEFT JOIN pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = 'spottmee_photos_deleted'
  LEFT JOIN pg_proc AS p ON p.proname = 'spottmee_photos_deleted' AND p.pronargs = 0
        AND p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(faces)s)
 WHERE c.relname = 'Photo' AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(photos)s)
"""


@dataclass(frozen=True, slots=True)
class Removal:
    """How the embeddings of deleted photos are removed: `by_trigger`, or by `sweep` because of `reason`."""

    by_trigger: bool
    reason: str = ""

    def __str__(self) -> str:
        """Return a readable clause."""
        if self.by_trigger:
            return "deleting a photo removes its embeddings in the same transaction (trigger)"
        return f"the embeddings of deleted photos are removed by `spottmee-worker sweep`: {self.reason}"


@dataclass(frozen=True, slots=True)
class _State:
    function_is_current: bool
    has_trigger: bool
    trigger_works: bool
    is_table: bool
    may_create: bool
    role: str


def removal(photos: Session, embeddings: Session) -> Removal:
    """Return how the embeddings of deleted photos are removed. Changes nothing."""
    found = _look(photos, embeddings)
    if isinstance(found, Removal):
        return found
    if found.trigger_works:
        return Removal(by_trigger=True)
    if found.has_trigger:
        return Removal(
            by_trigger=False,
            reason=f'the trigger {TRIGGER} of "Photo" is disabled or belongs to other tables: let the owner of "Photo" '
            "drop it, and run `spottmee-worker migrate`",
        )
    return Removal(by_trigger=False, reason=_why_not(found, photos.schemas))


def install(photos: Session, embeddings: Session) -> Removal:
    """Create the trigger if possible, and return how the embeddings of deleted photos are removed.

    Idempotent, and safe to call concurrently. Waits for the API's table for at most 2 s.
    """
    found = _look(photos, embeddings)
    if isinstance(found, Removal):
        return found
    try:
        with embeddings.transaction():
            _create(embeddings, photos.schemas, found)
    except psycopg.errors.LockNotAvailable:
        reason = '"Photo" was locked for too long to create a trigger: run `spottmee-worker migrate` again'
        return Removal(by_trigger=False, reason=reason)
    except psycopg.errors.InsufficientPrivilege as error:
        return Removal(by_trigger=False, reason=f"the trigger could not be created: {error.diag.message_primary}")
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation, psycopg.errors.InternalError_):
        pass  # another process has created it in the meantime
    return removal(photos, embeddings)


def _look(photos: Session, embeddings: Session) -> _State | Removal:
    if photos is not embeddings and _database(photos) != _database(embeddings):
        return Removal(by_trigger=False, reason="they are not in the database of the photos")
    row = embeddings.query(
        _STATE, {"version": _VERSION, "faces": embeddings.schemas.faces, "photos": photos.schemas.photos}
    ).fetchone()
    if row is None:
        return Removal(
            by_trigger=False, reason='there is no table "Photo" yet: run `spottmee-worker migrate` again when there is'
        )
    return _State(*row)


def _create(embeddings: Session, photos: Schemas, found: _State) -> None:
    embeddings.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{_LOCK_SECONDS}s")))
    if not found.is_table or not (found.may_create or found.has_trigger):
        return
    names = {"photos": sql.Identifier(photos.photos), "faces": sql.Identifier(embeddings.schemas.faces)}
    if not found.function_is_current:
        embeddings.execute(sql.SQL(_FUNCTION).format(**names, version=sql.Literal(_VERSION)))
    if not found.has_trigger:
        embeddings.execute(sql.SQL(_TRIGGER).format(**names))


def _why_not(found: _State, schemas: Schemas) -> str:
    if not found.is_table:
        return '"Photo" is a view or a foreign table, which cannot have such a trigger'
    if not found.may_create:
        table, role = sql.Identifier(schemas.photos, "Photo").as_string(), sql.Identifier(found.role).as_string()
        return (
            f"the role may not create a trigger; let the owner of the table GRANT TRIGGER ON {table} TO {role}, and "
            "run `spottmee-worker migrate`"
        )
    return "there is no trigger: run `spottmee-worker migrate`"


def _database(session: Session) -> tuple[object, ...]:
    return tuple(session.one_row(_DATABASE))
