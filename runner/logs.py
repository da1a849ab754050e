"""The log of a run: JSON lines on standard error, or text where a person reads along on a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from runner.errors import place
from runner.output import json_text, printable

LOGGER_NAME = "spottmee"
# Inside a pod every line says where it comes from; the chart sets these from the downward API.
_PLACE = {"pod": "POD_NAME", "job": "JOB_NAME", "node": "NODE_NAME"}
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


def configure(log_format: str, level: str) -> logging.Logger:
    """Return the project's logger, writing to standard error in `log_format` (json, text or auto)."""
    logger = logging.getLogger(LOGGER_NAME)
    handler = logging.StreamHandler(sys.stderr)
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    place = {name: os.environ[variable] for name, variable in _PLACE.items() if os.environ.get(variable)}
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter(place))
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    return logger


def logger() -> logging.Logger:
    """Return the project's logger."""
    return logging.getLogger(LOGGER_NAME)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD and value is not None}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, event, the place, and what the event carries."""

    def __init__(self, place: dict[str, str]) -> None:
        super().__init__()
        self._place = place

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **self._place,
            **_extras(record),
        }
        if error := _error(record):
            line["error"] = error
        return json_text(line, ascii_only=False)


class TextFormatter(logging.Formatter):
    """A short line for people: time of day, level where it matters, event, and its values."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname} "
        values = "  ".join(f"{key}={_value(value)}" for key, value in _extras(record).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{moment} {level}{printable(record.getMessage())}  {values}"
        if error := _error(record):
            line = f"{line}  error={error}"
        return line.rstrip()


def _error(record: logging.LogRecord) -> str | None:
    """Return type and place of the exception that a record carries. Its message may hold anything."""
    error = record.exc_info[1] if record.exc_info else None
    return None if error is None else f"{type(error).__name__} at {place(error)}"


def _value(value: object) -> str:
    """Return `value` as it stands behind its name: in quotation marks where it could be read as another value."""
    text = printable(str(value))
    return json_text(text, ascii_only=False) if "  " in text or "=" in text or text.startswith('"') else text
