"""Failures inside the engine: each photo gets its own error, and the engine continues."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from runner.bake.samples import sample_images
from runner.errors import DeviceError, ImageUndecodableError, OutOfMemoryError, TooManyFacesError
from runner.faces import pack
from runner.faces.arrays import Float32Array, Image
from runner.faces.engine import MAX_CROP_WAIT_SECONDS, Engine
from runner.faces.providers import ProviderError
from runner.images.decode import decode
from tests.support.engine_tools import MODEL, analyse

SECONDS = 60


@pytest.fixture(scope="module")
def photo() -> Image:
    """Return a photo of six faces."""
    return sample_images()["t1.jpg"]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine.open(MODEL, threads=2, max_faces=6) as opened:
        yield opened


def itself(image: Image) -> Image:
    return image


def test_what_load_raises_is_the_exception_of_its_future(engine: Engine, photo: Image) -> None:
    def fail(error: Exception) -> Image:
        raise error

    errors = [ValueError("odd"), MemoryError(), cv2.error("Failed to allocate: Insufficient memory"), KeyError("x")]
    failing = [engine.submit(partial(fail, error)) for error in errors]
    damaged = engine.submit(partial(decode, b"not an image", max_pixels=10, max_bytes=20))
    good = engine.submit(partial(itself, photo))
    assert len(good.result(SECONDS)) == 6
    kinds = [type(future.exception(SECONDS)) for future in (*failing, damaged)]
    assert kinds == [ValueError, OutOfMemoryError, OutOfMemoryError, KeyError, ImageUndecodableError]


@pytest.mark.parametrize("shape", [(0, 10, 3), (10, 0, 3), (20, 20), (20, 20, 1), (20, 20, 4), (3,)])
def test_an_array_that_is_not_an_image_is_rejected(engine: Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not an 8-bit BGR image"):
        engine.submit(partial(itself, np.zeros(shape, np.uint8))).result(SECONDS)
    with pytest.raises(ValueError, match="float32"):
        analyse(engine, np.zeros((20, 20, 3), np.float32))


def test_more_faces_than_allowed_are_rejected(engine: Engine, photo: Image) -> None:
    crowd = np.asarray(np.hstack([photo, photo]), np.uint8)
    with pytest.raises(TooManyFacesError, match=r"RUNNER_MAX_FACES.*12 found, 6 allowed"):
        analyse(engine, crowd)
    assert len(analyse(engine, photo)) == 6


class Failing:
    """The real recogniser, except for the calls that fail."""

    def __init__(self, recogniser: Any, fails: Any) -> None:
        self._embed = recogniser.embed
        self.fails = fails
        self.sizes: list[int] = []

    def embed(self, crops: list[Image]) -> Float32Array:
        self.sizes.append(len(crops))
        if self.fails(crops):
            raise RuntimeError("std::bad_alloc: bad allocation")
        rows: Float32Array = self._embed(crops)
        return rows


def test_a_failed_batch_fails_only_the_photo_that_causes_it(photo: Image) -> None:
    dark = np.zeros_like(photo)
    dark[:, :620] = photo[:, :620] // 4  # the same people, less light
    with Engine.open(MODEL, threads=1, batch_size=16) as engine:
        engine._recogniser = Failing(engine._recogniser, lambda crops: min(one.mean() for one in crops) < 50)  # type: ignore[assignment]  # a stand-in for this test
        ready = threading.Event()

        def wait_for_others() -> Image:
            ready.wait(SECONDS)
            return photo

        loads = (wait_for_others, partial(itself, dark), partial(itself, photo))
        futures = [engine.submit(load) for load in loads]
        ready.set()
        wait(futures, SECONDS)
    assert [type(future.exception()) for future in futures] == [type(None), OutOfMemoryError, type(None)]
    assert [len(futures[number].result()) for number in (0, 2)] == [6, 6]


def test_other_crops_of_a_failed_photo_are_dropped(photo: Image) -> None:
    with Engine.open(MODEL, threads=1, batch_size=2) as engine:
        failing = Failing(engine._recogniser, lambda _: True)
        engine._recogniser = failing  # type: ignore[assignment]  # a stand-in for this test
        with pytest.raises(OutOfMemoryError):
            analyse(engine, photo)
        with pytest.raises(OutOfMemoryError):
            analyse(engine, photo)
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
        assert not first.cancel()  # it is running
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
    engine.close()  # has no effect the second time
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]


def test_few_crops_do_not_wait_for_all_photos_without_faces(photo: Image) -> None:
    blank = np.zeros((640, 640, 3), np.uint8)
    with Engine.open(MODEL, threads=1, batch_size=64) as engine:
        finished: list[float] = []
        selfie = engine.submit(partial(itself, photo))
        others = [engine.submit(partial(itself, blank)) for _ in range(60)]
        selfie.add_done_callback(lambda _: finished.append(sum(other.done() for other in others)))
        wait([selfie, *others], SECONDS)
    assert MAX_CROP_WAIT_SECONDS < 1
    assert finished
    assert finished[0] < 59


def test_busy_seconds_add_up_the_work_of_all_threads(photo: Image) -> None:
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


def test_pixels_are_released_after_cropping(engine: Engine, photo: Image) -> None:
    class Referable(np.ndarray):
        """An array that allows weak references."""

    image = photo.copy().view(Referable)
    reference = weakref.ref(image)
    future = engine.submit(partial(itself, image))
    del image
    assert len(future.result(SECONDS)) == 6
    analyse(engine, photo)
    gc.collect()
    assert reference() is None


def test_a_provider_that_does_not_start_is_replaced_by_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # This onnxruntime has no CUDA and falls back to the CPU, as the GPU build does without a driver.
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        engine = Engine.open(MODEL, threads=1)
    engine.close()
    assert engine.choice.name == "cpu"
    assert engine.choice.reason.startswith("cuda could not be started (")
    assert "preferred" not in engine.choice.reason
    assert [record.message for record in caplog.records] == ["provider failed"]
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(DeviceError, match=r"cuda could not be started .* add cpu to RUNNER_PROVIDERS"),
    ):
        Engine.open(MODEL, providers=("cuda",))


def test_the_failure_of_a_provider_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 35: driver version is insufficient\nsecond line")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ProviderError, match=r"^RuntimeError: CUDA failure 35: driver version is insufficient$"):
        pack.open_session(MODEL / "detector.onnx", ("CUDAExecutionProvider", "CPUExecutionProvider"))
