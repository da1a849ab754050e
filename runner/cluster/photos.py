"""How many photos lack embeddings of the current model, for `status` and `doctor`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from runner.cluster.queues import PATIENCE_SECONDS
from runner.errors import ModelError
from runner.faces.model_name import model_name
from runner.settings import Settings
from runner.store import schema
from runner.store.database import embeddings_database, photos_database, retrying
from runner.store.photos import PhotoTable
from runner.store.unprocessed import Missing, count_missing

APPLICATION_NAME = "spottmee-worker status"
COUNT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PhotoState:
    """How many photos are READY without embeddings of `model`; a lower bound if the count is not `complete`."""

    model: str
    without_embeddings: int
    complete: bool

    def __str__(self) -> str:
        at_least = "" if self.complete else "at least "
        advice = ": spottmee-worker reprocess" if self.without_embeddings else ""
        return f"{at_least}{self.without_embeddings} photos are READY without embeddings of {self.model}{advice}"


def read_photos(settings: Settings, *, seconds: float = COUNT_SECONDS) -> PhotoState | None:
    """Count for about `seconds`; None if the settings have no database, or there is no model pack.

    Raises `DatabaseUnreachableError`, `SettingsError` and `SchemaError`.
    """
    if not settings.database_url:
        return None
    try:
        model = model_name(settings.model_dir)
    except ModelError:
        return None
    with (
        closing(photos_database(settings, APPLICATION_NAME)) as photos,
        closing(embeddings_database(settings, APPLICATION_NAME)) as embeddings,
    ):

        def count() -> Missing:
            PhotoTable(photos.connection).check()
            schema.check(embeddings.connection)
            return count_missing(photos.connection, embeddings.connection, model, seconds=seconds)

        found = retrying(count, [photos, embeddings], seconds=min(settings.connect_timeout_seconds, PATIENCE_SECONDS))
    return PhotoState(model, found.count, found.complete)
