"""`spottmee-worker metrics`: what it exposes, how it responds, and which outages it survives."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from demo.servers import EmbeddedRedis
from runner.cli.metrics import routes
from runner.metrics import catalogue, reader
from runner.metrics.server import MOST_REQUESTS, Response, Server
from runner.queue import keys, totals
from runner.queue.client import connect
from runner.queue.samples import HISTORY_SECONDS, Sampler
from runner.settings import load
from tests.integration.test_queue_self_test import WORDS
from tests.support import forked
from tests.support.forked import Fork
from tests.support.queue_tools import closing_clients, pass_time, push, queue_of
from tests.support.run_tools import Service, wait_for

if TYPE_CHECKING:
    from redis import Redis

OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def _closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from closing_clients(monkeypatch, __name__)


@dataclass
class Exporter:
    process: subprocess.Popen[str]
    port: int

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
        finally:
            connection.close()

    def samples(self) -> Samples:
        status, _, text = self.get("/metrics", **OPEN_METRICS)
        assert status == 200
        return by_name(parse_openmetrics(text))  # type: ignore[no-untyped-call]  # of a library


def by_name(families: Any) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def one(samples: Samples, name: str, **labels: str) -> float:
    return samples[(f"spottmee_{name}", tuple(sorted(labels.items())))]


@contextmanager
def exporter(redis_url: str, *arguments: str, fresh: bool = False) -> Iterator[Exporter]:
    start: Callable[..., subprocess.Popen[str]] = subprocess.Popen if fresh else Fork
    process = start(
        [*([sys.executable, "-m", "runner"] if fresh else ["runner.cli"]), "metrics", "--port", "0", *arguments],
        env={**os.environ, "REDIS_URL": redis_url, "RUNNER_LOG_FORMAT": "json"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r'"port": (\d+)', line)
        assert found, line + process.stderr.read()
        yield Exporter(process, int(found[1]))
    finally:
        process.terminate()  # not kill: coverage is written at the end
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as running:
        yield running


def once(redis_url: str) -> tuple[int, str, str]:
    done = forked.run(
        ["metrics", "--once"],
        env={**os.environ, "REDIS_URL": redis_url, "RUNNER_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_memory_and_eviction_policy_of_redis(redis: Any, redis_url: str) -> None:
    redis.config_set("maxmemory", 64 << 20)
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        _, text, _ = once(redis_url)
    finally:
        redis.config_set("maxmemory", 0)
        redis.config_set("maxmemory-policy", "noeviction")
    samples = by_name(parse_text(text))
    assert one(samples, "redis_memory_limit_bytes") == 64 << 20
    assert 0 < one(samples, "redis_memory_used_bytes") < 64 << 20
    assert one(samples, "redis_eviction_policy", policy="allkeys-lru") == 1


def test_the_sweep_counts_photos_without_a_job(service: Service) -> None:
    service.connection.execute(
        """INSERT INTO "Photo" (id, album_id, original_name, normalized_name, size, type, created_at, status)
        SELECT id, 'a', id, id, 1, 'image/jpeg', now() AT TIME ZONE 'UTC' - age::interval, 'UPLOADED'
        FROM (VALUES ('lost', '1 hour'), ('waiting', '1 hour'), ('young', '1 minute')) AS photos(id, age)"""
    )
    service.connection.commit()
    push(service.redis, [b'{"id": "waiting", "imageUrl": "https://h/1.jpg"}'])
    url = service.environment["REDIS_URL"]
    assert "photos_without_job{" not in once(url)[1]
    swept = service.command("sweep")
    assert swept.code == 0, swept.errors
    assert "1 photos are UPLOADED or PROCESSING without a job" in swept.output
    assert one(by_name(parse_text(once(url)[1])), "photos_without_job", queue="process") == 1


def fill(redis: Any) -> None:
    """A queue with jobs in every state."""
    push(redis, [b"job %d" % number for number in range(8)])
    queue = queue_of(redis, "runner/pod/1")
    done, retried, dead, _held = queue.claim(4)
    tally = {"jobs:succeeded:": 1, "faces": 3, "fetch:le:0.05": 1, "fetch:sum": 40_000}
    assert queue.acknowledge(done, tally)
    assert queue.retry(retried, 300, "fetch_failed")
    assert queue.dead_letter(dead, "image_undecodable", "no image")


def test_everything_about_the_queues_is_exposed_as_openmetrics(redis: Any, redis_url: str) -> None:
    fill(redis)
    with exporter(redis_url) as running:
        found = running.samples()
    process = {"queue": "process"}
    assert one(found, "redis_up") == 1
    assert one(found, "jobs_waiting", **process) == 4
    assert one(found, "jobs_leased", **process) == 2
    assert one(found, "jobs_deferred", **process) == 1
    assert one(found, "dead_letters", **process, code="image_undecodable") == 1
    assert one(found, "dead_letters", **process, code="image_missing") == 0
    assert one(found, "jobs_total", **process, outcome="succeeded", code="") == 1
    assert one(found, "jobs_total", **process, outcome="dead_lettered", code="image_undecodable") == 1
    assert one(found, "retries_total", **process, code="fetch_failed") == 1
    assert one(found, "attempts_total", **process) == 4
    assert one(found, "faces_total", **process) == 3
    stage = {**process, "stage": "fetch"}
    assert one(found, "stage_duration_seconds_bucket", **stage, le="0.025") == 0
    assert one(found, "stage_duration_seconds_bucket", **stage, le="0.05") == 1
    assert one(found, "stage_duration_seconds_count", **stage) == 1
    assert one(found, "stage_duration_seconds_sum", **stage) == pytest.approx(0.04)
    assert one(found, "jobs_waiting", queue="compare") == 0


def test_the_metrics_and_labels_are_those_of_the_catalogue_and_hold_no_id(redis: Any, redis_url: str) -> None:
    fill(redis)
    code, text, _ = once(redis_url)
    assert code == 0
    families = {family.name: family for family in parse_text(text)}
    assert set(families) == {metric.name for metric in catalogue.METRICS}
    for metric in catalogue.METRICS:
        family = families[metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.about)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.label_names)
            for label in metric.labels:
                assert sample.labels[label] in catalogue.label_values(metric)[label]
    assert "runner/pod" not in text
    assert text.count("\n") < 1200


def test_without_redis_only_its_absence_is_exposed(server: EmbeddedRedis) -> None:
    with EmbeddedRedis() as gone:
        url = gone.url
    code, text, errors = once(url)
    assert code == 75
    assert by_name(parse_text(text)) == {("spottmee_redis_up", ()): 0}
    assert "metrics without Redis" in errors
    assert "Traceback" not in errors


def test_an_outage_of_redis_is_survived_and_logged_once(server: EmbeddedRedis) -> None:
    server.restart()
    with exporter(server.url) as running:
        assert one(running.samples(), "redis_up") == 1
        server.kill()
        time.sleep(0.6)
        assert set(running.samples()) == {("spottmee_redis_up", ())}
        time.sleep(0.6)
        assert one(running.samples(), "redis_up") == 0
        assert running.get("/healthz")[0] == 200
        server.restart()
        time.sleep(0.6)
        assert one(running.samples(), "redis_up") == 1
        running.process.send_signal(signal.SIGTERM)
        _, errors = running.process.communicate(timeout=20)
    assert running.process.returncode == 0
    assert errors.count("metrics without Redis") == 1
    assert errors.count("Redis answers again") == 1
    assert "Traceback" not in errors


def test_a_refused_password_is_reported_and_not_shown(server: EmbeddedRedis) -> None:
    server.restart()
    url = server.url.replace("://", "://nobody:hunter22@")
    code, text, errors = once(url)
    assert (code, "spottmee_redis_up 0" in text) == (2, True)
    assert "REDIS_URL" in errors
    assert "hunter22" not in text + errors


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "10.1.2.3:9464"}, 200),
        ({"Host": "[::1]:9464"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "release-metrics.default.svc:9464"}, 200),
        ({"Host": "attacker.example"}, 421),
        ({"Host": "localhost.attacker.example"}, 421),
        ({"Host": "["}, 421),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
    ],
)
def test_hosts_and_origins_are_checked(running: Exporter, headers: dict[str, str], status: int) -> None:
    assert running.get("/healthz", **headers)[0] == status


@pytest.fixture(scope="module")
def running(server: EmbeddedRedis) -> Iterator[Exporter]:
    server.restart()
    with exporter(server.url, "--allowed-host", "release-metrics.default.svc") as one_for_all:
        yield one_for_all


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(running: Exporter, method: str) -> None:
    status, headers, _ = running.get("/metrics", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_every_response_forbids_embedding_sniffing_and_caching(running: Exporter) -> None:
    for path in ("/metrics", "/healthz", "/", "/nothing"):
        _, headers, _ = running.get(path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
        assert "python" not in headers["server"].lower()


def test_clients_that_send_slowly_cannot_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.metrics.server.REQUEST_SECONDS", 0.4)
    server = Server("127.0.0.1", 0, {"/": lambda _query, _accept: Response(b"ok")})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(MOST_REQUESTS)]

    def answered() -> bool:
        for one in slow:  # always in time for the next byte, and never done
            with suppress(OSError):
                one.send(b"G")
        with suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as client:
            client.request("GET", "/")
            return client.getresponse().read() == b"ok"
        return False

    try:
        wait_for(answered, 20)
    finally:
        server.shutdown()
        server.server_close()
        for one in slow:
            one.close()


def test_an_unknown_path_names_those_that_exist(running: Exporter) -> None:
    status, _, text = running.get("/nothing?x")
    assert status == 404
    assert "/metrics" in text


def test_a_port_in_use_is_reported(running: Exporter, redis_url: str) -> None:
    done = forked.run(
        ["metrics", "--port", str(running.port)],
        env={**os.environ, "REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"port {running.port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def busy(redis: Any) -> Any:
    """Both queues with everything that a scrape reads: all totals, 10,000 jobs, 1,000 leases, 500 dead letters."""
    for name in ("process", "compare"):
        redis.hset(keys.totals(name), mapping=dict.fromkeys(totals.all_fields(), 1_234_567_890))
        redis.rpush(keys.list_key(name), *[b"x" * 300] * 11_500)
        queue = queue_of(redis, "runner/pod/1", name=name)
        codes = itertools.cycle(totals.fault_codes())
        for lease in queue.claim(500):
            queue.dead_letter(lease, next(codes), "")
        queue.claim(1000)
    return redis


@contextmanager
def untraced() -> Iterator[None]:
    """Measure without the tracing of `make coverage`, which triples the time."""
    tracing = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracing)


def test_a_scrape_of_full_queues_takes_less_than_20_ms(
    busy: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU time of this process and of Redis: other processes on the machine do not change it much."""
    monkeypatch.setattr(reader, "FRESH_SECONDS", 0.0)
    looked = reader.Reader(load({"REDIS_URL": redis_url}, required=("redis_url",)))
    scrape = routes(looked)["/metrics"]

    def redis_seconds() -> float:
        used = busy.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    try:
        found = by_name(parse_openmetrics(scrape("", OPEN_METRICS["Accept"]).body.decode()))  # type: ignore[no-untyped-call]  # of a library
        mine, redis = [], []
        for _ in range(25):
            before = redis_seconds()
            with untraced():
                started = time.thread_time()
                scrape("", OPEN_METRICS["Accept"])
                mine.append(time.thread_time() - started)
            redis.append(redis_seconds() - before)
    finally:
        looked.stop()
    state = [one(found, name, queue="compare") for name in ("jobs_waiting", "jobs_leased")]
    assert state == [10_000, 1000]
    milliseconds = [min(seconds) * 1000 for seconds in (mine, redis)]  # other processes only make it longer
    print(f"a scrape takes {milliseconds[0]:.1f} ms of CPU time, and Redis {milliseconds[1]:.1f} ms")
    assert sum(milliseconds) < 20


