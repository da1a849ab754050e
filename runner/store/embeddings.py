"""Table `faces`: the embeddings of every photo, and the comparison with a selfie."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg.halfvec import HalfVectorBinaryDumper
from psycopg import Connection, sql

from runner.store.session import Session

EMBEDDING_SIZE = 512

_DELETE = "DELETE FROM {faces}.faces WHERE photo_id = ANY(%b)"
_DELETE_OF_MODEL = "DELETE FROM {faces}.faces WHERE photo_id = ANY(%b) AND model = %s"
_INSERT = """
INSERT INTO {faces}.faces (photo_id, model, face_index, embedding, box, score, landmarks)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""

# One index search per photo, and one row in the result, whatever length the planner assumes for the array: of five
# measured forms this one is the fastest and depends least on the number of faces in the selfie. The parameters are sent
# in binary: 20,000 ids take 7 ms, as text 40 ms.
_MATCH = """
WITH selfie AS MATERIALIZED (SELECT ARRAY[{selfie}] AS embeddings)
SELECT count(best), json_object_agg(id, best) FILTER (WHERE best > %b::float8)
  FROM selfie,
       (SELECT DISTINCT id FROM unnest(%b::text[]) AS id) AS album,
       LATERAL (SELECT max(least(-(f.embedding OPERATOR({vector}.<#>) face), 1)) AS best
                  FROM {faces}.faces AS f, unnest(selfie.embeddings) AS face
                 WHERE f.photo_id = album.id AND f.model = %s) AS photo
"""


# For the few matching photos: which of their faces matches which face of the selfie.
_BEST = """
WITH selfie AS MATERIALIZED (SELECT ARRAY[{selfie}] AS embeddings)
SELECT DISTINCT ON (f.photo_id) f.photo_id, f.face_index, f.box, face.place - 1
  FROM selfie, {faces}.faces AS f, unnest(selfie.embeddings) WITH ORDINALITY AS face (embedding, place)
 WHERE f.photo_id = ANY(%b::text[]) AND f.model = %s
 ORDER BY f.photo_id, f.embedding OPERATOR({vector}.<#>) face.embedding, f.face_index, face.place
"""


class FaceLike(Protocol):
    """The attributes of a face that are stored: see `runner.faces.engine.Face`."""

    @property
    def box(self) -> NDArray[np.float32]:
        """x1, y1, x2, y2 in pixels of the upright photo."""

    @property
    def score(self) -> float:
        """The detector's confidence, 0 to 1."""

    @property
    def landmarks(self) -> NDArray[np.float32]:
        """Five points, shape (5, 2), in pixels of the upright photo."""

    @property
    def embedding(self) -> NDArray[np.float32]:
        """512 numbers, L2-normalised."""


class MatchedFace(NamedTuple):
    """The face of a photo that is most similar to one of the selfie's.

    `face_index` is its index among the faces of the photo, and `box` x1, y1, x2, y2 in pixels of the upright photo,
    None for faces imported from the replaced worker. `selfie_face` is the index of the matching face of the selfie.
    """

    face_index: int
    box: tuple[float, ...] | None
    selfie_face: int


class Matches(NamedTuple):
    """The result of a comparison.

    `scores` maps each photo above the threshold to its best cosine similarity (-1 to 1), in no order;
    `with_embeddings` is how many photos of the album have embeddings of the model. `faces` has the best face of each
    photo above the threshold, unless it has been deleted in the meantime.
    """

    scores: dict[str, float]
    with_embeddings: int
    faces: dict[str, MatchedFace]


def register(connection: Connection) -> None:
    """Let `connection` send half vectors in binary format.

    pgvector's own `register_vector` takes four round trips for the numbers of its types, which differ between
    databases. They are not needed here: statements cast parameters to halfvec, and none returns one.
    """
    connection.adapters.register_dumper(HalfVector, HalfVectorBinaryDumper)


class EmbeddingStore:
    """The embeddings of one model, over a connection that may be shared.

    Each method takes part in the caller's transaction, or runs in one of its own. Errors of psycopg are raised as
    they are.
    """

    def __init__(self, connection: Session, model: str) -> None:
        self.connection = connection
        self.model = model
        register(connection)

    def replace(self, faces_by_photo: Mapping[str, Sequence[FaceLike]]) -> None:
        """Replace the stored faces of those photos and this model by `faces_by_photo`; no faces delete the old ones.

        Raises `psycopg.IntegrityError` or `psycopg.DataError` if an embedding is not finite or not normalised: the
        database rejects it.
        """
        rows = [
            (
                photo_id,
                self.model,
                index,
                HalfVector(face.embedding),
                [float(value) for value in face.box],
                float(face.score),
                [[float(x), float(y)] for x, y in face.landmarks],
            )
            for photo_id, faces in faces_by_photo.items()
            for index, face in enumerate(faces)
        ]
        with self.connection.bounded():
            self.connection.query(_DELETE_OF_MODEL, (sorted(faces_by_photo), self.model))
            insert = self.connection.schemas.statement(_INSERT).as_bytes(self.connection)
            for row in rows:
                self.connection.execute(insert, row)

    def delete(self, photo_ids: Iterable[str]) -> int:
        """Delete the faces of the photos, of every model, and return how many there were."""
        return self.connection.query(_DELETE, (sorted(photo_ids),)).rowcount

    def match(
        self,
        selfie: NDArray[np.float32] | Sequence[NDArray[np.float32]],
        stored_ids: Collection[str],
        threshold: float,
    ) -> Matches:
        """Compare every face of a selfie with every face of the photos `stored_ids`, in one statement.

        A second statement finds the best face of each photo that matches.

        `selfie` has the shape (n, 512), L2-normalised; a row that is zero or not finite is not a face and is left out.
        A photo matches when the cosine similarity of any pair is strictly greater than `threshold`. Similarities are
        those of half-precision embeddings: within 0.0001 of the exact ones.
        """
        selfie = np.asarray(selfie, dtype=np.float32).reshape(-1, EMBEDDING_SIZE)
        norms = np.linalg.norm(selfie, axis=1)
        places = np.flatnonzero(np.isfinite(norms) & (norms > 0))
        faces = [HalfVector(selfie[place]) for place in places]
        # Without a face there would be no pair, and no count of photos: any vector provides one.
        compared = faces or [HalfVector(np.zeros(EMBEDDING_SIZE))]
        vectors = [self.connection.schemas.statement("%b::{vector}.halfvec")] * len(compared)
        row = self.connection.query(
            _MATCH, [*compared, threshold, list(stored_ids), self.model], selfie=sql.SQL(", ").join(vectors)
        ).fetchone()
        assert row is not None  # noqa: S101 - an aggregate without GROUP BY returns exactly one row
        scores: dict[str, float] = (row[1] or {}) if faces else {}
        if not scores:
            return Matches(scores, row[0], {})
        rows = self.connection.query(
            _BEST, [*compared, list(scores), self.model], selfie=sql.SQL(", ").join(vectors)
        ).fetchall()
        best = {
            photo_id: MatchedFace(index, tuple(box) if box is not None else None, int(places[place]))
            for photo_id, index, box, place in rows
        }
        return Matches(scores, row[0], best)
