"""The demonstration's report: one self-contained HTML page that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import cv2
import numpy as np

from demo.album import encoded
from demo.chart import Sample, chart
from runner.errors import JobError
from runner.images.decode import decode

THUMBNAIL_PIXELS = 420
# Keys of a run's summary, as the table of runs heads them.
_RUN_COLUMNS = {
    "queue": "queue",
    "claimed": "claimed",
    "succeeded": "succeeded",
    "photo_gone": "photo deleted",
    "dead_lettered": "dead letters",
    "photos": "photos",
    "comparisons": "comparisons",
    "faces": "faces",
    "duration_seconds": "seconds",
    "exit_reason": "exit reason",
}


@dataclass(frozen=True, slots=True)
class PhotoResult:
    """The result of one photo: the bounding boxes of its faces, in pixels of the upright photo, with their scores."""

    name: str
    data: bytes = field(repr=False)
    status: str
    expected_status: str | None
    boxes: Sequence[tuple[Sequence[float], float]]


@dataclass(frozen=True, slots=True)
class SelfieResult:
    """The result of one comparison: the names of the matched photos with their scores, in album order."""

    name: str
    data: bytes = field(repr=False)
    matches: Mapping[str, float]
    expected: Sequence[str] | None
    milliseconds: float
    error: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """The contents of the page."""

    title: str
    facts: Mapping[str, str]
    photos: Sequence[PhotoResult]
    selfies: Sequence[SelfieResult]
    samples: Sequence[Sample]
    stages: Mapping[str, float]
    runners: Sequence[Mapping[str, Any]]
    passed: bool | None

    def html(self) -> str:
        """Return the page as HTML."""
        style = (resources.files("demo") / "report.css").read_text(encoding="utf-8")
        verdict = {True: "all results as expected", False: "unexpected results", None: "your own photos"}
        images = {photo.name: _thumbnail(photo.data) for photo in self.photos}
        return "\n".join(
            [
                "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
                "<meta name='viewport' content='width=device-width, initial-scale=1'>",
                f"<title>{html.escape(self.title)}</title><style>{style}</style></head><body><main>",
                f"<header><h1>{html.escape(self.title)}</h1>",
                f"<p class='verdict {_class(self.passed)}'>{verdict[self.passed]}</p></header>",
                _facts(self.facts),
                "<h2>Queue depth and runners: scaled from zero and back</h2>",
                chart(self.samples),
                "<h2>Time per stage, and runs</h2>",
                _stages(self.stages),
                _runners(self.runners),
                "<h2>Selfies and their matches</h2>",
                *(_selfie(selfie, images) for selfie in self.selfies),
                "<h2>The album</h2><div class='album'>",
                *(_photo(photo, images[photo.name]) for photo in self.photos),
                "</div></main></body></html>",
            ]
        )


@dataclass(frozen=True, slots=True)
class _Thumbnail:
    uri: str
    width: int
    height: int


def _thumbnail(data: bytes) -> _Thumbnail | None:
    """Return a small JPEG of an image as a data URI, with the size of the original; None if it cannot be decoded."""
    try:
        image = decode(data, max_pixels=200_000_000, max_bytes=200_000_000)
    except JobError:
        return None
    height, width = image.shape[:2]
    scale = min(1.0, THUMBNAIL_PIXELS / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    coded = base64.b64encode(encoded(".jpg", small, cv2.IMWRITE_JPEG_QUALITY, 80)).decode()
    return _Thumbnail(f"data:image/jpeg;base64,{coded}", width, height)


def _class(good: bool | None) -> str:  # noqa: FBT001 - a result, not a switch
    return "" if good is None else "good" if good else "bad"


def _facts(facts: Mapping[str, str]) -> str:
    items = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl class='facts'>{''.join(items)}</dl>"


def _figure(image: _Thumbnail | None, name: str, boxes: Iterable[tuple[Sequence[float], float]] = ()) -> str:
    """Return an image overlaid with `boxes`, which are in pixels of the original."""
    if image is None:
        return "<div class='picture broken'>not an image</div>"
    stroke = max(image.width, image.height) / 140
    drawn = "".join(
        f"<rect x='{x1:.1f}' y='{y1:.1f}' width='{x2 - x1:.1f}' height='{y2 - y1:.1f}' rx='{stroke * 1.5:.1f}'"
        f" stroke-width='{stroke:.1f}'><title>score {score:.3f}</title></rect>"
        for (x1, y1, x2, y2), score in boxes
    )
    return (
        f"<div class='picture'><img src='{image.uri}' alt='{html.escape(name, quote=True)}'>"
        f"<svg viewBox='0 0 {image.width} {image.height}' preserveAspectRatio='xMidYMid meet'>{drawn}</svg></div>"
    )


def _photo(photo: PhotoResult, image: _Thumbnail | None) -> str:
    good = photo.expected_status in (None, photo.status)
    faces = f"{len(photo.boxes)} face{'' if len(photo.boxes) == 1 else 's'}" if photo.status == "READY" else ""
    size = f"{image.width} x {image.height}" if image else f"{len(photo.data):,} bytes"
    return (
        f"<figure class='card {'' if good else 'bad'}'>{_figure(image, photo.name, photo.boxes)}<figcaption>"
        f"<b>{html.escape(photo.name)}</b><span class='status {photo.status.lower()}'>"
        f"{photo.status.replace('_', ' ').lower()}</span><small>{size}{' · ' if faces else ''}{faces}</small>"
        "</figcaption></figure>"
    )


def _selfie(selfie: SelfieResult, images: Mapping[str, _Thumbnail | None]) -> str:
    missing = [name for name in selfie.expected or () if name not in selfie.matches]
    extra = [name for name in selfie.matches if selfie.expected is not None and name not in selfie.expected]
    good = None if selfie.expected is None else not (missing or extra)
    found = "".join(
        f"<figure class='match {'bad' if name in extra else ''}'>{_figure(images.get(name), name)}"
        f"<figcaption><span class='score'>{score:.2f}</span><small>{html.escape(name)}</small></figcaption></figure>"
        for name, score in selfie.matches.items()
    )
    notes = f"<p class='bad'>expected but not matched: {html.escape(', '.join(missing))}</p>" if missing else ""
    notes += f"<p class='bad'>{html.escape(selfie.error)}</p>" if selfie.error else ""
    return (
        f"<section class='selfie'><figure class='who'>{_figure(_thumbnail(selfie.data), selfie.name)}<figcaption>"
        f"<b>{html.escape(selfie.name)}</b><small class='{_class(good)}'>{len(selfie.matches)} photos · "
        f"{selfie.milliseconds:.0f} ms</small></figcaption></figure>"
        f"<div class='matches'>{found or '<p>no photo matches</p>'}{notes}</div></section>"
    )


def _stages(stages: Mapping[str, float]) -> str:
    total = sum(stages.values()) or 1.0
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td class='number'>{seconds * 1000:.0f} ms</td>"
        f"<td><div class='bar' style='width:{100 * seconds / total:.1f}%'></div></td></tr>"
        for name, seconds in stages.items()
    )
    note = "Summed over all runs and threads, including the time spent waiting for a thread."
    return f"<table class='stages'>{rows}</table><p><small>{note}</small></p>"


def _runners(runners: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in ("run", *_RUN_COLUMNS.values()))
    rows = ""
    for number, runner in enumerate(runners, 1):
        cells = "".join(f"<td>{html.escape(str(runner.get(name, '')))}</td>" for name in _RUN_COLUMNS)
        rows += f"<tr><td>{number}</td>{cells}</tr>"
    return f"<div class='wide'><table class='runs'><tr>{head}</tr>{rows}</table></div>"