def test_the_process_stays_small(busy: Any, redis_url: str) -> None:
    with exporter(redis_url, fresh=True) as running:  # a fork has the memory of everything else that was imported
        for _ in range(5):
            running.samples()
            running.get("/")
            time.sleep(reader.FRESH_SECONDS)
        status = Path(f"/proc/{running.process.pid}/status").read_text("utf-8")
    peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024
    print(f"the process took {peak:.1f} MiB")
    assert peak < 64


def test_numbers_that_redis_cannot_have_counted_are_left_out(redis: Any, redis_url: str) -> None:
    redis.hset(keys.totals("process"), mapping={"taken": "9" * 5000, "attempts": "-1", "faces": "many", "requeues": 7})
    code, text, _ = once(redis_url)
    samples = by_name(parse_text(text))
    assert code == 0
    found = [one(samples, f"{name}_total", queue="process") for name in ("jobs_taken", "attempts", "faces", "requeues")]
    assert found == [0, 0, 0, 7]


# The age of the oldest job, and the history


@pytest.fixture
def sampler(redis: Redis) -> Sampler:
    return Sampler(redis, "process")


def rewind(redis: Any, seconds: float) -> None:
    """Let `seconds` pass for what samples have recorded."""
    for key in (keys.arrivals("process"), keys.history("process")):
        entries = redis.zrange(key, 0, -1, withscores=True)
        moved = {}
        for member, score in entries:
            first, _, rest = member.decode().partition(" ")
            name = f"{int(first) - round(seconds * 1000)} {rest}".strip()
            moved[name] = score if key.endswith("arrivals") else score - seconds * 1000
        redis.delete(key)
        if moved:
            redis.zadd(key, moved)


