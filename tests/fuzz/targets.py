"""The targets of fuzzing, and what must hold for every input."""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import re
import socket
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from random import Random

import cv2
import numpy as np

from runner.cli.output import columns
from runner.errors import (
    FetchError,
    ForbiddenUrlError,
    ImageUndecodableError,
    InvalidJobError,
    JobError,
    SettingsError,
)
from runner.images import headers, jpeg, ssrf
from runner.images import urls as image_urls
from runner.images.connection import Proxy
from runner.images.decode import decode
from runner.logs import JsonFormatter, TextFormatter
from runner.output import json_text, printable
from runner.queue.client import parse_url
from runner.settings import load
from runner.store.database import Database
from runner.worker.messages import CompareJob, ProcessJob, decode_compare, decode_process
from tests.fuzz import images, payloads, settings_urls, texts, urls

MOST_PIXELS = 1_000_000
MOST_BYTES = 1_000_000
_PATH = re.compile(r"/[!-~]*")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
# Our own rejections: OpenCV would decode these.
_STRICTER = (
    "too early",
    "of more than",
    "far more data",
    "without a frame",
    "before its pixels",
    "beyond",
    "-bit JPEG",
)


@dataclass(frozen=True)
class Target:
    """`check` returns the outcome of an input, and raises where something does not hold."""

    name: str
    check: Callable[[bytes], str]
    generate: Callable[[Random], bytes]
    mutate: Callable[[Random, bytes], bytes]
    corpus: Callable[[], Sequence[bytes]]


def check_payload(data: bytes) -> str:
    """Decode as both kinds of job: a job with valid fields, or `InvalidJobError`, without any private value in it."""
    words = []
    for read in (decode_process, decode_compare):
        try:
            job = read(data)
        except InvalidJobError as error:
            assert payloads.SECRET not in str(error)  # noqa: PT017 - both outcomes are right
            words.append("refused")
        else:
            _check_job(job)
            identifier = job.job_id if isinstance(job, CompareJob) else job.photo_id
            assert payloads.SECRET not in repr(job).replace(repr(identifier), "")
            words.append(type(job).__name__)
    return " ".join(words)


def _check_job(job: ProcessJob | CompareJob) -> None:
    if isinstance(job, CompareJob):
        assert isinstance(job.selfie, bytes)
        assert job.selfie
        assert math.isfinite(job.threshold)
        assert len(set(job.stored_ids)) == len(job.stored_ids)
    identifiers = (job.job_id, *job.stored_ids) if isinstance(job, CompareJob) else (job.photo_id,)
    for identifier in identifiers:
        assert 0 < len(identifier) <= 256
        assert b"\0" not in identifier.encode()


def check_image(data: bytes) -> str:
    """Decode: OpenCV's pixels, of the size that the header announced, or a typed error."""
    try:
        image = decode(data, max_pixels=MOST_PIXELS, max_bytes=MOST_BYTES)
    except ImageUndecodableError as error:
        _check_refusal(data, str(error))
        return error.code
    except JobError as error:
        return error.code
    header = headers.read(data)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    if header.format in ("AVIF", "HEIC"):  # the header is that of the largest image, before cropping
        assert image.shape[0] * image.shape[1] <= header.width * header.height
    else:
        assert image.shape in ((header.height, header.width, 3), (header.width, header.height, 3))
    assert image.shape[0] * image.shape[1] <= MOST_PIXELS
    if header.format == "JPEG":  # the others are OpenCV's in any case
        plain = data[header.start :]
        expected = _by_opencv(plain)
        if expected is None:  # OpenCV refuses a JPEG without its end marker
            expected = _by_opencv(jpeg.closed(plain))
        assert expected is not None
        assert np.array_equal(image, expected)
    return f"decoded {header.format}"


def _check_refusal(data: bytes, sentence: str) -> None:
    """Check that a JPEG that OpenCV decodes is refused for one of the intended reasons alone."""
    if data[:3] == b"\xff\xd8\xff" and not any(word in sentence for word in _STRICTER):
        assert _by_opencv(data) is None


def _by_opencv(data: bytes) -> np.typing.NDArray[np.uint8] | None:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image, np.uint8)


