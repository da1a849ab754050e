"""Preprocessing: from BGR pixels to the normalised RGB planes (NCHW) that the networks read."""

from __future__ import annotations

import threading

import cv2
import numpy as np

from runner.faces.arrays import Float32Array, Image


def normalisation_table(mean: float, deviation: float) -> Float32Array:
    """Return (value - mean) / deviation for pixel values 0 to 255, rounded as by `cv2.dnn.blobFromImage`."""
    return ((np.arange(256, dtype=np.float32) - np.float32(mean)) * np.float32(1 / deviation)).astype(np.float32)


def write_planes(planes: Float32Array, image: Image, table: Float32Array) -> None:
    """Write `image` (height, width, 3) into `planes` (3, height, width) as RGB, normalised by `table` (256,).

    The values are those of `cv2.dnn.blobFromImage`, which takes 2.3 ms for 640x443 pixels and 0.08 ms for a crop;
    this takes 0.45 and 0.02.
    """
    for plane, channel in zip(planes[::-1], cv2.split(image), strict=True):
        cv2.LUT(channel, table, dst=plane)


def letterbox_size(height: int, width: int, size: int) -> tuple[int, int] | None:
    """Return (width, height) of an image scaled to fit a square of `size` pixels, as InsightFace rounds them.

    None if an image is so thin that one side would become 0, for which InsightFace fails.
    """
    ratio = float(height) / width
    scaled = (int(size / ratio), size) if ratio > 1.0 else (size, int(size * ratio))
    return None if 0 in scaled else scaled


class LetterboxBuffer(threading.local):
    """The network input of each thread, (1, 3, size, size), reused for that thread's next photo."""

    def __init__(self, size: int, table: Float32Array) -> None:
        self._size = size
        self._table = table
        self._blob: Float32Array | None = None  # allocated on first use: the thread that loads has no photo
        self._height, self._width = 0, 0

    def fill(self, image: Image) -> Float32Array:
        """Return the input with `image` (up to size x size) in the upper left corner, black elsewhere.

        The array is overwritten by the next call in the same thread.
        """
        height, width = image.shape[:2]
        black = self._table[0]
        if self._blob is None:
            self._blob = np.full((1, 3, self._size, self._size), black, np.float32)
        if height < self._height:
            self._blob[0, :, height : self._height, : self._width] = black
        if width < self._width:
            self._blob[0, :, : self._height, width : self._width] = black
        write_planes(self._blob[0, :, :height, :width], image, self._table)
        self._height, self._width = height, width
        return self._blob
