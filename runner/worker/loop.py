"""The main path, from top to bottom: claim → read → compute → conclude → exit.

One coordinating thread (the caller's) talks to Redis and PostgreSQL. Reader threads fetch images, the engine's
threads decode and compute, and the heartbeat renews the leases; they hand tasks back through one queue of events.
What is in hand is bounded: a claim is made only when the readers would run dry, and a read is started only when
few enough images are waiting for the engine. Only the first claim is read and computed before its jobs are begun:
what stores them is still being made ready then.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from runner.errors import PhotoTimeoutError, RunnerError, StuckError
from runner.worker.task import Handler, Task, job_error

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

    from runner.faces.engine import Face
    from runner.queue.leases import Lease
    from runner.queue.source import LeaseSource
    from runner.settings import Settings
    from runner.worker.settlement import Settler
    from runner.worker.shutdown import Stop

READERS = 4
# Reads that may be ahead of the engine, beyond one for each of its threads: enough to hide a slow download, and to
# give the engine so many photos that their crops are worth gathering.
READ_AHEAD = 8
# Outcomes are written together: at this many, when nothing else is coming, or when one has waited this long.
STORE_BATCH = 8
STORE_SECONDS = 0.1
# How often an empty list is asked again while work is in hand, and how often a waiting run looks up.
CLAIM_PAUSE = 0.25
TICK = 0.05
# A live runner renews at two thirds of a lease: one with less than this share left has probably lost its runner.
ORPHAN_SHARE = 0.6

AnyTask = Task[Any]


class Drain:
    """One run over the lists. Call `run` once."""

    def __init__(
        self,
        settings: Settings,
        *,
        queues: Mapping[str, LeaseSource],
        handlers: Mapping[str, Handler[Any]],
        decode: Callable[[bytes], NDArray[uint8]],
        compute: Callable[[Callable[[], NDArray[uint8]]], Future[list[Face]]],
        compute_threads: int,
        settler: Settler,
        stop: Stop,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._queues = queues
        self._handlers = handlers
        self._decode = decode
        self._compute = compute
        self._ahead = compute_threads + READ_AHEAD
        self._settler = settler
        self._stop = stop
        self._prepare = prepare
        self._prepared = False
        self._unbegun: dict[str, list[AnyTask]] = {}  # the first jobs, until everything is prepared
        self._started = time.monotonic()
        self._claimed = 0
        self._waiting: deque[AnyTask] = deque()  # accepted, not begun
        self._begun: set[AnyTask] = set()  # with a reader or the engine
        self._finished: list[AnyTask] = []  # computed or failed, not yet stored
        self._events: queue.SimpleQueue[AnyTask | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[AnyTask] = queue.SimpleQueue()
        self._fatal: RunnerError | None = None
        self._next_claim = 0.0
        self._idle_since: float | None = None
        self._retry_at = 0.0  # when a retry of another run falls due, as far as is known

    def run(self) -> str:
        """Drain the lists and return the reason for stopping.

        Raises `UnreachableError` when a server stays away, `ModelError` when the engine cannot be opened, and
        `StuckError` when native code does not return.
        """
        self._stop.wake = lambda: self._events.put(None)
        for number in range(READERS):
            threading.Thread(target=self._reader, name=f"reader-{number}", daemon=True).start()
        self._start_ahead()
        while True:
            self._stop.progress()
            self._claim()
            self._stop.progress()
            self._start_reads()
            if self._stop.requested:
                self._give_back()
            if self._waiting or self._begun or self._finished or self._settler.watching:
                self._collect()
                if self._fatal is not None:
                    raise self._fatal
                self._check_stuck()
                self._conclude()
            elif reason := self._reason_to_leave():
                return reason

    def _start_ahead(self) -> None:
        """Let the first jobs be read and computed while `prepare` makes ready what they are stored with."""
        self._claim()
        self._start_reads()
        self._prepare()
        self._prepared = True
        for name, tasks in self._unbegun.items():
            self._settler.begin(name, tasks)
            for task in [task for task in tasks if task in self._waiting and task.error is not None]:
                self._waiting.remove(task)
                self._finish(task)
        self._unbegun.clear()

    # Claiming

    def _claim(self) -> None:
        room = self._claimable()
        if room <= 0:
            return
        for name, source in self._queues.items():
            leases = source.claim(room, in_hand=len(self._in_hand()))
            if leases:
                self._accept(name, leases)
                self._idle_since = None
            room -= len(leases)
            if room == 0 or self._alone():
                break
        self._next_claim = 0.0 if room == 0 else time.monotonic() + CLAIM_PAUSE

    def _in_hand(self) -> list[AnyTask]:
        """Return what a crash now would hurt."""
        return [*self._waiting, *self._begun, *self._finished]

    def _alone(self) -> bool:
        """Return whether the job in hand is one that may have ended its runner: nothing is put beside it."""
        return any(task.lease.alone for task in self._in_hand())

    def _claimable(self) -> int:
        now = time.monotonic()
        if self._stop.requested or self._out_of_time():
            return 0
        # With nothing in hand it is always asked again: a run leaves only after it has just seen that nothing is there.
        if now < self._next_claim and (self._in_hand() or self._settler.watching):
            return 0
        if len(self._waiting) > READERS or len(self._finished) >= STORE_BATCH or self._alone():
            return 0
        # A retry that this run has set is a job that it has counted already.
        room = self._settings.max_jobs - self._claimed
        return min(self._settings.claim_size, room or self._settler.take_due_retries())

    def _out_of_time(self) -> bool:
        return time.monotonic() - self._started >= self._settings.max_seconds

    def _accept(self, name: str, leases: Sequence[Lease]) -> None:
        tasks = self._settler.hold(leases)
        self._claimed = min(self._settings.max_jobs, self._claimed + sum(not task.again for task in tasks))
        able = self._settler.decode(name, tasks)
        if self._prepared:
            self._settler.begin(name, able)
        else:
            self._unbegun[name] = able
        for task in tasks:
            if task.error is None:
                self._waiting.append(task)
            else:
                self._finish(task)

    # Reading and computing

    def _start_reads(self) -> None:
        while self._waiting and len(self._begun) < self._ahead and not self._stop.requested:
            task = self._waiting.popleft()
            if not self._settler.dropped(task):
                self._begun.add(task)
                self._reads.put(task)

    def _reader(self) -> None:
        while True:
            task = self._reads.get()
            try:
                with task.stage("fetch"):
                    data = self._handlers[task.lease.queue].read(task)
                future = self._compute(self._loader(task, data))
            except RunnerError as error:  # the engine cannot be used: no job's fault
                self._fatal = error
                self._events.put(None)
            except Exception as error:  # noqa: BLE001 - one job's failure must never end its reader
                task.error = job_error(task, error)
                self._events.put(task)
            else:
                future.add_done_callback(self._arrival(task))

    def _loader(self, task: AnyTask, data: bytes) -> Callable[[], NDArray[uint8]]:
        def load() -> NDArray[uint8]:
            task.thread = threading.get_ident()
            task.computing_since = time.monotonic()
            with task.stage("decode"):
                return self._decode(data)

        return load

    def _arrival(self, task: AnyTask) -> Callable[[Future[list[Face]]], None]:
        def arrived(done: Future[list[Face]]) -> None:
            since, task.computing_since = task.computing_since, None
            if since is not None:
                task.stages["faces"] = time.monotonic() - since - task.stages.get("decode", 0.0)
            try:
                task.faces = done.result()
            except Exception as error:  # noqa: BLE001 - typed by job_error
                task.error = job_error(task, error)
            self._events.put(task)

        return arrived

    def _collect(self) -> None:
        """Wait for a task to come back or for a reason to look up, and take all that have come back."""
        timeout = 0.0 if self._must_store() else TICK if self._finished or self._settler.watching else CLAIM_PAUSE
        try:
            event = self._events.get(timeout=timeout) if timeout else self._events.get_nowait()
            while True:
                if event is not None:
                    self._begun.discard(event)
                    self._finish(event)
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _finish(self, task: AnyTask) -> None:
        task.finished_at = time.monotonic()
        self._finished.append(task)

    def _check_stuck(self) -> None:
        """End the run when a photo has been in native code for too long: no thread can be stopped there."""
        limit = self._settings.photo_seconds
        computing = {task: since for task in self._begun if (since := task.computing_since) is not None}
        oldest = min(computing, key=computing.__getitem__, default=None)
        if oldest is None or time.monotonic() - computing[oldest] <= limit:
            return
        # A thread gathers the faces of several photos: those that it began earlier only wait behind the last.
        stuck = max((task for task in computing if task.thread == oldest.thread), key=computing.__getitem__)
        stuck.error = PhotoTimeoutError(f"{limit:g} s")
        self._settler.conclude([stuck])
        raise StuckError(f"{stuck.lease.queue} job, lease {stuck.lease.id}, after {limit:g} s")

    # Concluding

    def _must_store(self) -> bool:
        if not self._finished:
            return False
        waited = time.monotonic() - self._finished[0].finished_at
        return len(self._finished) >= STORE_BATCH or not (self._begun or self._waiting) or waited >= STORE_SECONDS

    def _conclude(self) -> None:
        if self._must_store():
            tasks, self._finished = self._finished, []
            self._settler.conclude(tasks)
        self._settler.settle_confirmed()

    def _give_back(self) -> None:
        """After a signal: release what has not begun, and in the end what did not finish in time."""
        self._settler.release(list(self._waiting))
        self._waiting.clear()
        if self._stop.overdue(self._settings.drain_seconds):
            self._settler.release([*self._begun, *self._finished])
            self._begun.clear()
            self._finished.clear()
        if not self._begun and not self._finished:
            self._settler.settle_unconfirmed()

    # Leaving

    def _reason_to_leave(self) -> str | None:
        """Return why to exit now that nothing is in hand, or None after a short wait."""
        if self._stop.requested:
            return "signal"
        if self._claimed >= self._settings.max_jobs and self._settler.next_own_retry() is None:
            return "max_jobs"
        if self._out_of_time():
            return "max_seconds"
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        idle = now - self._idle_since
        if idle >= self._settings.idle_seconds and not self._worth_waiting(idle):
            return "empty"
        with suppress(queue.Empty):
            self._events.get(timeout=CLAIM_PAUSE)
        return None

    def _worth_waiting(self, idle: float) -> bool:
        """Return whether a lease falls due soon: a retry of this run, or what a dead runner left.

        A lease that a live runner holds is renewed at two thirds of its time, so its end moves on before
        `ORPHAN_SHARE` is left. A run that found nothing at all has probably been started for an orphan: it also
        waits long enough to see whether a younger lease is renewed.
        """
        if idle >= self._settings.retry_max_seconds:
            return False
        if self._settler.next_own_retry() is not None:
            return True
        due = [counts.next_due_seconds for counts in (source.counts() for source in self._queues.values())]
        soon = min((seconds for seconds in due if seconds is not None), default=None)
        if soon is None:
            return False
        lease = self._settings.lease_seconds
        if soon <= lease * ORPHAN_SHARE:
            return True
        now = time.monotonic()
        if soon > lease:  # nothing is in anybody's hand: this is a retry, and whoever set it waits for it, if it lives
            self._retry_at = now + soon
        return self._claimed == 0 and (now < self._retry_at or idle < lease * (1 - ORPHAN_SHARE))
