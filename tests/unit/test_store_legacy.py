"""Reading the rows of the worker that was replaced."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.store.legacy import UnreadableRowError, parse_embedding, parse_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photo_0", ("photo", 0)),
        ("a_b_c_12", ("a_b_c", 12)),
        ("photo_1_0", ("photo_1", 0)),
        ("__3", ("_", 3)),
        ("%_7", ("%", 7)),
        ("été 🎉_32767", ("été 🎉", 32767)),
    ],
)
def test_names_are_split_at_the_last_underscore(name: str, expected: tuple[str, int]) -> None:
    assert parse_name(name) == expected


@pytest.mark.parametrize(
    "name", ["", "_", "photo", "photo_", "_3", "photo_x", "photo_-1", "photo_1.0", "p_32768", "p_٣"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnreadableRowError, match="name"):
        parse_name(name)


@given(st.text(min_size=1), st.integers(0, 32767))
def test_every_written_name_can_be_parsed(photo_id: str, index: int) -> None:
    assert parse_name(f"{photo_id}_{index}") == (photo_id, index)


@given(st.integers(0, 2**32), st.floats(1e-20, 1e20))
def test_every_written_embedding_can_be_parsed_and_is_normalised(seed: int, scale: float) -> None:
    values = (np.random.default_rng(seed).standard_normal(512) * scale).tolist()
    embedding = parse_embedding(str(values))
    assert embedding.shape == (512,)
    assert np.isclose(np.linalg.norm(embedding), 1)
    assert np.allclose(embedding * np.linalg.norm(values), values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "null",
        "{}",
        "[1, 2, 3]",
        "'a'",
        "__import__('os').system('true')",
        str([0.0] * 512),
        str([0.1] * 511),
        str([0.1] * 513),
        str([[0.1] * 512]),
        str([0.1] * 511 + ["a"]),
        json.dumps([0.1] * 511 + [None]),
        json.dumps([0.1] * 511 + [float("nan")]),
        json.dumps([0.1] * 511 + [float("inf")]),
        str([0.1] * 511 + [float("nan")]),
        "[" * 100_000,
        "[1" + "0" * 400 + ", 1" * 511 + "]",
    ],
)
def test_other_embeddings_are_refused(text: str) -> None:
    with pytest.raises(UnreadableRowError, match="embedding"):
        parse_embedding(text)