def test_the_age_of_the_oldest_job_counts_from_when_it_was_first_seen(redis: Any, sampler: Sampler) -> None:
    queue = queue_of(redis, "runner")
    assert sampler.sample().oldest_seconds == 0
    push(redis, [b"a", b"b"])
    assert sampler.sample().oldest_seconds == 0
    rewind(redis, 100)
    push(redis, [b"c"])
    assert sampler.sample().oldest_seconds == pytest.approx(100, abs=5)
    rewind(redis, 50)
    queue.acknowledge_many(queue.claim(1))
    assert sampler.sample().oldest_seconds == pytest.approx(150, abs=5)
    queue.acknowledge_many(queue.claim(1))
    assert sampler.sample().oldest_seconds == pytest.approx(50, abs=5)
    queue.acknowledge_many(queue.claim(1))
    assert sampler.sample().oldest_seconds == 0
    assert redis.exists(keys.arrivals("process")) == 0


def test_jobs_that_leave_uncounted_are_taken_from_the_head(redis: Any, sampler: Sampler) -> None:
    """A runner of an earlier version pops, or an operator trims."""
    push(redis, [b"a", b"b"])
    sampler.sample()
    rewind(redis, 100)
    push(redis, [b"c"])
    sampler.sample()
    redis.lpop(keys.list_key("process"), 2)
    assert sampler.sample().oldest_seconds < 5
    redis.delete(keys.totals("process"))
    rewind(redis, 10)
    assert sampler.sample().oldest_seconds == pytest.approx(10, abs=5)


