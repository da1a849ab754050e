"""`spottmee-worker run`: put the rooms together, drain the lists, print the summary."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from runner import logs, output
from runner.deferred import defer
from runner.errors import RedisUnreachableError, RunnerError, StuckError, UnreachableError, place
from runner.stop import Stop, StoppedEarlyError
from runner.summary import Summary

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray
    from redis import Redis

    from runner.drain import Drain
    from runner.faces.engine import Engine
    from runner.queue.source import LeaseSource
    from runner.settings import Settings
    from runner.store.stores import Stores
    from runner.tasks import Handler

T = TypeVar("T")

M_ARENA_MAX = -8  # malloc.h of glibc
# How long a thread waits for the interpreter before it asks for it: in the start-up, and afterwards (Python's own).
START_UP_SWITCH_SECONDS = 0.00005
SWITCH_SECONDS = 0.005

# After RUNNER_DRAIN_SECONDS (8): how long the drain may take to end, then to give back what it holds. With both, a
# run is gone within 10 s of SIGTERM, whatever it was doing.
GRACE_SECONDS = 0.8
GIVE_BACK_SECONDS = 0.7
# No call of the main thread takes longer, with RUNNER_CONNECT_SECONDS of trying again: 60 s is what a statement may.
HUNG_SECONDS = 90.0


def run(settings: Settings) -> int:
    """Run once and return the exit code; the last line on standard output is the summary."""
    log = logs.configure(settings.log_format, settings.log_level)
    summary = Summary()
    held = _Held()

    def last_resort(reason: str) -> None:
        """End the process while the main thread is inside a call that does not return."""
        held.give_back()
        summary.reason = reason
        code = UnreachableError.exit_code if summary.unsettled or reason == "hung" else 0
        log.error("run cut short", extra={"reason": reason, "unsettled": summary.unsettled, "exit_code": code})
        _print(summary, settings)
        os._exit(code)

    code = 0
    stop = Stop(settings.drain_seconds + GRACE_SECONDS, settings.connect_seconds + HUNG_SECONDS, last_resort)
    try:
        with stop:
            summary.reason = _drain(settings, summary, stop, held)
    except StoppedEarlyError:
        summary.reason = "signal"
    except Exception as error:  # noqa: BLE001 - every end is told in one line, and in the summary
        known = error if isinstance(error, RunnerError) else _unforeseen(error)
        summary.reason, code = known.word, known.exit_code
        if stop.early:  # an import that the signal broke off told it as a failure of its own
            summary.reason, code = "signal", 0
        else:
            log.error(  # noqa: TRY400 - the place is in the detail; a message may hold what nobody should read
                "run ended", extra={"reason": known.word, "detail": str(known), "exit_code": code}
            )
    _print(summary, settings)
    return code


class _Held:
    """What a run holds, for whoever has to end it from outside of the drain."""

    def __init__(self) -> None:
        self.abandon: Callable[[], None] = lambda: None

    def give_back(self) -> None:
        """Give it back, for as long as there is time; what stays leased falls due by itself."""

        def work() -> None:
            try:
                self.abandon()
            except Exception as error:  # noqa: BLE001 - the run ends in any case, and for another reason
                known = error if isinstance(error, RunnerError) else _unforeseen(error)
                logs.logger().warning("not given back", extra={"reason": known.word, "detail": str(known)})

        giving = threading.Thread(target=work, daemon=True)
        giving.start()
        giving.join(GIVE_BACK_SECONDS)


def _unforeseen(error: Exception) -> RunnerError:
    return RunnerError(f"{type(error).__name__} at {place(error)}; this is a defect: please report it")


def _drain(settings: Settings, summary: Summary, stop: Stop, held: _Held) -> str:
    """Open everything, drain the lists, and close everything, also after a failure.

    Imports hold the interpreter, so they stand one after the other, in the order in which something slow can begin
    behind them: the model loads in a thread of its own, then the first jobs are read and computed, and PostgreSQL's
    driver, a quarter of all imports, comes last. Jobs that were taken before it is known that their outcome can be
    stored are given back where it cannot.
    """
    _spare_start_up()
    from runner.faces.engine import Engine

    engine = _in_background(partial(_open_engine, Engine, settings), "engine")
    from runner.faces.hardware import thread_count
    from runner.faces.pack import read_manifest
    from runner.queue.leases import owner_name

    if settings.job:
        settings = replace(settings, max_jobs=settings.max_attempts)  # each retry of it is a claim
    model = read_manifest(settings.model_dir).model
    owner = owner_name(settings.owner)
    with ExitStack() as stack:

        @cache
        def stores() -> Stores:
            from runner.store.stores import Stores

            return stack.enter_context(Stores(settings, model, application_name=f"spottmee-worker {owner}"))

        from runner.drain import Drain
        from runner.handlers.compare import CompareHandler
        from runner.handlers.process import ProcessHandler
        from runner.images.fetch import Fetcher
        from runner.queue.client import opened
        from runner.queue.heartbeat import Heartbeat
        from runner.settle import Settler
        from runner.store.results import AnswerWatch, ResultStore

        stop.progress()
        redis = stack.enter_context(opened(settings))
        stop.progress()
        queues = _sources(settings, redis, owner)
        heartbeat = stack.enter_context(Heartbeat(list(queues.values())))
        fetcher = Fetcher.from_settings(settings)
        stack.callback(fetcher.close)
        results = ResultStore(redis)
        handlers: dict[str, Handler[Any]] = {
            "process": ProcessHandler(stores, fetcher, heartbeat.still_owned),
            "compare": CompareHandler(
                results, AnswerWatch(results, seconds=settings.initiated_seconds), stores, heartbeat.still_owned
            ),
        }
        settler = Settler(settings, queues=queues, handlers=handlers, heartbeat=heartbeat, summary=summary)
        drain = Drain(
            settings,
            queues=queues,
            handlers=handlers,
            decode=_decoder(settings),
            compute=lambda load: _loaded(engine, settings.photo_seconds).submit(load),
            compute_threads=thread_count(settings.threads),
            settler=settler,
            stop=stop,
            prepare=partial(_prepare, stores),
        )
        held.abandon = settler.abandon
        stop.begin()
        if settings.owner:
            for leased in queues.values():
                leased.take_over()
        if "compare" in queues:
            results.heal()
        expire = partial(_expire, redis, stop) if not settings.job else lambda: None
        return _drained(drain, engine, held, expire)


def _drained(drain: Drain, engine: Future[Engine], held: _Held, expire: Callable[[], None]) -> str:
    """Drain the lists and return why it ended; what is held after an error is given back.

    Either way `expire` is called then, unless Redis is away: also runs that cannot work bound the life of selfies.
    """
    try:
        reason = drain.run()
    except RedisUnreachableError:  # what is leased there can only fall due by itself
        raise
    except Exception:
        held.give_back()
        expire()
        raise
    expire()
    engine.result()  # a pack that cannot be used is an error of a run without photos too
    return reason


def _expire(redis: Redis, stop: Stop) -> None:
    """End the comparisons that have waited for too long. A failure is a warning: the run's own work is done."""
    if stop.requested:
        return
    from runner.expire import expire_comparisons

    stop.progress()
    try:
        expired = expire_comparisons(redis)
    except RunnerError as error:
        logs.logger().warning(
            "expired comparisons were not removed", extra={"reason": error.word, "detail": str(error)}
        )
        return
    if expired:
        logs.logger().warning("comparisons expired", extra={"count": expired})


