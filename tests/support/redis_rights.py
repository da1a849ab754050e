"""What needs rights in Redis: jobs in every state, the commands that touch them, and a user with chosen rights."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from runner.errors import MissingRightError
from runner.queue import client, keys
from runner.queue.expiry import WAIT_SECONDS, Expiry
from runner.queue.hosts import Failure, Hosts, Verdict
from runner.queue.leases import Parked
from runner.queue.parking import Parking
from runner.queue.self_test import SelfTest
from runner.settings import load
from runner.store.results import ResultStore
from tests.support.queue_tools import pass_time, push, queue_of
from tests.support.run_tools import Ended, Service

USER, PASSWORD = "limited", "secret"
OWNER = "job/pod/1"
NOBODY = "http://127.0.0.1:1/"
COMPARISON = "9d7be9a0-0000-4000-8000-000000000001"
PHOTO, ALBUM_PHOTO = "photo-waiting", "photo-of-the-album"


def _photo(photo_id: str) -> bytes:
    return json.dumps({"imageUrl": f"{NOBODY}{photo_id}.jpg", "id": photo_id}).encode()


def _comparison(job_id: str, *photos: str) -> bytes:
    return json.dumps({"jobId": job_id, "storedIds": photos, "selfie": "AAAA", "threshold": 0.5}).encode()


class Scene:
    """Both lists with jobs in every state, an overwritten answer, and photos that `reprocess` and `sweep` find."""

    def __init__(self, service: Service) -> None:
        self._redis: Any = service.redis
        self._fill_database(service)
        self._fill_process()
        self._fill_compare()
        self._fill_results()
        self._dumps = [(raw, max(self._redis.pttl(raw), 0), self._redis.dump(raw)) for raw in self._redis.scan_iter()]
        self.jobs = self.payloads()

    def restore(self) -> None:
        """Put Redis back as it was at the beginning."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.flushall()
        for key, milliseconds, value in self._dumps:
            pipeline.restore(key, milliseconds, value)
        pipeline.execute()

    def payloads(self) -> list[bytes]:
        """Return the payloads of all jobs, wherever they are."""
        found: list[bytes] = []
        for name in ("process", "compare"):
            found += self._redis.lrange(keys.list_key(name), 0, -1)
            claimed = self._redis.hgetall(keys.claimed(name))
            found += [value for field, value in claimed.items() if field.endswith(b":payload")]
            found += [self._redis.get(key) for key in self._redis.scan_iter(f"{keys.dead(name)}:payload:*")]
        return sorted(found)

    def lost(self) -> set[bytes]:
        """Return the jobs that no longer exist, except answered comparisons."""
        missing = set(self.jobs) - set(self.payloads())
        return {payload for payload in missing if not self._answered(json.loads(payload).get("jobId"))}

    def _answered(self, job_id: str | None) -> bool:
        return job_id is not None and self._redis.get(keys.match_result(job_id)) == b"[]"

    def _fill_database(self, service: Service) -> None:
        embedding = f"[{','.join(['1'] + ['0'] * 511)}]"
        service.connection.execute(
            "INSERT INTO faces (photo_id, model, face_index, embedding, created_at)"
            " SELECT id, 'm', 0, %s, '2020-01-01' FROM unnest(array['deleted', 'other']) id", (embedding,),
        )  # fmt: skip
        photos = ["other", "stuck", PHOTO, ALBUM_PHOTO, "photo-dead", "photo-leased", "photo-parked"]
        service.connection.execute(
            """INSERT INTO "Photo" (id, status, created_at)
            SELECT id, 'UPLOADED', '2020-01-01' FROM unnest(%s::text[]) id""",
            (photos,),
        )
        service.connection.execute("""UPDATE "Photo" SET status = 'FAILED' WHERE id = 'photo-dead'""")

    def _fill_process(self) -> None:
        redis = self._redis
        push(redis, [_photo(name) for name in ("photo-dead", "photo-leased", "photo-probe", "photo-parked")])
        queue = queue_of(redis, OWNER)
        dead, leased, *outage = queue.claim(4)
        assert queue.dead_letter(dead, "fetch_failed", "not found")
        self.dead_id = dead.id
        hosts = Hosts(redis, "process", owner=OWNER)
        failure = Failure(is_first=True, pause_seconds=600, delay_seconds=600)
        verdicts = [
            hosts.wait(lease, "h:1", failure=failure, timeout_seconds=3600, state=b"", tally={})[0] for lease in outage
        ]
        assert verdicts == [Verdict.PUT_OFF, Verdict.PARKED]
        queue.renew([leased])
        push(redis, [_photo(PHOTO), _photo(ALBUM_PHOTO)])

    def _fill_compare(self) -> None:
        redis = self._redis
        queue = queue_of(redis, OWNER, name="compare")
        push(redis, [_comparison("leased"), _comparison("parked", ALBUM_PHOTO, PHOTO)], "compare")
        _, parked = queue.claim(2)
        assert Parking(redis).announce(parked, [ALBUM_PHOTO, PHOTO], 600)
        assert queue.park(parked, "album_pending", b"state") is Parked.DONE
        pass_time(redis, 2 * WAIT_SECONDS, "compare")
        push(redis, [_comparison(COMPARISON, ALBUM_PHOTO), _comparison("newest")], "compare")
        Expiry(redis, "compare").find()
        first, *others = redis.get(keys.seen("compare")).splitlines(keepends=True)
        moment, mark = first.split(b" ")
        redis.set(keys.seen("compare"), b"%d %s" % (int(moment) - 2 * WAIT_SECONDS * 1000, mark) + b"".join(others))

    def _fill_results(self) -> None:
        """Add an answer that the API has overwritten, after the run that gave it has ended."""
        for job_id in (COMPARISON, "leased", "parked", "newest"):
            self._redis.set(keys.match_result(job_id), "INITIATED")
        results = ResultStore(self._redis)
        results.begin("overwritten")
        results.answer("overwritten", [], {"error": None})
        results.remember("overwritten")
        self._redis.set(keys.match_result("overwritten"), "INITIATED")


