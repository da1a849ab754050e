"""The rights in Redis that each command needs, as ACL rules. docs/reference/redis-keys.md lists them for people."""

from __future__ import annotations

from collections.abc import Collection

_LISTS, _SIDE_KEYS, _RESULTS = "~face_embeddings:*", "~{face_embeddings:*", "~match-result:*"
_LETTERS = f"{_SIDE_KEYS} +ping +eval +time +hget +zrangebyscore"
_REQUEUE = f"{_LISTS} {_LETTERS} +pttl +get +set +del +rpush +zadd +zrem +zscore +hset +hmget +hdel"
_STATUS = f"{_LISTS} {_SIDE_KEYS} +ping +eval +time +llen +zrange +zcount +zcard +hmget +hstrlen"
_SEARCH = f"{_LISTS} {_LETTERS} +get +set +del +pttl +llen +lindex +zrange +hmget +hstrlen"
_END = "+expire +lpop +zadd +zrem +zscore +hset +hexists +scard"
_EXPIRE = f"{_LISTS} {_RESULTS} {_LETTERS} {_END} +get +set +del +llen +lindex +zrange +zremrangebyscore +hmget +hdel"

RIGHTS = {
    "run": f"{_EXPIRE} +lrange +rpush +blmove +zcount +zcard +sadd +srem",
    "doctor": f"{_EXPIRE} +lrange +rpush +blmove +zcount +zcard +sadd +srem +hstrlen",
    "sweep": f"{_EXPIRE} +hstrlen",
    "reprocess": f"{_SEARCH} +rpush +zadd +zrem +zscore +hset +hdel",
    "forget": f"{_RESULTS} {_SEARCH} {_END} +lrem +hdel +srem",
    "dead list": f"{_LETTERS} +pttl",
    "dead show": f"{_SIDE_KEYS} +ping +eval +get +pttl +zscore +hget",
    "dead requeue": _REQUEUE,
    "dead purge": f"{_LETTERS} +get +set +del +zadd +zrem +zscore +hdel",
    "status": _STATUS,
    "metrics": f"{_STATUS} +get +expire +zadd +zrangebyscore +zremrangebyscore",
}


def needed(commands: Collection[str]) -> set[str]:
    """Return the rules that any of the commands needs; commands that do not use Redis need none."""
    return {rule for name in commands for rule in RIGHTS.get(name, "").split()}
