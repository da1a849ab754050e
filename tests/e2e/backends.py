"""The servers that the end-to-end tests use: Redis, PostgreSQL, and the API in front of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from redis import Redis

from demo.api import Api


@dataclass(frozen=True)
class Backends:
    """Redis and PostgreSQL at addresses that both this machine and the pods can reach."""

    redis: Redis
    redis_url: str
    database_url: str
    connection: psycopg.Connection
    api: Api

    def leftovers(self) -> dict[str, int]:
        """Return how many jobs of each list are waiting, leased or dead letters, without zeros."""
        client: Any = self.redis
        counts = {}
        for name in ("compare", "process"):
            counts[f"{name} waiting"] = client.llen(f"face_embeddings:{name}")
            counts[f"{name} leased"] = client.zcard(f"{{face_embeddings:{name}}}:leases")
            counts[f"{name} dead"] = client.zcard(f"{{face_embeddings:{name}}}:dead:index")
        return {name: count for name, count in counts.items() if count}
