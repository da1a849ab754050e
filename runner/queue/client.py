"""The connection to Redis: standalone, sentinel or cluster, patient with what passes by itself.

redis-py takes 130 ms to import, so only `connect` does, when it is called.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from runner.errors import RedisUnreachableError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from runner.settings import Settings

CONNECT_TIMEOUT_SECONDS = 5.0
# A claim may carry several selfies of some megabytes; nothing else takes longer than a few milliseconds.
COMMAND_TIMEOUT_SECONDS = 20.0
LONGEST_PAUSE_SECONDS = 2.0
_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379
# Errors that a server sends while it starts, fails over or runs full: they pass.
_PASSING = ("LOADING", "READONLY", "OOM", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF", "BUSY")
_REFUSED = ("WRONGPASS", "NOAUTH", "NOPERM", "invalid username-password", "invalid password")


def connect(settings: Settings) -> Redis:
    """Return a client whose every command is tried again for `connect_seconds` while Redis is away.

    It answers bytes. Commands raise `RedisUnreachableError` when the time is up, and `SettingsError` where Redis
    refuses the credentials.
    """
    parts = urlsplit(settings.redis_url)
    scheme, _, kind = parts.scheme.partition("+")
    options = _options(parts, tls=scheme == "rediss")
    try:
        if kind == "sentinel":
            client = _sentinel(parts, options)
        elif kind == "cluster":
            client = _cluster(parts, options)
        else:
            client = _standalone(settings.redis_url)
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"REDIS_URL cannot be used ({type(error).__name__}): check its host, port and parameters"
        ) from None
    patience = Patience(settings.connect_seconds)
    plain: Callable[..., Any] = client.execute_command

    def execute_command(*args: Any, **more: Any) -> Any:
        return patience.call(lambda: plain(*args, **more))

    client.execute_command = execute_command  # type: ignore[method-assign]  # one place for every command and script
    client.ping()
    return client


class Patience:
    """Repeats a command while its failures are passing ones, for a bounded time with growing, jittered pauses."""

    def __init__(self, seconds: float, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._seconds = seconds
        self._sleep = sleep

    def call(self, command: Callable[[], Any]) -> Any:
        """Return what `command` returns."""
        from redis.exceptions import RedisError

        started: float | None = None
        pause = 0.05
        while True:
            try:
                return command()
            except RedisError as error:
                if is_refusal(error):
                    raise SettingsError(
                        f"REDIS_URL: Redis refuses the user, the password or a command ({_reason(error)})"
                    ) from None
                if not is_passing(error):
                    raise
                started = time.monotonic() if started is None else started
                if time.monotonic() - started + pause > self._seconds:
                    raise RedisUnreachableError(f"{_reason(error)} (tried for {self._seconds:g} s)") from None
            self._sleep(pause * (0.5 + random.random()))  # noqa: S311 - jitter, no secret
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def is_passing(error: Exception) -> bool:
    """Return whether the same command can succeed later."""
    from redis.exceptions import ConnectionError as Unreachable
    from redis.exceptions import TimeoutError as TooSlow

    return isinstance(error, Unreachable | TooSlow) or str(error).startswith(_PASSING) or "OOM" in str(error)


def is_refusal(error: Exception) -> bool:
    """Return whether Redis will refuse the same command for ever."""
    from redis.exceptions import AuthenticationError, NoPermissionError

    return isinstance(error, AuthenticationError | NoPermissionError) or str(error).startswith(_REFUSED)


def _reason(error: Exception) -> str:
    """Return a short line without hosts' credentials: redis-py's messages hold the address alone."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _standalone(url: str) -> Redis:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(url, **_common(), retry=Retry(NoBackoff(), 0))


def _sentinel(parts: SplitResult, options: dict[str, Any]) -> Redis:
    from redis import Sentinel

    master, _, database = parts.path.strip("/").partition("/")
    if not master:
        raise SettingsError("REDIS_URL: redis+sentinel://host:port,host:port/MASTER/DATABASE names no master")
    tls = {name: value for name, value in options.items() if name.startswith("ssl")}
    sentinel = Sentinel(
        _hosts(parts, _SENTINEL_PORT),
        sentinel_kwargs={**tls, "socket_timeout": CONNECT_TIMEOUT_SECONDS},
        **_common(),
    )
    client: Redis = sentinel.master_for(master, **options, **_common(), db=int(database or 0))
    return client


def _cluster(parts: SplitResult, options: dict[str, Any]) -> Any:
    from redis.cluster import ClusterNode, RedisCluster

    nodes = [ClusterNode(host, port) for host, port in _hosts(parts, _DEFAULT_PORT)]
    return RedisCluster(startup_nodes=nodes, **options, **_common())


def _common() -> dict[str, Any]:
    return {
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "socket_timeout": COMMAND_TIMEOUT_SECONDS,
        "socket_keepalive": True,
    }


def _options(parts: SplitResult, *, tls: bool) -> dict[str, Any]:
    """Return user, password and TLS options of a URL that names several hosts (redis-py reads only plain ones)."""
    query = dict(parse_qsl(parts.query))
    return {
        **({"username": unquote(parts.username)} if parts.username else {}),
        **({"password": unquote(parts.password)} if parts.password else {}),
        **({"ssl": True} if tls else {}),
        **{name: value for name, value in query.items() if name.startswith("ssl_")},
    }


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    places = parts.netloc.rpartition("@")[2].split(",")
    found = []
    for place in places:
        one = urlsplit(f"//{place}")
        if not one.hostname:
            raise SettingsError("REDIS_URL: a host is missing between the commas")
        found.append((one.hostname, one.port or default_port))
    return found
