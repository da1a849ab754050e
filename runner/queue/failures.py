"""Messages for errors of Redis: the reason in one line and, for a refusal, what has to be changed.

This does not import redis-py, which takes 130 ms: the messages are needed by modules that start without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from runner.errors import MissingRightError, SettingsError
from runner.output import redacted

# The patterns are compiled after a first error, not at each start.
# A refused command of a script, as `call` in common.lua reports it, and what servers add before and after it.
_IN_SCRIPT = r"\b([A-Z]+) on (.+?): (?:@user_script: ?\d+: )?-?(?:ERR )?(.*)"
_AFTER_SCRIPT = r" script: (?:[0-9a-f]{40}, )?on @user_script:\d+\.?$"
_KEY_REFUSED = r"\baccess (?:a key|one of the keys|at least one of the keys)\b"
_COMMAND_REFUSED = r"\brun (?:the '([^']+)'|this) command\b"
_FAMILY = r"\{?face_embeddings:|match-result:"


def reason(error: Exception) -> str:
    """Return one short line. redis-py's messages contain an address, and credentials only if they repeat a command."""
    line = re.sub(_AFTER_SCRIPT, "", (str(error) or type(error).__name__).splitlines()[0])
    if refused := re.search(_IN_SCRIPT, line):
        line = f"{refused[1]} on {refused[2]}: {refused[3]}"
    return re.split(r",? with args beginning with|, but got |No targets were found to execute", line)[0][:200]


def refusal(error: Exception, sent: Sequence[Any], secrets: Sequence[str]) -> SettingsError:
    """Return what has to be changed if Redis refuses a command permanently.

    `sent` is the command as redis-py takes it: if its keys are refused, the message has their patterns. `secrets` are
    removed from the message.
    """
    grant, shown = _missing_right(str(error), sent), redacted(reason(error), secrets)
    if grant:
        return MissingRightError(grant, shown)
    return SettingsError(f"REDIS_URL: {_advice(error)} ({shown})")


_PAGE = "docs/reference/redis-keys.md"
# What to do about an error that contains any of the texts; the first match is used.
_ADVICE = (
    (
        ("Hostname mismatch", "IP address mismatch"),
        "the server's certificate is for another host name: use a name that is in it, or ?ssl_check_hostname=false",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "the server's certificate is not trusted; name its authority with ?ssl_ca_certs=FILE",
    ),
    (("CERTIFICATE_REQUIRED",), "the server requires a client certificate: ?ssl_certfile=FILE&ssl_keyfile=FILE"),
    (
        ("WRONG_VERSION_NUMBER",),
        "the server does not speak TLS on this port: use a scheme without TLS (redis://), or its port for TLS",
    ),
    (
        ("unknown command",),
        f"the server lacks a command that is needed, which was renamed or disabled: {_PAGE} has all of them",
    ),
    (
        ("PEM lib", "NO_CERTIFICATE_OR_CRL_FOUND", "KEY_VALUES_MISMATCH"),
        "a file of ssl_ca_certs, ssl_certfile or ssl_keyfile is not in PEM format, or is not the certificate's key",
    ),
    (("No cipher can be selected",), "ssl_ciphers names no cipher that is available"),
    (("AF_UNIX path too long",), "the path of the socket is too long"),
    (("DB index", "SELECT is not allowed"), "the server has no such database"),
)


def _advice(error: Exception) -> str:
    found = (advice for texts, advice in _ADVICE if any(text in str(error) for text in texts))
    return next(found, f"Redis refuses the user, the password or a command; {_PAGE} has the ACL that suffices")


def _missing_right(text: str, sent: Sequence[Any]) -> str:
    """Return what the ACL of the Redis user has to grant; empty if that is not the cause."""
    in_script = re.search(_IN_SCRIPT, text)
    if re.search(_KEY_REFUSED, text):
        found = [in_script[2]] if in_script else _keys_of(sent)
        return " ".join(sorted({f"~{family[0]}*" for key in found if (family := re.match(_FAMILY, key))}))
    refused = re.search(_COMMAND_REFUSED, text)
    # Not the command that was sent: a command that opens its connection (SELECT) may have been refused instead.
    command = refused and (refused[1] or (in_script and in_script[1]))
    return f"+{command.lower()}" if command else ""


def _keys_of(sent: Sequence[Any]) -> Sequence[str]:
    words = [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in sent]
    if words[:1] == ["EVAL"]:
        return words[3 : 3 + int(words[2])]
    return words[1:2]
