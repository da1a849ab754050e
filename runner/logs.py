"""The log of a run on standard error: JSON lines, or text on a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from runner.errors import place
from runner.output import is_terminal, json_text, printable

LOGGER_NAME = "spottmee"
# Every line from a pod carries its origin; the chart sets these variables from the downward API.
_ORIGIN = {"pod": "POD_NAME", "job": "JOB_NAME", "node": "NODE_NAME"}
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


def configure(log_format: str, level: str) -> logging.Logger:
    """Return the project's logger, writing to standard error in `log_format` (json, text or auto)."""
    logger = logging.getLogger(LOGGER_NAME)
    handler = logging.StreamHandler(sys.stderr)
    as_text = log_format == "text" or (log_format == "auto" and is_terminal("stderr"))
    origin = {name: os.environ[variable] for name, variable in _ORIGIN.items() if os.environ.get(variable)}
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter(origin))
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
    """One JSON object per line: time (RFC 3339, UTC), level, event, origin, and the fields of the event."""

    def __init__(self, origin: dict[str, str]) -> None:
        super().__init__()
        self._origin = origin

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **self._origin,
            **_extras(record),
        }
        if exception := _exception(record):
            line["exception"] = exception
        return json_text(line, ascii_only=False)


class TextFormatter(logging.Formatter):
    """A short line for a terminal: time of day, level above info, event, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname} "
        values = "  ".join(f"{key}={_value(value)}" for key, value in _extras(record).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{moment} {level}{printable(record.getMessage())}  {values}"
        if exception := _exception(record):
            line = f"{line}  exception={exception}"
        return line.rstrip()


def _exception(record: logging.LogRecord) -> str | None:
    """Return the type and place of the exception of a record, without its message, which may hold a secret."""
    error = record.exc_info[1] if record.exc_info else None
    return None if error is None else f"{type(error).__name__} at {place(error)}"


def _value(value: object) -> str:
    """Return `value` as text, in quotation marks if it could be mistaken for several fields."""
    if isinstance(value, dict) and value.keys() == {"code", "message"}:
        value = f"{value['code']}: {value['message']}"
    text = printable(str(value))
    return json_text(text, ascii_only=False) if "  " in text or "=" in text or text.startswith('"') else text
