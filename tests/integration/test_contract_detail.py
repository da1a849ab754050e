"""The contract's detail key, its table of fields, and the rights that a run needs on the API's table."""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from runner.queue import keys
from tools.prose import ROOT

if TYPE_CHECKING:
    from demo.album import Album
    from demo.images import ImageServer
    from tests.support.run_tools import Service

PAGE = ROOT / "docs/reference/contract.md"
PHOTO = "Cleo & friends.jpg"


def documented() -> set[str]:
    """Return the names of the fields in the contract's table."""
    section = PAGE.read_text(encoding="utf-8").partition("### The detail key")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| <a")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def selfie(album: Album, person: str) -> bytes:
    return next(selfie.data for selfie in album.selfies if selfie.person == person)


def test_the_detail_has_the_fields_of_the_contract(service: Service, album: Album, images: ImageServer) -> None:
    photos = service.api.upload({name: images.url(name) for name in (PHOTO, "office.png", "the lake.jpg")})
    service.run()
    ids = [*photos.values()]
    job = {"jobId": "guest", "storedIds": [*ids, ids[0]], "threshold": 0.45}
    payload = job | {"selfie": base64.b64encode(selfie(album, "Cleo")).decode()}
    service.redis.rpush(keys.list_key("compare"), json.dumps(payload))
    service.redis.set(keys.match_result("guest"), "INITIATED")
    service.run()
    detail: dict[str, Any] = dict(service.api.detail("guest"))
    assert detail.keys() == documented()
    assert detail["matched"] == service.api.result("guest") == [photos[PHOTO]]
    assert detail["scores"].keys() == {photos[PHOTO]}
    assert 0.45 < detail["scores"][photos[PHOTO]] <= 1
    assert detail["duration_ms"] > 0
    (match,) = detail["matches"]
    assert match.keys() == {"photo_id", "score", "face_index", "box", "selfie_face"}
    assert (match["photo_id"], match["score"]) == (photos[PHOTO], detail["scores"][photos[PHOTO]])
    known = {
        "faces": 1, "faces_compared": 1, "model": "w600k_mbf", "threshold": 0.45, "stored_ids": 3,
        "with_embeddings": 2, "complete": True, "pending": 0, "initiated": True, "error": None,
    }  # fmt: skip
    assert {name: detail[name] for name in known} == known
    assert 3500 < service.redis.ttl(keys.match_result_detail("guest")) <= 3600


def test_a_failed_comparison_is_not_complete(service: Service) -> None:
    job = service.api.compare(b"no image", ["photo"])
    service.run()
    detail = service.api.detail(job)
    assert (detail["complete"], detail["pending"]) == (False, None)


def test_while_an_album_is_processed_the_value_stays_processing(
    service: Service, album: Album, images: ImageServer
) -> None:
    photos = service.api.upload({PHOTO: images.url(PHOTO)})
    job = service.api.compare(selfie(album, "Cleo"), list(photos.values()))
    service.run("--queues", "compare", "--max-seconds", "1")
    assert service.redis.get(keys.match_result(job)) == b"PROCESSING"
    assert service.api.detail(job).keys() == {"complete", "pending", "faces", "model", "initiated"}
    assert (service.api.detail(job)["complete"], service.api.detail(job)["pending"]) == (False, 1)
    service.run("--idle-seconds", "5")
    assert service.api.result(job) == list(photos.values())


@pytest.fixture
def limited(service: Service) -> Iterator[Service]:
    """The service, whose runs may read two columns of the API's table, and write one."""
    role = f"worker_{uuid.uuid4().hex}"
    for statement in (
        f"CREATE ROLE {role} LOGIN",
        f'GRANT SELECT (id, status), UPDATE (status) ON "Photo" TO {role}',
    ):
        service.connection.execute(statement.encode())
    url = service.environment["DATABASE_URL"]
    ours = {"DATABASE_URL": url.replace("postgres@", f"{role}@"), "EMBEDDINGS_DATABASE_URL": url}
    yield replace(service, environment={**service.environment, **ours})
    service.connection.execute(f"DROP OWNED BY {role}".encode())
    service.connection.execute(f"DROP ROLE {role}".encode())


def test_a_run_needs_only_id_and_status_of_the_apis_table(limited: Service, album: Album, images: ImageServer) -> None:
    photos = limited.api.upload({name: images.url(name) for name in (PHOTO, "the lake.jpg", "invitation.svg")})
    limited.api.delete(limited.api.upload({"deleted": images.url(PHOTO)})["deleted"])
    limited.run()
    assert [limited.status(photo) for photo in photos.values()] == ["READY", "NO_FACES_FOUND", "FAILED"]
    job = limited.api.compare(selfie(album, "Cleo"), list(photos.values()))
    limited.run()
    assert limited.api.result(job) == [photos[PHOTO]]
