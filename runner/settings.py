"""The settings, read from environment variables and flags into one immutable object.

`Settings` defines every setting: its fields carry the variable, the flag, the parser and the help text. The flags of
the command line and docs/reference/settings.md are generated from them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

from runner.errors import ENCODING_ADVICE, SettingsError
from runner.output import is_utf8, repeated
from runner.photo_url import UrlTemplate
from runner.worker.kinds import KINDS

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_LARGEST_PORT = 65_535


def default_model_dir() -> Path:
    """Return the folder in the Python environment where `make setup` and the image put the baked pack."""
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
    text = value.strip().lower()
    if text not in _TRUE | _FALSE:
        message = "must be true or false"
        raise ValueError(message)
    return text in _TRUE


def _items(value: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _ports(value: str) -> tuple[tuple[int, int], ...]:
    """Return ranges of ports, each with its first and its last: "9000,8000-8099" has two."""
    ranges = []
    for word in _items(value):
        first, dash, last = word.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            low, high = 0, 0
        if not 1 <= low <= high <= _LARGEST_PORT:
            message = "must be ports or ranges of ports from 1 to 65535, such as 9000 or 8000-8099, separated by commas"
            raise ValueError(message)
        ranges.append((low, high))
    return tuple(ranges)


def _queues(value: str) -> tuple[str, ...]:
    names = _items(value)
    if not names or set(names) - set(KINDS) or len(set(names)) != len(names):
        message = f"must list queues in order of precedence, each of {', '.join(KINDS)} at most once"
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
    # libpq ends the password at the first @, and takes the rest as the host.
    if not (parts.netloc or parts.path.strip("/")) or parts.netloc.count("@") > 1:
        raise _UrlError(_MALFORMED)
    postgres_conninfo(value)
    return value


def _proxy_url(value: str) -> str:
    parts = _url(value, ("http",))
    if "," in parts.netloc.rpartition("@")[2]:
        raise _UrlError(_MALFORMED)
    if not parts.hostname or parts.port == 0:
        message = "must be http://host:port, with user and password if needed"
        raise _UrlError(message)
    return value


def _photo_url(value: str) -> str:
    try:
        UrlTemplate.parse(value)
    except ValueError as error:
        raise _UrlError(str(error)) from None
    return value


class _UrlError(ValueError):
    """A URL, or a text of any kind, is not valid. The message repeats no part of it, unlike those of parsers."""


_MALFORMED = f"is malformed: check its host, port and parameters; {ENCODING_ADVICE}"
_NOT_UTF_8 = "contains bytes that are not UTF-8: save its value as UTF-8 text"
_UNREADABLE = r"[\x00-\x1f\x7f\ud800-\udfff]"
_HOST_AND_PORT = r"(?:\[[^\[\]@]*\]|[^:\[\]\s]*)(?::([0-9]{0,5}))?"


def _url(value: str, schemes: tuple[str, ...]) -> SplitResult:
    """Return the parts of `value`, or raise `_UrlError`, whose message repeats no part of it.

    If a password contains an unencoded / # or ?, a parser takes its beginning for a host or a port, and the rest for a
    path or a query. This is detected by the @ in the path or the query.
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
    is_unreadable = not value.isprintable() and re.search(_UNREADABLE, value)
    if is_unreadable or "#" in value or "@" in after_host or not all(map(_is_host_and_port, hosts)):
        raise _UrlError(_MALFORMED)
    return parts


def _is_host_and_port(text: str) -> bool:
    """Return whether `text` is a host, optionally with a port."""
    found = re.fullmatch(_HOST_AND_PORT, text)
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
    """Describe a setting. Defaults are text, as a user would write them; None makes the setting required."""
    metadata = {"env": env, "help": help_, "parse": parse, "default": default, "flag": flag, "secret": secret}
    return field(metadata=metadata, repr=not secret)


