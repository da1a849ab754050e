"""The connection to Redis: standalone, sentinel or cluster, with commands that are retried.

Imports redis-py, which takes 130 ms: `app` imports this module after it has started to load the engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import URL_QUERY_ARGUMENT_PARSERS
from redis.retry import Retry

from runner.errors import ENCODING_ADVICE, SettingsError
from runner.queue.retrying import CommandRetries, RetryingRedis, RetryingRedisCluster
from runner.queue.sentinels import SentinelClient, Sentinels
from runner.queue.tls import ManagedConnection, Pool
from runner.settings import Settings

CONNECT_TIMEOUT_SECONDS = 5.0
# The longest time without a byte of a reply. A claim may carry several selfies of some megabytes; nothing else takes
# longer than a few milliseconds.
COMMAND_TIMEOUT_SECONDS = 20.0
_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379
_LONGEST_DATABASE = 9  # digits: more than Redis accepts
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_LONGEST_TIMEOUT_SECONDS = 86_400.0


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError
        return text

    return parse


def _protocol(text: str) -> int:
    return int(_one_of("2", "3")(text))


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= _LONGEST_TIMEOUT_SECONDS:
        raise ValueError
    return number


def _client_name(text: str) -> str:
    if not (text.isascii() and text.isprintable()) or " " in text:  # which Redis refuses
        raise ValueError
    return text


# The parameters, and our own parsers where redis-py accepts values that fail later.
_PARAMETERS: dict[str, Callable[[str], Any] | None] = {
    **dict.fromkeys([*_FILES, "ssl_check_hostname", "ssl_min_version", "ssl_ciphers", "health_check_interval"]),
    "ssl_cert_reqs": _one_of("none", "optional", "required"),
    "socket_timeout": _seconds,
    "socket_connect_timeout": _seconds,
    "client_name": _client_name,
    "protocol": _protocol,
}
# Unknown parameters are repeated in messages only if they look like a parameter name.
_PARAMETER_NAME = r"[a-z][a-z_]{1,40}"
_SENTINEL_PARAMETERS = frozenset({"sentinel_username", "sentinel_password"})


def connect(settings: Settings) -> Redis:
    """Return a client whose commands are retried for `connect_seconds` while Redis is unreachable.

    Replies are bytes. Commands raise `RedisUnreachableError` when the time is up (its subclass `RedisFullError` if
    Redis is full), and `SettingsError` if Redis refuses the credentials, the database, the certificate or a
    command (its subclass `MissingRightError` if the ACL lacks a right).
    """
    address = parse_url(settings.redis_url)
    retries = CommandRetries(settings.connect_timeout_seconds, address.secrets())
    client: Any = None  # to the type checker, a cluster's client is not a `Redis`, but it has the same commands
    try:
        client = retries.call(lambda: _open(address, _reply_seconds(settings)))
        client.retries = retries
        if address.kind != "cluster":  # whose topology has just been read
            client.ping()
    except (ValueError, TypeError) as error:
        close(client)
        raise SettingsError(
            f"REDIS_URL cannot be used ({type(error).__name__}): check its host, port and parameters; {ENCODING_ADVICE}"
        ) from None
    except BaseException:
        close(client)
        raise
    ready: Redis = client
    return ready


@contextmanager
def opened(settings: Settings) -> Iterator[Redis]:
    """Yield the client of `connect`, and close it after the block. Raises as `connect` does."""
    redis = connect(settings)
    try:
        yield redis
    finally:
        close(redis)


def close(client: Redis | None) -> None:
    """Close every connection of what `connect` returned, those to the sentinels too, which redis-py leaves open."""
    if client is None:
        return
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    for one in (client, *(manager.sentinels if manager else ())):
        one.close()


class Address(NamedTuple):
    """A parsed URL. `kind` is standalone, sentinel or cluster; `options` are redis-py's names."""

    kind: str
    hosts: list[tuple[str, int]]
    socket: str
    master: str
    database: int
    options: dict[str, Any]
    sentinel_options: dict[str, Any]

    def __repr__(self) -> str:
        return f"Address(kind={self.kind!r})"  # the options contain passwords

    def secrets(self) -> list[str]:
        """Return the passwords, which must not appear in messages."""
        return [options["password"] for options in (self.options, self.sentinel_options) if "password" in options]


def parse_url(url: str) -> Address:
    """Parse `url`, or raise `SettingsError`, whose message never repeats a part of it: it contains a password."""
    try:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        kind = kind or "standalone"
        unix = scheme == "unix"
        hosts = [] if unix else _hosts(parts, _SENTINEL_PORT if kind == "sentinel" else _DEFAULT_PORT)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        words = [unquote(word) for word in parts.path.strip("/").split("/") if word]
    except ValueError:  # its message may repeat the password
        raise SettingsError(
            f"REDIS_URL is malformed: check its hosts, ports and parameters; {ENCODING_ADVICE}"
        ) from None
    if kind == "standalone" and len(hosts) > 1:
        raise SettingsError("REDIS_URL names several hosts: they need redis+sentinel:// or redis+cluster://")
    master = ""
    if kind == "sentinel":
        if not words:
            raise SettingsError("REDIS_URL names no master: redis+sentinel://host:port,host:port/MASTER/DATABASE")
        master = words.pop(0)
    database = _database([query.pop("db")] if "db" in query else [] if unix else words)
    if kind == "cluster" and database:
        raise SettingsError("REDIS_URL names a database, and a Redis Cluster has only number 0")
    options = _options(parts, query, kind=kind, tls=scheme == "rediss")
    sentinel_options = {
        name.removeprefix("sentinel_"): options.pop(name) for name in _SENTINEL_PARAMETERS if name in options
    }
    sentinel_options |= {name: value for name, value in options.items() if name.startswith("ssl")}
    return Address(kind, hosts, unquote(parts.path) if unix else "", master, database, options, sentinel_options)


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    found = []
    for place in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{place}")
        if not one.hostname:
            raise SettingsError("REDIS_URL: a host is missing")
        found.append((one.hostname, one.port or default_port))
    return found


