"""The connection to Redis: standalone, sentinel or cluster, patient with what passes by itself.

redis-py takes 130 ms to import, so only `connect` does, when it is called.
"""

from __future__ import annotations

import random
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from runner.errors import ENCODING_ADVICE, MissingRightError, RedisFullError, RedisUnreachableError, SettingsError
from runner.output import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from redis import Redis

    from runner.settings import Settings

CONNECT_TIMEOUT_SECONDS = 5.0
# A claim may carry several selfies of some megabytes; nothing else takes longer than a few milliseconds.
COMMAND_TIMEOUT_SECONDS = 20.0
LONGEST_PAUSE_SECONDS = 2.0
_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_PARAMETERS = frozenset(
    {
        *_FILES, "ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers", "socket_timeout",
        "socket_connect_timeout", "health_check_interval", "client_name", "protocol",
    }
)  # fmt: skip
# What is repeated of an unknown parameter: nothing that does not look like the name of one.
_PARAMETER_NAME = re.compile(r"[a-z][a-z_]{1,40}")
_SENTINEL_PARAMETERS = frozenset({"sentinel_username", "sentinel_password"})
# What servers answer while they start, fail over or run full, where redis-py has no class for it. Also inside the
# message of a script that met it.
_PASSING = re.compile(r"\b(LOADING|READONLY|OOM|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|MISCONF|BUSY)\b")
_FULL = re.compile(r"^OutOfMemoryError|\bOOM command not allowed\b")
_REFUSED = re.compile(
    r"\b(WRONGPASS|NOAUTH|NOPERM)\b|invalid (username-)?password|ACL failure|DB index is out of range"
    r"|SELECT is not allowed|can't run this command|can't access at least one of the keys"
    r"|CERTIFICATE_VERIFY_FAILED|CERTIFICATE_REQUIRED|SSL: WRONG_VERSION_NUMBER"
)
# A command that a script was refused, as `call` in common.lua words it, and what servers put before and after it.
_IN_SCRIPT = re.compile(r"\b([A-Z]+) on (.+?): (?:@user_script: ?\d+: )?-?(?:ERR )?(.*)")
_AFTER_SCRIPT = re.compile(r" script: (?:[0-9a-f]{40}, )?on @user_script:\d+\.?$")
_KEY_REFUSED = re.compile(r"\baccess (?:a key|one of the keys|at least one of the keys)\b")
_COMMAND_REFUSED = re.compile(r"\brun (?:the '([^']+)'|this) command\b")
_FAMILY = re.compile(r"\{?face_embeddings:|match-result:")


def connect(settings: Settings) -> Redis:
    """Return a client whose every command is tried again for `connect_seconds` while Redis is away.

    It answers bytes. Commands raise `RedisUnreachableError` when the time is up (`RedisFullError`, a kind of it, where
    Redis is full), and `SettingsError` where Redis refuses the credentials, the database, the certificate or a
    command (`MissingRightError`, a kind of it, where the ACL lacks a right).
    """
    address = parse_url(settings.redis_url)
    patience = Patience(settings.connect_seconds, secrets=address.secrets())
    client: Any = None
    try:
        client = patience.call(lambda: _open(address))
        plain: Callable[..., Any] = client.execute_command
        # One place for every command and every script. A pipeline would go past it: none is used.
        client.execute_command = lambda *args, **more: patience.call(
            lambda: plain(*args, **more), reset=lambda: _disconnect(client), sent=args
        )
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
    """Have what `connect` returns for the time of the block. Raises as it does."""
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


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """What a URL says. `kind` is standalone, sentinel or cluster; `options` are redis-py's names."""

    kind: str
    hosts: list[tuple[str, int]]
    socket: str
    master: str
    database: int
    options: dict[str, Any]
    sentinel_options: dict[str, Any]

    def secrets(self) -> list[str]:
        """Return the passwords, which no message may repeat."""
        return [options["password"] for options in (self.options, self.sentinel_options) if "password" in options]


