"""What the role of DATABASE_URL can see of the API's table, and which table that is."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import NamedTuple

from psycopg import sql

from runner.errors import NO_VISIBLE_ROW, ROW_SECURITY_ADVICE, PhotosInvisibleError
from runner.store.session import Session

TABLE = '"Photo"'

# A policy counts as open if its condition is the constant true. PostgreSQL does not report which rows any other
# condition hides.
_LOOK = """
WITH found AS (
    SELECT oid FROM pg_class WHERE relname = 'Photo' AND relnamespace = %(schema)s::regnamespace
), policy AS (
    SELECT polcmd AS command, polpermissive AS permissive, pg_get_expr(polqual, polrelid) AS condition
      FROM pg_policy
     WHERE polrelid = (SELECT oid FROM found) AND polcmd IN ('*', 'r', 'w')
       AND EXISTS (SELECT FROM unnest(polroles) AS role WHERE role = 0 OR pg_has_role(role, 'USAGE'))
)
SELECT EXISTS (SELECT FROM {photos}."Photo"),
       row_security_active((SELECT oid FROM found)) AND NOT (
           EXISTS (SELECT FROM policy WHERE permissive AND condition = 'true' AND command IN ('*', 'r'))
       AND EXISTS (SELECT FROM policy WHERE permissive AND condition = 'true' AND command IN ('*', 'w'))
       AND NOT EXISTS (SELECT FROM policy WHERE NOT permissive AND condition <> 'true'))
"""
# A locking clause is subject to the policies for UPDATE too, as the statements of a run are.
_LOCKABLE = 'SELECT 1 FROM {photos}."Photo" LIMIT 1 FOR KEY SHARE SKIP LOCKED'
_OBJECTS = """
SELECT (SELECT oid FROM pg_database WHERE datname = current_database()),
       (SELECT oid FROM pg_class WHERE relname = 'Photo' AND relnamespace = %(schema)s::regnamespace),
       has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE')
"""
_SERVER = "SELECT system_identifier FROM pg_control_system()"


class Visibility(NamedTuple):
    """What the role sees: `any_row`, whether at least one row; `filtered`, whether row-level security may hide rows."""

    any_row: bool
    filtered: bool


def read(session: Session) -> Visibility:
    """Return what the role of `session` sees of the API's table."""
    row = session.one_row(_LOOK, _schema(session))
    any_row, filtered = row
    if any_row and filtered:
        any_row = session.query(_LOCKABLE).fetchone() is not None
    return Visibility(any_row, filtered)


def check_missing(session: Session, missing: Collection[str], present: Collection[str]) -> None:
    """Raise `PhotosInvisibleError` if row-level security, enabled since the jobs began, may hide photos.

    As at their begin, a single missing photo counts as deleted while the role sees any row, and several do where
    others of the batch are `present`.
    """
    seen = read(session)
    if seen.filtered and not seen.any_row:
        raise PhotosInvisibleError(NO_VISIBLE_ROW)
    if seen.filtered and len(missing) > 1 and not present:
        raise PhotosInvisibleError(
            f"none of {len(missing)} photos is there, and row-level security may hide them: {ROW_SECURITY_ADVICE}"
        )


def require_all(session: Session) -> None:
    """Raise `PhotosInvisibleError` if photos may be hidden from the role, because they would count as deleted."""
    if read(session).filtered:
        raise PhotosInvisibleError(
            f"row-level security may hide rows of {TABLE} from this role, and hidden photos would count as deleted: "
            f"{ROW_SECURITY_ADVICE}. Nothing was changed"
        )


def identity(session: Session, address: str) -> str:
    """Return an identity of this table: 32 hexadecimal digits, a hash.

    It changes with the server, the database, and the table itself (dropped and created again). `address` is how the URL
    names the server: a restored snapshot has every identifier of its original, and an address of its own.
    """
    row = session.one_row(_OBJECTS, _schema(session))
    database, found, may_ask = row
    # Every role may read the server's identifier, unless that right was revoked.
    server = session.query(_SERVER).fetchone() if may_ask else None
    parts = map(str, (address, server, database, found))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _schema(session: Session) -> dict[str, str]:
    """Return the parameter that names the schema: a name as SQL writes it, which a regnamespace takes."""
    return {"schema": sql.Identifier(session.schemas.photos).as_string(session)}
