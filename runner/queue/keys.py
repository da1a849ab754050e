"""Every key of Redis that this project touches, in one place.

The side keys of a list carry its name in braces: on Redis Cluster they lie in the slot of the list itself, so one
script may touch all of them.
"""

from __future__ import annotations

LIST_PREFIX = "face_embeddings"


def list_key(name: str) -> str:
    """Return the list that the API pushes jobs of the kind `name` (process, compare) to."""
    return f"{LIST_PREFIX}:{name}"


def leases(name: str) -> str:
    """Return the sorted set of lease ids by the moment (Redis time, milliseconds) at which they fall due."""
    return _side(name, "leases")


def claimed(name: str) -> str:
    """Return the hash of what is leased: payload, attempts, holder … of each lease id (see `common.lua`)."""
    return _side(name, "claimed")


def last(name: str, owner: str) -> str:
    """Return the key that holds the answer to an owner's latest call, in case its reply is lost."""
    return _side(name, f"last:{owner}")


def seen(name: str) -> str:
    """Return the key that holds when each waiting job was first seen (see `expired.lua`)."""
    return _side(name, "seen")


def dead(name: str) -> str:
    """Return the hash of lease id → dead letter: when the job left the list, a space, and JSON without the payload."""
    return _side(name, "dead")


def dead_index(name: str) -> str:
    """Return the sorted set of the dead letters' ids by the moment (milliseconds) at which they were buried."""
    return _side(name, "dead:index")


def dead_payload(name: str, letter_id: str) -> str:
    """Return the key that holds the payload of a dead letter, for as long as it may be kept."""
    return _side(name, f"dead:payload:{letter_id}")


def databases(name: str) -> str:
    """Return the sorted set of the databases in which photos of the list were found, by when they first were (s)."""
    return _side(name, "databases")


def unconfirmed(name: str = "compare") -> str:
    """Return the sorted set of comparisons whose answer INITIATED may still replace."""
    return _side(name, "unconfirmed")


def match_result(job_id: str) -> str:
    """Return the key in which the API looks for the answer of a comparison."""
    return f"match-result:{job_id}"


def match_result_detail(job_id: str) -> str:
    """Return the key with everything about a comparison that does not fit the API's own."""
    return f"match-result:{job_id}:detail"


def _side(name: str, suffix: str) -> str:
    return f"{{{list_key(name)}}}:{suffix}"
