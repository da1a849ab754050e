"""The settings: environment and flags in, one frozen object out.

`Settings` is the only place that names a setting. Its fields carry the variable, the flag, the parser and the
sentence of help; the flags of the command line and docs/reference/settings.md are generated from them.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

from runner.errors import ENCODING_ADVICE, SettingsError
from runner.worker.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def default_model_dir() -> Path:
    """Return where `make setup` and the image put the baked pack: beside the interpreter's own files."""
    return Path(sys.prefix) / "share" / "spottmee-worker" / "model"


def _text(value: str) -> str:
    return value


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            message = f"must be a whole number from {low} to {high}"
            raise ValueError(message)
        return number

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            message = f"must be a number of seconds from {low:g} to {high:g}"
            raise ValueError(message)
        return number

    return parse


def _flag(value: str) -> bool:
    word = value.strip().lower()
    if word not in _TRUE | _FALSE:
        message = "must be true or false"
        raise ValueError(message)
    return word in _TRUE


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _queues(value: str) -> tuple[str, ...]:
    names = _words(value)
    if not names or set(names) - set(KINDS) or len(set(names)) != len(names):
        message = f"must name queues among {', '.join(KINDS)}, each once, in order of precedence"
        raise ValueError(message)
    return names


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            message = f"must be one of {', '.join(allowed)}"
            raise ValueError(message)
        return value

    return parse


def _redis_url(value: str) -> str:
    parts = _url(
        value,
        ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
    )
    if not (parts.netloc or parts.path.strip("/")):
        raise _UrlError(_MALFORMED)
    return value


def _postgres_url(value: str) -> str:
    parts = _url(value, ("postgres", "postgresql"))
    # libpq takes the first @ for the end of the password, and what follows it for the host.
    if not (parts.netloc or parts.path.strip("/")) or parts.netloc.count("@") > 1:
        raise _UrlError(_MALFORMED)
    postgres_conninfo(value)
    return value


def _proxy_url(value: str) -> str:
    parts = _url(value, ("http",))
    if "," in parts.netloc.rpartition("@")[2]:
        raise _UrlError(_MALFORMED)
    if not parts.hostname or parts.port == 0:
        message = "must be http://host:port, with a user and password where needed"
        raise _UrlError(message)
    return value


class _UrlError(ValueError):
    """A URL is not valid. The message repeats no part of it, as those of parsers do."""


_MALFORMED = f"is malformed: check its host, port and parameters; {ENCODING_ADVICE}"
_UNREADABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_HOST_AND_PORT = re.compile(r"(?:\[[^\[\]@]*\]|[^:\[\]\s]*)(?::([0-9]{0,5}))?")
_LARGEST_PORT = 65_535


def _url(value: str, schemes: tuple[str, ...]) -> SplitResult:
    """Return the parts of `value`, or raise `_UrlError`, whose message repeats no part of it.

    An unencoded / # or ? in a password makes a parser take the beginning of the password for a host or a port, and
    its end for a path or a query. What is left of the user information there is the @ behind it.
    """
    try:
        parts = urlsplit(value)
    except ValueError:  # its message may repeat the password
        raise _UrlError(_MALFORMED) from None
    if parts.scheme not in schemes:
        message = f"must be a URL that starts with {' or '.join(f'{scheme}://' for scheme in schemes[:2])}"
        raise _UrlError(message)
    after_host = f"{parts.path}{parts.query}"
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if _UNREADABLE.search(value) or "#" in value or "@" in after_host or not all(map(_is_host_and_port, hosts)):
        raise _UrlError(_MALFORMED)
    return parts


def _is_host_and_port(text: str) -> bool:
    """Return whether `text` is a host with or without a port."""
    found = _HOST_AND_PORT.fullmatch(text)
    return found is not None and int(found[1] or 0) <= _LARGEST_PORT


