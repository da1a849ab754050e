"""The worker loop, from top to bottom: claim → fetch → embed → conclude → leave.

One coordinating thread (the caller's) talks to Redis and PostgreSQL. Reader threads fetch images, the engine's
threads decode and compute, and the heartbeat renews the leases; they return tasks through one queue of events.
Backpressure: it claims only when the readers would otherwise be idle, and prefetches an image only while few enough
wait for the engine. The jobs of the first claim are fetched and computed before their status is written, while
`prepare` still connects to the databases.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from runner.errors import PhotoTimeoutError, RunnerError, StuckError
from runner.queue.arrivals import Arrivals
from runner.queue.leases import Counts, Lease, LeaseQueue
from runner.settings import Settings
from runner.worker.settlement import Settlement
from runner.worker.shutdown import Stop
from runner.worker.task import AnyTask, Handler, State

if TYPE_CHECKING:  # `app` starts to load the engine before it imports anything else that is slow
    from numpy import uint8
    from numpy.typing import NDArray

    from runner.faces.engine import Face

READERS = 4
# Images prefetched beyond one for each of the engine's threads: enough to hide a slow download, and to let the engine
# batch the crops of several photos.
PREFETCH = 8
# Results are stored in batches: at this many, when nothing else is in flight, or when one has waited this long.
STORE_BATCH = 8
STORE_SECONDS = 0.1
# How often an empty list is polled while work is in flight, and how often a waiting loop checks everything else.
CLAIM_PAUSE = 0.25
# How often an idle run checks for expired leases and woken comparisons. A push wakes it at once.
IDLE_PAUSE = 0.5
TICK = 0.05
# A live runner renews at two thirds of a lease: with less than this share left, its runner is probably dead.
ORPHAN_SHARE = 0.6


class WorkerLoop:
    """One run over the queues. Call `run` once.

    `is_claiming` is true while a claim is on its way: jobs may be leased that no task represents.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        queues: Mapping[str, LeaseQueue],
        handlers: Mapping[str, Handler[Any]],
        decode: Callable[[bytes], NDArray[uint8]],
        compute: Callable[[Callable[[], NDArray[uint8]]], Future[list[Face]]],
        compute_threads: int,
        settlement: Settlement,
        stop: Stop,
        prepare: Callable[[], None] = lambda: None,
        is_loaded: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._queues = queues
        self._handlers = handlers
        self._decode = decode
        self._compute = compute
        self._most_processing = compute_threads + PREFETCH
        self._settlement = settlement
        self._in_flight = settlement.in_flight
        self._stop = stop
        self._prepare = prepare
        self._is_loaded = is_loaded
        self.is_claiming = False
        self._prepared = False
        self._started = time.monotonic()
        self._claimed = 0  # without jobs that it has claimed before, and photos whose server is failing
        self._has_claimed = False
        self._was_loaded = False  # whether the model was, at the last claim
        self._events: queue.SimpleQueue[AnyTask | None] = queue.SimpleQueue()
        self._arrivals = Arrivals(queues.values(), lambda: self._events.put(None))
        self._reads: queue.SimpleQueue[AnyTask] = queue.SimpleQueue()
        self._fatal: RunnerError | None = None
        self._next_claim = 0.0
        self._idle_since: float | None = None
        self._retry_at = 0.0  # when a retry of another run is due, as far as is known

    def run(self) -> str:
        """Work until there is a reason to exit, and return it.

        Raises `UnreachableError` if a server cannot be reached, `ModelError` if the engine cannot be opened, and
        `StuckError` if native code does not return.
        """
        self._stop.wake = lambda: self._events.put(None)
        for number in range(READERS):
            threading.Thread(target=self._reader, name=f"reader-{number}", daemon=True).start()
        try:
            return self._run()
        finally:
            self._arrivals.close()

    def _run(self) -> str:
        self._start_ahead()
        while True:
            self._stop.progress()
            self._settlement.wake_overdue()
            self._claim()
            self._stop.progress()
            self._start_reads()
            if self._stop.requested:
                self._release_after_signal()
            if len(self._in_flight):
                self._collect()
                if self._fatal is not None:
                    raise self._fatal
                self._check_stuck()
                self._conclude()
            elif (reason := self._reason_to_leave()) and not self._has_woken_stranded(reason):
                return reason

    def _start_ahead(self) -> None:
        """Fetch and compute the first jobs while `prepare` connects to the databases."""
        self._claim()
        self._start_reads()
        self._prepare()
        self._prepared = True
        self._begin(list(self._in_flight))

    # Claim

    def _claim(self) -> None:
        room = self._claimable()
        if room <= 0:
            return
        self._was_loaded = self._is_loaded()
        for source in self._queues.values():
            self.is_claiming = True
            leases = source.claim(room, in_flight=self._at_risk())
            self.is_claiming = False
            if leases:
                self._accept(leases)
                self._has_claimed, self._idle_since = True, None
            room -= len(leases)
            if room == 0 or self._alone():
                break
        self._next_claim = 0.0 if room == 0 else time.monotonic() + CLAIM_PAUSE

    def _working(self) -> list[AnyTask]:
        """Return the tasks that a crash now would cost an attempt."""
        return self._in_flight.of(State.CLAIMED, State.PROCESSING, State.COMPUTED)

    def _at_risk(self) -> int:
        """Return how many jobs could be why this run dies; while the model loads, that is one more."""
        return len(self._working()) + (not self._was_loaded)

    def _alone(self) -> bool:
        """Return whether the job in flight may have killed its runner: nothing else is claimed with it."""
        return any(task.lease.alone for task in self._working())

    def _claimable(self) -> int:
        if self._stop.requested or self._out_of_time():
            return 0
        # With nothing in flight it always claims: a run exits only after an empty claim.
        if time.monotonic() < self._next_claim and len(self._in_flight):
            return 0
        waiting, computed = len(self._in_flight.of(State.CLAIMED)), len(self._in_flight.of(State.COMPUTED))
        if waiting > READERS or computed >= STORE_BATCH or self._alone():
            return 0
        # A retry that this run has scheduled is a job that it has counted before.
        room = self._settings.max_jobs - self._claimed
        return min(self._settings.claim_size, room or self._settlement.take_due_retries())

    def _out_of_time(self) -> bool:
        return time.monotonic() - self._started >= self._settings.max_seconds

    def _accept(self, leases: Sequence[Lease]) -> None:
        tasks = self._settlement.accept(leases)
        self._claimed = min(self._settings.max_jobs, self._claimed + sum(not task.own_retry for task in tasks))
        if self._prepared:
            self._begin(tasks)
        else:
            _skip_computing(tasks)

    def _begin(self, tasks: Sequence[AnyTask]) -> None:
        self._settlement.begin(tasks)
        _skip_computing(tasks)

    # Fetch and embed

    def _start_reads(self) -> None:
        processing = self._in_flight.of(State.PROCESSING)
        room = self._most_processing - len(processing)
        fetching = Counter(task.server for task in processing if task.is_fetching)
        several = len({task.server for task in self._in_flight if task.server}) > 1
        for task in self._in_flight.of(State.CLAIMED):
            if room <= 0 or self._stop.requested:
                return
            if several and task.server and fetching[task.server] >= READERS - 1:
                continue  # a server that does not respond must leave a reader for the others
            if not self._settlement.drop_lost(task):
                task.state, task.is_fetching = State.PROCESSING, True
                fetching[task.server] += 1
                self._reads.put(task)
                room -= 1

    def _reader(self) -> None:
        while True:
            task = self._reads.get()
            try:
                try:
                    with task.stage("fetch"):
                        data = self._handlers[task.lease.queue].read(task)
                finally:
                    task.is_fetching = False
                future = self._compute(self._loader(task, data))
            except RunnerError as error:  # the engine cannot be used, which is no job's fault
                self._fatal = error
                self._events.put(None)
            except Exception as error:  # noqa: BLE001 - one job's failure must not end its reader
                task.fail(error)
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
                decoded = since + task.stages.get("decode", 0.0)
                task.began["faces"], task.stages["faces"] = decoded, time.monotonic() - decoded
            try:
                task.faces = done.result()
            except Exception as error:  # noqa: BLE001 - typed by Task.fail
                task.fail(error)
            self._events.put(task)

        return arrived

    def _collect(self) -> None:
        """Wait until a task is computed or a timeout passes, and collect every computed task."""
        soon = self._in_flight.of(State.COMPUTED, State.UNCONFIRMED)
        timeout = 0.0 if self._must_store() else TICK if soon else CLAIM_PAUSE
        try:
            event = self._events.get(timeout=timeout) if timeout else self._events.get_nowait()
            while True:
                if event is not None and event.state is State.PROCESSING:
                    event.computed()
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _check_stuck(self) -> None:
        """End the run if a photo has been in native code for too long: a thread cannot be stopped there."""
        limit = self._settings.photo_timeout_seconds
        processing = self._in_flight.of(State.PROCESSING)
        computing = {task: since for task in processing if (since := task.computing_since) is not None}
        oldest = min(computing, key=computing.__getitem__, default=None)
        if oldest is None or time.monotonic() - computing[oldest] <= limit:
            return
        # A thread batches several photos: the earlier ones only wait for the last.
        stuck = max((task for task in computing if task.thread == oldest.thread), key=computing.__getitem__)
        stuck.error = PhotoTimeoutError(f"{limit:g} s")
        stuck.computed()
        self._settlement.conclude([stuck])
        raise StuckError(f"{stuck.lease.queue} job, lease {stuck.lease.id}, after {limit:g} s")

    # Conclude

    def _must_store(self) -> bool:
        computed = self._in_flight.of(State.COMPUTED)
        if not computed:
            return False
        waited = time.monotonic() - min(task.computed_at for task in computed)
        more = self._in_flight.of(State.CLAIMED, State.PROCESSING)
        return len(computed) >= STORE_BATCH or not more or waited >= STORE_SECONDS

    def _conclude(self) -> None:
        if self._must_store():
            self._settlement.conclude(self._in_flight.of(State.COMPUTED))
        self._settlement.settle_confirmed()

    def _release_after_signal(self) -> None:
        """Release what has not begun and, once the grace period is over, what did not finish in time."""
        self._settlement.release(self._in_flight.of(State.CLAIMED))
        if self._stop.overdue(self._settings.shutdown_seconds):
            self._settlement.release(self._in_flight.of(State.PROCESSING, State.COMPUTED))
        if not self._working():
            self._settlement.settle_unconfirmed()

    # Leave

    def _reason_to_leave(self) -> str | None:
        """Return the reason to exit now that nothing is in flight, or None after a short wait."""
        if self._stop.requested:
            return "signal"
        if self._claimed >= self._settings.max_jobs and self._settlement.next_own_retry() is None:
            return "max_jobs"
        if self._out_of_time():
            return "max_seconds"
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        idle = now - self._idle_since
        if idle >= self._settings.idle_seconds and not self._worth_waiting(idle):
            return "empty"
        self._wait_idle()
        return None

    def _wait_idle(self) -> None:
        """Wait until a job is pushed, a signal arrives, or it is time to look for expired leases."""
        retry = self._settlement.next_own_retry()
        # A run that may claim nothing but its own retries, or that loads its model while a last attempt is due, would
        # be woken by every job that waits for others.
        can_claim = self._claimed < self._settings.max_jobs and self._is_loaded()
        pause = IDLE_PAUSE if can_claim and self._arrivals.expect() else CLAIM_PAUSE
        with suppress(queue.Empty):
            self._events.get(timeout=pause if retry is None else min(pause, CLAIM_PAUSE))

    def _has_woken_stranded(self, reason: str) -> bool:
        """Wake comparisons that no other run would wake, and return whether this run can still claim them."""
        return reason != "signal" and self._settlement.wake_stranded() and reason == "empty"

    def _worth_waiting(self, idle: float) -> bool:
        """Return whether there is a lease to wait for."""
        counts = [source.counts() for source in self._queues.values()]
        if not self._was_loaded and any(one.expired for one in counts):
            return True  # a last attempt, which is claimed once the model is loaded, and before all other jobs
        return idle < self._settings.retry_max_seconds and self._expires_soon(idle, counts)

    def _expires_soon(self, idle: float, counts: Sequence[Counts]) -> bool:
        """Return whether a lease expires soon: a retry of this run, or an orphan whose runner is dead.

        A live runner renews a lease before `ORPHAN_SHARE` of it is left. A run that has found nothing at all was
        probably started for an orphan: it also waits long enough to see whether a younger lease is renewed.
        """
        if self._settlement.next_own_retry() is not None:
            return True
        if self._has_claimed and sum(one.in_flight for one in counts) <= self._settlement.failing_servers():
            return False  # another run, or the next one, tries those servers
        due = [one.next_expiry_seconds for one in counts]
        soon = min((seconds for seconds in due if seconds is not None), default=None)
        if soon is None:
            return False
        lease = self._settings.lease_seconds
        if soon <= lease * ORPHAN_SHARE:
            return True
        now = time.monotonic()
        if soon > lease:  # without an owner it is a retry, and the run that scheduled it waits for it, if it is alive
            self._retry_at = now + soon
        return self._claimed == 0 and (now < self._retry_at or idle < lease * (1 - ORPHAN_SHARE))


def _skip_computing(tasks: Sequence[AnyTask]) -> None:
    """Skip fetching and computing for tasks that have failed, or whose faces an earlier run has computed."""
    for task in tasks:
        if (task.error is not None or task.faces is not None) and task.state is State.CLAIMED:
            task.computed()