FAILURE_DELAY = "RUNNER_FAILURE_DELAY_SECONDS"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """All settings. Built by `load`, and immutable."""

    redis_url: str = _setting(
        "REDIS_URL",
        "URL of the Redis that holds the lists: redis:// or rediss:// (TLS), with user, password and database number; "
        "redis+sentinel:// and redis+cluster:// (rediss+… for TLS) take several hosts, separated by commas",
        parse=_redis_url,
        default=None,
        secret=True,
    )
    redis_username: str = _setting("REDIS_USERNAME", "ACL user for Redis; overrides the user in REDIS_URL")
    redis_password: str = _setting(
        "REDIS_PASSWORD",
        "password for Redis; overrides the password in REDIS_URL, and needs no %-encoding",
        secret=True,
    )
    redis_sentinel_username: str = _setting(
        "REDIS_SENTINEL_USERNAME", "ACL user for the sentinels themselves, if they require authentication"
    )
    redis_sentinel_password: str = _setting(
        "REDIS_SENTINEL_PASSWORD", "password for the sentinels themselves, if they require authentication", secret=True
    )
    database_url: str = _setting(
        "DATABASE_URL",
        'URL of the PostgreSQL database with the API\'s table "Photo"; ?schema= selects the schema',
        parse=_postgres_url,
        default=None,
        secret=True,
    )
    database_password: str = _setting(
        "DATABASE_PASSWORD",
        "password for DATABASE_URL; overrides the password in it, and needs no %-encoding",
        secret=True,
    )
    embeddings_database_url: str = _setting(
        "EMBEDDINGS_DATABASE_URL",
        "URL of the PostgreSQL database (with pgvector) that holds the embeddings; default: DATABASE_URL",
        parse=_postgres_url,
        secret=True,
    )
    embeddings_database_password: str = _setting(
        "EMBEDDINGS_DATABASE_PASSWORD",
        "password for EMBEDDINGS_DATABASE_URL; overrides the password in it, and needs no %-encoding",
        secret=True,
    )
    queues: tuple[str, ...] = _setting(
        "RUNNER_QUEUES",
        "queues to claim jobs from, in order of precedence",
        parse=_queues,
        default="compare,process",
        flag="--queues",
    )
    job: str = _setting(
        "RUNNER_JOB",
        "process this one job instead of the queues: a file, a folder whose files are concatenated in order of their "
        "names, or - for standard input; the result is stored as usual",
        flag="--job",
    )
    max_jobs: int = _setting(
        "RUNNER_MAX_JOBS",
        "maximum number of jobs per run; the run's own retries of a job count once",
        parse=_whole(1, 1_000_000),
        default="50",
        flag="--max-jobs",
    )
    max_seconds: float = _setting(
        "RUNNER_MAX_SECONDS",
        "a run stops claiming jobs after this time",
        parse=_seconds(1, 86_400),
        default="900",
        flag="--max-seconds",
    )
    idle_seconds: float = _setting(
        "RUNNER_IDLE_SECONDS",
        "how long a run waits for new jobs when the queues are empty",
        parse=_seconds(0, 86_400),
        default="0",
        flag="--idle-seconds",
    )
    claim_size: int = _setting(
        "RUNNER_CLAIM_SIZE",
        "maximum number of jobs per claim; after a crash, as many jobs may wait until their leases expire",
        parse=_whole(1, 1000),
        default="8",
    )
    lease_seconds: float = _setting(
        "RUNNER_LEASE_SECONDS",
        "visibility timeout: a lease expires after this time unless it is renewed (after each third of this time)",
        parse=_seconds(1, 3600),
        default="30",
    )
    max_attempts: int = _setting(
        "RUNNER_MAX_ATTEMPTS",
        "a job that has failed in this many attempts is moved to the dead-letter queue",
        parse=_whole(1, 100),
        default="3",
    )
    retry_base_seconds: float = _setting(
        "RUNNER_RETRY_BASE_SECONDS",
        "delay before the first retry of a job; it doubles with every further retry, and has jitter",
        parse=_seconds(0, 3600),
        default="2",
    )
    retry_max_seconds: float = _setting(
        "RUNNER_RETRY_MAX_SECONDS",
        "maximum delay before a retry, and how long a run waits for a retry or for a lease to expire",
        parse=_seconds(0, 3600),
        default="60",
    )
    outage_seconds: float = _setting(
        "RUNNER_OUTAGE_SECONDS",
        "how long a photo waits for an image server that fails, limits the rate or does not resolve, from its first "
        "failure; these attempts do not count towards RUNNER_MAX_ATTEMPTS; 0: they do, and photos do not wait",
        parse=_seconds(0, 86_400),
        default="1800",
    )
    shutdown_seconds: float = _setting(
        "RUNNER_SHUTDOWN_SECONDS",
        "graceful shutdown: after SIGTERM, jobs in progress may finish within this time; the rest are released",
        parse=_seconds(0, 3600),
        default="8",
    )
    connect_timeout_seconds: float = _setting(
        "RUNNER_CONNECT_TIMEOUT_SECONDS",
        "how long to retry, from the first failure, while Redis or PostgreSQL is unreachable; after that, the run ends "
        "with exit code 75",
        parse=_seconds(0, 3600),
        default="30",
    )
    statement_timeout_seconds: float = _setting(
        "RUNNER_STATEMENT_TIMEOUT_SECONDS",
        "timeout for a statement of a job in PostgreSQL; the job is retried, or becomes a dead letter",
        parse=_seconds(0.1, 3600),
        default="60",
    )
    lock_timeout_seconds: float = _setting(
        "RUNNER_LOCK_TIMEOUT_SECONDS",
        "timeout for a lock in PostgreSQL; a job whose row stays locked is retried, or becomes a dead letter",
        parse=_seconds(0.1, 3600),
        default="5",
    )
    selfie_faces: str = _setting(
        "RUNNER_SELFIE_FACES",
        "which faces of a selfie are compared: all; largest: the one with the largest box; one: a selfie with several "
        "faces is answered with [] and the error several_faces_in_selfie",
        parse=_choice("all", "largest", "one"),
        default="all",
    )
    failure_delay_seconds: float = _setting(
        FAILURE_DELAY,
        "how long a run that cannot work (exit code 1, 2, 3, 4 or 7) waits before it exits, so that its replacement "
        "does not fail repeatedly without a pause; SIGTERM ends the wait",
        parse=_seconds(0, 3600),
        default="0",
    )
    album_timeout_seconds: float = _setting(
        "RUNNER_ALBUM_TIMEOUT_SECONDS",
        "how long a comparison waits for photos of its album that are still being processed, from when it was first "
        "claimed; after that it is answered without them",
        parse=_seconds(0, 3000),
        default="600",
    )
    result_watch_seconds: float = _setting(
        "RUNNER_RESULT_WATCH_SECONDS",
        "how long a result is watched for a late INITIATED of the API, which is then overwritten by the result",
        parse=_seconds(0, 60),
        default="10",
    )
    model_dir: Path = _setting(
        "RUNNER_MODEL_DIR",
        "folder of the baked model pack; default: share/spottmee-worker/model in the Python environment",
        parse=Path,
        flag="--model-dir",
    )
    threads: int = _setting(
        "RUNNER_THREADS",
        "threads for inference; 0: as many as the CPU limit of the container",
        parse=_whole(0, 256),
        default="0",
    )
    providers: tuple[str, ...] = _setting(
        "RUNNER_PROVIDERS",
        "execution providers of ONNX Runtime, of which the first available one is used; auto: cuda, cpu",
        parse=_items,
        default="auto",
    )
    batch_size: int = _setting(
        "RUNNER_BATCH_SIZE",
        "face crops per recogniser call; 0: chosen by provider (cpu 2, cuda 32)",
        parse=_whole(0, 1024),
        default="0",
    )
    allow_private_addresses: bool = _setting(
        "RUNNER_ALLOW_PRIVATE_ADDRESSES",
        "SSRF protection: true allows image URLs with private, loopback and link-local addresses",
        parse=_flag,
        default="false",
    )
    allowed_private_hosts: tuple[str, ...] = _setting(
        "RUNNER_ALLOWED_PRIVATE_HOSTS",
        "allow list: hosts, separated by commas, whose images may be fetched even from private addresses",
        parse=_items,
    )
    allowed_ports: tuple[tuple[int, int], ...] = _setting(
        "RUNNER_ALLOWED_PORTS",
        "ports of image servers besides 80 and 443, separated by commas, such as 9000 or 8000-8099; "
        "RUNNER_ALLOW_PRIVATE_ADDRESSES allows every port",
        parse=_ports,
    )
    fetch_proxy_url: str = _setting(
        "RUNNER_FETCH_PROXY_URL",
        "HTTP proxy for image requests; the variables HTTP_PROXY and HTTPS_PROXY are ignored",
        parse=_proxy_url,
        secret=True,
    )
    image_ca: Path | None = _setting(
        "RUNNER_IMAGE_CA",
        "file with the authorities of private image servers (PEM), trusted in addition to the system's",
        parse=Path,
    )
    fetch_connect_timeout_seconds: float = _setting(
        "RUNNER_FETCH_CONNECT_TIMEOUT_SECONDS",
        "timeout for connecting to an image server",
        parse=_seconds(0.01, 600),
        default="5",
    )
    fetch_read_timeout_seconds: float = _setting(
        "RUNNER_FETCH_READ_TIMEOUT_SECONDS",
        "timeout for the first byte of an image server's response, and for every pause after it",
        parse=_seconds(0.01, 600),
        default="10",
    )
    fetch_timeout_seconds: float = _setting(
        "RUNNER_FETCH_TIMEOUT_SECONDS",
        "timeout for fetching an image, including redirects",
        parse=_seconds(0.01, 3600),
        default="30",
    )
    max_image_bytes: int = _setting(
        "RUNNER_MAX_IMAGE_BYTES",
        "maximum size of an image in bytes",
        parse=_whole(1, 2**31),
        default="104857600",
    )
    max_image_pixels: int = _setting(
        "RUNNER_MAX_IMAGE_PIXELS",
        "maximum size of an image in pixels (width times height, read from its header before decoding); formats whose "
        "decoder needs more than 6 bytes per pixel have a lower limit",
        parse=_whole(1, 2**30),
        default="210000000",
    )
    max_faces: int = _setting(
        "RUNNER_MAX_FACES",
        "maximum number of faces in a photo",
        parse=_whole(1, 10_000),
        default="1000",
    )
    photo_timeout_seconds: float = _setting(
        "RUNNER_PHOTO_TIMEOUT_SECONDS",
        "timeout for decoding and inference of a photo; the run ends if native code does not return",
        parse=_seconds(1, 3600),
        default="60",
    )
    owner: str = _setting(
        "RUNNER_OWNER",
        "owner of the leases; if it is the name of the Kubernetes Job, a replacement pod takes them over immediately; "
        "default: a name that is unique to the process",
    )
    photo_url: str = _setting(
        "RUNNER_PHOTO_URL",
        "where the API stores photos, for reprocess: a URL with columns of its table in braces, such as "
        "https://storage.googleapis.com/BUCKET/albums/{album_id}/{normalized_name}",
        parse=_photo_url,
        secret=True,
    )
    log_format: str = _setting(
        "RUNNER_LOG_FORMAT",
        "json, text, or auto: text on a terminal, otherwise json",
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
        "file that the summary is also written to: Kubernetes shows /dev/termination-log in the pod's status",
    )

    @property
    def embeddings_variable(self) -> str:
        """The variable that provides the URL of the embeddings database, for messages."""
        return "DATABASE_URL" if self.embeddings_database_url == self.database_url else "EMBEDDINGS_DATABASE_URL"


