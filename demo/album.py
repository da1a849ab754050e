"""The demonstration's album: photos and selfies of a party, made from photos that installed packages contain.

The expected results follow from how each picture is made (the positions of the people in the originals were noted by
hand), never from the engine. Nothing here is random: every run makes the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from runner.errors import SettingsError

Image = NDArray[np.uint8]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
# Person → the original and the bounding box of the face in it (x1, y1, x2, y2), noted by hand.
PEOPLE = {
    "Ada": ("t1.jpg", (745, 342, 847, 480)),
    "Ben": ("t1.jpg", (463, 266, 572, 415)),
    "Cleo": ("t1.jpg", (55, 260, 168, 397)),
    "Dan": ("t1.jpg", (906, 59, 1011, 206)),
    "Eve": ("t1.jpg", (1130, 272, 1227, 400)),
    "Finn": ("t1.jpg", (270, 144, 371, 270)),
    "Gil": ("gdp.jpg", (348, 115, 412, 206)),
    "Hal": ("gdp.jpg", (129, 38, 193, 117)),
    "Ivo": ("gdp.jpg", (266, 56, 328, 154)),
    "Yao": ("yaoming.jpg", (71, 73, 176, 212)),
}
_LEFT, _RIGHT = ("Ben", "Cleo", "Finn"), ("Ada", "Dan", "Eve")


@dataclass(frozen=True, slots=True)
class Photo:
    """A file of the album. `people` are the people it shows, None if unknown; `status` is the expected status."""

    name: str
    data: bytes = field(repr=False)
    people: frozenset[str] | None = None
    status: str = "READY"


@dataclass(frozen=True, slots=True)
class Selfie:
    """A guest's selfie; `person` is empty if unknown."""

    name: str
    data: bytes = field(repr=False)
    person: str = ""


@dataclass(frozen=True, slots=True)
class Album:
    """Photos and selfies; `expected` says whether the correct results are known."""

    photos: tuple[Photo, ...]
    selfies: tuple[Selfie, ...]
    expected: bool

    def expectation(self, selfie: Selfie) -> list[str]:
        """Return the names of the photos that show the person of the selfie, in album order."""
        return [photo.name for photo in self.photos if selfie.person in (photo.people or ())]


