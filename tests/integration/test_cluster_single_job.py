"""A single job: `run --job`, and `debug --local`, which writes to no server."""

from __future__ import annotations

import base64
import json
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from tests.support import forked
from tests.support.odd_server import OddServer

if TYPE_CHECKING:
    from redis import Redis

    from demo.album import Album
    from demo.images import ImageServer
    from tests.support.run_tools import Service

PHOTO = "Cleo & friends.jpg"


def _selfie(album: Album, person: str) -> bytes:
    return next(selfie.data for selfie in album.selfies if selfie.person == person)


def _pop(redis: Any, name: str = "process") -> bytes:
    payload: bytes = redis.lpop(f"face_embeddings:{name}")
    return payload


def _everything(service: Service) -> dict[str, object]:
    """Return all of Redis and the statuses and faces of PostgreSQL."""
    redis: Any = service.redis
    dumps = {key: redis.dump(key) for key in redis.scan_iter()}
    faces = service.connection.execute("SELECT photo_id, face_index, created_at FROM faces ORDER BY 1, 2").fetchall()
    return {"redis": dumps, "statuses": service.api.statuses(), "faces": faces}


def test_run_job_processes_the_given_job_and_does_not_touch_the_list(
    service: Service, images: ImageServer, tmp_path: Path
) -> None:
    photos = service.api.upload({PHOTO: images.url(PHOTO), "other": images.url("office.png")})
    payload = _pop(service.redis)
    (tmp_path / "payload-001").write_bytes(payload[20:])  # a folder is joined by name, as Secrets are mounted
    (tmp_path / "payload-000").write_bytes(payload[:20])
    (tmp_path / "..data").mkdir()
    ended = service.run(RUNNER_JOB=str(tmp_path), RUNNER_MAX_JOBS="1")
    assert (ended.summary["claimed"], ended.summary["succeeded"]) == (1, 1)
    assert service.status(photos[PHOTO]) == "READY"
    assert service.faces(photos[PHOTO]) == 2
    assert service.status(photos["other"]) == "UPLOADED"
    assert service.leftovers() == {"process waiting": 1}


def test_a_given_comparison_is_answered(service: Service, album: Album, images: ImageServer, tmp_path: Path) -> None:
    photos = service.api.upload({PHOTO: images.url(PHOTO)})
    service.run()
    job = service.api.compare(_selfie(album, "Cleo"), list(photos.values()))
    (tmp_path / "job.json").write_bytes(_pop(service.redis, "compare"))
    assert service.run("--job", str(tmp_path / "job.json")).summary["comparisons"] == 1
    assert service.api.result(job) == list(photos.values())


def test_a_given_job_is_retried_as_often_as_any_other(service: Service, tmp_path: Path) -> None:
    with OddServer({}) as server:
        photos = service.api.upload({"x": server.url("status/503")})
        (tmp_path / "job").write_bytes(_pop(service.redis))
        ended = service.run("--job", str(tmp_path / "job"), RUNNER_MAX_JOBS="1")
        assert len(server.requests) == 3
    assert (ended.summary["claimed"], ended.summary["retried"], ended.summary["dead_lettered"]) == (3, 2, 1)
    assert service.status(photos["x"]) == "FAILED"
    assert service.leftovers() == {}  # no dead letter, because the job was never in the list


@pytest.mark.parametrize("payload", [b"", b" \n"])
def test_a_missing_job_file_is_a_settings_error(service: Service, tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "job").write_bytes(payload)
    assert service.command("run", "--job", str(tmp_path / "job")).code == 2
    missing = service.command("run", "--job", str(tmp_path / "missing"))
    assert missing.code == 2
    assert "No such file" in missing.errors


def test_an_invalid_payload_is_dead_lettered_and_does_not_crash_the_run(service: Service, tmp_path: Path) -> None:
    (tmp_path / "job").write_bytes(b'{"imageUrl": 5')
    ended = service.run("--job", str(tmp_path / "job"))
    assert ended.summary["dead_lettered"] == 1
    assert ended.lines(code="invalid_job")


