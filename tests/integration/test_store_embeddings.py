"""Storing embeddings and comparing selfies with them, on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import psycopg
import pytest

from runner.store.embeddings import EmbeddingStore
from tests.support.store_tools import MODEL, Face, faces, opened, resembling, round_trips, stored_faces, unit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from runner.store.session import Session

ODD_IDS = [
    "photo1",
    "photo10",
    "photo_",
    "%",
    "_",
    "{a,b}",
    'quo"te',
    "back\\slash",
    "NULL",
    "null",
    "",
    " ",
    "été",
    "e\u0301te\u0301",
    "🎉",
    "a" * 256,
    "漢" * 256,
    "\u200b\u202e",
    "new\nline",
    "'; DROP TABLE faces; --",
    "%s",
    "%(x)s",
    "{0}",
]


@pytest.fixture
def connection(database_url: str) -> Iterator[Session]:
    with opened(database_url) as connection:
        yield connection


@pytest.fixture
def store(connection: Session) -> EmbeddingStore:
    return EmbeddingStore(connection, MODEL)


def selfie(*found: Face) -> NDArray[np.float32]:
    return np.stack([face.embedding for face in found])


def test_stored_faces_equal_the_detected_faces(store: EmbeddingStore) -> None:
    found = faces(3)
    store.replace({"a": found})
    rows = store.connection.execute(
        "SELECT face_index, embedding::real[], box, score, landmarks, created_at > now() - interval '1 minute'"
        " FROM faces ORDER BY face_index"
    ).fetchall()
    assert [row[0] for row in rows] == [0, 1, 2]
    for face, (_, embedding, box, score, landmarks, recent) in zip(found, rows, strict=True):
        assert np.array_equal(np.array(embedding, np.float32), face.embedding.astype(np.float16))
        assert np.array_equal(np.array(box, np.float32), face.box)
        assert np.array_equal(np.array(landmarks, np.float32), face.landmarks)
        assert score == pytest.approx(face.score)
        assert recent


def test_processing_a_photo_again_replaces_its_faces(store: EmbeddingStore) -> None:
    store.replace({"a": faces(3), "b": faces(2, seed=1)})
    store.replace({"a": faces(1, seed=2)})
    assert stored_faces(store.connection) == [("a", 0), ("b", 0), ("b", 1)]
    store.replace({"a": [], "b": []})
    assert stored_faces(store.connection) == []


def test_other_models_are_neither_replaced_nor_compared(store: EmbeddingStore) -> None:
    other = EmbeddingStore(store.connection, "another")
    found = faces(1)
    other.replace({"a": found})
    store.replace({"a": []})
    assert other.match(selfie(*found), ["a"], 0.5).scores == {"a": pytest.approx(1, abs=1e-3)}
    nothing = store.match(selfie(*found), ["a"], 0.5)
    assert (nothing.scores, nothing.with_embeddings) == ({}, 0)


def test_deleting_a_photo_deletes_every_model(store: EmbeddingStore) -> None:
    EmbeddingStore(store.connection, "another").replace({"a": faces(2)})
    store.replace({"a": faces(3), "b": faces(1)})
    assert store.delete(["a", "unknown"]) == 5
    assert store.delete([]) == 0
    assert store.connection.execute("SELECT photo_id, model FROM faces").fetchall() == [("b", MODEL)]


def test_a_replacement_is_part_of_the_callers_transaction(store: EmbeddingStore) -> None:
    store.replace({"a": faces(1)})
    with store.connection.transaction(force_rollback=True):
        store.replace({"a": faces(3), "b": faces(3)})
    assert stored_faces(store.connection) == [("a", 0)]


@pytest.mark.parametrize("similarity", [-0.9, -0.5, 0.0, 0.3, 0.499, 0.501, 0.75, 0.99])
def test_scores_are_cosine_similarities(store: EmbeddingStore, similarity: float) -> None:
    person = faces(1)[0]
    for seed in range(20):
        photo = resembling(person, similarity, seed)
        store.replace({"a": [photo]})
        exact = float(person.embedding.astype(np.float64) @ photo.embedding.astype(np.float64))
        scores = store.match(selfie(person), ["a"], -1).scores
        assert scores["a"] == pytest.approx(exact, abs=1e-4)
        assert ("a" in store.match(selfie(person), ["a"], 0.5).scores) == (exact > 0.5)


def test_scores_and_boxes_are_exact_whatever_precision_the_role_has(store: EmbeddingStore) -> None:
    person = faces(1)[0]
    store.connection.execute("SET extra_float_digits = -15")
    store.replace({"a": [resembling(person, 0.8765)]})
    matches = store.match([person.embedding], ["a"], 0.5)
    assert matches.scores["a"] == pytest.approx(0.8765, abs=1e-4)
    assert matches.faces["a"].box == (1, 2, 30.5, 40)


def test_a_photo_matches_only_strictly_above_the_threshold(store: EmbeddingStore) -> None:
    # Powers of two survive half precision, so this similarity is exactly a half.
    one, other = np.zeros(512, np.float32), np.zeros(512, np.float32)
    one[0] = 1
    other[:4] = 0.5
    found = faces(1)[0]
    found.embedding = other
    store.replace({"a": [found]})
    assert store.match(one, ["a"], 0.5).scores == {}
    assert store.match(one, ["a"], np.nextafter(0.5, 0)).scores == {"a": 0.5}
    assert store.match(other, ["a"], 1).scores == {}
    assert store.match(-one, ["a"], -0.5).scores == {}
    assert store.match(-one, ["a"], -1).scores == {"a": -0.5}


def test_the_best_pair_of_faces_counts(store: EmbeddingStore) -> None:
    first, second = faces(2, seed=5)
    group = [resembling(first, 0.6, 1), resembling(second, 0.8, 2), *faces(5, seed=6)]
    store.replace({"group": group, "one": [resembling(first, 0.7, 3)], "none": faces(3, seed=7), "empty": []})
    found = store.match(selfie(first, second), ["none", "one", "group", "empty", "unknown"], 0.5)
    assert found.scores == {"group": pytest.approx(0.8, abs=1e-3), "one": pytest.approx(0.7, abs=1e-3)}
    assert found.with_embeddings == 3


def test_no_score_exceeds_one(store: EmbeddingStore) -> None:
    for seed in range(20):
        person = faces(1, seed)[0]
        store.replace({"a": [person]})
        assert store.match(selfie(person), ["a"], 1).scores == {}
        assert store.match(selfie(person), ["a"], 0.99).scores["a"] <= 1


@pytest.mark.parametrize("threshold", [-1.0, -2.0, 0.0, 1.0, 2.0, 1e300, -1e300])
def test_any_finite_threshold_is_accepted(store: EmbeddingStore, threshold: float) -> None:
    store.replace({"a": faces(1)})
    matched = store.match(selfie(*faces(1, seed=1)), ["a"], threshold).scores
    assert bool(matched) == (threshold < -0.2) or threshold == 0.0


def test_a_vector_that_is_not_a_face_matches_nothing(store: EmbeddingStore) -> None:
    person = faces(1)[0]
    store.replace({"a": [person]})
    broken = np.zeros((4, 512), np.float32)
    broken[1] = np.nan
    broken[2] = np.inf
    broken[3, 7] = -np.inf
    nothing = store.match(broken, ["a"], -1)
    assert (nothing.scores, nothing.with_embeddings) == ({}, 1)
    assert store.match(np.zeros((0, 512), np.float32), ["a"], -1) == nothing
    among = np.concatenate([broken, person.embedding[None]])
    assert store.match(among, ["a"], 0.9).scores == {"a": pytest.approx(1, abs=1e-3)}


@pytest.mark.parametrize("factor", [np.nan, np.inf, 0.0, 1e-9, 2.0, 0.5])
def test_the_database_refuses_embeddings_that_are_not_normalised(store: EmbeddingStore, factor: float) -> None:
    found = faces(1)
    with np.errstate(invalid="ignore"):
        found[0].embedding = found[0].embedding * np.float32(factor)
    with pytest.raises((psycopg.DataError, psycopg.IntegrityError)):
        store.replace({"a": found})
    assert stored_faces(store.connection) == []
    assert store.connection.execute("SELECT 1").fetchone() == (1,)


def test_ids_are_compared_byte_by_byte(store: EmbeddingStore) -> None:
    people = faces(len(ODD_IDS), seed=9)
    store.replace({photo_id: [face] for photo_id, face in zip(ODD_IDS, people, strict=True)})
    for photo_id, face in zip(ODD_IDS, people, strict=True):
        assert set(store.match(selfie(face), ODD_IDS, 0.5).scores) == {photo_id}
        assert set(store.match(selfie(face), [photo_id], 0.5).scores) == {photo_id}
        others = [other for other in ODD_IDS if other != photo_id]
        assert store.match(selfie(face), others, 0.5).scores == {}
    assert store.match(selfie(people[0]), ODD_IDS, -1).with_embeddings == len(ODD_IDS)
    assert store.delete(ODD_IDS) == len(ODD_IDS)


def test_repeated_ids_count_once(store: EmbeddingStore) -> None:
    person = faces(1)
    store.replace({"a": person, "b": faces(1, seed=1)})
    found = store.match(selfie(*person), ["a", "b", "a", "a", "b", "c", "c"], 0.5)
    assert found.with_embeddings == 2
    assert set(found.scores) == {"a"}


def test_an_album_without_photos_matches_nothing(store: EmbeddingStore) -> None:
    found = store.match(selfie(*faces(1)), [], -1)
    assert (found.scores, found.with_embeddings) == ({}, 0)


def test_an_album_of_25000_photos_is_one_round_trip_and_its_matches_another(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    ids = [f"photo-{number:06d}" for number in range(25_000)]
    person = faces(1)[0]
    strangers = faces(2000, seed=3)
    mine = ids[::5000]
    with store.connection.transaction():
        store.replace({photo_id: [face] for photo_id, face in zip(ids[1:2001], strangers, strict=True)})
        store.replace({photo_id: [resembling(person, 0.8, seed)] for seed, photo_id in enumerate(mine)})
    trips, found = round_trips(store.connection, tmp_path / "trace", lambda: store.match(selfie(person), ids, 0.5))
    assert trips == 2
    assert set(found.scores) == set(found.faces) == set(mine)
    assert found.with_embeddings == len({*ids[1:2001], *mine})


def test_half_vectors_need_no_round_trip_of_their_own(connection: Session, tmp_path: Path) -> None:
    """Neither the first embeddings of a connection nor its first selfie: no type is looked up."""
    trips, store = round_trips(connection, tmp_path / "open", lambda: EmbeddingStore(connection, MODEL))
    assert trips == 0
    trips, _ = round_trips(connection, tmp_path / "match", lambda: store.match(selfie(*faces(1)), ["a"], 0.5))
    assert trips == 1


def test_a_selfie_of_many_faces(store: EmbeddingStore) -> None:
    crowd = faces(300, seed=4)
    store.replace({"a": [resembling(crowd[299], 0.7)], "b": faces(3, seed=5)})
    assert set(store.match(selfie(*crowd), ["a", "b"], 0.5).scores) == {"a"}


def test_a_list_of_embeddings_is_a_selfie_too(store: EmbeddingStore) -> None:
    person = faces(1)[0]
    store.replace({"a": [person]})
    assert set(store.match([person.embedding, faces(1, seed=8)[0].embedding], ["a"], 0.5).scores) == {"a"}


def test_scores_agree_with_numpy_over_random_albums(store: EmbeddingStore) -> None:
    rng = np.random.default_rng(11)
    centre = unit(rng.standard_normal((4, 512)))
    album = {}
    for number in range(200):
        near = centre[rng.integers(4, size=rng.integers(0, 5))]
        album[f"p{number}"] = [Face(row) for row in unit(near + rng.normal(0, 0.045, near.shape))]
    with store.connection.transaction():
        store.replace(album)
    probe = unit(centre[:2] + rng.normal(0, 0.045, (2, 512)))
    for threshold in (-1.0, 0.2, 0.4, 0.5, 0.6):
        exact = {
            photo_id: max(float(v) for face in found for v in probe @ face.embedding)
            for photo_id, found in album.items()
            if found
        }
        matches = store.match(probe, list(album), threshold)
        clear = {photo_id for photo_id, score in exact.items() if abs(score - threshold) > 2e-4}
        assert {k for k in matches.scores if k in clear} == {k for k in clear if exact[k] > threshold}
        assert matches.with_embeddings == len(exact)
        assert all(score == pytest.approx(exact[k], abs=1e-4) for k, score in matches.scores.items())