def own_album(folder: Path, selfies: Iterable[Path]) -> Album:
    """Return the images of `folder` and the selfies, unchanged. Raises `SettingsError`."""
    if not folder.is_dir():
        raise SettingsError(f"ALBUM={folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
    if not found:
        raise SettingsError(f"ALBUM={folder} contains no image ({', '.join(IMAGE_ENDINGS)})")
    photos = tuple(Photo(path.name, path.read_bytes()) for path in found)
    chosen = []
    for path in selfies:
        if not path.is_file():
            raise SettingsError(f"SELFIE={path} is not a file")
        chosen.append(Selfie(path.name, path.read_bytes()))
    if not chosen:
        raise SettingsError("ALBUM needs a SELFIE: give SELFIE=file too")
    return Album(photos, tuple(chosen), expected=False)


def sample_album(originals: Mapping[str, Image]) -> Album:
    """Return the sample album, made from `originals` (`runner.bake.samples.sample_images`)."""
    group, office, team, yao = (originals[name] for name in ("t1.jpg", "gdp.jpg", "players.jpg", "yaoming.jpg"))
    faces = {person: portrait(originals[source], box) for person, (source, box) in PEOPLE.items()}
    photos = [
        _photo("Everyone (1).jpg", jpeg(group), *_LEFT, *_RIGHT),
        _photo("everyone, phone held sideways.jpg", jpeg(_stored_sideways(group), orientation=6), *_LEFT, *_RIGHT),
        _photo("left side #2.jpg", jpeg(group[:, :620]), *_LEFT),
        _photo("right side?.jpg", jpeg(group[:, 660:]), *_RIGHT),
        _photo("twelve megapixels.jpg", jpeg(cv2.resize(group, (4240, 2936)), quality=88), *_LEFT, *_RIGHT),
        _photo("office.png", png(office), "Gil", "Hal", "Ivo"),
        _photo("офис, чёрно-белый.jpg", jpeg(cv2.cvtColor(office, cv2.COLOR_BGR2GRAY)), "Gil", "Hal", "Ivo"),
        _photo("team.jpg", jpeg(team), "Yao"),
        _photo("姚明.jpg", jpeg(yao), "Yao"),
        _photo("Ada with alpha.png", png(_with_alpha(faces["Ada"])), "Ada"),
        _photo("Ben 100%.webp", encoded(".webp", faces["Ben"], cv2.IMWRITE_WEBP_QUALITY, 85), "Ben"),
        _photo("Cleo & friends.jpg", jpeg(side_by_side(faces["Cleo"], faces["Gil"])), "Cleo", "Gil"),
        _photo("Dan at night.jpg", jpeg(_brightened(faces["Dan"], 0.55)), "Dan"),
        _photo("Eve upside down.jpg", jpeg(cv2.rotate(faces["Eve"], cv2.ROTATE_180), orientation=3), "Eve"),
        _photo("Finn, mirrored.jpg", jpeg(cv2.flip(faces["Finn"], 1)), "Finn"),
        _photo("Hal + Ben.jpg", jpeg(side_by_side(faces["Hal"], faces["Ben"])), "Hal", "Ben"),
        _photo("Ivo, from far away.jpg", jpeg(_far_away(faces["Ivo"])), "Ivo"),
        _photo("Yao 1.jpg", jpeg(_brightened(faces["Yao"], 1.25), quality=70), "Yao"),
        _photo("Ada tilted.jpg", jpeg(_tilted(faces["Ada"], 14)), "Ada"),
        _photo("Dan and Eve.png", png(side_by_side(faces["Dan"], faces["Eve"])), "Dan", "Eve"),
        _photo("Cleo, deep colour.png", png(faces["Cleo"].astype(np.uint16) * 257), "Cleo"),
        Photo("the lake.jpg", jpeg(landscape()), frozenset(), "NO_FACES_FOUND"),
        Photo("one pixel.png", png(np.full((1, 1, 3), 200, np.uint8)), frozenset(), "NO_FACES_FOUND"),
        Photo(
            "invitation.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', frozenset(), "FAILED"
        ),
        Photo("interrupted upload.jpg", jpeg(group)[:40_000], frozenset(), "FAILED"),
    ]
    selfies = [
        Selfie(f"{person}.jpg", jpeg(_tilted(_brightened(faces[person], 1.12), -6), quality=82), person)
        for person in PEOPLE
    ]
    return Album(tuple(photos), tuple(selfies), expected=True)


def _photo(name: str, data: bytes, *people: str) -> Photo:
    return Photo(name, data, frozenset(people))


# Making pictures


def portrait(image: Image, box: tuple[int, int, int, int], *, height: int = 640) -> Image:
    """Return the head and shoulders of the person whose face is at `box`, `height` pixels high."""
    x1, y1, x2, y2 = box
    width, tall = x2 - x1, y2 - y1
    top, bottom = max(0, int(y1 - 0.45 * tall)), min(image.shape[0], int(y2 + 0.6 * tall))
    left, right = max(0, int(x1 - 0.55 * width)), min(image.shape[1], int(x2 + 0.55 * width))
    part = image[top:bottom, left:right]
    return _resized(part, height / part.shape[0])


def side_by_side(*parts: Image) -> Image:
    """Return the pictures side by side, scaled to the height of the lowest."""
    height = min(part.shape[0] for part in parts)
    return np.asarray(np.hstack([_resized(part, height / part.shape[0])[:height] for part in parts]), np.uint8)


def landscape(width: int = 1200, height: int = 800) -> Image:
    """Return a synthetic picture of a lake under an evening sky, without people."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    horizon = height * (0.55 + 0.05 * np.sin(columns / 97) + 0.03 * np.sin(columns / 31))
    sky = np.stack([230 - rows / 8, 150 + rows / 9, 90 + rows / 4], axis=-1)
    lake = np.stack([150 - rows / 12, 110 - rows / 12, 60 - rows / 16], axis=-1) + 12 * np.sin(rows / 3)[..., None]
    hill = rows > horizon
    picture = np.where(hill[..., None], np.array([60, 90, 50]), sky)
    return np.clip(np.where((rows > 0.68 * height)[..., None], lake, picture), 0, 255).astype(np.uint8)


def _resized(image: Image, scale: float) -> Image:
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def _stored_sideways(image: Image) -> Image:
    """Return the picture as a phone held sideways stores it: to be shown rotated by 90 degrees clockwise."""
    return np.asarray(cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE), np.uint8)


def _tilted(image: Image, degrees: float) -> Image:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _brightened(image: Image, factor: float) -> Image:
    return np.asarray(np.clip(image.astype(np.float32) * factor, 0, 255), np.uint8)


def _far_away(image: Image) -> Image:
    scene = landscape()
    small = _resized(image, 260 / image.shape[0])
    scene[400 : 400 + small.shape[0], 500 : 500 + small.shape[1]] = small
    return scene


def _with_alpha(image: Image) -> Image:
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[:, :8] = 40
    return np.dstack([image, alpha])


def encoded(ending: str, image: NDArray[np.generic], *options: int) -> bytes:
    """Return `image` in the format of the file name extension `ending`."""
    done, data = cv2.imencode(ending, np.asarray(image), list(options))
    if not done:
        raise ValueError(f"OpenCV cannot encode {ending}")
    return data.tobytes()


def png(image: NDArray[np.generic]) -> bytes:
    """Return `image` as a PNG."""
    return encoded(".png", image)


def jpeg(image: NDArray[np.generic], *, quality: int = 92, orientation: int = 1) -> bytes:
    """Return `image` as a JPEG, with an EXIF orientation if it is not 1."""
    data = encoded(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, quality)
    if orientation == 1:
        return data
    directory = struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + directory
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