REQUIRED_FOR_RUN = ("redis_url", "database_url")


def load(
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str | None] | None = None,
    *,
    required: tuple[str, ...] = REQUIRED_FOR_RUN,
) -> Settings:
    """Return the settings of `environment`, overridden by `flags` (field name → text).

    An empty variable counts as unset, because manifests often leave variables empty; an empty flag is a mistake, such
    as an unset variable of a script. Settings without a default stay empty unless they are in `required`. Raises one
    `SettingsError`, which names every missing or invalid setting.
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
        if flag is not None and not flag.strip():
            faults.append(f"{name} is empty: omit it to use {about['env']} or the default")
            continue
        if not text:
            if item.name in required:
                faults.append(f"{name} is missing: {about['help']}")
            values[item.name] = _empty(item.name)
            continue
        try:
            values[item.name] = _parsed(about["parse"], text)
        except _UrlError as error:
            faults.append(f"{name} {error}")
        except ValueError as error:
            why = _MALFORMED if about["secret"] else f"{error} (got {repeated(text, quoted=True)})"
            faults.append(f"{name} {why}")
    if faults:
        raise SettingsError("; ".join(faults))
    for name in ("database", "embeddings_database"):
        values[f"{name}_url"] = _with_password(values[f"{name}_url"], values[f"{name}_password"])
    values["embeddings_database_url"] = values["embeddings_database_url"] or values["database_url"]
    if values["redis_url"]:
        values["redis_url"] = _with_credentials(values["redis_url"], values)
    return Settings(**values)


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    """Return the value of a setting, or raise `ValueError`."""
    if not is_utf8(text):
        raise _UrlError(_NOT_UTF_8)
    return parse(text)


def _with_password(url: str, password: str) -> str:
    """Return `url` with `password`, %-encoded, in place of its own. An empty URL or password changes nothing."""
    if not (url and password):
        return url
    parts = urlsplit(url)
    own, _, hosts = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{own.partition(':')[0]}:{quote(password, safe='')}@{hosts}"))


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable RUNNER_… that is not a setting, with the most similar setting.

    GitHub's runners set variables of that prefix too: those are left out.
    """
    known = [item.metadata["env"] for item in fields(Settings)]
    unknown = sorted(name for name in environment if name.startswith(_PREFIX) and name not in known)
    return [_unknown_variable(name, known) for name in unknown if name not in _OF_GITHUB]


