"""Rights in PostgreSQL: the documented ones suffice; without one of them doctor names it, and nothing is changed."""

from __future__ import annotations

import json
import os
import re
import signal
import uuid
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import psycopg
import pytest

from demo.images import ImageServer
from runner.cli import main
from runner.cli.doctor import run_checks
from runner.settings import load
from tests.support.queue_tools import places
from tests.support.run_tools import Ended, Service
from tests.support.store_tools import LEGACY_TABLE

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "rights.md"
TABLES = ('"Photo"', "faces", "spottmee_schema")
PHOTO = "Cleo & friends.jpg"
URL = "http://h/{id}"
ARGUMENTS = {
    "run": ("run",),
    "sweep": ("sweep",),
    "reprocess": ("reprocess", "--url", URL),
    "forget": ("forget", "--photo", "other", "--yes"),
    "import-legacy": ("import-legacy", "--model", "w600k_mbf"),
}


def _documented() -> dict[str, list[tuple[str, str]]]:
    """Return for each command the privileges and their objects, as GRANT takes them."""
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    common = [("CONNECT", "DATABASE {database}"), ("USAGE", "SCHEMA public")]
    return {
        command: common
        + [
            (privilege, table)
            for table, cell in zip(TABLES, cells.split(" | "), strict=True)
            for privilege in re.findall(r"`([^`]+)`", cell)
        ]
        for command, cells in rows
    }


RIGHTS = _documented()
LESS = [(command, right) for command, rights in RIGHTS.items() for right in rights]


@dataclass(frozen=True, slots=True)
class Limited:
    """The service, and a role with chosen rights."""

    service: Service
    role: str

    @property
    def url(self) -> str:
        return self.service.environment["DATABASE_URL"].replace("postgres@", f"{self.role}@")

    def sql(self, text: str) -> None:
        self.service.connection.execute(text.format(database=self.service.connection.info.dbname).encode())

    def grant(self, rights: Sequence[tuple[str, str]]) -> None:
        for privilege, place in rights:
            self.sql(f"GRANT {privilege} ON {place} TO {self.role}")

    def command(self, name: str) -> Ended:
        """Run the command, in this process if possible, which takes a tenth of the time."""
        if name == "run":
            return self.service.command("run", DATABASE_URL=self.url)
        environment = {**self.service.environment, "DATABASE_URL": self.url}
        handler = signal.getsignal(signal.SIGTERM)
        output, errors = StringIO(), StringIO()
        with patch.dict(os.environ, environment), redirect_stdout(output), redirect_stderr(errors):
            code = main(ARGUMENTS[name])
        signal.signal(signal.SIGTERM, handler)
        return Ended(code, output.getvalue(), errors.getvalue())

    def doctor(self, command: str, empty: Path) -> list[str]:
        """Return what the checks of both databases complain about, and check that each is a matter of settings."""
        names = {"DATABASE_URL": self.url, "RUNNER_CONNECT_TIMEOUT_SECONDS": "1", "RUNNER_MODEL_DIR": str(empty)}
        settings = load({"REDIS_URL": self.service.environment["REDIS_URL"], **names})
        checks = [one for one in run_checks(settings, None, (command,)) if "database" in one.name]
        failed = [one for one in checks if one.error is not None]
        assert {one.exit_code for one in failed} <= {2}, failed
        return [str(one.error) for one in failed]


