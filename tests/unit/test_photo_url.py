"""Templates of the URLs of photos."""

from __future__ import annotations

import pytest

from runner.errors import SettingsError
from runner.photo_url import UrlTemplate
from runner.settings import load


def test_a_url_is_filled_in_without_encoding() -> None:
    template = UrlTemplate.parse("https://h/B/albums/{album_id}/{normalized_name}?{{x}}={id}")
    assert template.columns == ("album_id", "normalized_name", "id")
    row = {"album_id": "a b", "normalized_name": "é #1?{id}%20.JPG", "id": "7"}
    assert template.url(row) == "https://h/B/albums/a b/é #1?{id}%20.JPG?{x}=7"


@pytest.mark.parametrize("value", ["", None])
def test_a_photo_with_an_empty_column_has_no_url(value: str | None) -> None:
    assert UrlTemplate.parse("http://h/{a}/{b}").url({"a": "x", "b": value}) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "https://h/fixed", "https://h/{}", "https://h/{0}", "https://h/{a", "https://h/a}", "https://h/{a!r}",
        "https://h/{a:>9}", "https://h/{a.__class__}", "https://h/{a[0]}", "https://{a}/b", "{a}", "ftp://h/{a}",
        "https://u:hunter2@h/{a}", "https:///{a}", "https://h{a}", "https://h /{a}", "https://h/{a b}",
    ],
)  # fmt: skip
def test_an_invalid_template_is_rejected_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"brace|begin|column") as error:
        UrlTemplate.parse(text)
    assert "hunter2" not in str(error.value)
    if text:
        with pytest.raises(SettingsError, match="RUNNER_PHOTO_URL") as refused:
            load({"RUNNER_PHOTO_URL": text}, required=())
        assert "hunter2" not in str(refused.value)
