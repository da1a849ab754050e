"""A whole run over photos and selfies in every supported format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from demo.album import PEOPLE, portrait
from demo.images import ImageServer
from runner.bake.samples import sample_images
from tests.support.samples import encoded, stored

if TYPE_CHECKING:
    from tests.support.run_tools import Service

OPTIONS = {"JPEG": {"quality": 92}, "WEBP": {"quality": 92}, "AVIF": {"quality": 85}}
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
HEIC = stored("portrait.heif")  # of someone else, and turned by 90°


@pytest.fixture(scope="module")
def ada() -> dict[str, bytes]:
    """One portrait in every format."""
    source, box = PEOPLE["Ada"]
    image = Image.fromarray(np.ascontiguousarray(portrait(sample_images()[source], box)[..., ::-1]))
    return {kind: encoded(image, kind, **OPTIONS.get(kind, {})) for kind in FORMATS}


@pytest.fixture(scope="module")
def server(ada: dict[str, bytes]) -> Iterator[ImageServer]:
    with ImageServer({**ada, "HEIC": HEIC}) as found:
        yield found


def test_photos_and_selfies_of_every_format_match(service: Service, server: ImageServer, ada: dict[str, bytes]) -> None:
    photos = service.api.upload({name: server.url(name) for name in (*FORMATS, "HEIC")})
    service.run()
    assert {name: service.status(photo) for name, photo in photos.items()} == dict.fromkeys(photos, "READY")
    assert {name: service.faces(photo) for name, photo in photos.items()} == dict.fromkeys(photos, 1)
    answers = {name: service.api.compare(data, list(photos.values())) for name, data in ada.items()}
    other = service.api.compare(HEIC, list(photos.values()))
    ended = service.run()
    assert ended.summary["succeeded"] == len(answers) + 1
    of_ada = [photo for name, photo in photos.items() if name != "HEIC"]
    assert {name: service.api.result(answer) for name, answer in answers.items()} == dict.fromkeys(answers, of_ada)
    assert service.api.result(other) == [photos["HEIC"]]