def _unknown_variable(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches  # takes 5 ms, only needed for mistakes

    endings = [one.removeprefix(_PREFIX) for one in known if one.startswith(_PREFIX)]
    near = get_close_matches(name.removeprefix(_PREFIX).upper(), endings, n=1, cutoff=0.5)
    return f"{repeated(name)} is not a setting and has no effect{f'; did you mean {_PREFIX}{near[0]}?' if near else ''}"


_PREFIX = "RUNNER_"
_OF_GITHUB = frozenset(
    f"{_PREFIX}{name}"
    for name in ("ARCH", "DEBUG", "ENVIRONMENT", "NAME", "OS", "TEMP", "TOOL_CACHE", "TRACKING_ID", "WORKSPACE")
)


def failure_delay(environment: Mapping[str, str] | None = None) -> float:
    """Return `Settings.failure_delay_seconds` although other settings are not valid; 0 if it is not valid itself."""
    text = (os.environ if environment is None else environment).get(FAILURE_DELAY, "").strip()
    try:
        return _seconds(0, 3600)(text) if text else 0.0
    except ValueError:
        return 0.0


def _with_credentials(url: str, values: Mapping[str, Any]) -> str:
    """Return `url` with the users and passwords of the separate settings, %-encoded, in place of its own."""
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
    if name == "image_ca":
        return None
    return () if name in ("allowed_private_hosts", "allowed_ports") else ""


def postgres_conninfo(url: str) -> tuple[str, str | None]:
    """Split a URL as Prisma, node-postgres or Supabase write it into what libpq accepts and the schema it names.

    libpq rejects their parameters: `schema` names the schema of all tables, those for TLS have other names in libpq,
    and the others configure pools or timeouts of the API's own client. Raises `ValueError` if the name of the schema
    is not valid.
    """
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    schema = given.pop("schema", "") or None
    kept = {name: value for name, value in _tls_of_libpq(given).items() if name.lower() not in _OTHER_CLIENTS}
    if schema is not None and (not schema.isprintable() or len(schema.encode()) > _MAX_IDENTIFIER_BYTES):
        message = (
            f"names an invalid schema (?schema=): use at most {_MAX_IDENTIFIER_BYTES} bytes of printable characters"
        )
        raise _UrlError(message)
    # libpq takes a + literally, not as a space.
    return urlunsplit(parts._replace(query=urlencode(kept, quote_via=quote))), schema


def _tls_of_libpq(given: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters, those for TLS under libpq's names.

    Prisma's sslcert is the certificate of the authority, checked only with sslaccept=strict; libpq's is that of the
    client, and needs sslkey. no-verify is node-postgres' term.
    """
    found = dict(given)
    accept = found.pop("sslaccept", "")
    if "sslcert" in found and "sslkey" not in found:
        authority = found.pop("sslcert")
        if accept == "strict":
            found["sslrootcert"] = authority
    if accept == "strict":
        found["sslmode"] = "verify-full"
    if found.get("sslmode") == "no-verify":
        found["sslmode"] = "require"
    if (ssl := found.pop("ssl", "").lower()) in _TRUE or ssl == "no-verify":
        found.setdefault("sslmode", "require")
    return found


_MAX_IDENTIFIER_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1

# Parameters of Prisma, of node-postgres and its pool, and of Supabase, in lower case: libpq does not know them.
_OTHER_CLIENTS = frozenset(
    {
        "connection_limit", "pool_timeout", "socket_timeout", "pgbouncer", "statement_cache_size", "sslidentity",
        "sslpassword", "single_use_connections", "max_idle_connection_lifetime", "max_connection_lifetime",
        "uselibpqcompat", "max", "min", "idletimeoutmillis", "connectiontimeoutmillis", "allowexitonidle", "maxuses",
        "maxlifetimeseconds", "statement_timeout", "query_timeout", "lock_timeout", "keepalive",
        "keepaliveinitialdelaymillis", "idle_in_transaction_session_timeout", "supa", "workaround", "pool_mode",
    }
)  # fmt: skip
