"""All Redis keys that this project uses.

The other keys of a list contain its name in braces, as a hash tag: on Redis Cluster they share the slot of the list, so
one script can use all of them.
"""

from __future__ import annotations

LIST_PREFIX = "face_embeddings"


def list_key(name: str) -> str:
    """Return the list that the API pushes jobs of the kind `name` (process, compare) to."""
    return f"{LIST_PREFIX}:{name}"


def leases(name: str) -> str:
    """Return the sorted set of lease ids by expiry (milliseconds, Redis time)."""
    return _side(name, "leases")


def claimed(name: str) -> str:
    """Return the hash with payload, attempts, holder … of each lease (see `common.lua`)."""
    return _side(name, "claimed")


def parked(name: str) -> str:
    """Return the sorted set of parked jobs by the time (milliseconds) until which they may wait."""
    return _side(name, "parked")


def pending(name: str, lease_id: str) -> str:
    """Return the set of photo ids that a parked job waits for."""
    return _side(name, f"pending:{lease_id}")


def hosts(name: str) -> str:
    """Return the sorted set of failing image servers by when they are tried again (milliseconds)."""
    return _side(name, "hosts")


def host(name: str, server: str) -> str:
    """Return the hash with `failures`, `pauses` and `probe` (a lease id) of an image server that has failed."""
    return _side(name, f"host:{server}")


def host_parked(name: str, server: str) -> str:
    """Return the sorted set of jobs that are parked until an image server answers, by since when (milliseconds)."""
    return _side(name, f"host:{server}:parked")


def last(name: str, owner: str) -> str:
    """Return the key with the reply to an owner's latest call, in case it is lost."""
    return _side(name, f"last:{owner}")


def seen(name: str) -> str:
    """Return the key that records when each waiting job was first seen (see `expired.lua`)."""
    return _side(name, "seen")


def dead(name: str) -> str:
    """Return the hash of lease id → dead letter: when the job left the list, a space, and JSON without the payload."""
    return _side(name, "dead")


def dead_index(name: str) -> str:
    """Return the sorted set of the dead letters' ids by when they were dead-lettered (milliseconds)."""
    return _side(name, "dead:index")


def dead_payload(name: str, dead_letter_id: str) -> str:
    """Return the key with the payload of a dead letter, which expires."""
    return _side(name, f"dead:payload:{dead_letter_id}")


def totals(name: str) -> str:
    """Return the hash of all counters of the list's jobs (see `totals.py`)."""
    return _side(name, "totals")


def runs(name: str) -> str:
    """Return the sorted set of the summaries of the last runs (JSON) by their end (milliseconds)."""
    return _side(name, "runs")


def arrivals(name: str) -> str:
    """Return the sorted set that says when (milliseconds) how many jobs had arrived (see `sample.lua`)."""
    return _side(name, "arrivals")


def history(name: str) -> str:
    """Return the sorted set with the history of the queue, one entry per minute, by time (milliseconds)."""
    return _side(name, "history")


def orphans(name: str) -> str:
    """Return the key with the number of photos that have lost their job, as the last sweep counted them."""
    return _side(name, "orphans")


def databases(name: str) -> str:
    """Return the sorted set of the databases in which photos of the list were found, by the first time (seconds)."""
    return _side(name, "databases")


def reprocess(name: str) -> str:
    """Return the key that names the one process that may push jobs of photos again."""
    return _side(name, "reprocess")


def unconfirmed(name: str = "compare") -> str:
    """Return the sorted set of comparisons whose answer INITIATED may still overwrite."""
    return _side(name, "unconfirmed")


def match_result(job_id: str) -> str:
    """Return the key from which the API reads the answer of a comparison."""
    return f"match-result:{job_id}"


def match_result_detail(job_id: str) -> str:
    """Return the key with the details of a comparison, for which the API's key has no room."""
    # Not below `match_result`: the API would read it as the result of a job of that name.
    return f"{LIST_PREFIX}:detail:{job_id}"


def _side(name: str, suffix: str) -> str:
    return f"{{{list_key(name)}}}:{suffix}"
