"""Output to terminals, pipes and logs, in which untrusted text can neither control a terminal nor forge a line.

Ids, file names, host names and messages of servers are untrusted. Every command prints with `line`, `problem` and
`document`; logs are formatted with `printable` and `json_text`; messages of errors are made `printable`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import Any, Literal, TextIO

# The first code points that need more than two, or more than four, hexadecimal digits.
_BYTE_END, _PLANE_END = 0x100, 0x10000
LONGEST_REPEATED = 200


def printable(text: str) -> str:
    r"""Return `text` with every non-printable character escaped as `\xNN`, `\uNNNN` or `\UNNNNNNNN`.

    These are control characters (C0, DEL, C1), line and paragraph separators, characters that change the direction of
    text or are invisible (Unicode categories Cc, Cf, Zl, Zp and unusual spaces), and lone surrogates.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def json_text(document: Any, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """Return `document` as JSON in which every non-printable character is escaped."""
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only, default=str)
    if text.isprintable():
        return text
    # json.dumps has escaped the line feeds within strings: the remaining ones are layout.
    return "".join(_json_escaped(character) if character != "\n" else character for character in text)


def may_be_payload(text: str) -> bool:
    """Return whether an argument looks like the payload of a job, which may hold a selfie, rather than a path or id."""
    return len(text) > LONGEST_REPEATED or '"' in text or text.lstrip().startswith(("{", "["))


def has_credentials(text: str) -> bool:
    """Return whether a text looks like a URL with a user, a password or both."""
    # A path has one slash less: `Path` removes the second one.
    return ":/" in text and ("@" in text or "password" in text.lower())


def repeated(text: str, *, quoted: bool = False) -> str:
    """Return an argument or a variable's value as messages repeat it: only the length of what may be secret."""
    if _may_be_secret(text):
        return f"({len(text)} characters, not repeated)"
    return repr(text) if quoted else text


def without_secrets(message: str, arguments: Iterable[str]) -> str:
    """Return the message of an error without those `arguments` that may be payloads, or have credentials."""
    given = [text for argument in arguments for text in (argument, argument.partition("=")[2]) if _may_be_secret(text)]
    texts = [text for one in given for text in (one, str(PurePath(one)))]
    return redacted(message, [shown for text in texts for shown in (printable(text), repr(text)[1:-1])])


def _may_be_secret(text: str) -> bool:
    return may_be_payload(text) or has_credentials(text)


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can encode `text`: not lone surrogates, as which Python reads invalid bytes of arguments."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without the `secrets`, which a server may have repeated."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "…")
    return text


def line(text: str = "") -> None:
    """Print one line on standard output; a line break within `text` is escaped."""
    _write(printable(text))


def lines(texts: Iterable[str]) -> None:
    """Print each text as one line on standard output."""
    for text in texts:
        line(text)


def problem(text: str) -> None:
    """Print one line on standard error: progress and errors, which do not belong in a pipe."""
    if (stream := _stream("stderr")) is None:  # `print` would write to standard output instead
        return
    with suppress(OSError):  # closed or full: this cannot be reported anywhere
        print(f"{printable(text)}\n", end="", file=stream, flush=True)


def document(content: Any, *, indent: int | None = None) -> None:
    """Print `content` as one JSON document on standard output."""
    _write(json_text(content, indent=indent))


def script(text: str) -> None:
    """Print `text` of this program, which has several lines, as it is."""
    _write(text, end="")


def raw(data: bytes) -> None:
    """Write `data` to standard output as it is."""
    if (stream := _stream("stdout")) is not None:
        with _reported(stream):
            stream.buffer.write(data)
            stream.flush()


def is_terminal(name: Literal["stdin", "stdout", "stderr"]) -> bool:
    """Return whether a stream is a terminal; false if it was closed when the process started."""
    stream = _stream(name)
    return stream is not None and stream.isatty()


def _stream(name: str) -> TextIO | None:
    """Return a stream of `sys`, which is None if it was closed when the process started."""
    stream: TextIO | None = getattr(sys, name)
    return stream


def _write(text: str, *, end: str = "\n") -> None:
    """Print `text`. If standard output is closed or full, the command continues and exits with its own exit code."""
    if (stream := _stream("stdout")) is not None:
        with _reported(stream):
            # In one write, even if Python does not buffer: `kubectl exec` joins standard output and error as they come.
            print(f"{text}{end}", end="", file=stream, flush=True)


@contextmanager
def _reported(stream: TextIO) -> Iterator[None]:
    """Report a write to standard output that fails in the block, and discard what follows."""
    try:
        yield
    except OSError as error:
        # Python would report it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader of a pipe may close it early, as `head` does
            problem(f"spottmee-worker: cannot write to standard output: {error.strerror}")


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    form, digits = ("x", 2) if code < _BYTE_END else ("u", 4) if code < _PLANE_END else ("U", 8)
    return f"\\{form}{code:0{digits}x}"


def _json_escaped(character: str) -> str:
    if character.isprintable():
        return character
    data = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[at : at + 2].hex()}" for at in range(0, len(data), 2))