def _database(words: list[str]) -> int:
    if not words:
        return 0
    if len(words) > 1 or not words[0].isdecimal() or len(words[0]) > _LONGEST_DATABASE:
        raise SettingsError("REDIS_URL: the database must be a number, the last thing in the path")
    return int(words[0])


def _options(parts: SplitResult, query: dict[str, str], *, kind: str, tls: bool) -> dict[str, Any]:
    known = _PARAMETERS.keys() | (_SENTINEL_PARAMETERS if kind == "sentinel" else frozenset())
    if unknown := sorted(set(query) - known):
        named = ", ".join(name for name in unknown if re.fullmatch(_PARAMETER_NAME, name)) or "(not repeated here)"
        raise SettingsError(f"REDIS_URL: unknown parameter {named} (known: {', '.join(sorted(known))})")
    if not tls and (stray := sorted(name for name in query if name.startswith("ssl_"))):
        raise SettingsError(f"REDIS_URL: {', '.join(stray)} needs TLS: a scheme that begins with rediss")
    for name in _FILES:
        if name in query and not _readable(query[name]):
            raise SettingsError(f"REDIS_URL: {name} names a file that cannot be read")
    values: dict[str, Any] = {}
    for name, text in query.items():
        try:
            parse: Any = _PARAMETERS.get(name) or URL_QUERY_ARGUMENT_PARSERS.get(name, str)
            values[name] = parse(text)
        except ValueError:
            raise SettingsError(f"REDIS_URL: the value of {name} is not one that it can have") from None
    if parts.username:
        values["username"] = unquote(parts.username)
    if parts.password:
        values["password"] = unquote(parts.password)
    return {**values, "ssl": True} if tls else values


def _readable(path: str) -> bool:
    try:
        with Path(path).open("rb"):
            return True
    except (OSError, ValueError):  # a path with a NUL is a ValueError
        return False


def _reply_seconds(settings: Settings) -> float:
    """Return how long a client waits for a reply: no longer than it would retry, within reason."""
    return min(COMMAND_TIMEOUT_SECONDS, max(CONNECT_TIMEOUT_SECONDS, settings.connect_timeout_seconds))


def _open(address: Address, reply_seconds: float) -> Any:
    # Retries are those of `CommandRetries`. RESP 2 without CLIENT SETINFO makes a connection ready in one round trip
    # less each, and asks for no further permission.
    common = {
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "socket_timeout": reply_seconds,
        "socket_keepalive": True,
        "protocol": 2,
        "driver_info": None,
    }
    options = {**common, **address.options}
    tls = bool(options.pop("ssl", False))
    never = Retry(NoBackoff(), 0)
    if address.kind == "cluster":
        return _open_cluster(address, options, tls=tls)
    if address.kind == "sentinel":
        asking = {**common, **address.sentinel_options, "socket_timeout": CONNECT_TIMEOUT_SECONDS, "retry": never}
        return _open_sentinel(address, {**options, "retry": never}, asking, tls=tls)
    if address.socket:
        options.pop("socket_keepalive")
        return RetryingRedis(unix_socket_path=address.socket, db=address.database, retry=never, **options)
    ((host, port),) = address.hosts
    if tls:
        return RetryingRedis.from_pool(Pool(host=host, port=port, db=address.database, retry=never, **options))
    return RetryingRedis(host=host, port=port, db=address.database, retry=never, **options)


def _open_cluster(address: Address, options: dict[str, Any], *, tls: bool) -> Any:
    nodes = [ClusterNode(host, port) for host, port in address.hosts]
    # Its nodes use our pool class only if it is given a URL.
    pool: dict[str, Any] = {"url": f"rediss://{nodes[0].host}:{nodes[0].port}", "connection_pool_class": Pool}
    # One retry of its own: it moves on to another node first.
    return RetryingRedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), 1), **(pool if tls else {}), **options)


def _open_sentinel(address: Address, options: dict[str, Any], asking: dict[str, Any], *, tls: bool) -> Any:
    asks_with_tls = asking.pop("ssl", False)
    clients = [
        SentinelClient(connection_pool=Pool(host=host, port=port, **asking))
        if asks_with_tls
        else SentinelClient(host, port, **asking)
        for host, port in address.hosts
    ]
    sentinel: Any = Sentinels(clients)
    managed = {"connection_class": ManagedConnection} if tls else {}
    return sentinel.master_for(address.master, redis_class=RetryingRedis, db=address.database, **managed, **options)