def _sources(settings: Settings, redis: Redis, owner: str) -> dict[str, LeaseSource]:
    """Return what is to be drained: the lists, or the one job that was given."""
    from runner.queue.leases import LeaseQueue

    if not settings.job:
        lease, attempts = settings.lease_seconds, settings.max_attempts
        return {
            name: LeaseQueue(redis, name, owner=owner, lease_seconds=lease, max_attempts=attempts)
            for name in settings.queues
        }
    from runner.jobs import kind_of
    from runner.queue.source import SingleJob, read_payload

    payload = read_payload(settings.job)
    name = kind_of(payload)
    return {name: SingleJob(name, payload, lease_seconds=settings.lease_seconds)}


def _spare_start_up() -> None:
    """Leave out of the start-up what no run needs: a fifth of the processor time of all imports."""
    defer()
    # What imports make stays: the collector would look through it a dozen times.
    gc.disable()
    # Imports keep the interpreter busy, and a thread that comes back from native code waits this long for it, every
    # time: the model took 160 instead of 60 ms to load behind them.
    sys.setswitchinterval(START_UP_SWITCH_SECONDS)
    # numpy's BLAS would start a thread for every core of the node, each with a buffer, and a run multiplies small
    # matrices alone.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # glibc gives every thread a heap, which keeps the most it ever held: 40 MiB over 40 photos of 12 megapixels.
    with suppress(OSError, AttributeError):  # another libc has no such call
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _prepare(stores: Callable[[], Stores]) -> None:
    """Import what talks to PostgreSQL, connect and check; the start-up is over after it."""
    stores().check()
    sys.setswitchinterval(SWITCH_SECONDS)
    # Collect garbage as usual, without ever looking at what the start-up made: not at the exit either.
    gc.freeze()
    gc.enable()


def _loaded(engine: Future[Engine], seconds: float) -> Engine:
    """Return the engine. Raises what loading it raised, and `StuckError` when that takes longer than a photo may."""
    try:
        return engine.result(seconds)
    except TimeoutError:
        raise StuckError(f"the model was not loaded after {seconds:g} s") from None


def _open_engine(engine: type[Engine], settings: Settings) -> Engine:
    return engine.open(
        settings.model_dir,
        threads=settings.threads,
        providers=settings.providers,
        batch_size=settings.batch_size,
        max_faces=settings.max_faces,
    )


def _decoder(settings: Settings) -> Callable[[bytes], NDArray[uint8]]:
    """Return what the engine's threads decode with; a thread's image is good until it decodes the next one."""
    from runner.images.memory import PixelMemory

    memory = PixelMemory()

    def decode(data: bytes) -> NDArray[uint8]:
        from runner.images.decode import decode as decode_image

        return decode_image(data, max_pixels=settings.max_pixels, max_bytes=settings.max_image_bytes, memory=memory)

    return decode


def _in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Run `work` in a daemon thread of its own."""
    future: Future[T] = Future()

    def target() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=target, name=name, daemon=True).start()
    return future


def _print(summary: Summary, settings: Settings) -> None:
    line = summary.line()
    output.line(line)
    if settings.termination_log:
        try:
            with open(settings.termination_log, "w", encoding="utf-8") as message:  # noqa: PTH123 - often a device
                message.write(line)
        except OSError as error:
            output.problem(f"spottmee-worker: cannot write {settings.termination_log}: {error.strerror}")