def test_debugging_a_photo_locally_writes_nothing(service: Service, images: ImageServer, tmp_path: Path) -> None:
    photos = service.api.upload({PHOTO: images.url(PHOTO)})
    before = _everything(service)
    picture = tmp_path / "seen.png"
    picture.touch(0o644)
    ended = service.command("debug", "--local", "--photo", photos[PHOTO], "--save-image", str(picture), "--json")
    assert ended.code == 0, ended.errors
    document = json.loads(ended.output)
    assert _everything(service) == before
    assert [len(face["landmarks"]) for face in document["faces"]] == [5, 5]
    assert document["error"] is None
    image = cv2.imread(str(picture))
    assert image is not None
    assert [image.shape[1], image.shape[0]] == document["size"]
    left, top, right, _ = (round(value) for value in document["faces"][0]["box"])
    assert tuple(image[top, (left + right) // 2]) == (80, 220, 60)  # the edge of the box
    assert stat.S_IMODE(picture.stat().st_mode) == 0o600


def test_no_image_is_saved_unless_requested(
    service: Service, album: Album, images: ImageServer, tmp_path: Path
) -> None:
    photos = service.api.upload({PHOTO: images.url(PHOTO)})
    service.run()
    comparison = {"jobId": "c", "storedIds": list(photos.values())}
    selfie = base64.b64encode(_selfie(album, "Cleo")).decode()
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    for arguments in (
        ["--photo", "p", "--url", images.url(PHOTO)],
        ["--job", json.dumps({**comparison, "selfie": selfie})],
    ):
        done = forked.run(
            ["debug", "--local", "--json", *arguments],
            env={**service.environment, "TMPDIR": str(scratch), "HOME": str(home)},
            cwd=home, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["image_file"] is None
        assert json.loads(done.stdout)["faces"]
    assert [*home.rglob("*"), *scratch.rglob("*")] == []


def test_debugging_a_comparison_locally_writes_nothing(
    service: Service, album: Album, images: ImageServer, tmp_path: Path
) -> None:
    photos = service.api.upload({name: images.url(name) for name in (PHOTO, "office.png")})
    service.run()
    service.api.compare(_selfie(album, "Cleo"), list(photos.values()))
    payload = _pop(service.redis, "compare")
    service.redis.set("only", "this")
    before = _everything(service)
    environment = {"REDIS_URL": "", "DATABASE_URL": "", "EMBEDDINGS_DATABASE_URL": service.environment["DATABASE_URL"]}
    out = str(tmp_path / "selfie.jpg")
    ended = service.command("debug", "--local", "--job", payload.decode(), "--save-image", out, "--json", **environment)
    assert ended.code == 0, ended.errors
    document = json.loads(ended.output)
    assert list(document["scores"]) == [photos[PHOTO]]
    assert 0.5 < document["scores"][photos[PHOTO]] <= 1
    assert document["with_embeddings"] == 2
    assert document["threshold"] == 0.5
    assert document["similarities"].keys() == {*photos.values()}
    assert document["similarities"][photos["office.png"]] < 0.5
    assert _everything(service) == before
    assert json.loads(payload)["selfie"] not in ended.output + ended.errors


def test_a_local_comparison_says_why_each_photo_matches_or_not(
    service: Service, album: Album, images: ImageServer
) -> None:
    photos = service.api.upload({name: images.url(name) for name in (PHOTO, "office.png", "the lake.jpg")})
    service.run()
    job = {"jobId": "c", "storedIds": [*photos.values(), "unknown"], "threshold": 0.45,
           "selfie": base64.b64encode(_selfie(album, "Cleo")).decode()}  # fmt: skip
    ended = service.command("debug", "--local", "--job", json.dumps(job))
    assert ended.code == 0, ended.errors
    lines = [line.strip() for line in ended.output.splitlines()]
    assert "1 of 4 photos match: 2 have embeddings of this model, and the threshold is 0.45" in lines
    line_of = {line.split()[-1]: line for line in lines if line.split()[-1] in (*photos.values(), "unknown")}
    similarity, verdict, difference, _ = line_of[photos[PHOTO]].split()
    assert verdict == "match"
    assert float(similarity) - 0.45 == pytest.approx(float(difference), abs=1e-3)
    assert re.match(r"-?0\.\d{4} +no match +-0\.\d{4} ", line_of[photos["office.png"]])
    for photo in (photos["the lake.jpg"], "unknown"):
        assert "no match  no embeddings of this model" in line_of[photo]


def test_debug_says_why_a_job_fails(service: Service, tmp_path: Path) -> None:
    with OddServer({"text": b"no image"}) as server:
        gone = {"id": "a", "imageUrl": server.url("status/404")}
        ended = service.command("debug", "--local", "--job", json.dumps(gone))
        assert ended.code == 5
        assert "image_missing" in ended.output
        broken = service.command("debug", "--local", "--photo", "b", "--url", server.url("text"), "--json")
    assert broken.code == 5
    assert json.loads(broken.output)["error"]["code"] == "image_undecodable"
    flat, _ = np.zeros((64, 64, 3), np.uint8), None
    encoded = base64.b64encode(cv2.imencode(".png", flat)[1].tobytes()).decode()
    nobody = {"jobId": "c", "storedIds": [], "selfie": encoded}
    ended = service.command(
        "debug", "--local", "--job", json.dumps(nobody), "--save-image", str(tmp_path / "c.png"), "--json"
    )
    assert (ended.code, json.loads(ended.output)["error"]["code"]) == (5, "no_face_in_selfie")


def test_the_job_of_a_photo_is_found_waiting_leased_and_dead(service: Service, redis: Redis, tmp_path: Path) -> None:
    from runner.cluster.queues import payload_of_dead_letter, payload_of_photo
    from runner.errors import CheckFailedError
    from tests.support.queue_tools import push, queue_of

    payload = b'{"id":"wanted","imageUrl":"http://x/y.jpg"}'
    push(redis, [b"no json", b"[]", payload])
    assert payload_of_photo(redis, "wanted") == payload
    queue = queue_of(redis, "a/b")
    leases = queue.claim(3)
    assert payload_of_photo(redis, "wanted") == payload
    for lease in leases:
        queue.dead_letter(lease, "invalid_job", "x")
    assert payload_of_photo(redis, "wanted") == payload
    assert payload_of_dead_letter(redis, leases[2].id) == payload
    with pytest.raises(CheckFailedError, match="--url"):
        payload_of_photo(redis, "never seen")
    with pytest.raises(CheckFailedError, match="no dead letter"):
        payload_of_dead_letter(redis, "never seen")
    out = str(tmp_path / "x.jpg")
    ended = service.command("debug", "--local", "--dead", leases[0].id, "--save-image", out)
    assert (ended.code, "not valid JSON" in ended.output) == (5, True)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--job", "{}", "--photo", "a"],
        ["--job", "{}", "--url", "http://x"],
        ["--job", "{}", "--save-image", "x.jpg"],
        ["--job", "{}", "--local", "--save-image", "x.gif"],
        ["--job", "{}", "--local", "--keep"],
        ["--job", "{}", "--timeout", "0"],
        ["--job", "{}", "--timeout", "soon"],
        ["--job", "{}", "--dry-run", "--template", "missing.yaml"],
        ["--photo", "a"],
    ],
)
def test_invalid_arguments_are_reported_in_one_line(service: Service, arguments: list[str]) -> None:
    ended = service.command("debug", *arguments, REDIS_URL="")
    assert ended.code == (5 if "--dry-run" in arguments else 2)
    assert "Traceback" not in ended.errors
