"""Helpers for tests of the settlement and the worker loop: a handler that records its calls, on a real queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray
from redis import Redis

from runner.errors import PhotoGoneError
from runner.queue.dead_letters import DeadLetters
from runner.queue.heartbeat import Heartbeat
from runner.queue.leases import LeaseQueue
from runner.settings import Settings, load
from runner.worker.kinds import Kind
from runner.worker.loop import WorkerLoop
from runner.worker.settlement import Settlement
from runner.worker.shutdown import Stop
from runner.worker.summary import Summary
from runner.worker.task import AnyTask, State
from tests.support.queue_tools import NAME, push, queue_of

Load = Callable[[], Any]


class Recorder:
    """A handler that records its tasks; `refuse` returns the error of a task that makes its batch fail.

    `open` contains the payloads between `read` and `conclude`, and `seen_together` its contents at each `read`.
    """

    def __init__(self) -> None:
        self.refuse: Callable[[AnyTask], Exception | None] = lambda _: None
        self.unconfirmed = False
        self.gone_at_begin: set[bytes] = set()
        self.batches: list[list[bytes]] = []
        self.stored: dict[bytes, str | None] = {}
        self.lock = threading.Lock()
        self.open: set[bytes] = set()
        self.seen_together: list[set[bytes]] = []

    def kind(self, name: str = NAME) -> Kind:
        """Return a kind of job whose payload is used without decoding."""
        return Kind(
            queue=name,
            noun="photo",
            plural="photos",
            id_field="id",
            marks=frozenset(),
            decode=lambda payload: payload,
            handler=lambda _: self,
        )

    def _meet(self, tasks: Sequence[AnyTask]) -> None:
        self.batches.append([task.lease.payload for task in tasks])
        for task in tasks:
            if (error := self.refuse(task)) is not None:
                raise error

    def resume(self, task: AnyTask) -> None:
        pass

    def begin(self, tasks: Sequence[AnyTask]) -> None:
        self._meet(tasks)
        for task in tasks:
            if task.lease.payload in self.gone_at_begin:
                task.error = PhotoGoneError()

    def read(self, task: AnyTask) -> bytes:
        with self.lock:
            self.open.add(task.lease.payload)
            self.seen_together.append(set(self.open))
        time.sleep(0.01)
        return task.lease.payload

    def conclude(self, tasks: Sequence[AnyTask]) -> None:
        with self.lock:
            self.open -= {task.lease.payload for task in tasks}
        self._meet(tasks)
        self.stored |= {task.lease.payload: task.error.code if task.error else None for task in tasks}
        for task in tasks:
            task.state = State.UNCONFIRMED if self.unconfirmed else task.state

    def confirmed(self, tasks: Sequence[AnyTask]) -> list[AnyTask]:
        return []

    def stop_watching(self, tasks: Sequence[AnyTask]) -> None:
        pass


def settlement_of(queues: Sequence[LeaseQueue]) -> Settlement:
    """Return a settlement of these queues, whose heartbeat does not beat."""
    handlers = {queue.name: Recorder() for queue in queues}
    kinds = {name: handler.kind(name) for name, handler in handlers.items()}
    return Settlement(
        load({"REDIS_URL": "redis://h/0", "DATABASE_URL": "postgresql://h/d"}),
        kinds=kinds,
        queues={queue.name: queue for queue in queues},
        handlers=handlers,
        heartbeat=Heartbeat(queues),
        summary=Summary(kinds),
    )


class SettlementBench:
    """A settlement with its queue, as in a run."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.settings = settings
        self.queue = queue_of(redis, "here/1")
        self.handler = Recorder()
        self.kinds = {NAME: self.handler.kind()}
        self.summary = Summary(self.kinds)
        self.heartbeat = Heartbeat([self.queue])
        self.settlement = Settlement(
            settings,
            kinds=self.kinds,
            queues={NAME: self.queue},
            handlers={NAME: self.handler},
            heartbeat=self.heartbeat,
            summary=self.summary,
        )

    def leased(self, *payloads: bytes, attempt: int = 1) -> list[AnyTask]:
        """Push the payloads and claim them, with this attempt count."""
        push(self.redis, payloads)
        for _ in range(attempt - 1):
            for lease in self.queue.claim(len(payloads)):
                assert self.queue.retry(lease, 0, "earlier")
        return self.settlement.accept(self.queue.claim(len(payloads)))

    def outcomes(self) -> dict[str, int]:
        assert self.summary.unsettled >= 0
        return {str(outcome): count for outcome, count in self.summary.outcomes.items() if count}

    def dead(self) -> dict[str, int]:
        """Return reason → attempts of the dead letters."""
        return {letter.code: letter.attempts for letter in DeadLetters(self.redis, NAME).all()}


class LoopBench(SettlementBench):
    """A worker loop with its collaborators; `compute` stands in for the engine."""

    def __init__(self, redis: Redis, **variables: str) -> None:
        servers = {"REDIS_URL": "redis://h/0", "DATABASE_URL": "postgresql://h/d"}
        super().__init__(redis, load({**servers, "RUNNER_QUEUES": NAME, **variables}))
        self.compute: Callable[[Load], Future[list[Any]]] = self._at_once
        self.last_resorts: list[str] = []
        self.decoded: list[bytes] = []
        self.prepare: Callable[[], None] = lambda: None
        self.is_loaded: Callable[[], bool] = lambda: True

    def _at_once(self, load: Load) -> Future[list[Any]]:
        future: Future[list[Any]] = Future()
        load()
        future.set_result([])
        return future

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        self.decoded.append(data)
        return np.zeros((1, 1, 3), np.uint8)

    def run(self, *, before: Callable[[], None] = lambda: None) -> str:
        with self.heartbeat, Stop(30, 60, self.last_resorts.append) as stop:
            loop = WorkerLoop(
                self.settings,
                queues={NAME: self.queue},
                handlers={NAME: self.handler},
                decode=self._decode,
                compute=self.compute,
                compute_threads=2,
                settlement=self.settlement,
                stop=stop,
                prepare=self.prepare,
                is_loaded=self.is_loaded,
            )
            stop.begin()
            before()
            return loop.run()
