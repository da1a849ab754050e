"""From labelled photos to the similarities of their pairs, by the engine and the decoder of a run."""

from __future__ import annotations

import errno
import hashlib
import stat
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.errors import ImageTooManyBytesError, JobError
from runner.evaluation.labels import LabelledPair, Labels, Photo
from runner.faces.engine import Engine, Face
from runner.images.buffers import PixelMemory
from runner.images.decode import decode
from runner.images.header import DECODING_BYTES
from runner.settings import Settings

Floats = NDArray[np.float32]
# Rows of the matrix of similarities that are computed at a time: 13,000 photos take 3 MB for each 64.
_ROWS = 64


class Faces(Enum):
    """Which faces of a photo are compared."""

    ONE = "one"  # a photo with several is skipped: it is not known which of them is the person
    LARGEST = "largest"
    ALL = "all"  # the pair of faces with the greatest similarity, as a run compares


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A photo that is not compared. `is_fault`: its file is missing, unreadable or not an image."""

    name: str
    code: str
    reason: str
    is_fault: bool


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A photo with the faces that are compared, and the SHA-256 of its file."""

    photo: Photo
    faces: Sequence[Face]
    digest: bytes

    @property
    def embeddings(self) -> Floats:
        """The embeddings of the faces, shape (n, 512)."""
        return np.stack([face.embedding for face in self.faces])


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two photos with their similarity."""

    first: Embedded
    second: Embedded
    similarity: float


@dataclass(slots=True)
class Similarities:
    """The similarities of all pairs of one kind, in no order, and those that are worst for it.

    `sign` is 1 where low similarities are the worst (pairs of the same person), -1 where high ones are.
    """

    sign: int
    most: int
    values: list[Floats] = field(default_factory=list)
    worst: list[tuple[float, int, int]] = field(default_factory=list)

    def add(self, values: Floats, first: NDArray[np.intp], second: NDArray[np.intp]) -> None:
        """Add pairs of photos, by their indexes."""
        self.values.append(values)
        chosen = np.argsort(self.sign * values, kind="stable")[: self.most]
        found = [(float(values[at]), int(first[at]), int(second[at])) for at in chosen]
        self.worst = sorted([*self.worst, *found], key=lambda pair: self.sign * pair[0])[: self.most]

    def all(self) -> Floats:
        """Return the similarities, shape (n,)."""
        return np.concatenate([np.empty(0, np.float32), *self.values])


@dataclass(frozen=True, slots=True)
class Measured:
    """The similarities, the worst pairs first, and what could not be compared."""

    photos: list[Embedded]
    left_out: list[LeftOut]
    same: Floats
    different: Floats
    worst_same: list[Pair]
    worst_different: list[Pair]
    pairs_left_out: int


def measure(
    labels: Labels,
    engine: Engine,
    settings: Settings,
    faces: Faces,
    *,
    worst: int,
    progress: Callable[[int], None],
) -> Measured:
    """Embed the photos, and compare the pairs. `progress` receives the number of photos done."""
    embedded, left_out = _embed(labels.photos, engine, settings, faces, progress)
    if labels.pairs is None:
        _leave_out_copies(embedded, left_out)
    photos = list(embedded.values())
    same, different = Similarities(1, worst), Similarities(-1, worst)
    pairs_left_out = 0
    if labels.pairs is None:
        _compare_all(photos, same, different)
    else:
        places = {index: place for place, index in enumerate(embedded)}
        kept = [pair for pair in labels.pairs if pair.first in places and pair.second in places]
        pairs_left_out = len(labels.pairs) - len(kept)
        _compare_pairs(photos, [LabelledPair(places[p.first], places[p.second], p.same) for p in kept], same, different)
    return Measured(
        photos,
        list(left_out.values()),
        same.all(),
        different.all(),
        _pairs(photos, same),
        _pairs(photos, different),
        pairs_left_out,
    )


class _File:
    """A photo's file; `digest` is the SHA-256 of what was read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.digest = b""

    def decode(self, settings: Settings, memory: PixelMemory | None = None) -> NDArray[np.uint8]:
        """Return the upright image. Raises `OSError`, and what `runner.images.decode.decode` raises."""
        found = self._path.stat()
        if not stat.S_ISREG(found.st_mode):  # to open a named pipe would wait for a writer
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_size > settings.max_image_bytes:
            raise ImageTooManyBytesError(f"{found.st_size} bytes, {settings.max_image_bytes} allowed")
        data = self._path.read_bytes()
        self.digest = hashlib.sha256(data).digest()
        return decode(data, max_pixels=settings.max_image_pixels, max_bytes=settings.max_image_bytes, memory=memory)


def read_image(path: Path, settings: Settings) -> NDArray[np.uint8]:
    """Return the upright image in a file. Raises `OSError` and `JobError`."""
    return _File(path).decode(settings)


