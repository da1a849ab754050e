"""Clients that retry their commands after transient errors, and the classification of those errors.

Imports redis-py, which takes 130 ms, so it is imported only when a connection is needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import Redis, RedisCluster
from redis import exceptions as redis_errors

from runner.errors import RedisFullError, RedisUnreachableError
from runner.output import redacted
from runner.queue.failures import reason, refusal
from runner.retry import RetryPolicy, time_spent

_ERRORS = (redis_errors.RedisError, redis_errors.RedisClusterException)
_TRANSIENT = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.ReadOnlyError,
    redis_errors.OutOfMemoryError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
    redis_errors.MovedError,  # more redirections than redis-py follows: the cluster is being resharded
    redis_errors.RedisClusterException,  # no node could be reached, or no node has the slot
)
_REFUSALS = (redis_errors.AuthenticationError, redis_errors.AuthorizationError, redis_errors.NoPermissionError)
# The patterns are compiled after a first error, not at each start.
# Replies of servers that start, fail over or are full, for which redis-py has no class. A script's error contains the
# error of its command.
_TRANSIENT_TEXT = r"\b(LOADING|READONLY|OOM|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|MISCONF|BUSY)\b"
_FULL = r"^OutOfMemoryError|\bOOM command not allowed\b"
_REFUSAL_TEXT = (
    r"\b(WRONGPASS|NOAUTH|NOPERM)\b|invalid (username-)?password|ACL failure|DB index is out of range"
    r"|SELECT is not allowed|unknown command|can't run this command|can't access at least one of the keys"
    r"|CERTIFICATE_VERIFY_FAILED|CERTIFICATE_REQUIRED|SSL: WRONG_VERSION_NUMBER|PEM lib|NO_CERTIFICATE_OR_CRL_FOUND"
    r"|KEY_VALUES_MISMATCH|No cipher can be selected|AF_UNIX path too long"
)


def is_refusal(error: BaseException) -> bool:
    """Return whether Redis will refuse the same command until someone changes something."""
    return isinstance(error, _ERRORS) and (isinstance(error, _REFUSALS) or bool(re.search(_REFUSAL_TEXT, str(error))))


def is_transient(error: BaseException) -> bool:
    """Return whether the same command can succeed later."""
    if not isinstance(error, _ERRORS) or is_refusal(error):
        return False
    return isinstance(error, _TRANSIENT) or bool(re.search(_TRANSIENT_TEXT, str(error)))


class CommandRetries:
    """Retries commands for `seconds` after a first transient error, and raises typed errors for those that failed."""

    def __init__(self, seconds: float, secrets: Sequence[str] = ()) -> None:
        """`secrets` are removed from messages, in case a server repeats them."""
        self._policy = RetryPolicy(seconds, is_transient)
        self._secrets = secrets

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Make one attempt at each command in the block, in every thread."""
        policy, self._policy = self._policy, RetryPolicy(0, is_transient)
        try:
            yield
        finally:
            self._policy = policy

    def call(
        self,
        command: Callable[[], Any],
        *,
        before_retry: Callable[[], None] = lambda: None,
        sent: Sequence[Any] = (),
    ) -> Any:
        """Return what `command` returns; `before_retry` is called before each retry.

        `sent` is the command as redis-py takes it. Raises `RedisUnreachableError` when the time is up
        (`RedisFullError` if Redis is full), `SettingsError` at once if Redis refuses the command
        (`MissingRightError` if its ACL does), and every other error unchanged.
        """
        began = time.monotonic()
        try:
            return self._policy.call(command, before_retry=lambda _: before_retry())
        except _ERRORS as error:
            if is_refusal(error):
                raise refusal(error, sent, self._secrets) from None
            if not is_transient(error):
                raise
            kind = RedisFullError if re.search(_FULL, f"{type(error).__name__} {error}") else RedisUnreachableError
            shown = redacted(reason(error), self._secrets)
            raise kind(f"{shown} ({time_spent(time.monotonic() - began)})") from None


class _RetriedCommands:
    """A mixin for redis-py's clients that retries every command and every script as `retries` says.

    A pipeline is not covered: none is used.
    """

    retries = CommandRetries(0)  # one attempt, until the client is given its own

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Return the reply to the command. Raises as `CommandRetries.call` does."""
        execute = super().execute_command  # type: ignore[misc]  # of the client that this is mixed into
        return self.retries.call(lambda: execute(*args, **options), before_retry=self._before_retry, sent=args)

    def _before_retry(self) -> None:
        pass


class RetryingRedis(_RetriedCommands, Redis):
    """A client of one server, or of the master that the sentinels report."""

    def _before_retry(self) -> None:
        """Close idle connections: after a failover they still lead to the server that was the master."""
        self.connection_pool.disconnect(inuse_connections=False)


class RetryingRedisCluster(_RetriedCommands, RedisCluster):
    """A client of a cluster. It replaces the connections to its nodes by itself."""
