"""The demonstration from start to end: servers, album, jobs, runners, matches, report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection
from redis import Redis

from demo.album import Album
from demo.api import Api, create_table
from demo.chart import Sample
from demo.images import ImageServer
from demo.progress import Progress
from demo.report import PhotoResult, Report, SelfieResult
from demo.scaler import ScaledJob, Scaler
from demo.servers import EmbeddedPostgres, EmbeddedRedis, remove_stale_folders
from runner.errors import CheckFailedError, SettingsError

JOBS_PER_RUNNER = {"compare": 8, "process": 8}
PATIENCE_SECONDS = 300.0
SAMPLE_SECONDS = 0.1
_STRIPPED = ("RUNNER_", "REDIS_", "DATABASE_", "EMBEDDINGS_", "PG")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of the demonstration; `faults` lists what differs from the expected results."""

    summary: dict[str, Any]
    faults: list[str]


class Demonstration:
    """One demonstration with `album`, with at most `max_runners` runners per list."""

    def __init__(self, album: Album, out: Path, *, max_runners: int) -> None:
        self._album = album
        self._out = out
        self._max_runners = max_runners
        self._samples: list[Sample] = []
        self._started = time.monotonic()

    def run(self) -> Outcome:
        """Run it, write `summary.json` and `report.html`, and stop everything that was started."""
        remove_stale_folders()
        self._prepare_out()
        with ExitStack() as stack:
            progress = stack.enter_context(Progress())
            progress.say("starting PostgreSQL (with pgvector) and Valkey")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spottmee-demo-")))
            postgres = stack.enter_context(EmbeddedPostgres())
            valkey = stack.enter_context(EmbeddedRedis())

            redis = stack.enter_context(Redis.from_url(valkey.url))
            connection = stack.enter_context(psycopg.connect(postgres.url, autocommit=True))
            create_table(connection)
            environment = _environment(valkey.url, postgres.url)
            _migrate(environment)
            images = stack.enter_context(ImageServer({photo.name: photo.data for photo in self._album.photos}))
            api = Api(redis, connection)
            jobs = [ScaledJob(name, count, self._max_runners) for name, count in JOBS_PER_RUNNER.items()]
            scaler = Scaler(redis, jobs, environment=environment, folder=folder)
            stack.callback(scaler.stop)
            self._started = time.monotonic()
            return self._play(api, connection, scaler, images, progress)

    def _play(
        self, api: Api, connection: Connection, scaler: Scaler, images: ImageServer, progress: Progress
    ) -> Outcome:
        names = [photo.name for photo in self._album.photos]
        progress.say(f"uploading {len(names)} photos: a row and a job for each")
        photos = api.upload({name: images.url(name) for name in names})
        self._run_until_idle(api, scaler, progress)
        uploaded = time.monotonic() - self._started
        progress.say(f"{len(self._album.selfies)} guests send a selfie: one comparison each")
        jobs = {selfie.name: api.compare(selfie.data, list(photos.values())) for selfie in self._album.selfies}
        self._run_until_idle(api, scaler, progress)
        report = self._report(api, connection, scaler, photos, jobs)
        faults = self._faults(report, scaler)
        summary = self._summary(report, scaler, faults, uploaded)
        (self._out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (self._out / "report.html").write_text(report.html(), "utf-8")
        for runner in scaler.runners:
            shutil.copy(runner.log, self._out / "logs")
        progress.say(_table(summary))
        return Outcome(summary, faults)

    def _prepare_out(self) -> None:
        try:
            (self._out / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"--out {self._out} cannot be written to: {error.strerror}") from None
        for old in [*self._out.glob("logs/*.log"), self._out / "summary.json", self._out / "report.html"]:
            old.unlink(missing_ok=True)

    def _run_until_idle(self, api: Api, scaler: Scaler, progress: Progress) -> None:
        """Let the scaler work until every job is done and the pool is back at zero."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            scaler.step()
            sample = self._sample(api, scaler)
            self._samples.append(sample)
            progress.show(sample)
            if scaler.idle():
                return
            if time.monotonic() > deadline:
                raise CheckFailedError(
                    f"jobs are still unfinished after {PATIENCE_SECONDS:g} s; see the runners' logs in {self._out}/logs"
                )
            time.sleep(SAMPLE_SECONDS)

    def _sample(self, api: Api, scaler: Scaler) -> Sample:
        depths = [scaler.depth(queue) for queue in JOBS_PER_RUNNER]
        return Sample(
            seconds=time.monotonic() - self._started,
            waiting=sum(waiting for waiting, _ in depths),
            in_flight=sum(in_flight for _, in_flight in depths),
            runners=sum(len(scaler.running(queue)) for queue in JOBS_PER_RUNNER),
            statuses=Counter(api.statuses().values()),
        )

    def _report(
        self, api: Api, connection: Connection, scaler: Scaler, photos: Mapping[str, str], jobs: Mapping[str, str]
    ) -> Report:
        statuses = api.statuses()
        names = {photo_id: name for name, photo_id in photos.items()}
        expected = self._album.expected
        photo_results = [
            PhotoResult(
                photo.name,
                photo.data,
                statuses[photos[photo.name]],
                photo.status if expected else None,
                _boxes(connection, photos[photo.name]),
            )
            for photo in self._album.photos
        ]
        selfie_results = self._selfie_results(api, names, jobs)
        stages: Counter[str] = Counter()
        for runner in scaler.runners:
            stages.update(runner.summary.get("stage_seconds", {}))
        good = all(p.status == p.expected_status for p in photo_results) and all(
            list(s.matches) == s.expected for s in selfie_results
        )
        faces = sum(len(photo.boxes) for photo in photo_results)
        return Report(
            title="spottmee-worker: find yourself in the photos of a party",
            facts={
                "photos": str(len(photo_results)),
                "faces stored": str(faces),
                "selfies": str(len(selfie_results)),
                "runs started": str(len(scaler.runners)),
                "most runs at once": str(max(sample.runners for sample in self._samples)),
                "wall time": f"{time.monotonic() - self._started:.1f} s",
            },
            photos=photo_results,
            selfies=selfie_results,
            samples=self._samples,
            stages={name: stages[name] for name in ("fetch", "decode", "faces", "match", "store") if name in stages},
            runners=_runs(scaler),
            passed=good if expected else None,
        )

    def _selfie_results(self, api: Api, names: Mapping[str, str], jobs: Mapping[str, str]) -> list[SelfieResult]:
        results = []
        for selfie in self._album.selfies:
            detail = api.detail(jobs[selfie.name])
            scores, error = detail.get("scores"), detail.get("error")
            matched = api.result(jobs[selfie.name]) or []
            results.append(
                SelfieResult(
                    selfie.name,
                    selfie.data,
                    {names[photo_id]: scores.get(photo_id, 0.0) for photo_id in matched}
                    if isinstance(scores, dict)
                    else {},
                    self._album.expectation(selfie) if self._album.expected else None,
                    _number(detail.get("duration_ms")),
                    str(error["message"]) if isinstance(error, dict) else None,
                )
            )
        return results

    def _faults(self, report: Report, scaler: Scaler) -> list[str]:
        """Return a message for each result that is not as expected."""
        faults = [
            f"a run of the {r.queue} queue exited with code {r.exit_code}: see {self._out}/logs/{r.log.name}"
            for r in scaler.runners
            if r.exit_code
        ]
        for photo in report.photos:
            if photo.expected_status is not None and photo.status != photo.expected_status:
                faults.append(f"{photo.name} is {photo.status}, expected {photo.expected_status}")
            elif photo.status in ("UPLOADED", "PROCESSING"):
                faults.append(f"{photo.name} is still {photo.status}")
        return faults + [
            f"{selfie.name} matches {list(selfie.matches)}, expected {list(selfie.expected)}"
            for selfie in report.selfies
            if selfie.expected is not None and list(selfie.matches) != list(selfie.expected)
        ]

    def _summary(self, report: Report, scaler: Scaler, faults: list[str], uploaded: float) -> dict[str, Any]:
        return {
            "passed": not faults,
            "expected": self._album.expected,
            "faults": faults,
            "photos": len(report.photos),
            "statuses": Counter(photo.status for photo in report.photos),
            "faces": sum(len(photo.boxes) for photo in report.photos),
            "selfies": {selfie.name: dict(selfie.matches) for selfie in report.selfies},
            "runs": _runs(scaler),
            "most_runners": max(sample.runners for sample in report.samples),
            "runners_left": sum(len(scaler.running(queue)) for queue in JOBS_PER_RUNNER),
            "duration_seconds": round(time.monotonic() - self._started, 3),
            "seconds_upload": round(uploaded, 3),
            "stage_seconds": {name: round(seconds, 3) for name, seconds in report.stages.items()},
        }


def _runs(scaler: Scaler) -> list[dict[str, Any]]:
    return [{"queue": runner.queue, **runner.summary} for runner in scaler.runners]


def _environment(redis_url: str, database_url: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(_STRIPPED)}
    return {
        **own,
        "REDIS_URL": redis_url,
        "DATABASE_URL": f"{database_url}?schema=public",  # as Prisma writes it
        "RUNNER_ALLOW_PRIVATE_ADDRESSES": "true",  # the album is served on loopback
        "RUNNER_LOG_FORMAT": "json",
        "RUNNER_RETRY_BASE_SECONDS": "0.5",
    }


def _migrate(environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runner", "migrate"], env=dict(environment), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CheckFailedError(f"spottmee-worker migrate failed: {done.stderr.strip()}")


def _boxes(connection: Connection, photo_id: str) -> list[tuple[list[float], float]]:
    rows = connection.execute("SELECT box, score FROM faces WHERE photo_id = %s ORDER BY face_index", (photo_id,))
    return [(list(box), float(score)) for box, score in rows.fetchall()]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _table(summary: Mapping[str, Any]) -> str:
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(summary["statuses"].items()))
    rows = {
        "photos": f"{summary['photos']} ({statuses})",
        "faces stored": summary["faces"],
        "runs": f"{len(summary['runs'])}, at most {summary['most_runners']} at once, {summary['runners_left']} left",
        "wall time": f"{summary['duration_seconds']:.1f} s",
        **{f"  {name}": f"found in {len(matches)} photos" for name, matches in summary["selfies"].items()},
    }
    return "\n".join(["", *(f"{name:<16} {value}" for name, value in rows.items()), ""])