def check_url(data: bytes) -> str:
    """Parse as a URL and resolve it: a well-formed request line, and no internal address."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        targets = image_urls.readings(text)
    except ForbiddenUrlError as error:
        assert "SECRET" not in str(error)  # noqa: PT017 - both outcomes are right
        return "refused"
    assert 1 <= len(targets) <= 2
    for target in targets:
        assert target.scheme in ("http", "https")
        assert _HOST.fullmatch(target.host)
        assert 1 <= target.port <= 65_535
        assert _PATH.fullmatch(target.path)
        assert "/../" not in f"{target.path}/".partition("?")[0]
    assert len({(target.scheme, target.host, target.port) for target in targets}) == 1
    return _resolved(targets[0].host)


def _resolved(host: str) -> str:
    """Resolve `host` with SSRF protection, if it is an address in any spelling, without querying a name server."""
    try:
        numeric = socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return "a name"
    try:
        allowed = ssrf.resolve(host, 80, allow_private=False, seconds=30)
    except ForbiddenUrlError:
        return "internal"
    except FetchError:
        return "nowhere"
    assert allowed == list(dict.fromkeys(str(entry[4][0]) for entry in numeric))
    for address in allowed:
        _check_public(ipaddress.ip_address(address))
    return "public"


def _check_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Check an allowed address independently of `ssrf`."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in ipaddress.IPv6Network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            _check_public(inner)
            return
    assert not any((address.is_private, address.is_loopback, address.is_link_local, address.is_multicast))
    assert not any((address.is_reserved, address.is_unspecified))
    for network in ("169.254.0.0/16", "100.64.0.0/10", "fc00::/7", "fe80::/10"):
        assert address not in ipaddress.ip_network(network)


def check_setting(data: bytes) -> str:
    """Read a URL of the settings as every command does, short of connecting: no message repeats a part of it."""
    name, _, url = data.decode("utf-8", "surrogateescape").partition("=")
    given = {"REDIS_URL": "redis://h", "DATABASE_URL": "postgresql://h/d", name: url}
    try:
        settings = load(given)
        parse_url(settings.redis_url)
        for variable in ("DATABASE_URL", "EMBEDDINGS_DATABASE_URL"):
            Database(getattr(settings, variable.lower()), application_name="fuzz", variable=variable)
        if settings.fetch_proxy_url:
            Proxy.from_url(settings.fetch_proxy_url)
    except SettingsError as error:
        assert name in str(error)  # noqa: PT017 - both outcomes are right
        assert not any(canary in str(error) for canary in settings_urls.CANARIES), error  # noqa: PT017 - as above
        return "refused"
    assert not any(canary in repr(settings) for canary in settings_urls.CANARIES)
    return "read"


def check_text(data: bytes) -> str:
    """Put it into a log, an error and a table: one line each, which does not control a terminal."""
    text = data.decode("utf-8", "surrogateescape")
    fields = {"msg": "photo", "levelno": logging.INFO, "photo": text, "error": FetchError(text).document()}
    record = logging.makeLogRecord(fields)
    written = [JsonFormatter({"pod": text}).format(record), TextFormatter().format(record), *columns([[text, text]])]
    for line in (*written, str(FetchError(text)), json_text({text: text})):
        assert len(line.splitlines()) <= 1
        assert not any(unicodedata.category(one) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for one in line)
        line.encode()
    assert json.loads(written[0])["photo"] == text
    return "as it is" if printable(text) == text else "escaped"


TARGETS = {
    target.name: target
    for target in (
        Target("payload", check_payload, payloads.generate, payloads.mutate, payloads.corpus),
        Target("image", check_image, images.generate, images.mutate, images.corpus),
        Target("setting", check_setting, settings_urls.generate, settings_urls.mutate, settings_urls.corpus),
        Target("text", check_text, texts.generate, texts.mutate, texts.corpus),
        Target("url", check_url, urls.generate, urls.mutate, urls.corpus),
    )
}


def find(name: str) -> Target:
    """Return a target by its name, or by `module:attribute` where it is none of these."""
    module, _, attribute = name.partition(":")
    target: Target = getattr(import_module(module), attribute) if attribute else TARGETS[name]
    return target
