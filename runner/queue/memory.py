"""How much memory Redis uses, and its eviction policy; for metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis import Redis

from runner.errors import MissingRightError

POLICIES = (
    "noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-lrm", "allkeys-random",
    "volatile-lru", "volatile-lfu", "volatile-lrm", "volatile-random", "volatile-ttl", "other",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a server in bytes; a `limit` of 0 is none. `policy` is one of `POLICIES`."""

    used: int
    limit: int
    policy: str


def read_memory(client: Redis) -> Memory | None:
    """Return the memory of the server, in a cluster of its fullest primary; None if the user lacks `+info`."""
    redis: Any = client
    try:
        if hasattr(redis, "nodes_manager"):
            found = list(redis.info("memory", target_nodes="primaries").values())
        else:
            found = [redis.info("memory")]
    except MissingRightError:
        return None
    return max(map(_memory, found), key=lambda one: one.used / one.limit if one.limit else 0.0)


def _memory(info: dict[str, Any]) -> Memory:
    policy = str(info.get("maxmemory_policy", ""))
    known = policy if policy in POLICIES else POLICIES[-1]
    return Memory(int(info["used_memory"]), int(info.get("maxmemory", 0)), known)