@pytest.fixture
def limited(service: Service) -> Iterator[Limited]:
    role = f"worker_{uuid.uuid4().hex}"
    found = Limited(service, role)
    found.sql(f"CREATE ROLE {role} LOGIN")
    found.sql("REVOKE ALL ON SCHEMA public FROM PUBLIC; REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    yield found
    found.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def _prepare(service: Service, images: ImageServer) -> str:
    """Add work for every command, and return the id of a photo that has a job."""
    (photo_id,) = service.api.upload({PHOTO: images.url(PHOTO)}).values()
    embedding = f"[{','.join(['1'] + ['0'] * 511)}]"
    for name in ("deleted", "other"):
        service.connection.execute(
            "INSERT INTO faces (photo_id, model, face_index, embedding, created_at)"
            " VALUES (%s, 'm', 0, %s, '2020-01-01')", (name, embedding),
        )  # fmt: skip
    service.connection.execute(
        'INSERT INTO "Photo" (id, status, created_at)'
        " VALUES ('other', 'READY', '2020-01-01'), ('stuck', 'UPLOADED', '2020-01-01')"
    )
    service.connection.execute(LEGACY_TABLE)
    service.connection.execute("GRANT SELECT ON face_embeddings TO PUBLIC")
    service.connection.execute(
        "INSERT INTO face_embeddings (name, embedding) VALUES ('stuck_0', %s)", (embedding,)
    )  # fmt: skip
    return photo_id


def _state(service: Service) -> object:
    """Return everything that a command may change."""
    photos = service.connection.execute('SELECT id, status::text FROM "Photo" ORDER BY id').fetchall()
    stored = service.connection.execute("SELECT photo_id, model FROM faces ORDER BY photo_id").fetchall()
    return photos, stored, service.redis.lrange("face_embeddings:process", 0, -1)


@pytest.mark.parametrize("command", sorted(RIGHTS))
def test_the_documented_rights_suffice(limited: Limited, images: ImageServer, tmp_path: Path, command: str) -> None:
    photo_id = _prepare(limited.service, images)
    limited.grant(RIGHTS[command])
    assert limited.doctor(command, tmp_path) == []
    before = _state(limited.service)
    ended = limited.command(command)
    assert ended.code == 0, ended.errors
    assert _state(limited.service) != before  # it did its work
    assert command != "run" or limited.service.status(photo_id) == "READY"


@pytest.mark.parametrize(("command", "right"), LESS, ids=[f"{name} without {' '.join(right)}" for name, right in LESS])
def test_without_one_right_doctor_names_it_and_the_command_changes_nothing(
    limited: Limited, images: ImageServer, tmp_path: Path, command: str, right: tuple[str, str]
) -> None:
    _prepare(limited.service, images)
    limited.grant([one for one in RIGHTS[command] if one != right])
    named = [one.replace('"', "") for one in limited.doctor(command, tmp_path)]
    privilege, place = right[0], right[1].replace("{database}", "…").replace('"', "")
    pattern = rf"GRANT {re.escape(privilege)} ON (public\.)?{re.escape(place)} TO"
    assert any(re.search(pattern, one) for one in named), named
    before = _state(limited.service)
    ended = limited.command(command)
    assert ended.code == 2, ended.errors
    assert "Traceback" not in ended.errors
    assert "rights.md" in ended.errors
    assert limited.role in "".join(named) or right[0] == "CONNECT"
    if command != "run":
        assert _state(limited.service) == before
    else:
        assert len(places(limited.service.redis).all) == 1  # the job is there, and no dead letter
        assert ended.summary["dead_lettered"] == 0


def test_all_missing_rights_are_named_at_once(limited: Limited, tmp_path: Path) -> None:
    limited.grant(RIGHTS["run"][:2])
    photos, embeddings = limited.doctor("run", tmp_path)
    assert photos.count("GRANT") == 2
    assert embeddings.count("GRANT") == 4
    for one in (photos, embeddings):
        limited.sql(";".join(re.findall(r"GRANT [^;(]*(?:\(status\) [^;(]*)?", one)))
    assert limited.doctor("run", tmp_path) == []


def test_doctor_reports_rights_that_other_commands_lack(limited: Limited) -> None:
    limited.grant(RIGHTS["run"])
    ended = limited.service.command("doctor", "--json", DATABASE_URL=limited.url)
    assert ended.code == 0, ended.output
    (found,) = [one["message"] for one in json.loads(ended.output) if one["name"] == "embeddings database"]
    assert "this role may not migrate: GRANT USAGE, CREATE ON SCHEMA" in found


def test_migrate_needs_what_doctor_names(limited: Limited, tmp_path: Path) -> None:
    limited.sql("DROP TABLE faces, spottmee_schema")
    limited.grant([("CONNECT", "DATABASE {database}"), ("USAGE", "SCHEMA public")])
    ended = limited.service.command("migrate", DATABASE_URL=limited.url)
    assert ended.code == 3
    assert "doctor --for migrate" in ended.errors
    named = "; ".join(limited.doctor("migrate", tmp_path))
    statements = re.findall(r"GRANT [^;(]*", named)
    limited.sql(";".join(statements))
    ended = limited.service.command("migrate", DATABASE_URL=limited.url)
    assert ended.code == 0, ended.errors


def test_doctor_leaves_nothing_behind(limited: Limited, tmp_path: Path) -> None:
    info = limited.service.connection.info
    before = _objects(limited.service.connection)
    names = {"DATABASE_URL": f"postgresql://{info.user}@{info.host}:{info.port}/{info.dbname}"}
    settings = load({"REDIS_URL": limited.service.environment["REDIS_URL"], "RUNNER_MODEL_DIR": str(tmp_path), **names})
    assert [one.error for one in run_checks(settings, None, ("run", "migrate")) if "database" in one.name] == [None] * 2
    assert _objects(limited.service.connection) == before
    assert limited.service.connection.execute("SELECT count(*) FROM faces").fetchone() == (0,)


def _objects(connection: psycopg.Connection) -> object:
    return connection.execute("SELECT relname FROM pg_class ORDER BY oid").fetchall()


# What migrate needs in each situation: the statements that make it, and the one right that is missing.
MIGRATE = {
    "no USAGE on the schema": (
        "DROP TABLE faces, spottmee_schema; GRANT CREATE ON SCHEMA public TO {role}",
        2,
        "GRANT USAGE ON SCHEMA public TO",
    ),
    "no CREATE on the schema": (
        "DROP TABLE faces, spottmee_schema; GRANT USAGE ON SCHEMA public TO {role}",
        3,
        "GRANT USAGE, CREATE ON SCHEMA public TO",
    ),
    "no schema": ("GRANT USAGE ON SCHEMA public TO {role}", 3, "GRANT CREATE ON DATABASE"),
}


@pytest.mark.parametrize("situation", MIGRATE)
def test_migrate_without_one_right_changes_nothing(limited: Limited, tmp_path: Path, situation: str) -> None:
    statements, code, named = MIGRATE[situation]
    limited.grant([("CONNECT", "DATABASE {database}")])
    limited.sql(statements.replace("{role}", limited.role))
    url = limited.url.replace("schema=public", "schema=elsewhere") if situation == "no schema" else limited.url
    names = {"DATABASE_URL": limited.url, "EMBEDDINGS_DATABASE_URL": url, "RUNNER_MODEL_DIR": str(tmp_path)}
    before = _objects(limited.service.connection)
    ended = limited.service.command("migrate", **names)
    assert ended.code == code, ended.errors
    assert ("doctor --for migrate" if code == 3 else "GRANT USAGE ON SCHEMA") in ended.errors
    assert _objects(limited.service.connection) == before
    settings = load({"REDIS_URL": limited.service.environment["REDIS_URL"], **names})
    errors = " ".join(str(one.error) for one in run_checks(settings, None, ("migrate",)) if "embedd" in one.name)
    assert named in errors.replace('"', "")


def test_doctor_says_that_a_table_is_missing_and_not_a_right(service: Service) -> None:
    service.connection.execute("DROP TABLE faces")
    ended = service.command("doctor")
    assert ended.code == 3
    assert "without the table faces: move or restore faces" in ended.output
