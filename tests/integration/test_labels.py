"""The labelled photographs beside the checkout, if they are present: face counts and matches are exact."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from demo.images import ImageServer
from tests.support.shared_files import SHARED_PHOTOS

if TYPE_CHECKING:
    from tests.support.run_tools import Service


@pytest.mark.skipif(not SHARED_PHOTOS.exists(), reason="the labelled photographs (../shared/photos) are not here")
def test_face_counts_and_matches_are_as_labelled(service: Service) -> None:
    labels = json.loads((SHARED_PHOTOS / "labels.json").read_text())
    files = {path.name: path.read_bytes() for path in sorted((SHARED_PHOTOS / "album").iterdir())}
    with ImageServer(files) as server:
        photos = service.api.upload({name: server.url(name) for name in files})
        service.run()
    names = {photo_id: name for name, photo_id in photos.items()}
    assert {name: service.faces(photo_id) for name, photo_id in photos.items()} == labels["faces"]
    jobs = {
        name: service.api.compare(
            (SHARED_PHOTOS / "selfies" / name).read_bytes(), list(photos.values()), labels["threshold"]
        )
        for name in labels["matches"]
    }
    service.run()
    found = {name: sorted(names[photo_id] for photo_id in service.api.result(job) or []) for name, job in jobs.items()}
    assert found == {name: sorted(matches) for name, matches in labels["matches"].items()}
    assert service.leftovers() == {}
