"""`spottmee-worker run`: settings → servers, engine, handlers → worker loop → summary."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from runner import logs, output
from runner.errors import (
    RedisRefusedError,
    RedisUnreachableError,
    RunnerError,
    StuckError,
    UnreachableError,
    place,
)
from runner.images.header import DECODING_BYTES
from runner.queue.heartbeat import Heartbeat
from runner.queue.hosts import Hosts
from runner.queue.leases import LeaseQueue, owner_name
from runner.queue.parking import Parking, ProcessJobs
from runner.settings import Settings, unknown_variables
from runner.store.results import ResultStore
from runner.worker import startup
from runner.worker.album import AlbumGate
from runner.worker.kinds import COMPARISON, KINDS, PHOTO, Kind, Services, kind_of
from runner.worker.loop import WorkerLoop
from runner.worker.outage import OutageGate
from runner.worker.settlement import Settlement
from runner.worker.shutdown import Stop, StoppedEarlyError, wait_before_exit
from runner.worker.summary import Summary
from runner.worker.totals import RunTotals
from runner.worker.traces import Traces, from_environment

# Slow imports are in the functions below, in the order of the start-up (see `startup`).
if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray
    from redis import Redis

    from runner.faces.engine import Engine
    from runner.store.repository import Repository

# After RUNNER_SHUTDOWN_SECONDS (8): how long the loop may take to end, and then to release its leases. A run thus ends
# within 10 s of SIGTERM in every state.
GRACE_SECONDS = 0.8
RELEASE_SECONDS = 0.7
# Besides the retries of RUNNER_CONNECT_TIMEOUT_SECONDS and one statement, no call of the main thread takes longer.
HUNG_SECONDS = 30.0


def run(settings: Settings, kinds: Mapping[str, Kind] = KINDS) -> int:
    """Run once and return the exit code; the last line on standard output is the summary."""
    log = logs.configure(settings.log_format, settings.log_level)
    for warning in unknown_variables(os.environ):
        log.warning("unknown variable", extra={"detail": warning})
    summary = Summary(kinds)
    in_flight = _Abandonment()
    traces = from_environment()

    def last_resort(reason: str) -> None:
        """End the process because the main thread is in a call that does not return."""
        code = UnreachableError.exit_code
        try:
            in_flight.release(reason)
            summary.exit_reason = reason
            details = {"unsettled": summary.unsettled, "claim_in_progress": in_flight.is_claiming()}
            if reason != "hung" and not any(details.values()):
                code = 0
            log.error("run cut short", extra={"exit_reason": reason, **details, "exit_code": code})
            code = code or _code_of_job(settings, summary)
            _print(summary, settings)
        finally:
            os._exit(code)

    code = 0
    hung_seconds = settings.connect_timeout_seconds + settings.statement_timeout_seconds + HUNG_SECONDS
    stop = Stop(settings.shutdown_seconds + GRACE_SECONDS, hung_seconds, last_resort)
    try:
        with stop:
            _work(settings, kinds, summary, stop, in_flight, traces=traces)
    except StoppedEarlyError:
        summary.exit_reason = "signal"
    except Exception as error:  # noqa: BLE001 - reported in one line, and in the summary
        known = _as_runner_error(error)
        if stop.early:  # the signal interrupted an import, which raised an error of its own
            summary.exit_reason = "signal"
        else:
            summary.exit_reason, summary.exit_message, code = known.code, str(known), known.exit_code
            log.error(  # noqa: TRY400 - the detail has the place; a traceback may hold secrets
                "run ended", extra={"error": known.document(), "exit_code": code}
            )
    code = code or _code_of_job(settings, summary)
    if traces is not None:
        traces.close(stopped=stop.requested)
    _print(summary, settings)
    # The run has already waited for an unreachable server, and a job that does not return is left to the next run.
    if code not in (0, UnreachableError.exit_code, StuckError.exit_code) and not stop.requested:
        wait_before_exit(settings.failure_delay_seconds)
    return code


def _code_of_job(settings: Settings, summary: Summary) -> int:
    """Return the exit code of a run without an error: 75 if the job of `--job`, which is in no queue, has not ended."""
    if not settings.job or summary.has_finished_job:
        return 0
    summary.exit_message = "the job of --job did not finish, and is in no queue: run it again"
    code = UnreachableError.exit_code
    logs.logger().error("job not finished", extra={"detail": summary.exit_message, "exit_code": code})
    return code


class _Abandonment:
    """Releases the tasks in flight if the run ends outside the worker loop."""

    def __init__(self) -> None:
        self.abandon: Callable[[], None] = lambda: None
        self.count_end: Callable[[str], None] = lambda _: None
        self.is_claiming: Callable[[], bool] = lambda: False

    def release(self, reason: str = "") -> None:
        """Release what it can within `RELEASE_SECONDS`; the other leases expire. Count the `reason`, if any."""

        def work() -> None:
            try:
                self.abandon()
                if reason:
                    self.count_end(reason)
            except Exception as error:  # noqa: BLE001 - the run ends anyway, for another reason
                known = _as_runner_error(error)
                logs.logger().warning("not released", extra={"error": known.document()})

        releasing = threading.Thread(target=work, daemon=True)
        releasing.start()
        releasing.join(RELEASE_SECONDS)


def _as_runner_error(error: Exception) -> RunnerError:
    if isinstance(error, RunnerError):
        return error
    return RunnerError(f"{type(error).__name__} at {place(error)}; this is a defect: please report it")


class _Base(NamedTuple):
    """What all parts of a run are built from; `stack` closes them in the end."""

    settings: Settings
    kinds: Mapping[str, Kind]
    redis: Redis
    queues: dict[str, LeaseQueue]
    owner: str
    model: str
    summary: Summary
    stop: Stop
    run_totals: RunTotals
    traces: Traces | None
    stack: ExitStack


def _work(
    settings: Settings,
    kinds: Mapping[str, Kind],
    summary: Summary,
    stop: Stop,
    in_flight: _Abandonment,
    *,
    traces: Traces | None,
) -> None:
    """Open everything in the order of the start-up, work, and close everything, even after a failure.

    Jobs are claimed before it is known that their results can be stored; if they cannot be, the jobs are released.
    """
    startup.begin()
    from runner.faces.engine import Engine  # the first slow import: afterwards the model loads in the background

    engine = startup.in_background(partial(Engine.from_settings, settings), "engine")
    from runner.faces.cpu import thread_count  # numpy, which the engine has imported by now
    from runner.faces.pack import read_manifest

    if settings.job:
        settings = replace(settings, max_jobs=1)
    owner = owner_name(settings.owner)
    with ExitStack() as stack:
        stop.progress()
        with startup.hidden("opentelemetry"):
            from runner.queue.client import opened  # redis-py: 130 ms

        redis = stack.enter_context(opened(settings))
        stop.progress()
        queues = _queues(settings, kinds, redis, owner, stack)
        run_totals = RunTotals(list(queues.values()))
        stack.push(partial(_count_end, run_totals, summary, stop))
        in_flight.count_end = lambda reason: run_totals.ended(reason, summary.document())
        model = read_manifest(settings.model_dir).model  # if it cannot be read, the run is counted by now
        base = _Base(settings, kinds, redis, queues, owner, model, summary, stop, run_totals, traces, stack)
        heartbeat = stack.enter_context(Heartbeat(list(queues.values())))
        services = _services(base, _repository(base), heartbeat)
        loop, in_flight.abandon = _loop(base, services, heartbeat, engine, thread_count(settings.threads))
        in_flight.is_claiming = lambda: loop.is_claiming
        stop.begin()
        if settings.owner:
            for leased in queues.values():
                leased.take_over()
        _heal(services.results, queues)
        expire = partial(_expire, redis, stop) if not settings.job else lambda: None
        summary.exit_reason = _run_loop(loop, engine, in_flight, expire)


def _repository(base: _Base) -> Callable[[], Repository]:
    """Return a function that connects to the databases when it is first called."""

    @cache
    def repository() -> Repository:
        from runner.store.repository import Repository  # psycopg, last: the first photos are fetched meanwhile

        name = f"spottmee-worker {base.owner}"
        opening = Repository(base.settings, base.model, application_name=name, progress=base.stop.progress)
        return base.stack.enter_context(opening)

    return repository


def _loop(
    base: _Base, services: Services, heartbeat: Heartbeat, engine: Future[Engine], compute_threads: int
) -> tuple[WorkerLoop, Callable[[], None]]:
    """Return the worker loop, and what releases its tasks in flight if it cannot do so itself."""
    settings = base.settings
    handlers = {name: base.kinds[name].handler(services) for name in base.queues}
    settlement = Settlement(
        settings,
        kinds=base.kinds,
        queues=base.queues,
        handlers=handlers,
        heartbeat=heartbeat,
        summary=base.summary,
        parking=services.parking,
        run_totals=base.run_totals,
        outages=services.outages,
        traces=base.traces,
    )
    loop = WorkerLoop(
        settings,
        queues=base.queues,
        handlers=handlers,
        decode=_decoder(settings),
        compute=lambda load: _loaded(engine, settings.photo_timeout_seconds).submit(load),
        compute_threads=compute_threads,
        settlement=settlement,
        stop=base.stop,
        prepare=partial(_prepare, services.repository, lambda: _when_loaded(engine, base.run_totals)),
        is_loaded=engine.done,
    )
    return loop, settlement.abandon


def _count_end(
    run_totals: RunTotals,
    summary: Summary,
    stop: Stop,
    _kind: type[BaseException] | None,
    error: BaseException | None,
    _trace: TracebackType | None,
) -> None:
    """Count why the run ends, unless Redis is unreachable: the call would only wait for it again."""
    stop.progress()
    if isinstance(error, Exception) and not isinstance(error, RedisUnreachableError):
        run_totals.ended("signal" if stop.early else _as_runner_error(error).code, summary.document())
    elif error is None or isinstance(error, StoppedEarlyError):
        run_totals.ended(summary.exit_reason if error is None else "signal", summary.document())


def _when_loaded(engine: Future[Engine], run_totals: RunTotals) -> None:
    """Count the start-up when the model is loaded: the databases are checked by now."""

    def loaded(done: Future[Engine]) -> None:
        if done.exception() is None:
            run_totals.ready(done.result().choice.name)

    engine.add_done_callback(loaded)


def _run_loop(loop: WorkerLoop, engine: Future[Engine], in_flight: _Abandonment, expire: Callable[[], None]) -> str:
    """Work until there is a reason to exit, and return it; after an error, release the tasks in flight.

    Either way call `expire`, unless Redis is unreachable: runs that cannot work limit the life of selfies too.
    """
    try:
        reason = loop.run()
    except Exception as error:
        # Even if Redis is unavailable: a full one accepts releases, and of a cluster it may be one shard.
        in_flight.release()
        if not isinstance(error, RedisUnreachableError):
            expire()
        raise
    expire()
    engine.result()  # an unusable pack is an error even if there were no photos
    return reason


def _heal(results: ResultStore, queues: Collection[str]) -> None:
    """Restore answers of earlier runs that INITIATED has overwritten, whatever the queues of this run."""
    try:
        results.restore()
    except RedisRefusedError as error:
        if COMPARISON.queue in queues:
            raise
        logs.logger().warning("answers were not restored", extra={"error": error.document()})


def _expire(redis: Redis, stop: Stop) -> None:
    """Dead-letter the expired comparisons, and restore answers once more.

    A failure is a warning: the run's work is done.
    """
    if stop.requested:
        return
    from runner.expire import expire_comparisons  # only after the work is done

    stop.progress()
    try:
        expired = expire_comparisons(redis)
    except RunnerError as error:
        logs.logger().warning("expired comparisons were not removed", extra={"error": error.document()})
        return
    if expired:
        logs.logger().warning("comparisons expired", extra={"count": expired})


def _queues(
    settings: Settings, kinds: Mapping[str, Kind], redis: Redis, owner: str, stack: ExitStack
) -> dict[str, LeaseQueue]:
    """Return the queues to claim from: those of the settings, or a private one with the job of `--job`."""
    lease_seconds, max_attempts = settings.lease_seconds, settings.max_attempts
    if not settings.job:
        return {
            name: LeaseQueue(
                redis,
                name,
                owner=owner,
                lease_seconds=lease_seconds,
                max_attempts=max_attempts,
                payload_seconds=kinds[name].payload_seconds,
            )
            for name in settings.queues
        }
    from runner.queue.private import PrivateQueue, read_payload  # only for --job

    payload = read_payload(settings.job)
    name = kind_of(payload, kinds).queue
    private = PrivateQueue(redis, name, payload, owner=owner, lease_seconds=lease_seconds, max_attempts=max_attempts)
    return {name: stack.enter_context(private)}


def _outages(settings: Settings, redis: Redis, owner: str) -> OutageGate | None:
    """Return the gate of failing image servers; None if no photo waits, as the one of `--job` cannot."""
    if settings.job or not settings.outage_seconds:
        return None
    base, cap = settings.retry_base_seconds, settings.retry_max_seconds
    return OutageGate(
        Hosts(redis, PHOTO.queue, owner=owner, base_seconds=base, cap_seconds=cap),
        timeout_seconds=settings.outage_seconds,
        base_seconds=base,
        cap_seconds=cap,
    )


def _services(base: _Base, repository: Callable[[], Repository], heartbeat: Heartbeat) -> Services:
    # After the first connection, whose time they would delay.
    from runner.images.fetch import Fetcher
    from runner.queue.databases import KnownDatabases

    settings, redis = base.settings, base.redis
    in_queue = not settings.job  # otherwise its database is unknown, and it cannot be woken
    parking = Parking(redis)
    fetcher = Fetcher.from_settings(settings)
    base.stack.callback(fetcher.close)
    return Services(
        settings,
        ResultStore(redis),
        repository,
        fetcher,
        heartbeat.still_owned,
        heartbeat.owned_until,
        known_databases=KnownDatabases(redis, PHOTO.queue) if in_queue else None,
        album=AlbumGate(
            repository,
            ProcessJobs(redis),
            parking if in_queue else None,
            model=base.model,
            timeout_seconds=settings.album_timeout_seconds,
        ),
        parking=parking,
        outages=_outages(settings, redis, base.owner),
    )


def _prepare(repository: Callable[[], Repository], done: Callable[[], None]) -> None:
    """Import the PostgreSQL driver, connect and check the databases: the last step of the start-up."""
    repository().check()
    startup.end()
    done()


def _loaded(engine: Future[Engine], seconds: float) -> Engine:
    """Return the engine. Raises what loading it raised, and `StuckError` if that takes longer than a photo may."""
    try:
        return engine.result(seconds)
    except TimeoutError:
        raise StuckError(f"the model was not loaded after {seconds:g} s") from None


def _decoder(settings: Settings) -> Callable[[bytes], NDArray[uint8]]:
    """Return the decoder of the engine's threads; a thread's image is valid until it decodes the next one."""
    from runner.images.buffers import PixelMemory  # numpy

    memory = PixelMemory(DECODING_BYTES * settings.max_image_pixels)

    def decode(data: bytes) -> NDArray[uint8]:
        from runner.images.decode import decode as decode_image  # imported when the first photo has been fetched

        return decode_image(
            data, max_pixels=settings.max_image_pixels, max_bytes=settings.max_image_bytes, memory=memory
        )

    return decode


def _print(summary: Summary, settings: Settings) -> None:
    line = summary.line()
    output.line(line)
    if settings.termination_log:
        try:
            with open(settings.termination_log, "w", encoding="utf-8") as message:  # noqa: PTH123 - often a device
                message.write(line)
        except OSError as error:
            shown = output.repeated(settings.termination_log)
            output.problem(f"spottmee-worker: cannot write {shown} (RUNNER_TERMINATION_LOG): {error.strerror}")
