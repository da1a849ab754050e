"""Misbehaving image servers, with a real server for each: an image in time, or a typed error."""

from __future__ import annotations

import gzip
import resource
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from runner.errors import (
    FetchError,
    FetchTimeoutError,
    ImageMissingError,
    ImageTooManyBytesError,
    JobError,
    SettingsError,
    SpottmeeError,
)
from tests.support.web import (
    LIMIT,
    PICTURE,
    Exchange,
    Web,
    closed_fetchers,
    drip,
    fetcher,
    flood,
    hang,
    names,
    ok,
    reset,
    tunnel,
)

__all__ = ["closed_fetchers"]  # a fixture for every test here

# Every limit is shorter than what the servers here take; no test may take longer than their sum.
TOTAL = 0.8
# A fetch that ends at its own limit has ended by then, even on a busy machine; one that waits for the server has not.
PATIENCE_SECONDS = 4.5
PAUSE = 0.3


def answer(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def plain(body: bytes, *headers: str) -> bytes:
    """Return a response whose body ends with the connection."""
    return answer("HTTP/1.1 200 OK", *headers, body=body)


def chunked(body: bytes) -> bytes:
    return plain(body, "Transfer-Encoding: chunked")


BOMB = gzip.compress(b"\0" * 20_000_000)

GOOD: dict[str, bytes | Exchange] = {
    "with a length": ok(),
    "until the end of the connection": plain(PICTURE),
    "by HTTP/1.0": answer("HTTP/1.0 200 OK", body=PICTURE),
    "in chunks": chunked(b"8\r\n" + PICTURE[:8] + b"\r\n%x\r\n" % (len(PICTURE) - 8) + PICTURE[8:] + b"\r\n0\r\n\r\n"),
    "in chunks with extensions and trailers": chunked(
        b"00%X ;a=b\r\n" % len(PICTURE) + PICTURE + b"\r\n0;c\r\nDigest: x\r\nOther: y\r\n\r\n"
    ),
    "in chunks that end with a bare line feed": chunked(b"%x\n" % len(PICTURE) + PICTURE + b"\n0\n\n"),
    "in chunks, with a content length that does not apply": plain(
        b"%x\r\n" % len(PICTURE) + PICTURE + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 3"
    ),
    "identity, stated": ok(PICTURE, "Content-Encoding: identity"),
    "after 100 Continue": answer("HTTP/1.1 100 Continue") + ok(),
    "as text/html": ok(PICTURE, "Content-Type: text/html"),
    "with a negative length": plain(PICTURE, "Content-Length: -5"),
    "with a length that is not a number": plain(PICTURE, "Content-Length: many"),
    "with 99 headers": ok(PICTURE, *(f"X-{number}: {number}" for number in range(98))),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_image_is_read_with_every_transfer_encoding(name: str) -> None:
    with Web({"*": GOOD[name]}) as web:
        assert fetcher().fetch(web.url("/x")) == PICTURE


BAD: dict[str, tuple[bytes | Exchange, type[JobError], str]] = {
    # Statuses
    **{
        f"status {status}": (ok(b"", status=f"{status} X"), ImageMissingError, f"responds {status}")
        for status in (201, 204, 206, 300, 304, 305, 400, 401, 402, 403, 404, 405, 406, 410, 414, 416, 451)
    },
    **{
        f"status {status}": (ok(b"", status=f"{status} X"), FetchError, f"responds {status}")
        for status in (101, 103, 199, 408, 421, 425, 429, 500, 502, 503, 504, 599, 999)
    },
    # No HTTP
    "nothing": (b"", FetchError, "without a response"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", FetchError, "malformed HTTP"),
    "only an image": (PICTURE, FetchError, "malformed HTTP"),
    "a status line without a status": (b"HTTP/1.1 OK\r\n\r\n", FetchError, "malformed HTTP"),
    "a status of five digits": (b"HTTP/1.1 99999 OK\r\n\r\n", FetchError, "malformed HTTP"),
    "a negative status": (b"HTTP/1.1 -200 OK\r\n\r\n", FetchError, "malformed HTTP"),
    "HTTP/9": (b"HTTP/9.1 200 OK\r\n\r\n", FetchError, "malformed HTTP"),
    "a reset instead of a response": (reset(), FetchError, "without a response"),
    "a reset within the headers": (reset(b"HTTP/1.1 200 OK\r\nX: "), FetchError, ""),
    "an endless status line": (flood(b"H" * 65_536), FetchError, "too long"),
    # Headers
    "endless headers": (flood(b"X: y\r\n" * 100, first=b"HTTP/1.1 200 OK\r\n"), FetchError, "malformed HTTP"),
    "an endless header": (flood(b"y" * 65_536, first=b"HTTP/1.1 200 OK\r\nX: "), FetchError, "too long"),
    "endless 100 Continue": (flood(b"HTTP/1.1 100 Continue\r\n\r\n"), FetchTimeoutError, ""),
    "a length beyond the limit": (ok(b"", f"Content-Length: {LIMIT + 1}").replace(b"Content-Length: 0\r\n", b""),
                                  ImageTooManyBytesError, "announces 100001 bytes, 100000 allowed"),
    "a length of 20 digits": (plain(b"", "Content-Length: 99999999999999999999"), ImageTooManyBytesError, "announces"),
    # Bodies
    "a body beyond the limit": (plain(b"x" * (LIMIT + 1)), ImageTooManyBytesError, "more than the 100000 bytes"),
    "an endless body": (flood(b"x" * 65_536, first=plain(b"")), ImageTooManyBytesError, "more than"),
    "less than announced": (plain(PICTURE, "Content-Length: 1000"), FetchError, "983 bytes too early"),
    "nothing of what was announced": (plain(b"", "Content-Length: 9"), FetchError, "9 bytes too early"),
    "a reset within the body": (reset(plain(b"x" * 500, "Content-Length: 1000")), FetchError, ""),
    # Chunks
    **{
        f"a chunk of {size.decode()!r}": (
            flood(b"x" * 65_536, first=chunked(size + b"\r\n")), FetchError, "malformed chunked",
        )
        for size in (b"-1", b"+5", b"0x5", b"5_0", b"", b"x", b" 5", b"5 5", b"f" * 16, b"5,5")
    },
    "a chunk of an exbibyte": (
        flood(b"x" * 65_536, first=chunked(b"f" * 15 + b"\r\n")), ImageTooManyBytesError, "more than",
    ),
    "an endless chunk size": (flood(b"0" * 65_536, first=chunked(b"")), FetchError, "malformed chunked"),
    "an endless chunk extension": (flood(b"a" * 65_536, first=chunked(b"5;")), FetchError, "malformed chunked"),
    "a chunk longer than it said": (chunked(b"2\r\nabcdef\r\n0\r\n\r\n"), FetchError, "longer than it announced"),
    "a chunk shorter than it said": (chunked(b"99\r\nabc\r\n0\r\n\r\n"), FetchError, "within a chunk"),
    "no last chunk": (chunked(b"3\r\nabc\r\n"), FetchError, "malformed chunked"),
    "no end after the last chunk": (chunked(b"3\r\nabc\r\n0\r\n"), FetchError, "does not end its chunked"),
    "endless trailers": (flood(b"X: y\r\n", first=chunked(b"0\r\n")), FetchError, "does not end its chunked"),
    "an endless trailer": (flood(b"y" * 9999, first=chunked(b"0\r\nX: ")), FetchError, "does not end its chunked"),
    "endless chunks": (flood(b"4\r\nabcd\r\n" * 1000, first=chunked(b"")), ImageTooManyBytesError, "more than"),
    # Content encodings
    "gzip": (ok(gzip.compress(PICTURE), "Content-Encoding: gzip"), FetchError, "not requested"),
    "gzip in other letters": (ok(gzip.compress(PICTURE), "Content-Encoding: X-GZIP "), FetchError, "not requested"),
    "deflate": (ok(zlib.compress(PICTURE), "Content-Encoding: deflate"), FetchError, "not requested"),
    "a gzip bomb": (
        ok(gzip.compress(b"\0" * 20_000_000), "Content-Encoding: gzip"), FetchError, "not requested",
    ),
    "a gzip bomb in chunks": (
        plain(b"%x\r\n" % len(BOMB) + BOMB + b"\r\n0\r\n\r\n",
              "Content-Encoding: gzip", "Transfer-Encoding: chunked"),
        FetchError, "not requested",
    ),
    "brotli": (ok(PICTURE, "Content-Encoding: br"), FetchError, "not requested"),
    "two encodings": (ok(PICTURE, "Content-Encoding: gzip, gzip"), FetchError, "not requested"),
    # Time
    "silence": (hang(), FetchTimeoutError, ""),
    "silence within the headers": (hang(b"HTTP/1.1 200 OK\r\nContent-"), FetchTimeoutError, ""),
    "silence before the body": (hang(plain(b"", "Content-Length: 9")), FetchTimeoutError, ""),
    "silence within the body": (hang(plain(b"x", "Content-Length: 9")), FetchTimeoutError, ""),
    "silence within a chunk": (hang(chunked(b"5\r\nab")), FetchTimeoutError, ""),
    "a dripping status line": (drip(b"HTTP/1.1 200 OK                    ", 0.05), FetchTimeoutError, ""),
    "dripping headers": (drip(b"X: y\r\n", 0.05, first=b"HTTP/1.1 200 OK\r\n"), FetchTimeoutError, ""),
    "a dripping body": (drip(b"x", 0.05, first=plain(b"", "Content-Length: 1000")), FetchTimeoutError, ""),
    "a dripping body without a length": (drip(b"x", 0.05, first=plain(b"")), FetchTimeoutError, ""),
    "a dripping chunk": (drip(b"1\r\na\r\n", 0.05, first=chunked(b"")), FetchTimeoutError, ""),
    "dripping trailers": (drip(b"X: y\r\n", 0.05, first=chunked(b"0\r\n")), FetchTimeoutError, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_misbehaving_server_gives_a_typed_error_in_time(name: str) -> None:
    served, error, sentence = BAD[name]
    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Web({"*": served}) as web, pytest.raises(JobError) as caught:
        fetcher(first_byte=PAUSE, total=TOTAL).fetch(web.url("/x?secret=1"))
    assert type(caught.value) is error
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)
    assert time.monotonic() - began < TOTAL + PAUSE + 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000  # KiB


def test_at_least_60_kinds_of_misbehaviour_are_covered() -> None:
    assert len(BAD) >= 60


def test_an_empty_response_is_an_empty_file() -> None:
    """Decoding refuses it: there are no bytes."""
    with Web({"/length": ok(b""), "/chunks": chunked(b"0\r\n\r\n"), "/end": plain(b"")}) as web:
        assert [fetcher().fetch(web.url(path)) for path in ("/length", "/chunks", "/end")] == [b"", b"", b""]


def test_a_body_of_exactly_the_limit_is_read() -> None:
    body = b"x" * LIMIT
    with Web({"/length": ok(body), "/end": plain(body)}) as web:
        for path in ("/length", "/end"):
            assert fetcher().fetch(web.url(path)) == body


def test_bytes_beyond_the_announced_length_are_not_read() -> None:
    with Web({"*": ok() + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"}, keep=True) as web:
        fetching = fetcher()
        assert [fetching.fetch(web.url("/x")) for _ in range(3)] == [PICTURE] * 3


# Connections


def test_a_connection_is_reused() -> None:
    with Web({"*": ok()}, keep=True) as web:
        fetching = fetcher()
        for number in range(5):
            assert fetching.fetch(web.url(f"/{number}")) == PICTURE
        assert (web.connections, len(web.requests)) == (1, 5)


def test_a_kept_connection_that_the_server_has_closed_is_replaced() -> None:
    with Web({"*": ok()}) as web:
        fetching = fetcher()
        for _ in range(3):
            assert fetching.fetch(web.url("/x")) == PICTURE
        assert web.connections == 3


def test_a_request_on_a_connection_that_closes_is_sent_once_more() -> None:
    """The server closes it only when the next request arrives: that is sent once more, and only once."""

    def once(connection: socket.socket, _request: str) -> None:
        if web.requests.count("GET /x HTTP/1.1") % 2:
            connection.sendall(ok())
        else:
            connection.shutdown(socket.SHUT_RDWR)

    with Web({"*": once}, keep=True) as web:
        fetching = fetcher()
        assert fetching.fetch(web.url("/x")) == PICTURE
        assert fetching.fetch(web.url("/x")) == PICTURE
        assert (web.connections, len(web.requests)) == (2, 3)


def test_a_response_without_a_request_is_not_used() -> None:
    """Data that a server sends early on a kept connection is not taken as the response to the next request."""

    def with_a_second(connection: socket.socket, _request: str) -> None:
        connection.sendall(ok())
        time.sleep(0.1)
        connection.sendall(ok(b"poison"))

    with Web({"/a": with_a_second, "/b": ok(b"b")}, keep=True) as web:
        fetching = fetcher()
        assert fetching.fetch(web.url("/a")) == PICTURE
        time.sleep(0.3)
        assert fetching.fetch(web.url("/b")) == b"b"
        assert web.connections == 2


def test_a_refused_connection_is_a_fetch_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match=r"127\.0\.0\.1: Connection refused"):
            fetcher().fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/")


def test_a_connection_that_is_never_accepted_times_out() -> None:
    """A full backlog drops packets, as a firewall does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fill = [socket.socket() for _ in range(4)]
        for one in fill:
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(listener.getsockname())
        began = time.monotonic()
        with pytest.raises(FetchTimeoutError):
            fetcher(connect=0.3).fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        assert 0.25 < time.monotonic() - began < PATIENCE_SECONDS
        for one in fill:
            one.close()


def test_a_name_server_that_does_not_respond_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for_end = threading.Event()

    def never() -> list[str]:
        asked_for_end.wait(20)
        return ["127.0.0.1"]

    with names(monkeypatch, {"slow.test": never}):
        began = time.monotonic()
        with pytest.raises(FetchTimeoutError, match=r"slow\.test: resolving its name"):
            fetcher(connect=0.3).fetch("http://slow.test/x.jpg")
        assert 0.25 < time.monotonic() - began < PATIENCE_SECONDS
    asked_for_end.set()


def test_redirects_share_the_time_limit_of_a_fetch() -> None:
    def slow(connection: socket.socket, request: str) -> None:
        time.sleep(0.35)
        step = int(request.split(" ")[1].strip("/"))
        connection.sendall(ok(b"", f"Location: /{step + 1}", status="302 Found"))

    with Web({"*": slow}) as web:
        began = time.monotonic()
        with pytest.raises(FetchTimeoutError):
            fetcher(first_byte=0.6, total=0.8).fetch(web.url("/0"))
        assert time.monotonic() - began < PATIENCE_SECONDS


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def _trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make OpenSSL trust the authority of the tests, by its environment variable."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with names(monkeypatch, {"images.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}):
        yield


def tls(authority: trustme.CA, *identities: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*identities).configure_cert(context)
    return context


@pytest.mark.usefixtures("_trusted")
def test_an_image_is_fetched_over_https(authority: trustme.CA) -> None:
    with Web({"*": ok()}, tls=tls(authority, "images.test"), keep=True) as web:
        fetching = fetcher()
        for _ in range(3):
            assert fetching.fetch(web.url("/a b#c", "images.test")) == PICTURE
        assert web.connections == 1
        assert web.requests[0] == "GET /a%20b%23c HTTP/1.1"
        assert f"\r\nHost: images.test:{web.port}\r\n" in web.heads[0]


def test_the_systems_authorities_and_those_of_the_setting_are_trusted(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = trustme.CA()
    private.cert_pem.write_to_path(str(tmp_path / "private.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "system.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    for issuer in (authority, private):
        with Web({"*": ok()}, tls=tls(issuer, "127.0.0.1")) as web:
            assert fetcher(authorities=tmp_path / "private.pem").fetch(web.url("/x")) == PICTURE
    with Web({"*": ok()}, tls=tls(private, "127.0.0.1")) as web, pytest.raises(FetchError, match="verify failed"):
        fetcher().fetch(web.url("/x"))


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file or directory"), ("hello", "it holds no certificates in PEM")]
)
def test_a_file_without_authorities_is_a_setting_that_is_not_valid(
    content: str | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=f"RUNNER_IMAGE_CA names .*ca.crt, which cannot be used: {why}"):
        fetcher(authorities=path)


@pytest.mark.usefixtures("_trusted")
def test_an_image_is_fetched_over_https_from_an_address(authority: trustme.CA) -> None:
    with Web({"*": ok()}, tls=tls(authority, "127.0.0.1")) as web:
        assert fetcher().fetch(web.url("/x")) == PICTURE


@pytest.mark.usefixtures("_trusted")
def test_a_certificate_of_another_name_is_refused(authority: trustme.CA) -> None:
    with Web({"*": ok()}, tls=tls(authority, "images.test")) as web:
        with pytest.raises(FetchError, match="certificate verify failed"):
            fetcher().fetch(web.url("/x", "other.test"))
        assert web.requests == []


@pytest.mark.usefixtures("_trusted")
def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    with Web({"*": ok()}, tls=tls(trustme.CA(), "images.test")) as web:
        with pytest.raises(FetchError, match="certificate verify failed"):
            fetcher().fetch(web.url("/x", "images.test"))
        assert web.requests == []


@pytest.mark.usefixtures("_trusted")
def test_a_redirect_from_https_to_http_is_refused(authority: trustme.CA) -> None:
    with Web({"*": ok()}) as plain_web:
        answers = {"/x": ok(b"", f"Location: {plain_web.url('/y')}", status="302 Found")}
        with Web(answers, tls=tls(authority, "images.test")) as web, pytest.raises(SpottmeeError) as caught:
            fetcher().fetch(web.url("/x", "images.test"))
        assert str(caught.value).endswith("images.test redirects from https to http")
        assert plain_web.connections == 0


@pytest.mark.usefixtures("_trusted")
def test_a_redirect_from_http_to_https_is_followed(authority: trustme.CA) -> None:
    with Web({"*": ok()}, tls=tls(authority, "images.test")) as web:
        answers = {"/x": ok(b"", f"Location: {web.url('/y', 'images.test')}", status="301 Moved")}
        with Web(answers) as first:
            assert fetcher().fetch(first.url("/x")) == PICTURE


def _plain_text(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    connection.shutdown(socket.SHUT_WR)


def _dripping_handshake(connection: socket.socket) -> None:
    # A handshake record that announces 16 KiB, sent byte by byte with pauses.
    connection.sendall(b"\x16\x03\x03\x40\x00")
    while True:
        connection.sendall(b"\x02")
        time.sleep(0.05)


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize(
    ("greet", "error"),
    [
        (_plain_text, FetchError),
        (lambda connection: connection.close(), FetchError),
        (lambda _connection: time.sleep(5), FetchTimeoutError),
        (_dripping_handshake, FetchTimeoutError),
    ],
    ids=["plain text", "closes", "silence", "drips"],
)
def test_a_tls_handshake_that_fails_gives_a_typed_error_in_time(
    greet: Exchange, error: type[JobError], authority: trustme.CA
) -> None:
    with Web({"*": ok()}, tls=tls(authority, "images.test"), greet=greet) as web:  # type: ignore[arg-type] # has no request
        began = time.monotonic()
        with pytest.raises(JobError) as caught:
            fetcher(connect=0.4).fetch(web.url("/x", "images.test"))
        assert type(caught.value) is error
        assert time.monotonic() - began < PATIENCE_SECONDS


# Proxies


@pytest.mark.usefixtures("_trusted")
def test_an_image_is_fetched_over_https_through_a_proxy(authority: trustme.CA) -> None:
    with Web({"*": ok()}, tls=tls(authority, "images.test")) as web, Web({"*": tunnel}) as proxy:
        through = fetcher(proxy=f"http://me:pw@127.0.0.1:{proxy.port}")
        assert through.fetch(web.url("/x y", "images.test")) == PICTURE
        assert proxy.requests == [f"CONNECT 127.0.0.1:{web.port} HTTP/1.1"]
        assert "\r\nProxy-Authorization: Basic bWU6cHc=\r\n" in proxy.heads[0]
        assert web.requests == ["GET /x%20y HTTP/1.1"]
        assert "Proxy-Authorization" not in web.heads[0]


@pytest.mark.usefixtures("_trusted")
def test_a_proxy_that_refuses_the_tunnel_is_a_fetch_error(authority: trustme.CA) -> None:
    with Web({"*": ok(b"no", status="407 Proxy Authentication Required")}) as proxy:
        with pytest.raises(FetchError, match="the proxy responds 407"):
            fetcher(proxy=f"http://127.0.0.1:{proxy.port}").fetch("https://images.test/x")
        assert len(proxy.requests) == 1