def parse_url(url: str) -> Address:
    """Return what `url` says, or raise `SettingsError`. Messages never repeat a part of it: it holds a password."""
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
    if len(words) > 1 or not words[0].isdecimal():
        raise SettingsError("REDIS_URL: the database must be a number, the last thing in the path")
    return int(words[0])


def _options(parts: SplitResult, query: dict[str, str], *, kind: str, tls: bool) -> dict[str, Any]:
    known = _PARAMETERS | (_SENTINEL_PARAMETERS if kind == "sentinel" else frozenset())
    if unknown := sorted(set(query) - known):
        named = ", ".join(name for name in unknown if _PARAMETER_NAME.fullmatch(name)) or "(not repeated here)"
        raise SettingsError(f"REDIS_URL: unknown parameter {named} (known: {', '.join(sorted(known))})")
    if not tls and (stray := sorted(name for name in query if name.startswith("ssl_"))):
        raise SettingsError(f"REDIS_URL: {', '.join(stray)} needs TLS: a scheme that begins with rediss")
    for name in _FILES:
        if name in query and not _readable(query[name]):
            raise SettingsError(f"REDIS_URL: {name} names a file that cannot be read")
    from redis.connection import URL_QUERY_ARGUMENT_PARSERS as PARSERS

    values: dict[str, Any] = {}
    for name, text in query.items():
        try:
            values[name] = PARSERS[name](text) if name in PARSERS else text  # type: ignore[operator]  # a table of types
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


def _open(address: Address) -> Any:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    # Every repetition is Patience's. RESP 2 without CLIENT SETINFO makes a connection ready in one round trip less
    # each, and asks for no further permission.
    common = {
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "socket_timeout": COMMAND_TIMEOUT_SECONDS,
        "socket_keepalive": True,
        "protocol": 2,
        "driver_info": None,
    }
    options = {**common, **address.options}
    never = Retry(NoBackoff(), 0)
    if address.kind == "cluster":
        from redis.cluster import ClusterNode, RedisCluster

        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        # One repetition of its own: it moves on to another node first.
        return RedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), 1), **options)
    if address.kind == "sentinel":
        from redis.sentinel import Sentinel

        asking = {**common, **address.sentinel_options, "socket_timeout": CONNECT_TIMEOUT_SECONDS, "retry": never}
        sentinel = Sentinel(address.hosts, sentinel_kwargs=asking)
        return sentinel.master_for(address.master, db=address.database, retry=never, **options)
    from redis import Redis

    if address.socket:
        names = ("socket_keepalive", "ssl")
        options = {name: value for name, value in options.items() if name not in names}
        return Redis(unix_socket_path=address.socket, db=address.database, retry=never, **options)
    ((host, port),) = address.hosts
    return Redis(host=host, port=port, db=address.database, retry=never, **options)


def _disconnect(client: Any) -> None:
    """Drop idle connections: behind a name that has moved on they lead to the server that was the master."""
    pool = getattr(client, "connection_pool", None)  # a cluster's client has one a node, and sees to it itself
    if pool is not None:
        pool.disconnect(inuse_connections=False)