def _setting(
    env: str,
    help_: str,
    *,
    parse: Callable[[str], Any] = _text,
    default: str | None = "",
    flag: str | None = None,
    secret: bool = False,
) -> Any:
    """Describe a setting; a default of None makes it required. Defaults are written as a user would write them."""
    metadata = {"env": env, "help": help_, "parse": parse, "default": default, "flag": flag, "secret": secret}
    return field(metadata=metadata, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a command can be told. Built by `load`, never changed afterwards."""

    redis_url: str = _setting(
        "REDIS_URL",
        "Redis that holds the lists: redis:// or rediss://, with user, password and database number; "
        "redis+sentinel:// and redis+cluster:// (rediss+…) name several hosts, separated by commas",
        parse=_redis_url,
        default=None,
        secret=True,
    )
    redis_username: str = _setting("REDIS_USERNAME", "the ACL user of Redis, before the one in REDIS_URL")
    redis_password: str = _setting(
        "REDIS_PASSWORD",
        "the password of Redis, before the one in REDIS_URL; any character as it is, where a URL needs %-encoding",
        secret=True,
    )
    redis_sentinel_username: str = _setting(
        "REDIS_SENTINEL_USERNAME", "the ACL user of the sentinels themselves, where they ask for one"
    )
    redis_sentinel_password: str = _setting(
        "REDIS_SENTINEL_PASSWORD", "the password of the sentinels themselves, where they ask for one", secret=True
    )
    database_url: str = _setting(
        "DATABASE_URL",
        'PostgreSQL with the API\'s "Photo" table; ?schema= chooses the schema',
        parse=_postgres_url,
        default=None,
        secret=True,
    )
    embeddings_database_url: str = _setting(
        "EMBEDDINGS_DATABASE_URL",
        "PostgreSQL with pgvector that holds the embeddings; without it, DATABASE_URL",
        parse=_postgres_url,
        secret=True,
    )
    queues: tuple[str, ...] = _setting(
        "RUNNER_QUEUES",
        "the lists to take jobs from, in order of precedence",
        parse=_queues,
        default="compare,process",
        flag="--queues",
    )
    job: str = _setting(
        "RUNNER_JOB",
        "one job to do instead of the lists' jobs: a file, a folder whose files are joined by name, or - for "
        "standard input; its result is written as usual",
        flag="--job",
    )
    max_jobs: int = _setting(
        "RUNNER_MAX_JOBS",
        "how many jobs this run takes at most; retries of its own are not counted again",
        parse=_whole(1, 1_000_000),
        default="50",
        flag="--max-jobs",
    )
    max_seconds: float = _setting(
        "RUNNER_MAX_SECONDS",
        "after how many seconds this run claims nothing more",
        parse=_seconds(1, 86_400),
        default="900",
        flag="--max-seconds",
    )
    idle_seconds: float = _setting(
        "RUNNER_IDLE_SECONDS",
        "how long empty lists are waited on before exiting",
        parse=_seconds(0, 86_400),
        default="0",
        flag="--idle-seconds",
    )
    claim_size: int = _setting(
        "RUNNER_CLAIM_SIZE",
        "how many jobs are leased at a time; what a crash makes wait for the lease to expire",
        parse=_whole(1, 1000),
        default="8",
    )
    lease_seconds: float = _setting(
        "RUNNER_LEASE_SECONDS",
        "how long a lease lasts without being renewed (it is renewed three times as often)",
        parse=_seconds(1, 3600),
        default="30",
    )
    max_attempts: int = _setting(
        "RUNNER_MAX_ATTEMPTS",
        "after how many attempts a job is buried as a dead letter",
        parse=_whole(1, 100),
        default="3",
    )
    retry_seconds: float = _setting(
        "RUNNER_RETRY_SECONDS",
        "how long the first retry of a job waits; each later one twice as long, with jitter",
        parse=_seconds(0, 3600),
        default="2",
    )
    retry_max_seconds: float = _setting(
        "RUNNER_RETRY_MAX_SECONDS",
        "the longest wait before a retry, and how long a run waits for a lease that falls due",
        parse=_seconds(0, 3600),
        default="60",
    )
    drain_seconds: float = _setting(
        "RUNNER_DRAIN_SECONDS",
        "how long jobs that have begun may take to finish after SIGTERM, before they are given back",
        parse=_seconds(0, 3600),
        default="8",
    )
    connect_seconds: float = _setting(
        "RUNNER_CONNECT_SECONDS",
        "how long an unreachable Redis or PostgreSQL is tried again before the run ends with exit code 75",
        parse=_seconds(0, 3600),
        default="30",
    )
    initiated_seconds: float = _setting(
        "RUNNER_INITIATED_SECONDS",
        "how long a comparison waits for the API's late INITIATED, to overwrite it with the answer",
        parse=_seconds(0, 60),
        default="10",
    )
    model_dir: Path = _setting(
        "RUNNER_MODEL_DIR",
        "the baked model pack; without it, share/spottmee-worker/model beside the interpreter",
        parse=Path,
        flag="--model-dir",
    )
    threads: int = _setting(
        "RUNNER_THREADS",
        "threads of inference; 0 follows the CPU limit of the container",
        parse=_whole(0, 256),
        default="0",
    )
    providers: tuple[str, ...] = _setting(
        "RUNNER_PROVIDERS",
        "execution providers of onnxruntime, the first available one is taken: tensorrt, cuda, cpu; auto is that order",
        parse=_words,
        default="auto",
    )
    batch_size: int = _setting(
        "RUNNER_BATCH_SIZE",
        "face crops a recogniser call; 0 chooses by provider (cpu 2, cuda and tensorrt 32)",
        parse=_whole(0, 1024),
        default="0",
    )
    allow_private_urls: bool = _setting(
        "RUNNER_ALLOW_PRIVATE_URLS",
        "whether images may be fetched from private, loopback and link-local addresses",
        parse=_flag,
        default="false",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "RUNNER_ALLOWED_HOSTS",
        "host names that images may be fetched from even where their address is private, separated by commas",
        parse=_words,
    )
    proxy_url: str = _setting(
        "RUNNER_PROXY_URL",
        "HTTP proxy for fetching images; the environment's own proxy variables are ignored",
        parse=_proxy_url,
        secret=True,
    )
    fetch_connect_seconds: float = _setting(
        "RUNNER_FETCH_CONNECT_SECONDS",
        "time limit for connecting to an image server",
        parse=_seconds(0.01, 600),
        default="5",
    )
    fetch_first_byte_seconds: float = _setting(
        "RUNNER_FETCH_FIRST_BYTE_SECONDS",
        "time limit for the first byte of an image server's answer, and for every pause after it",
        parse=_seconds(0.01, 600),
        default="10",
    )
    fetch_seconds: float = _setting(
        "RUNNER_FETCH_SECONDS",
        "time limit for one image, redirects included",
        parse=_seconds(0.01, 3600),
        default="30",
    )
    max_image_bytes: int = _setting(
        "RUNNER_MAX_IMAGE_BYTES",
        "the largest image that is fetched or decoded, in bytes",
        parse=_whole(1, 2**31),
        default="33554432",
    )
    max_pixels: int = _setting(
        "RUNNER_MAX_PIXELS",
        "the largest image that is decoded, in pixels (read from its header)",
        parse=_whole(1, 2**30),
        default="100000000",
    )
    max_faces: int = _setting(
        "RUNNER_MAX_FACES",
        "the most faces a photo may show",
        parse=_whole(1, 10_000),
        default="1000",
    )
    photo_seconds: float = _setting(
        "RUNNER_PHOTO_SECONDS",
        "time limit for decoding and inference of one photo; a native call stuck for longer ends the run",
        parse=_seconds(1, 3600),
        default="60",
    )
    owner: str = _setting(
        "RUNNER_OWNER",
        "who owns the leases: the Kubernetes Job's name, so that a replacement pod takes them over at once; "
        "without it, a name made for this process",
    )
    log_format: str = _setting(
        "RUNNER_LOG_FORMAT",
        "json, text, or auto (text on a terminal)",
        parse=_choice("auto", "json", "text"),
        default="auto",
    )
    log_level: str = _setting(
        "RUNNER_LOG_LEVEL",
        "debug, info, warning or error",
        parse=_choice("debug", "info", "warning", "error"),
        default="info",
    )
    termination_log: str = _setting(
        "RUNNER_TERMINATION_LOG",
        "a file that the summary is also written to: Kubernetes shows /dev/termination-log in the pod's status",
    )


REQUIRED_FOR_RUN = ("redis_url", "database_url")


def load(
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str | None] | None = None,
    *,
    required: tuple[str, ...] = REQUIRED_FOR_RUN,
) -> Settings:
    """Return the settings of `environment`, with `flags` (field name → text) before it.

    An empty variable counts as unset, as Kubernetes manifests often leave them. Settings without a default that
    are not in `required` stay empty. Raises one `SettingsError` that names every wrong or missing setting.
    """
    environment = os.environ if environment is None else environment
    flags = flags or {}
    values: dict[str, Any] = {}
    faults: list[str] = []
    for item in fields(Settings):
        about = item.metadata
        flag = flags.get(item.name)
        text = flag if flag is not None else environment.get(about["env"], "").strip() or about["default"]
        name = about["flag"] if flag is not None else about["env"]
        if not text:
            if item.name in required and not text:
                faults.append(f"{name} is missing: {about['help']}")
            values[item.name] = _empty(item.name)
            continue
        try:
            values[item.name] = about["parse"](text)
        except _UrlError as error:
            faults.append(f"{name} {error}")
        except ValueError as error:
            faults.append(f"{name} {_MALFORMED}" if about["secret"] else f"{name} {error} (it is {text!r})")
    if faults:
        raise SettingsError("; ".join(faults))
    values["embeddings_database_url"] = values["embeddings_database_url"] or values["database_url"]
    if values["redis_url"]:
        values["redis_url"] = _with_credentials(values["redis_url"], values)
    return Settings(**values)


def _with_credentials(url: str, values: Mapping[str, Any]) -> str:
    """Return `url` with the users and passwords that are settings of their own in it, %-encoded, before its own."""
    username, password = quote(values["redis_username"], safe=""), quote(values["redis_password"], safe="")
    parts = urlsplit(url)
    if username or password:
        own, _, hosts = parts.netloc.rpartition("@")
        own_username, _, own_password = own.partition(":")
        parts = parts._replace(netloc=f"{username or own_username}:{password or own_password}@{hosts}")
    if parts.scheme.endswith("+sentinel"):
        names = ("sentinel_username", "sentinel_password")
        given = {name: values[f"redis_{name}"] for name in names if values[f"redis_{name}"]}
        kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in given]
        parts = parts._replace(query=urlencode([*kept, *given.items()]))
    return urlunsplit(parts)


def _empty(name: str) -> object:
    if name == "model_dir":
        return default_model_dir()
    return () if name == "allowed_hosts" else ""


def postgres_conninfo(url: str) -> tuple[str, str | None]:
    """Split a Prisma-style URL into what libpq accepts and the schema it names.

    Prisma adds parameters of its own (https://www.prisma.io/docs/orm/overview/databases/postgresql), which libpq
    rejects; `schema` names the schema of every table here and the others concern Prisma's own pool. Raises
    `ValueError` where that cannot be the name of a schema.
    """
    parts = urlsplit(url)
    schema: str | None = None
    kept: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "schema":
            schema = value or None
        elif name not in _PRISMA_PARAMETERS:
            kept.append((name, value))
    if schema is not None and (not schema.isprintable() or len(schema.encode()) > _MAX_IDENTIFIER_BYTES):
        message = (
            f"names a schema (?schema=) that cannot be one: printable characters, {_MAX_IDENTIFIER_BYTES} bytes at most"
        )
        raise _UrlError(message)
    return urlunsplit(parts._replace(query=urlencode(kept))), schema


_MAX_IDENTIFIER_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1

_PRISMA_PARAMETERS = frozenset(
    {
        "connection_limit",
        "pool_timeout",
        "socket_timeout",
        "pgbouncer",
        "statement_cache_size",
        "sslidentity",
        "sslpassword",
        "sslaccept",
        "single_use_connections",
    }
)
