"""Real servers in the usual topologies of Redis: sentinel with a replica, a cluster, and behind TLS."""

from __future__ import annotations

import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

import trustme
from redis import Redis
from redis.exceptions import RedisError

from demo.servers import EmbeddedRedis, EmbeddedServer, free_port, valkey_binary
from tests.support.listening import Listener, close

PATIENCE_SECONDS = 30.0


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until `condition` returns a true value; a `RedisError` counts as false."""

    deadline = time.monotonic() + seconds
    while True:
        with suppress(RedisError):
            if condition():
                return
        assert time.monotonic() < deadline, f"the condition was still false after {seconds:g} s"
        time.sleep(0.02)


def opened(server: EmbeddedServer, **options: Any) -> Redis:
    return Redis(host="127.0.0.1", port=server.port, **options)


class EmbeddedSentinel(EmbeddedServer):
    """One sentinel that monitors `master`, with a quorum of one."""

    name = "sentinel"

    def __init__(self, master: EmbeddedRedis, *, password: str = "") -> None:
        super().__init__(None, 0)
        self._master = master
        self._password = password

    def _start(self) -> None:
        lines = [
            f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}",
            f"sentinel monitor photos 127.0.0.1 {self._master.port} 1",
            "sentinel down-after-milliseconds photos 300",
            "sentinel failover-timeout photos 3000",
            *([f'requirepass "{self._password}"'] if self._password else []),
        ]  # fmt: skip
        configuration = self.directory / "sentinel.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._spawn([str(valkey_binary()), str(configuration), "--sentinel"])
        self._wait(lambda: b"+monitor master photos" in self.log.read_bytes())
        # By default it polls its servers every ten seconds, and waits as long before it demotes an old master.
        with opened(self, password=self._password) as client:
            client.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", 100, "ASK-PERIOD", 100, "PUBLISH-PERIOD", 100)


class Sentinels:
    """A master, its replica, and a sentinel that has found both."""

    def __init__(self, *, password: str = "") -> None:
        self._stack = ExitStack()
        self._password = password

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            no_delay = ["--repl-diskless-sync-delay", "0"]
            self.master = stack.enter_context(EmbeddedRedis(arguments=no_delay))
            self.replica = stack.enter_context(
                EmbeddedRedis(arguments=[*no_delay, "--replicaof", "127.0.0.1", str(self.master.port)])
            )
            self.sentinel = stack.enter_context(EmbeddedSentinel(self.master, password=self._password))
            wait_until(lambda: opened(self.replica).info("replication")["master_link_status"] == "up")
            wait_until(self._replica_is_good)
            self._stack = stack.pop_all()
        return self

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/photos/0"

    def _replica_is_good(self) -> bool:
        with opened(self.sentinel, password=self._password, decode_responses=True) as client:
            found = client.execute_command("SENTINEL", "REPLICAS", "photos")
        return "'master-link-status': 'ok'" in str(found)

    def synchronise(self) -> None:
        """Wait until the replica has all writes of the master."""
        assert int(opened(self.master).wait(1, 5000)) == 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class Cluster:
    """Three masters, and a replica of the one that stores `key`."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            nodes = [stack.enter_context(self._node()) for _ in range(4)]
            masters, self.replica = nodes[:3], nodes[3]
            self.nodes = nodes
            clients: list[Any] = [opened(node) for node in nodes]
            for number, client in enumerate(clients[:3]):
                low, high = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
            for node in nodes[1:]:
                bus = node.bus_port
                clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
            wait_until(lambda: all(_reports(client, "cluster_known_nodes", "4") for client in clients))
            slot = int(clients[0].execute_command("CLUSTER", "KEYSLOT", self._key))
            self.master = masters[slot * 3 // 16384]
            master_id = opened(self.master).execute_command("CLUSTER", "MYID")
            wait_until(lambda: clients[3].execute_command("CLUSTER", "REPLICATE", master_id))
            wait_until(lambda: all(_reports(client, "cluster_state", "ok") for client in clients))
            wait_until(lambda: clients[3].info("replication")["master_link_status"] == "up")
            self._stack = stack.pop_all()
        return self

    @staticmethod
    def _node() -> ClusterNode:
        return ClusterNode(free_port())

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port},127.0.0.1:{self.nodes[1].port}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class ClusterNode(EmbeddedRedis):
    """One node with a chosen bus port, because the default, port + 10000, may not be a valid port."""

    def __init__(self, bus_port: int) -> None:
        super().__init__(
            arguments=[
                "--cluster-enabled", "yes", "--cluster-port", str(bus_port), "--cluster-node-timeout", "1500",
                "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
            ]
        )  # fmt: skip
        self.bus_port = bus_port


def _reports(client: Any, name: str, value: str) -> bool:
    answer: dict[str, str] = client.execute_command("CLUSTER INFO")
    return answer[name] == value


class Relay(Listener):
    """Listens on loopback and forwards to `port`, with TLS if a context is given. It can cut all connections.

    `port` is called for each connection, like a name whose address changes.
    """

    def __init__(self, port: Callable[[], int], context: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self._upstream = port
        self._context = context
        self._ends: list[socket.socket] = []
        self.lose_replies = 0  # how many of the next replies are dropped, together with their connection
        self.cut = False

    def _take(self, client: socket.socket) -> None:
        threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.cut:
            close(client)
            return
        try:
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._upstream()))
        except OSError:  # the client did not use TLS, or rejected the certificate
            close(client)
            return
        self._ends += [client, server]
        with suppress(OSError, ValueError):  # cut off
            self._pump(client, server)
        close(server)
        close(client)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        """Forward both ways in a single thread: a TLS connection must not be used from two."""
        while True:
            waiting = isinstance(client, ssl.SSLSocket) and client.pending()
            for source in [client] if waiting else select.select([client, server], [], [])[0]:
                data = source.recv(1 << 16)
                if not data:
                    return
                if source is client:
                    server.sendall(data)
                elif self.lose_replies:
                    self.lose_replies -= 1
                    return
                else:
                    client.sendall(data)

    def cut_off(self) -> None:
        """Close every connection and accept no other until `restore`."""
        self.cut = True
        for end in self._ends:
            close(end)
        self._ends.clear()

    def restore(self) -> None:
        self.cut = False

    def _end(self) -> None:
        self.cut_off()


def server_context(authority: trustme.CA, *, clients: trustme.CA | None = None) -> ssl.SSLContext:
    """Return a server's TLS context for 127.0.0.1; with `clients`, it requires a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def acl_line(page: str) -> str:
    """Return the ACL line in the code block of docs/reference/redis-keys.md."""
    found = re.search(r"^user (\S+) on .*$", page, re.MULTILINE)
    assert found, "docs/reference/redis-keys.md shows no ACL line"
    return found[0]