class Limited:
    """The user of Redis that a command connects as."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._redis: Any = service.redis

    @property
    def url(self) -> str:
        return self._service.environment["REDIS_URL"].replace("://", f"://{USER}:{PASSWORD}@")

    def grant(self, rights: Collection[str]) -> None:
        """Give the user exactly these rights: commands with a plus sign, patterns of keys with ~."""
        words = ["reset", "on", f">{PASSWORD}", "resetchannels", "-@all", *sorted(rights)]
        self._redis.execute_command("ACL", "SETUSER", USER, *words)

    def remove(self) -> None:
        self._redis.execute_command("ACL", "DELUSER", USER)

    def command(self, *arguments: str) -> Ended:
        return self._service.command(*arguments, REDIS_URL=self.url, RUNNER_CONNECT_TIMEOUT_SECONDS="1")

    def forked(self, *arguments: str) -> Ended:
        """Run a command that must not run in this process."""
        return self._service.forked(
            *arguments,
            REDIS_URL=self.url,
            RUNNER_CONNECT_TIMEOUT_SECONDS="1",
            RUNNER_FAILURE_DELAY_SECONDS="0",
            RUNNER_MAX_ATTEMPTS="2",
        )

    def lacking(self, command: str) -> set[str]:
        """Return the rights that this user lacks for a command, according to doctor."""
        settings = load({"REDIS_URL": self.url, "RUNNER_CONNECT_TIMEOUT_SECONDS": "1"}, required=())
        try:
            with client.opened(settings) as redis:
                return SelfTest(redis).missing([command])
        except MissingRightError as error:  # of PING, when it connects
            return set(error.grant.split())