class Patience:
    """Repeats a command while its failures are passing ones, for a bounded time with growing, jittered pauses."""

    def __init__(
        self, seconds: float, *, secrets: Sequence[str] = (), sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """`secrets` are left out of the messages of errors, where a server has repeated them."""
        self._seconds = seconds
        self._secrets = secrets
        self._sleep = sleep

    def call(
        self, command: Callable[[], Any], *, reset: Callable[[], None] = lambda: None, sent: Sequence[Any] = ()
    ) -> Any:
        """Return what `command` returns; `reset` is called before each repetition.

        `sent` is the command as redis-py takes it: the patterns of its keys are named where Redis refuses them.
        """
        from redis.exceptions import RedisClusterException, RedisError

        started: float | None = None
        pause = 0.05
        while True:
            try:
                return command()
            except (RedisError, RedisClusterException) as error:
                if is_refusal(error):
                    raise _refusal(error, sent, self._secrets) from None
                if not is_passing(error):
                    raise
                started = time.monotonic() if started is None else started
                if time.monotonic() - started + pause > self._seconds:
                    kind = RedisFullError if _FULL.search(f"{type(error).__name__} {error}") else RedisUnreachableError
                    raise kind(f"{self._reason(error)} (tried for {self._seconds:g} s)") from None
            self._sleep(pause * (0.5 + random.random()))  # noqa: S311 - jitter, no secret
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            reset()

    def _reason(self, error: Exception) -> str:
        return redacted(reason(error), self._secrets)


def is_passing(error: Exception) -> bool:
    """Return whether the same command can succeed later."""
    from redis import exceptions

    passing = (
        exceptions.ConnectionError,
        exceptions.TimeoutError,
        exceptions.ReadOnlyError,
        exceptions.OutOfMemoryError,
        exceptions.ClusterDownError,
        exceptions.TryAgainError,
        exceptions.MovedError,  # more often than redis-py follows: the cluster is being rearranged
        exceptions.RedisClusterException,  # no node could be reached, or no node has the slot
    )
    return isinstance(error, passing) or bool(_PASSING.search(str(error)))


def is_refusal(error: Exception) -> bool:
    """Return whether Redis will refuse the same command for ever."""
    from redis import exceptions

    refusals = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)
    return isinstance(error, refusals) or bool(_REFUSED.search(str(error)))


def reason(error: Exception) -> str:
    """Return a short line: redis-py's messages hold an address, and no credentials unless they repeat a command."""
    line = _AFTER_SCRIPT.sub("", (str(error) or type(error).__name__).splitlines()[0])
    if refused := _IN_SCRIPT.search(line):
        line = f"{refused[1]} on {refused[2]}: {refused[3]}"
    return re.split(r",? with args beginning with|, but got |No targets were found to execute", line)[0][:200]


def _refusal(error: Exception, sent: Sequence[Any], secrets: Sequence[str]) -> SettingsError:
    grant, shown = _missing_right(str(error), sent), redacted(reason(error), secrets)
    if grant:
        return MissingRightError(grant, shown)
    return SettingsError(f"REDIS_URL: {_advice(error)} ({shown})")


def _advice(error: Exception) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "the server's certificate is not trusted; name its authority with ?ssl_ca_certs=FILE"
    if "CERTIFICATE_REQUIRED" in text:
        return "the server wants a client certificate: ?ssl_certfile=FILE&ssl_keyfile=FILE"
    if "WRONG_VERSION_NUMBER" in text:
        return "the server does not speak TLS on this port"
    if "DB index" in text or "SELECT is not allowed" in text:
        return "the server has no such database"
    page = "docs/reference/redis-keys.md"
    return f"Redis refuses the user, the password or a command; {page} has the ACL that suffices"


def _missing_right(text: str, sent: Sequence[Any]) -> str:
    """Return what the ACL of the Redis user has to grant; empty where that is not the cause."""
    in_script = _IN_SCRIPT.search(text)
    if _KEY_REFUSED.search(text):
        found = [in_script[2]] if in_script else _keys_of(sent)
        return " ".join(sorted({f"~{family[0]}*" for key in found if (family := _FAMILY.match(key))}))
    refused = _COMMAND_REFUSED.search(text)
    # Not the command that was sent: what opens its connection (SELECT) may be what is refused.
    command = refused and (refused[1] or (in_script and in_script[1]))
    return f"+{command.lower()}" if command else ""


def _keys_of(sent: Sequence[Any]) -> Sequence[str]:
    words = [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in sent]
    if words[:1] == ["EVAL"]:
        return words[3 : 3 + int(words[2])]
    return words[1:2]
