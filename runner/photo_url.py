"""Where the API stores a photo: a URL with columns of its table in braces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import NamedTuple

_COLUMN = r"[A-Za-z_][A-Za-z0-9_]{0,62}"
_BEGINNING = r"https?://[^/?#@\\\s{}]+/"


class UrlTemplate(NamedTuple):
    """A URL in parts: `literals[i]` precedes the value of `columns[i]`, and the last literal ends the URL."""

    literals: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> UrlTemplate:
        """Parse `text`; `{{` and `}}` are literal braces. Raises `ValueError`, whose message does not repeat `text`."""
        literals, columns = [""], list[str]()
        try:
            pieces = list(Formatter().parse(text))
        except ValueError:
            message = "has a brace that is not closed or not opened: columns are written {album_id}, braces {{ and }}"
            raise ValueError(message) from None
        for literal, name, spec, conversion in pieces:
            literals[-1] += literal
            if name is None:
                continue
            if spec or conversion or not re.fullmatch(_COLUMN, name):
                message = "has something other than the name of a column in braces: write {album_id}"
                raise ValueError(message)
            columns.append(name)
            literals.append("")
        if not re.match(_BEGINNING, literals[0]):
            message = "must begin with http:// or https:// and a host without user, password and columns"
            raise ValueError(message)
        if not columns:
            message = "names no column of the API's table: every photo would have the same URL"
            raise ValueError(message)
        return cls(tuple(literals), tuple(columns))

    def url(self, row: Mapping[str, str | None]) -> str | None:
        """Return the URL of a photo, as the API writes it: not encoded. None if one of the columns is empty."""
        values = [row[name] for name in self.columns]
        if not all(values):
            return None
        return "".join(f"{literal}{value or ''}" for literal, value in zip(self.literals, (*values, ""), strict=True))
