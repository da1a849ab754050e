"""What can go wrong inside the engine: each photo gets its own error, and the engine goes on."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from runner.errors import ImageUndecodableError, ModelError, OutOfMemoryError, TooManyFacesError
from runner.faces import bake, pack
from runner.faces.engine import PATIENCE, Engine
from runner.faces.hardware import ProviderError
from runner.images.decode import decode
from tests.support.engine_tools import MODEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]

SECONDS = 60


@pytest.fixture(scope="module")
def photo() -> Image:
    """Six faces."""
    return bake.sample_images()["t1.jpg"]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine.open(MODEL, threads=2, max_faces=6) as opened:
        yield opened


def itself(image: Image) -> Image:
    return image


def test_what_load_raises_is_the_photos_own(engine: Engine, photo: Image) -> None:
    def fail(error: Exception) -> Image:
        raise error

    errors = [ValueError("odd"), MemoryError(), cv2.error("Failed to allocate: Insufficient memory"), KeyError("x")]
    failing = [engine.submit(partial(fail, error)) for error in errors]
    damaged = engine.submit(partial(decode, b"no image", max_pixels=10, max_bytes=10))
    good = engine.submit(partial(itself, photo))
    assert len(good.result(SECONDS)) == 6
    kinds = [type(future.exception(SECONDS)) for future in (*failing, damaged)]
    assert kinds == [ValueError, OutOfMemoryError, OutOfMemoryError, KeyError, ImageUndecodableError]


@pytest.mark.parametrize("shape", [(0, 10, 3), (10, 0, 3), (20, 20), (20, 20, 1), (20, 20, 4), (3,)])
def test_an_array_that_is_no_image(engine: Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no BGR image of 8 bits"):
        engine.submit(partial(itself, np.zeros(shape, np.uint8))).result(SECONDS)
    with pytest.raises(ValueError, match="float32"):
        engine.analyse(np.zeros((20, 20, 3), np.float32))


def test_too_many_faces(engine: Engine, photo: Image) -> None:
    crowd = np.asarray(np.hstack([photo, photo]), np.uint8)
    with pytest.raises(TooManyFacesError, match=r"RUNNER_MAX_FACES.*12 found, 6 allowed"):
        engine.submit(partial(itself, crowd)).result(SECONDS)
    with pytest.raises(TooManyFacesError):
        engine.analyse(crowd)
    assert len(engine.submit(partial(itself, photo)).result(SECONDS)) == 6


class Failing:
    """The real recogniser, but for the calls that fail."""

    def __init__(self, recogniser: Any, fails: Any) -> None:
        self.embed_really = recogniser.embed
        self.fails = fails
        self.sizes: list[int] = []

    def embed(self, crops: list[Image]) -> NDArray[np.float32]:
        self.sizes.append(len(crops))
        if self.fails(crops):
            raise RuntimeError("std::bad_alloc: bad allocation")
        rows: NDArray[np.float32] = self.embed_really(crops)
        return rows


def test_a_batch_that_fails_harms_only_the_photo_at_fault(photo: Image) -> None:
    dark = np.zeros_like(photo)
    dark[:, :620] = photo[:, :620] // 4  # the same people, less light
    with Engine.open(MODEL, threads=1, batch_size=16) as engine:
        engine._recogniser = Failing(engine._recogniser, lambda crops: min(one.mean() for one in crops) < 50)  # type: ignore[assignment]  # a stand-in for this test
        ready = threading.Event()

        def held() -> Image:
            ready.wait(SECONDS)
            return photo

        futures = [engine.submit(held), engine.submit(partial(itself, dark)), engine.submit(partial(itself, photo))]
        ready.set()
        wait(futures, SECONDS)
    assert [type(future.exception()) for future in futures] == [type(None), OutOfMemoryError, type(None)]
    assert [len(futures[number].result()) for number in (0, 2)] == [6, 6]


def test_after_a_failure_the_photos_other_crops_are_dropped(photo: Image) -> None:
    with Engine.open(MODEL, threads=1, batch_size=2) as engine:
        failing = Failing(engine._recogniser, lambda _: True)
        engine._recogniser = failing  # type: ignore[assignment]  # a stand-in for this test
        with pytest.raises(OutOfMemoryError):
            engine.submit(partial(itself, photo)).result(SECONDS)
        with pytest.raises(OutOfMemoryError):
            engine.submit(partial(itself, photo)).result(SECONDS)
    assert failing.sizes == [2, 2]


def test_a_cancelled_photo_is_not_loaded(photo: Image) -> None:
    started, go = threading.Event(), threading.Event()
    loaded = []

    def block() -> Image:
        started.set()
        go.wait(SECONDS)
        return photo

    def note() -> Image:
        loaded.append(1)
        return photo

    with Engine.open(MODEL, threads=1) as engine:
        first = engine.submit(block)
        started.wait(SECONDS)
        second, third = engine.submit(note), engine.submit(partial(itself, photo))
        assert second.cancel()
        assert not first.cancel()  # it has begun
        go.set()
        assert len(first.result(SECONDS)) == len(third.result(SECONDS)) == 6
    assert loaded == []


def test_close_while_busy_finishes_what_was_submitted(photo: Image) -> None:
    engine = Engine.open(MODEL, threads=2)
    futures = [engine.submit(partial(itself, photo)) for _ in range(7)]
    engine.close()
    assert all(future.done() for future in futures)
    assert {len(future.result()) for future in futures} == {6}
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(partial(itself, photo))
    engine.close()  # a second time does nothing
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]


def test_few_crops_do_not_wait_for_ever_while_photos_without_faces_go_by(photo: Image) -> None:
    blank = np.zeros((640, 640, 3), np.uint8)
    with Engine.open(MODEL, threads=1, batch_size=64) as engine:
        finished: list[float] = []
        selfie = engine.submit(partial(itself, photo))
        others = [engine.submit(partial(itself, blank)) for _ in range(60)]
        selfie.add_done_callback(lambda _: finished.append(sum(other.done() for other in others)))
        wait([selfie, *others], SECONDS)
    assert PATIENCE < 1
    assert finished
    assert finished[0] < 59


def test_busy_seconds_are_of_the_threads_and_grow_only_with_work(photo: Image) -> None:
    with Engine.open(MODEL, threads=2) as engine:
        assert engine.busy_seconds == 0
        started = time.monotonic()
        futures: list[Future[Any]] = [engine.submit(partial(itself, photo)) for _ in range(6)]
        wait(futures, SECONDS)
    span = time.monotonic() - started
    busy = engine.busy_seconds
    assert 0.5 * span < busy <= 2 * span
    time.sleep(0.02)
    assert engine.busy_seconds == busy


def test_a_photos_pixels_are_let_go(engine: Engine, photo: Image) -> None:
    class Noticed(np.ndarray):
        """An array that can be referred to weakly."""

    image = photo.copy().view(Noticed)
    reference = weakref.ref(image)
    future = engine.submit(partial(itself, image))
    del image
    assert len(future.result(SECONDS)) == 6
    engine.submit(partial(itself, photo)).result(SECONDS)
    gc.collect()
    assert reference() is None


def test_a_provider_that_cannot_be_started_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime

    # This onnxruntime has no CUDA. Asked for it, it takes the CPU, as the GPU build does without a driver.
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        engine = Engine.open(MODEL, threads=1)
    engine.close()
    assert engine.choice.word == "cpu"
    assert engine.choice.why.startswith("cuda could not be started (onnxruntime fell back to another one")
    assert "first one wanted" not in engine.choice.why
    assert [record.message for record in caplog.records] == ["provider failed"]
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ModelError, match=r"cuda could not be started .* add cpu to RUNNER_PROVIDERS"),
    ):
        Engine.open(MODEL, providers=("cuda",))


def test_what_a_provider_fails_with_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 35: driver version is insufficient\nsecond line")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ProviderError, match=r"^RuntimeError: CUDA failure 35: driver version is insufficient$"):
        pack.open_session(MODEL / "detector.onnx", ("CUDAExecutionProvider", "CPUExecutionProvider"))
