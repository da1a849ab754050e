"""The whole protocol on every topology of Redis, and failovers."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import trustme

from demo.servers import EmbeddedRedis
from runner.errors import RedisRefusedError, RedisUnreachableError, SettingsError
from runner.queue import keys
from runner.queue.client import connect
from runner.queue.dead_letters import DeadLetters, Requeued
from runner.queue.expiry import Expiry
from runner.queue.leases import Parked
from runner.queue.parking import Parking, PhotosAtWork, ProcessJobs
from runner.queue.pusher import Pusher
from runner.queue.search import JobSearch
from runner.queue.self_test import SelfTest
from runner.settings import Settings, load
from runner.store.results import ResultStore
from tests.support.queue_tools import closing_clients, push, queue_of
from tests.support.redis_topologies import Cluster, Relay, Sentinels, acl_line, opened, server_context, wait_until

if TYPE_CHECKING:
    from redis import Redis

SECRET = "correct horse@battery/staple,%"  # with every character that a URL must escape
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "redis-keys.md"


@pytest.fixture(autouse=True)
def _closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from closing_clients(monkeypatch, __name__)


def settings_of(url: str, seconds: str = "15") -> Settings:
    return load({"REDIS_URL": url, "RUNNER_CONNECT_TIMEOUT_SECONDS": seconds}, required=("redis_url",))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(keys.list_key("process")) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def play(client: Any) -> None:
    """Every operation at least once on both lists, and the results."""
    for name in ("compare", "process"):
        push(client, [b"job %d" % number for number in range(7)], name)
        queue = queue_of(client, "job/pod/1", name=name)
        assert queue.wait_for_push(1) is True
        done, again, released, dead, purged, left = queue.claim(6)
        assert queue.counts().waiting == 1
        assert queue.renew([done, again]) == []
        assert queue.acknowledge(done) is True
        assert queue.retry(again, 0, "fetch_failed") is True
        assert queue.release(released) is True
        assert queue.dead_letter(dead, "invalid_job", "not JSON") is True
        assert queue.dead_letter(purged, "invalid_job", "not JSON") is True
        letters = DeadLetters(client, name)
        assert sorted(letter.id for letter in letters.all()) == sorted([dead.id, purged.id])
        assert letters.payload(dead.id) == dead.payload
        assert (letters.payload_seconds(dead.id) or 0) > 3000
        assert letters.get(dead.id) is not None
        assert letters.requeue(dead.id) is Requeued.DONE
        assert letters.purge(purged.id) is True
        next_ = queue_of(client, "job/pod/2", name=name)
        assert next_.take_over() == 1
        assert {row.id for row in next_.leased()} == {again.id, released.id, left.id}
        found = next_.claim(10)
        assert sorted((lease.payload, lease.attempts) for lease in found) == [
            (b"job 1", 2), (b"job 2", 1), (b"job 3", 1), (b"job 5", 2), (b"job 6", 1),
        ]  # fmt: skip
        assert queue.acknowledge(left) is False
        assert next_.acknowledge_many(found) == set()
        counts = next_.counts()
        assert (counts.waiting, counts.in_flight, counts.dead_letters) == (0, 0, 0)
        push(client, [b"old 1", b"old 2"], name)
        expiry = Expiry(client, name, seconds=0)
        assert [expiry.remove(job, "expired", "") for job in expiry.find()] == [True, True]
        assert next_.counts().waiting == 0
        assert [letters.purge(letter.id) for letter in letters.all()] == [True, True]
        play_parking(client, name)
    results, job = ResultStore(client), str(uuid.uuid4())
    assert results.begin(job) is False
    assert results.answer(job, ["p1"], {"error": None}) is False
    results.remember(job)
    client.set(keys.match_result(job), "INITIATED")
    assert results.restore() == [job]
    assert client.get(keys.match_result(job)) == b'["p1"]'


def play_parking(client: Any, name: str) -> None:
    """One job waits for two photos, which are done one after the other; another waits for its timeout."""
    push(client, [b'{"id": "photo-1"}'], "process")
    assert ProcessJobs(client).at_work(["photo-1", "photo-2"]) == PhotosAtWork(("photo-1",), is_alive=False)
    (photo,) = queue_of(client, "a").claim(1)
    assert ProcessJobs(client).at_work(["photo-1", "photo-2"]) == PhotosAtWork(("photo-1",), is_alive=True)
    push(client, [b"waits", b"as well"], name)
    queue, parking = queue_of(client, "a", name=name), Parking(client, name)
    first, second = queue.claim(2)
    assert parking.announce(first, ["photo-1", "photo-2"], 600) is True
    assert queue.park(first, "album_pending", b"state") is Parked.DONE
    assert queue.release(second, 0, reason="album_pending", state=b"later") is True
    assert queue.counts().parked == 1
    assert parking.photos_done(["photo-1"]) == []
    assert parking.photos_done(["photo-2"]) == [first.id]
    found = sorted(queue.claim(2), key=lambda lease: lease.payload)
    assert [(lease.payload, lease.attempts, lease.state) for lease in found] == [
        (b"as well", 1, b"later"), (b"waits", 1, b"state"),
    ]  # fmt: skip
    assert parking.announce(found[0], ["photo-1"], 0) is True
    assert queue.park(found[0], "album_pending", b"state") is Parked.DONE
    assert parking.wake_stranded() == [], "a process job is leased"
    assert parking.wake_overdue() == [found[0].id]
    assert queue.acknowledge_many([found[1], *queue.claim(1)]) == set()
    assert queue_of(client, "a").acknowledge(photo) is True
    assert parking.wake_stranded() == []


def test_standalone_with_a_password_and_a_database_number() -> None:
    with EmbeddedRedis(password=SECRET) as server:
        url = f"redis://:{quote(SECRET, safe='')}@127.0.0.1:{server.port}/7"
        client = connect(settings_of(url))
        play(client)
        assert opened(server, password=SECRET, db=0).dbsize() == 0
        assert opened(server, password=SECRET, db=7).dbsize() > 0
        for wrong in (url.replace("correct", "incorrect"), url.replace(f":{quote(SECRET, safe='')}@", "")):
            with pytest.raises(SettingsError, match="refuses the user, the password or a command") as refused:
                connect(settings_of(wrong))
            assert "horse" not in str(refused.value)
        with pytest.raises(SettingsError, match="no such database"):
            connect(settings_of(url.replace("/7", "/16")))


def test_the_protocol_works_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "valkey.sock"
    with EmbeddedRedis(arguments=["--unixsocket", str(path)]) as server:
        play(connect(settings_of(f"unix://{path}?db=3")))
        assert opened(server, db=3).dbsize() > 0


def test_the_acl_line_of_the_documentation_suffices_and_is_needed() -> None:
    line = acl_line(PAGE.read_text(encoding="utf-8"))
    words = line.split()
    with EmbeddedRedis() as server:
        admin: Any = opened(server)
        admin.execute_command("ACL", "SETUSER", words[1], *words[2:])
        url = f"redis://{words[1]}:{words[3].removeprefix('>')}@127.0.0.1:{server.port}"
        play(connect(settings_of(url)))
        idle = []
        for granted in [word for word in words if word.startswith("+")]:
            admin.flushall()
            admin.execute_command("ACL", "SETUSER", words[1], f"-{granted[1:]}")
            try:
                play(connect(settings_of(url)))
                idle.append(granted)
            except (SettingsError, RedisRefusedError) as refused:
                assert "Redis" in str(refused)  # noqa: PT017 - most of the loop raises it
            admin.execute_command("ACL", "SETUSER", words[1], granted)
        # Without it an answer is still written, and only its message is missing.
        assert idle == ["+publish"], "granted, and not needed"


def granted_besides(place: str) -> list[str]:
    """Return the documented additional rights for a database number, a cluster or a sentinel."""
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    found = re.search(rf"{place}[^`;.]*((?:`[^`]+`[ ,]*)+)", page.partition("Additional rights are needed for")[2])
    assert found, f"docs/reference/redis-keys.md says nothing about {place}"
    return found[1].replace("`", " ").split()


def test_a_database_number_needs_the_right_to_select() -> None:
    words = acl_line(PAGE.read_text(encoding="utf-8")).split()
    with EmbeddedRedis() as server:
        admin: Any = opened(server)
        admin.execute_command("ACL", "SETUSER", words[1], *words[2:])
        url = f"redis://{words[1]}:{words[3].removeprefix('>')}@127.0.0.1:{server.port}/3"
        with pytest.raises(SettingsError, match=r"grant \+select "):
            connect(settings_of(url))
        admin.execute_command("ACL", "SETUSER", words[1], *granted_besides("database number"))
        play(connect(settings_of(url)))


class TestTls:
    @pytest.fixture
    def server(self) -> Iterator[EmbeddedRedis]:
        with EmbeddedRedis() as server:
            yield server

    def test_a_private_certificate_authority_is_accepted(
        self, server: EmbeddedRedis, authority: trustme.CA, ca_file: Path
    ) -> None:
        with Relay(lambda: server.port, server_context(authority)) as relay:
            play(connect(settings_of(f"rediss://127.0.0.1:{relay.port}/2?ssl_ca_certs={ca_file}")))
            with pytest.raises(SettingsError, match="certificate is not trusted"):
                connect(settings_of(f"rediss://127.0.0.1:{relay.port}"))
            with pytest.raises(SettingsError, match="certificate is for another host name"):  # it is for 127.0.0.1
                connect(settings_of(f"rediss://localhost:{relay.port}?ssl_ca_certs={ca_file}"))

    def test_a_client_certificate_is_sent(
        self, server: EmbeddedRedis, authority: trustme.CA, ca_file: Path, tmp_path: Path
    ) -> None:
        clients = trustme.CA()
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        issued = clients.issue_cert("worker@example.org")
        issued.private_key_pem.write_to_path(key)
        issued.cert_chain_pems[0].write_to_path(certificate)
        with Relay(lambda: server.port, server_context(authority, clients=clients)) as relay:
            url = f"rediss://127.0.0.1:{relay.port}?ssl_ca_certs={ca_file}"
            play(connect(settings_of(f"{url}&ssl_certfile={certificate}&ssl_keyfile={key}")))
            with pytest.raises(SettingsError, match="requires a client certificate"):
                connect(settings_of(url))

    def test_a_server_without_tls_is_reported(self, server: EmbeddedRedis) -> None:
        with pytest.raises((SettingsError, RedisUnreachableError)):
            connect(settings_of(f"rediss://127.0.0.1:{server.port}?socket_timeout=0.5", "0"))


def test_the_protocol_works_on_redis_cluster(cluster: Cluster) -> None:
    client = connect(settings_of(cluster.url))
    slots = {int(client.execute_command("CLUSTER KEYSLOT", keys.list_key(name))) for name in ("compare", "process")}
    assert len(slots) == 2, "the lists are in different slots, each with its side keys"
    play(client)


def test_the_documented_acl_suffices_on_redis_cluster(cluster: Cluster) -> None:
    words = acl_line(PAGE.read_text(encoding="utf-8")).split()
    for node in cluster.nodes:
        opened(node).execute_command("ACL", "SETUSER", words[1], *words[2:], *granted_besides("cluster"))
    url = cluster.url.replace("://", f"://{words[1]}:{words[3].removeprefix('>')}@")
    play(connect(settings_of(url)))
    test = SelfTest(connect(settings_of(url)))
    test.require_rights(["run", "doctor"])
    test.play()
    test.clean_up()
    assert [key for node in cluster.nodes for key in opened(node).scan_iter() if b"doctor" in key] == []


def play_operator(client: Any) -> None:
    """What `forget` and `reprocess` do with each list."""
    for name in ("compare", "process"):
        pusher = Pusher(client, name, seconds=5)
        assert pusher.acquire()
        assert pusher.push([b"job %d" % number for number in range(4)], 3) == 3
        pusher.release()
        search, queue = JobSearch(client, name), queue_of(client, "job/pod/1", name=name)
        dead, _ = queue.claim(2)
        assert queue.dead_letter(dead, "invalid_job", "not JSON")
        assert Expiry(client, name).find() == []
        found = [*search.waiting(), *search.claimed(), *search.dead()]
        assert [(job.beginning, search.erase(job)) for job in found] == [
            (b"job 2", (1, False)), (b"job 1", (1, True)), (b"job 0", (1, False)),
        ]  # fmt: skip
        assert list(search.all()) == []


def test_forget_and_reprocess_in_a_cluster_with_the_documented_rights(cluster: Cluster) -> None:
    words = acl_line(PAGE.read_text(encoding="utf-8")).split()
    for node in cluster.nodes:
        rights = [*granted_besides("cluster"), *granted_besides("`forget`")]
        opened(node).execute_command("ACL", "SETUSER", "operator", *words[2:], *rights)
    play_operator(connect(settings_of(cluster.url.replace("://", f"://operator:{words[3].removeprefix('>')}@"))))


def test_a_failing_cluster_node_loses_no_job(cluster: Cluster) -> None:
    client = connect(settings_of(cluster.url, "30"))
    push(client, [b"one", b"two"])
    queue = queue_of(client, "a")
    (lease,) = queue.claim(1)
    wait_until(lambda: opened(cluster.replica).info("replication")["slave_repl_offset"] > 0)
    assert opened(cluster.master).wait(1, 5000) == 1
    cluster.master.kill()
    assert [again.payload for again in queue.claim(1)] == [b"two"], "waits for the replica to take its place"
    assert queue.acknowledge(lease) is True
    cluster.master.restart()
    wait_until(lambda: opened(cluster.master).info("replication")["role"] == "slave")
    wait_until(lambda: opened(cluster.replica).info("replication")["connected_slaves"] == 1)
    counts = queue.counts()
    assert (counts.waiting, counts.in_flight) == (0, 1)
    client.flushall()
    play(connect(settings_of(cluster.url)))


def test_a_database_number_on_redis_cluster_is_refused(cluster: Cluster) -> None:
    with pytest.raises(SettingsError, match="only number 0"):
        connect(settings_of(f"{cluster.url}/1"))


class TestSentinel:
    def test_the_whole_protocol_and_a_failover(self) -> None:
        with Sentinels() as servers:
            client = connect(settings_of(servers.url, "30"))
            play(client)
            push(client, [b"one", b"two", b"three"])
            queue = queue_of(client, "a")
            first, second = queue.claim(2)
            servers.synchronise()
            servers.master.kill()
            assert queue.renew([first, second]) == [], "waits for the sentinel to promote the replica"
            assert queue.acknowledge(first) is True
            assert queue.retry(second, 0, "x") is True
            assert sorted(lease.payload for lease in queue.claim(5)) == [b"three", b"two"]
            assert opened(servers.replica).info("replication")["role"] == "master"
            client.flushall()
            play(client)

    def test_a_master_that_is_demoted_while_it_lives(self) -> None:
        """The old master answers READONLY on the open connection, which must be closed."""
        with Sentinels() as servers:
            client = connect(settings_of(servers.url, "30"))
            push(client, [b"one"])
            queue = queue_of(client, "a")
            (lease,) = queue.claim(1)
            servers.synchronise()
            assert opened(servers.sentinel).sentinel_failover("photos")
            wait_until(lambda: opened(servers.master).info("replication")["role"] == "slave")
            assert queue.renew([lease]) == []
            assert queue.acknowledge(lease) is True
            assert opened(servers.replica).info("replication")["role"] == "master"

    def test_a_failover_that_loses_the_last_writes(self) -> None:
        """A claim that the replica never saw: the job is in the list again, and the lease is lost."""
        with Sentinels() as servers:
            client = connect(settings_of(servers.url, "30"))
            push(client, [b"one"])
            servers.synchronise()
            opened(servers.replica).execute_command("REPLICAOF", "NO", "ONE")
            queue = queue_of(client, "a")
            (lease,) = queue.claim(1)
            assert opened(servers.replica).llen(keys.list_key("process")) == 1
            servers.master.kill()
            assert queue.acknowledge(lease) is False
            (again,) = queue.claim(1)
            assert (again.payload, again.attempts) == (b"one", 1)

    def test_sentinels_with_a_password_and_an_unknown_master(self) -> None:
        with Sentinels(password="s3cret word") as servers:
            with pytest.raises((RedisUnreachableError, SettingsError)) as refused:
                connect(settings_of(servers.url, "0.5"))
            assert "s3cret" not in str(refused.value)
            url = f"{servers.url}?sentinel_password=s3cret%20word"
            play(connect(settings_of(url)))
            sentinel: Any = opened(servers.sentinel, password="s3cret word")
            rights = granted_besides("sentinel's own user")
            sentinel.execute_command("ACL", "SETUSER", "looker", "on", ">pw", "-@all", *rights)
            play(connect(settings_of(f"{servers.url}?sentinel_username=looker&sentinel_password=pw")))
            with pytest.raises(RedisUnreachableError, match="others"):
                connect(settings_of(url.replace("photos", "others"), "0.5"))


def test_a_name_that_has_moved_on_to_another_master() -> None:
    """One address for two servers, as in managed services: READONLY ends the connection."""
    at_once = ["--repl-diskless-sync-delay", "0"]
    with EmbeddedRedis(arguments=at_once) as old, EmbeddedRedis(arguments=at_once) as new:
        current = [old]
        with Relay(lambda: current[0].port) as relay:
            client = connect(settings_of(f"redis://127.0.0.1:{relay.port}"))
            opened(new).execute_command("REPLICAOF", "127.0.0.1", old.port)
            wait_until(lambda: opened(new).info("replication")["master_link_status"] == "up")
            opened(new).execute_command("REPLICAOF", "NO", "ONE")
            opened(old).execute_command("REPLICAOF", "127.0.0.1", new.port)
            current[0] = new
            push(client, [b"one"])
            assert opened(new).llen(keys.list_key("process")) == 1


@pytest.mark.parametrize("operation", ["claim", "acknowledge", "retry", "release", "dead_letter", "requeue", "purge"])
def test_an_operation_whose_reply_is_lost_is_answered_when_it_is_sent_again(operation: str) -> None:
    with EmbeddedRedis() as server, Relay(lambda: server.port) as relay:
        client = connect(settings_of(f"redis://127.0.0.1:{relay.port}"))
        push(client, [b"one", b"two", b"three"])
        queue, letters = queue_of(client, "a"), DeadLetters(client, "process")
        leases = queue.claim(1)
        if operation in ("requeue", "purge"):
            queue.dead_letter(leases[0], "x", "")
        relay.lose_replies = 1
        if operation == "claim":
            assert [(lease.payload, lease.attempts) for lease in queue.claim(1)] == [(b"two", 1)]
            assert queue.counts().in_flight == 2
        elif operation in ("requeue", "purge"):
            assert getattr(letters, operation)(leases[0].id) in (True, Requeued.DONE)
            assert queue.counts().dead_letters == 0
            assert queue.counts().waiting == (3 if operation == "requeue" else 2)
        else:
            more = {"retry": (5, "x"), "dead_letter": ("x", "")}.get(operation, ())
            assert getattr(queue, operation)(leases[0], *more) is True
        assert relay.lose_replies == 0


def test_leases_are_renewed_and_settled_on_a_full_redis() -> None:
    with EmbeddedRedis() as server:
        admin = opened(server)
        client: Redis = connect(settings_of(server.url, "0.2"))
        push(client, [b"x" * 1000] * 12)
        queue = queue_of(client, "a")
        leases = queue.claim(6)
        queue.retry(leases[5], 0, "x")
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        with pytest.raises(RedisUnreachableError, match="maxmemory"):
            client.set("anything", "more")
        assert queue.renew(leases[:5]) == []
        assert queue.acknowledge(leases[0]) is True
        assert queue.retry(leases[1], 0, "x") is True
        assert queue.release(leases[2]) is True
        assert queue.dead_letter(leases[3], "x", "") is True
        assert sorted(lease.attempts for lease in queue.claim(4)) == [1, 1, 2, 2]
        letters = DeadLetters(client, "process")
        assert letters.requeue(leases[3].id) is Requeued.DONE
        assert queue_of(client, "b").take_over() == 0
        admin.config_set("maxmemory", 0)


def test_a_key_of_another_type_is_named() -> None:
    with EmbeddedRedis() as server:
        client: Any = connect(settings_of(server.url))
        client.set(keys.list_key("process"), "no list")
        with pytest.raises(RedisRefusedError, match=r"face_embeddings:process.*WRONGTYPE") as refused:
            queue_of(client, "a").claim(1)
        assert refused.value.exit_code == 1


def test_neither_client_nor_pool_shows_the_password() -> None:
    with EmbeddedRedis(password="hunter2") as server:
        client = connect(settings_of(server.url))
        assert "hunter2" not in repr(client)
        assert "hunter2" not in repr(getattr(client, "connection_pool", ""))
