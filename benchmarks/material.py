"""The photos of the benchmarks: made from photos that installed packages contain, the same bytes every time."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from demo.album import PEOPLE, Album, jpeg, portrait, sample_album, side_by_side
from runner.bake.samples import sample_images

Image = NDArray[np.uint8]

SETS = ("web", "phone", "group")
NOISE = 3.0
FIRST_FACES = 6  # on `first_photo`


def album() -> Album:
    """Return the demonstration's sample album."""
    return sample_album(sample_images())


def first_photo() -> bytes:
    """Return InsightFace's own sample photo: six people, 1.1 megapixels."""
    return jpeg(sample_images()["t1.jpg"])


def photo_set(name: str) -> list[bytes]:
    """Return the JPEGs of one of `SETS`."""
    return {"web": web, "phone": phone, "group": group}[name]()


def web() -> list[bytes]:
    """Return 16 photos of about one megapixel, with 4.5 faces on average."""
    party = sample_images()["t1.jpg"]
    parts = [party, party[:, :890], party[:, 440:], cv2.flip(party[:, :700], 1)]
    return [jpeg(np.asarray(part, np.uint8), quality=quality) for quality in (92, 88, 84, 80) for part in parts]


def phone() -> list[bytes]:
    """Return 8 photos of 12 megapixels with the fine noise of a phone's sensor: 2.5 faces on average, 2 MB each."""
    party = sample_images()["t1.jpg"]
    halves = [party[:, :620], party[:, 660:], party[:, 560:960], party[:, 300:700]]
    noise = np.random.default_rng(0).normal(0, NOISE, (4000, 3000, 1)).astype(np.float32)
    upright = [cv2.resize(half, (3000, 4000), interpolation=cv2.INTER_CUBIC) + noise for half in halves]
    photos = [np.clip(photo, 0, 255).astype(np.uint8) for photo in upright]
    return [jpeg(photo, quality=quality) for quality in (92, 88) for photo in photos]


def group() -> list[bytes]:
    """Return 4 group photos of 20 faces in rows, like a school photo."""
    people = [_cell(person) for person in PEOPLE]
    rows = [people[:5], people[5:], [_mirrored(one) for one in people[5:]], [_mirrored(one) for one in people[:5]]]
    orders = ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0], [2, 3, 0, 1])
    return [jpeg(np.asarray(np.vstack([side_by_side(*rows[row]) for row in order]), np.uint8)) for order in orders]


def _cell(person: str) -> Image:
    source, box = PEOPLE[person]
    return np.asarray(cv2.resize(portrait(sample_images()[source], box), (320, 400)), np.uint8)


def _mirrored(image: Image) -> Image:
    return np.asarray(cv2.flip(image, 1), np.uint8)
