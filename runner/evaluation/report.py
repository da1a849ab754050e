"""The report of an evaluation: one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from math import floor, log10

import cv2
import numpy as np
from numpy.typing import NDArray

from runner.errors import JobError
from runner.evaluation import plots
from runner.evaluation.measure import Embedded, Measured, Pair
from runner.evaluation.rates import Best, Criterion, Point, Rate, Rates
from runner.faces.engine import Face
from runner.output import printable

Image = NDArray[np.uint8]

CROP_PIXELS = 200
_MARGIN = 0.45  # of the face's size, on every side
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

METHOD = (
    "A pair matches when its similarity is strictly greater than the threshold. The ranges are Wilson score intervals "
    "of 95 % (Wilson 1927). They assume independent pairs; pairs that share a photo or a person are not, so the "
    "real uncertainty is larger: what counts is the number of people."
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measurements and their assessment. `default` is the threshold that the API sends."""

    model: str
    people: int
    measured: Measured
    rates: Rates
    table: Sequence[Point]
    best: Best
    criterion: Criterion
    default: Point

    def html(self, read_image: Callable[[Embedded], Image]) -> str:
        """Return the page. `read_image` returns a photo's pixels (BGR); where it fails, the picture is left out."""
        style = (resources.files("runner") / "report.css").read_text(encoding="utf-8")
        best, default = self.best.point.threshold, self.default.threshold
        marks = [(best, f"best {number(best)}")]
        if best != default:
            marks.append((default, f"the API's {number(default)}"))
        title = _text(f"How well {self.model} tells people apart")
        return "\n".join(
            [
                "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
                f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\">",
                "<meta name='viewport' content='width=device-width, initial-scale=1'>",
                f"<title>{title}</title><style>{style}</style></head><body><main><h1>{title}</h1>",
                _facts(self),
                f"<h2>Similarities</h2>{_LEGEND}{plots.histogram(self.rates, marks)}",
                f"<h2>Match rates</h2>{_LEGEND}{plots.curves(self.rates, marks)}<p class='note'>{METHOD}</p>",
                f"<div class='wide'><table>{_rows(self)}</table></div>",
                "<h2>Pairs of the same person with the lowest similarity</h2>",
                _pairs(self.measured.worst_same, read_image),
                "<h2>Pairs of different people with the highest similarity</h2>",
                _pairs(self.measured.worst_different, read_image),
                _left_out(self.measured),
                "</main></body></html>",
            ]
        )


_LEGEND = (
    "<p class='legend'><span class='same'>pairs of the same person</span>"
    "<span class='different'>pairs of different people</span></p>"
)


def percent(rate: Rate) -> str:
    """Return a rate with its interval, such as 97.5 % (91.3 to 99.3)."""
    return f"{_percent(rate.value)} % ({_percent(rate.low)} to {_percent(rate.high)})"


def _percent(share: float) -> str:
    """Return a share in percent, with more decimals near 0 and 100: a false match rate of 0.02 % is not 0.0."""
    value = 100 * share
    distance = min(value, 100 - value)
    decimals = 1 - floor(log10(distance)) if 0 < distance < 1 else 1
    return f"{value:.{min(decimals, 6)}f}"


def number(threshold: float) -> str:
    """Return a threshold with at least two decimals."""
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else f"{threshold:.10g}"


def _interval(rate: Rate) -> str:
    return f"{_percent(rate.low)} to {_percent(rate.high)} % (95 %)"


def _text(text: str) -> str:
    """Return untrusted text, escaped for HTML, without characters that change the direction of text or hide it."""
    return html.escape(printable(text))


def _facts(evaluation: Evaluation) -> str:
    best, measured = evaluation.best.point, evaluation.measured
    equal = f"{evaluation.best.low:.3f} to {evaluation.best.high:.3f} are as good: "
    facts = {
        "photos": (str(len(measured.photos)), f"{len(measured.left_out)} left out"),
        "pairs of the same person": (f"{len(measured.same):,}", ""),
        "pairs of different people": (f"{len(measured.different):,}", ""),
        "best threshold": (number(best.threshold), equal + evaluation.criterion.value),
        "true matches there": (f"{_percent(best.true.value)} %", _interval(best.true)),
        "false matches there": (f"{_percent(best.false.value)} %", _interval(best.false)),
    }
    if evaluation.people:
        facts["people"] = (str(evaluation.people), "")
    items = (
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, (value, note) in facts.items()
    )
    return f"<dl class='facts'>{''.join(items)}</dl>"


def _rows(evaluation: Evaluation) -> str:
    rows = "".join(
        f"<tr{_row_class(point, evaluation)}><td>{number(point.threshold)}</td><td>{percent(point.true)}</td>"
        f"<td>{percent(point.false)}</td></tr>"
        for point in evaluation.table
    )
    return f"<tr><th>threshold</th><th>true matches</th><th>false matches</th></tr>{rows}"


def _row_class(point: Point, evaluation: Evaluation) -> str:
    return " class='best'" if point.threshold == evaluation.best.point.threshold else ""


def _pairs(pairs: Iterable[Pair], read_image: Callable[[Embedded], Image]) -> str:
    cards = "".join(_card(pair, read_image) for pair in pairs)
    return f"<div class='pairs'>{cards}</div>"


def _card(pair: Pair, read_image: Callable[[Embedded], Image]) -> str:
    table = pair.first.embeddings @ pair.second.embeddings.T
    first, second = divmod(int(table.argmax()), table.shape[1])
    chosen = ((pair.first, pair.first.faces[first]), (pair.second, pair.second.faces[second]))
    figures = "".join(_figure(photo, face, read_image) for photo, face in chosen)
    return f"<div class='pair'><b>{pair.similarity:.3f}</b><div class='two'>{figures}</div></div>"


def _figure(photo: Embedded, face: Face, read_image: Callable[[Embedded], Image]) -> str:
    name = _text(photo.photo.name)
    try:
        picture = f"<img src='{_data_uri(crop(read_image(photo), face))}' alt='{name}'>"
    except (OSError, JobError):  # changed since it was measured
        picture = "<div class='absent'>no longer readable</div>"
    return f"<figure>{picture}<figcaption>{name}</figcaption></figure>"


def crop(image: Image, face: Face) -> Image:
    """Return a square with the face in its middle, of `CROP_PIXELS`; what is outside of the image is grey."""
    left, top, right, bottom = (float(value) for value in face.box)
    side = max(8, round((1 + 2 * _MARGIN) * max(right - left, bottom - top)))
    x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
    square = np.full((side, side, 3), 128, np.uint8)
    part = image[max(0, y) : max(0, y + side), max(0, x) : max(0, x + side)]
    square[max(0, -y) :, max(0, -x) :][: part.shape[0], : part.shape[1]] = part
    how = cv2.INTER_AREA if side > CROP_PIXELS else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (CROP_PIXELS, CROP_PIXELS), interpolation=how), np.uint8)


def _data_uri(image: Image) -> str:
    _, encoded = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 85))
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _left_out(measured: Measured) -> str:
    if not measured.left_out:
        return ""
    rows = "".join(
        f"<tr><td class='reason'>{_text(item.name)}</td><td class='reason'>{_text(item.reason)}</td></tr>"
        for item in measured.left_out
    )
    note = f"<p>{measured.pairs_left_out:,} pairs have such a photo.</p>" if measured.pairs_left_out else ""
    return f"<h2>Left out</h2>{note}<div class='wide'><table><tr><th>photo</th><th>reason</th></tr>{rows}</table></div>"
