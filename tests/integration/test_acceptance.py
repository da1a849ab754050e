"""The service as its users see it: upload, match, delete, upload again, only through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from demo.album import Album
    from demo.images import ImageServer
    from tests.support.run_tools import Service

ALBUM_NAMES = ("Everyone (1).jpg", "office.png", "姚明.jpg", "Cleo & friends.jpg", "Ben 100%.webp", "right side?.jpg")


def _matches(service: Service, album: Album, person: str, photos: Mapping[str, str]) -> list[str]:
    """Return the names of the photos that a guest gets, in the order in which the API gets them."""
    selfie = next(selfie for selfie in album.selfies if selfie.person == person)
    job = service.api.compare(selfie.data, list(photos.values()))
    service.run("--queues", "compare")
    names = {photo_id: name for name, photo_id in photos.items()}
    return [names[photo_id] for photo_id in service.api.result(job) or []]


def test_upload_match_delete_and_upload_again(service: Service, album: Album, images: ImageServer) -> None:
    photos = service.api.upload({name: images.url(name) for name in ALBUM_NAMES})
    summary = service.run().summary
    assert summary["claimed"] == summary["succeeded"] == summary["photos"] == len(ALBUM_NAMES)
    assert set(service.api.statuses().values()) == {"READY"}
    assert _matches(service, album, "Cleo", photos) == ["Everyone (1).jpg", "Cleo & friends.jpg"]
    assert _matches(service, album, "Ada", photos) == ["Everyone (1).jpg", "right side?.jpg"]

    service.api.delete(photos["Cleo & friends.jpg"])
    removed = service.command("sweep", "--json")
    assert (removed.code, removed.summary["deleted_photos"], removed.summary["removed_faces"]) == (0, 1, 2)
    assert _matches(service, album, "Cleo", photos) == ["Everyone (1).jpg"]

    again = service.api.upload({"Cleo & friends.jpg": images.url("Cleo & friends.jpg")})
    service.run()
    assert _matches(service, album, "Cleo", photos | again) == ["Everyone (1).jpg", "Cleo & friends.jpg"]
    assert service.leftovers() == {}


def test_a_photo_that_is_processed_again_replaces_its_faces(service: Service, images: ImageServer) -> None:
    photos = service.api.upload({"office.png": images.url("office.png")})
    photo_id = photos["office.png"]
    service.run()
    first = service.connection.execute("SELECT face_index, created_at FROM faces ORDER BY 1").fetchall()
    service.redis.rpush(
        "face_embeddings:process", json.dumps({"id": photo_id, "imageUrl": images.url("姚明.jpg")}, ensure_ascii=False)
    )
    service.run()
    second = service.connection.execute("SELECT face_index, created_at FROM faces ORDER BY 1").fetchall()
    assert (len(first), len(second)) == (5, 1)
    assert second[0][1] > first[0][1]
    assert service.status(photo_id) == "READY"


def test_embeddings_are_normalised_and_say_where_the_faces_are(service: Service, images: ImageServer) -> None:
    service.api.upload({"office.png": images.url("office.png")})
    service.run()
    rows = service.connection.execute(
        "SELECT model, l2_norm(embedding), box, score, landmarks FROM faces ORDER BY face_index"
    ).fetchall()
    scores = [score for *_, score, _ in rows]
    assert scores == sorted(scores, reverse=True)
    for model, norm, (x1, y1, x2, y2), score, landmarks in rows:
        assert model == "w600k_mbf"
        assert norm == pytest.approx(1, abs=1e-3)
        assert x1 < x2
        assert y1 < y2
        assert 0.5 <= score <= 1
        assert all(x1 < x < x2 and y1 < y < y2 for x, y in landmarks[:3])  # eyes and nose


def test_photos_and_embeddings_can_be_in_two_databases(
    service: Service, empty_database_url: str, album: Album, images: ImageServer
) -> None:
    apart = {"EMBEDDINGS_DATABASE_URL": empty_database_url}
    refused = service.command("run", **apart)
    assert refused.code == 3
    assert "spottmee-worker migrate" in refused.errors
    assert service.command("migrate", **apart).code == 0
    photos = service.api.upload({"office.png": images.url("office.png")})
    service.run(**apart)
    selfie = next(selfie for selfie in album.selfies if selfie.person == "Hal")
    job = service.api.compare(selfie.data, list(photos.values()))
    service.run(**apart)
    assert service.api.result(job) == [photos["office.png"]]
    assert service.faces(photos["office.png"]) == 0  # none in the API's own database


def test_comparisons_are_claimed_before_photos(service: Service, album: Album, images: ImageServer) -> None:
    photos = service.api.upload({"ready": images.url("姚明.jpg")})
    service.run()
    service.api.upload({f"{n}": images.url("姚明.jpg") for n in range(6)})
    job = service.api.compare(album.selfies[0].data, list(photos.values()))
    ended = service.run("--max-jobs", "3")
    assert service.api.result(job) == []
    assert (ended.summary["comparisons"], ended.summary["photos"], ended.summary["exit_reason"]) == (1, 2, "max_jobs")
    assert service.leftovers() == {"process waiting": 4}


def test_the_module_behaves_like_the_command() -> None:
    from runner import __version__

    done = subprocess.run(
        [sys.executable, "-m", "runner", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"spottmee-worker {__version__}\n"