def _embed(
    photos: Sequence[Photo], engine: Engine, settings: Settings, faces: Faces, progress: Callable[[int], None]
) -> tuple[dict[int, Embedded], dict[int, LeftOut]]:
    """Return index → photo for those with a face, and for the others why not."""
    embedded: dict[int, Embedded] = {}
    left_out: dict[int, LeftOut] = {}
    memory = PixelMemory(DECODING_BYTES * settings.max_image_pixels)
    waiting: deque[tuple[int, _File, Future[list[Face]]]] = deque()

    def finish() -> None:
        index, file, future = waiting.popleft()
        outcome = _outcome(photos[index], future, file, faces)
        if isinstance(outcome, LeftOut):
            left_out[index] = outcome
        else:
            embedded[index] = outcome
        progress(index + 1)

    for index, photo in enumerate(photos):
        file = _File(photo.path)
        waiting.append((index, file, engine.submit(partial(file.decode, settings, memory))))
        if len(waiting) > 2 * engine.threads:
            finish()
    while waiting:
        finish()
    return embedded, left_out


def _outcome(photo: Photo, future: Future[list[Face]], file: _File, faces: Faces) -> Embedded | LeftOut:
    try:
        found = future.result()
    except JobError as error:
        return LeftOut(photo.name, error.code, str(error), is_fault=True)
    except FileNotFoundError:
        return LeftOut(photo.name, "file_missing", "there is no such file", is_fault=True)
    except OSError as error:
        return LeftOut(photo.name, "file_unreadable", f"the file cannot be read: {error.strerror}", is_fault=True)
    if not found:
        return LeftOut(photo.name, "no_face", "no face was found", is_fault=False)
    if len(found) > 1 and faces is Faces.ONE:
        return LeftOut(
            photo.name,
            "several_faces",
            f"{len(found)} faces, and it is not known which is the person (--faces)",
            is_fault=False,
        )
    return Embedded(photo, [max(found, key=_area)] if faces is Faces.LARGEST else found, file.digest)


def _area(face: Face) -> float:
    left, top, right, bottom = (float(value) for value in face.box)
    return (right - left) * (bottom - top)


def _leave_out_copies(embedded: dict[int, Embedded], left_out: dict[int, LeftOut]) -> None:
    """Skip a person's second copy of a file: its similarity of 1 says nothing about the model."""
    seen: dict[tuple[str, bytes], str] = {}
    for index, item in list(embedded.items()):
        first = seen.setdefault((item.photo.person, item.digest), item.photo.name)
        if first != item.photo.name:
            del embedded[index]
            left_out[index] = LeftOut(item.photo.name, "copy", f"the same file as {first}", is_fault=False)


def _compare_all(photos: Sequence[Embedded], same: Similarities, different: Similarities) -> None:
    """Compare every two photos."""
    if not photos:
        return
    rows = np.concatenate([photo.embeddings for photo in photos])
    counts = np.array([len(photo.faces) for photo in photos])
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    names = {name: number for number, name in enumerate(sorted({photo.photo.person for photo in photos}))}
    people = np.array([names[photo.photo.person] for photo in photos])
    for start in range(0, len(photos), _ROWS):
        stop = min(start + _ROWS, len(photos))
        top = begins[start]
        block = rows[top : begins[stop] if stop < len(photos) else len(rows)] @ rows.T
        block = np.maximum.reduceat(block, begins[start:stop] - top, axis=0)
        block = np.maximum.reduceat(block, begins, axis=1)
        first, second = np.nonzero(np.arange(len(photos)) > np.arange(start, stop)[:, None])
        values = np.clip(block[first, second], -1, 1).astype(np.float32)
        first = first + start
        alike = people[first] == people[second]
        for kind, chosen in ((same, alike), (different, ~alike)):
            kind.add(values[chosen], first[chosen], second[chosen])


def _compare_pairs(
    photos: Sequence[Embedded], pairs: Iterable[LabelledPair], same: Similarities, different: Similarities
) -> None:
    chosen: Mapping[bool, list[LabelledPair]] = {True: [], False: []}
    for pair in pairs:
        chosen[pair.same].append(pair)
    for kind, members in ((same, chosen[True]), (different, chosen[False])):
        values = [(photos[pair.first].embeddings @ photos[pair.second].embeddings.T).max() for pair in members]
        kind.add(
            np.clip(np.array(values, np.float32), -1, 1),
            np.array([pair.first for pair in members], np.intp),
            np.array([pair.second for pair in members], np.intp),
        )


def _pairs(photos: Sequence[Embedded], kind: Similarities) -> list[Pair]:
    return [Pair(photos[first], photos[second], value) for value, first, second in kind.worst]