def test_arrivals_and_history_are_bounded(redis: Any, sampler: Sampler) -> None:
    for _ in range(600):
        push(redis, [b"x"])
        rewind(redis, 61)
        sampler.sample()
    assert redis.zcard(keys.arrivals("process")) < 600
    assert redis.zcard(keys.history("process")) <= HISTORY_SECONDS / 60 + 1
    assert sampler.sample().oldest_seconds == pytest.approx(599 * 61, rel=0.02)
    assert redis.ttl(keys.history("process")) > 0
    size = redis.memory_usage(keys.arrivals("process")) + redis.memory_usage(keys.history("process"))
    assert size < 200_000


def test_the_history_gets_one_entry_a_minute_from_all_samplers(redis: Any, sampler: Sampler) -> None:
    fill(redis)
    for one_sampler in (sampler, Sampler(redis, "process"), sampler):
        one_sampler.sample()
    (entry,) = sampler.history()
    assert (entry.waiting, entry.leased, entry.ended, entry.failed) == (4, 2, 2, 1)
    rewind(redis, 61)
    sampler.sample()
    assert len(sampler.history()) == 2


def test_a_full_redis_can_still_be_sampled(redis: Any, sampler: Sampler) -> None:
    fill(redis)
    redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("maxmemory", 1)
    try:
        assert sampler.sample().waiting == 4
    finally:
        redis.config_set("maxmemory", 0)


def test_dead_letters_are_counted_by_code_as_they_come_and_go(redis: Any, sampler: Sampler) -> None:
    push(redis, [b"x"] * 2500)
    queue = queue_of(redis, "runner")
    assert sampler.sample().dead == {}
    leases = queue.claim(2500)
    for lease in leases[:1500]:
        queue.dead_letter(lease, "image_missing", "")
    queue.dead_letter(leases[1500], "a code of a later version", "")
    assert sampler.sample().dead == {"image_missing": 1500, totals.OTHER: 1}
    redis.zremrangebyrank(keys.dead_index("process"), 0, 499)
    assert sampler.sample().dead == {"image_missing": 1000, totals.OTHER: 1}


def test_deferred_jobs_are_leases_without_an_owner(redis: Any, sampler: Sampler) -> None:
    push(redis, [b"a", b"b", b"c"])
    queue = queue_of(redis, "runner")
    first, second, _ = queue.claim(3)
    queue.retry(first, 100, "fetch_failed")
    queue.release(second)
    found = sampler.sample()
    assert (found.leased, found.deferred) == (3, 2)
    pass_time(redis, 31)
    assert sampler.sample().due == 2


def test_the_documented_rights_suffice(redis: Any, redis_url: str) -> None:
    fill(redis)
    redis.execute_command("ACL", "SETUSER", WORDS[1], "reset", *WORDS[2:])
    url = redis_url.replace("://", f"://{WORDS[1]}:{WORDS[3].removeprefix('>')}@")
    sampler = Sampler(connect(load({"REDIS_URL": url}, required=("redis_url",))), "process")
    assert sampler.sample().dead == {"image_undecodable": 1}
    assert len(sampler.history()) == 1
    code, text, errors = once(url)
    assert code == 0, errors
    assert "spottmee_redis_memory" not in text  # +info is an additional right
    redis.execute_command("ACL", "DELUSER", WORDS[1])


def test_without_its_extra_the_command_names_the_package() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None; from runner.cli import main; sys.exit(main(['metrics']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "prometheus_client" in done.stderr
    assert "spottmee-worker[metrics]" in done.stderr
    assert "Traceback" not in done.stderr
