"""SSRF protection: hostile URLs, names and redirects do not reach the real servers that they point to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from runner.errors import FetchError, ForbiddenUrlError, ImageMissingError, SettingsError
from tests.support.web import PICTURE, Web, closed_fetchers, fetcher, names, ok, tunnel

__all__ = ["closed_fetchers"]  # a fixture for every test here


@pytest.fixture(scope="module")
def internal() -> Iterator[Web]:
    """A server that an attacker wants to reach. It responds to everything, and counts connections."""
    with Web({"*": ok()}) as web:
        yield web


@pytest.fixture
def untouched(internal: Web) -> Iterator[Web]:
    before = internal.connections
    yield internal
    assert internal.connections == before


SPELLINGS = [
    "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "2130706433", "017700000001", "0x7f000001", "0177.0.0.1",
    "0x7f.0.0.1", "0x7f.1", "127.1", "127.0.1", "127.0.0.1.", "１２７.０.０.１", "127。0。0。1", "①②⑦.0.0.1",  # noqa: RUF001 - look-alikes are the point
    "[::1]", "[::]", "0", "0.0.0.0", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]", "[0:0:0:0:0:ffff:127.0.0.1]", "ｌocalhost",  # noqa: RUF001 - look-alikes are the point
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS)
def test_loopback_is_refused_in_every_spelling(host: str, untouched: Web) -> None:
    with pytest.raises(ForbiddenUrlError):
        fetcher(private=False).fetch(f"http://{host}:{untouched.port}/x.jpg")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/latest/", "http://100.100.100.200/latest/",
        "http://169.254.170.2/v2/credentials", "http://168.63.129.16/machine", "http://192.0.0.192/opc/v2/",
        "http://[::ffff:169.254.169.254]/", "http://[::ffff:a9fe:a9fe]/", "http://2852039166/", "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/", "http://[64:ff9b::a9fe:a9fe]/", "http://[2002:a9fe:a9fe::]/",
        "http://[2001:0:a9fe:a9fe::1]/", "http://[2a00:1450::5efe:a9fe:a9fe]/", "http://[fe80::a9fe:a9fe]/",
        "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/", "http://100.64.0.1/", "http://198.18.0.1/",
        "http://224.0.0.251/", "http://255.255.255.255/", "http://240.0.0.1/", "http://[fc00::1]/", "http://[ff02::1]/",
        "http://[fec0::1]/", "http://[100::1]/", "http://[2001:db8::1]/", "http://192.0.2.1/", "http://203.0.113.7/",
        "http://[fe80::1%25lo]/", "http://[::1%25lo]/", "http://[64:ff9b:1::1]/", "http://192.88.99.1/",
    ],
)  # fmt: skip
def test_internal_and_metadata_addresses_are_refused(url: str) -> None:
    with pytest.raises(ForbiddenUrlError):
        fetcher(private=False).fetch(url)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "/etc/passwd", "ftp://{}/x", "gopher://{}/_x", "dict://{}/x", "ldap://{}/", "jar:http://{}/!x",
        "data:image/png;base64,AAAA", "//{}/x", "http:{}/x", "http:/{}/x", "http:\\\\{}\\x", "https://user:secret@{}/x",
        "http://{}@{}/", "http://storage.example\\@{}/", "http://storage.example#@{}/", "http://storage.example?@{}/",
        "http://storage.example/@{}/", "http://storage.example:80@{}/", "http://{}\r\n/x", "http://storage.example\0.{}/x",
    ],
)  # fmt: skip
def test_urls_that_confuse_parsers_reach_no_internal_server(
    url: str, untouched: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    with names(monkeypatch, {}), pytest.raises((ForbiddenUrlError, FetchError)) as caught:
        fetcher().fetch(url.replace("{}", f"127.0.0.1:{untouched.port}"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["2606:4700:4700::1111", "::1"],
        ["8.8.8.8", "8.8.4.4", "10.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["fe80::1%lo"], ["0.0.0.0"],
    ],
)  # fmt: skip
def test_a_name_with_any_internal_address_is_refused(
    addresses: list[str], untouched: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        names(monkeypatch, {"evil.test": addresses}),
        pytest.raises(ForbiddenUrlError, match=r"evil\.test resolves to"),
    ):
        fetcher(private=False).fetch(f"http://evil.test:{untouched.port}/x.jpg")


def test_dns_rebinding_does_not_change_the_address_that_was_checked(
    internal: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that changes its address after the check is not resolved again."""
    turns = iter([["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1"]])
    before = internal.connections
    listener = socket.create_server(("127.0.0.2", internal.port))
    with listener, names(monkeypatch, {"rebind.test": lambda: next(turns)}) as requested:
        with pytest.raises(FetchError):  # no response comes, and the address is not replaced by another
            fetcher(total=0.6, first_byte=0.3).fetch(f"http://rebind.test:{internal.port}/x.jpg")
        with listener.accept()[0] as accepted:
            assert accepted.recv(64).startswith(b"GET /x.jpg HTTP/1.1\r\nHost: rebind.test")
    assert requested == ["rebind.test"]
    assert internal.connections == before


def test_the_addresses_of_a_name_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    with Web({"*": ok()}) as web, names(monkeypatch, {"two.test": ["127.0.0.3", "127.0.0.1"]}):
        assert fetcher().fetch(web.url("/x", "two.test")) == PICTURE


# Permissions


def test_only_hosts_of_the_allow_list_may_be_private(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = fetcher(private=False, hosts=("Images.test.", "bücher.test", "127.0.0.5"))
    table = {"images.test": ["127.0.0.1"], "xn--bcher-kva.test": ["127.0.0.1"], "sub.images.test": ["127.0.0.1"]}
    with Web({"*": ok()}) as web, names(monkeypatch, table):
        assert allowed.fetch(web.url("/x", "images.test")) == PICTURE
        assert allowed.fetch(web.url("/x", "IMAGES.test.")) == PICTURE
        assert allowed.fetch(web.url("/x", "BÜCHER.test")) == PICTURE
        for other in ("sub.images.test", "127.0.0.1", "images.test.evil.test", "127.5"):
            with pytest.raises((ForbiddenUrlError, FetchError)):
                allowed.fetch(web.url("/x", other))
        assert web.connections == 3
    with Web({"*": ok()}, address="127.0.0.5") as web:
        assert allowed.fetch(web.url("/x")) == PICTURE


@pytest.mark.parametrize("host", ["http://images.test", "images.test:80", "user@images.test", "*.images.test", "a b"])
def test_entries_of_the_allow_list_must_be_hosts(host: str) -> None:
    with pytest.raises(SettingsError, match="RUNNER_ALLOWED_PRIVATE_HOSTS"):
        fetcher(hosts=(host,))


# Ports


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700:4700::1111]", "images.test"])
@pytest.mark.parametrize("port", [22, 25, 6379, 8080, 65535])
def test_ports_other_than_those_of_the_web_are_refused(host: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with names(monkeypatch, {"images.test": ["8.8.8.8"]}) as requested:
        with pytest.raises(ForbiddenUrlError, match=f"at port {port}: image servers may use 80, 443 and RUNNER_ALLOW"):
            fetcher(private=False, ports=(), proxy="http://127.0.0.1:9").fetch(f"http://{host}:{port}/x.jpg")
        assert requested == []  # refused before the name is looked up


def test_a_listed_port_is_allowed_and_its_neighbours_are_not() -> None:
    with Web({"*": ok()}) as web:
        host = ("127.0.0.1",)
        for ports in (((web.port, web.port),), ((1, 2), (web.port - 5, web.port + 5))):
            assert fetcher(private=False, hosts=host, ports=ports).fetch(web.url("/x")) == PICTURE
        for ports in (((1, 2),), ((1, web.port - 1), (web.port + 1, 65_535))):
            with pytest.raises(ForbiddenUrlError, match=f"at port {web.port}"):
                fetcher(private=False, hosts=host, ports=ports).fetch(web.url("/x"))
        assert web.connections == 2


def test_private_urls_may_use_every_port() -> None:
    with Web({"*": ok()}) as web:
        assert fetcher(private=True, ports=()).fetch(web.url("/x")) == PICTURE


def test_the_port_of_a_redirect_is_checked(untouched: Web) -> None:
    with Web({"/x": redirect(untouched.url("/y"))}) as web, pytest.raises(ForbiddenUrlError, match="at port"):
        fetcher(private=False, hosts=("127.0.0.1",), ports=((web.port, web.port),)).fetch(web.url("/x"))


# Redirects


def redirect(location: str, status: str = "302 Found") -> bytes:
    return ok(b"", f"Location: {location}", status=status)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{}/x", "//127.0.0.1:{}/x", "http://localhost:{}/x", "http://2130706433:{}/x", "http://127.1:{}/x",
        "http://[::ffff:127.0.0.1]:{}/x", "http://inside.test:{}/x", "http://user@images.test:{}/x", "HTTP://0:{}/x",
        "http://169.254.169.254/latest/", "http://[fd00:ec2::254]/", "file:///etc/passwd", "ftp://images.test/x",
        "data:image/png;base64,AAAA", "javascript:alert(1)", "http://[", "http://[::1", "http://images.test:99999/",
        "http://images.test\\@127.0.0.1:{}/x", "http://127。0。0。1:{}/x", "http:///x", "gopher://127.0.0.1:{}/",
    ],
)  # fmt: skip
def test_the_target_of_a_redirect_is_checked_like_a_url(
    location: str, untouched: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = redirect(location.replace("{}", str(untouched.port)).encode().decode("latin-1"))
    table = {"images.test": ["127.0.0.2"], "inside.test": ["127.0.0.1"], "localhost": ["127.0.0.1"]}
    with Web({"/x": answer}, address="127.0.0.2") as web, names(monkeypatch, table):
        with pytest.raises((ForbiddenUrlError, FetchError)) as caught:
            fetcher(private=False, hosts=("images.test",)).fetch(web.url("/x", "images.test"))
        # A backslash is part of the path: the request goes to the host before it, which has no such file.
        assert isinstance(caught.value, ForbiddenUrlError) or "@" in location
        assert web.requests[0] == "GET /x HTTP/1.1"


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
def test_three_redirects_are_followed_and_four_are_not(status: str) -> None:
    answers = {f"/{number}": redirect(f"/{number - 1}", status) for number in range(1, 5)} | {"/0": ok()}
    with Web(answers) as web:
        assert fetcher().fetch(web.url("/3")) == PICTURE
        with pytest.raises(ForbiddenUrlError, match="more than 3 times"):
            fetcher().fetch(web.url("/4"))
        assert len(web.requests) == 8


def test_a_redirect_to_itself_is_refused_after_three_requests() -> None:
    with Web({"/x": redirect("/x")}) as web, pytest.raises(ForbiddenUrlError, match="more than 3 times"):
        fetcher().fetch(web.url("/x"))


@pytest.mark.parametrize(
    ("location", "requested"),
    [
        ("b.jpg", "/a/b.jpg"), ("/b.jpg", "/b.jpg"), ("./b", "/a/b"), ("../b", "/b"), ("?q=1", "/a/x?q=1"),
        ("/two words", "/two%20words"), ("/two%20words", "/two%20words"), ("/фото", "/%D1%84%D0%BE%D1%82%D0%BE"),
        ("/b?X-Goog-Signature=a%2Fb", "/b?X-Goog-Signature=a%2Fb"), ("/b#fragment", "/b"), ("/\xff", "/%C3%BF"),
    ],
)  # fmt: skip
def test_the_location_of_a_redirect_is_resolved_against_the_url(location: str, requested: str) -> None:
    answers = {"/a/x": redirect(location.encode().decode("latin-1")), requested: ok()}
    with Web(answers) as web:
        assert fetcher().fetch(web.url("/a/x")) == PICTURE
        assert web.requests[-1] == f"GET {requested} HTTP/1.1"


def test_a_redirect_without_a_location_is_a_missing_image() -> None:
    with Web({"/x": ok(b"", status="302 Found")}) as web, pytest.raises(ImageMissingError, match="responds 302"):
        fetcher().fetch(web.url("/x"))


# File names


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a b.jpg", "a%20b.jpg"), ("a#b.jpg", "a%23b.jpg"), ("a?b.jpg", "a%3Fb.jpg"), ("50%.jpg", "50%25.jpg"),
        ("50%25.jpg", "50%2525.jpg"), ("写.jpg", "%E5%86%99.jpg"), ("a.j\tpg", "a.j%09pg"), ("a.jpg\t", "a.jpg%09"),
        ("фото #1?.jpg", "%D1%84%D0%BE%D1%82%D0%BE%20%231%3F.jpg"),
    ],
)  # fmt: skip
def test_a_file_name_is_requested_as_it_is_stored(name: str, stored: str) -> None:
    with Web({f"/albums/{stored}": ok()}) as web:
        assert fetcher().fetch(web.url(f"/albums/{name}")) == PICTURE
        assert web.requests == [f"GET /albums/{stored} HTTP/1.1"]


@pytest.mark.parametrize("path", ["/a.jpg?X-Goog-Signature=a%2Fb&e=1", "/a%20b.jpg", "/a.jpg?versionId=1"])
def test_a_signed_or_encoded_url_is_requested_as_it_is(path: str) -> None:
    with Web({path: ok()}, keep=True) as web:
        assert fetcher().fetch(web.url(path)) == PICTURE
        assert web.requests[-1] == f"GET {path} HTTP/1.1"
        assert len(web.requests) == 2


def test_an_image_that_neither_reading_finds_is_missing() -> None:
    with Web({}) as web, pytest.raises(ImageMissingError, match="responds 404"):
        fetcher().fetch(web.url("/a.jpg?x=1"))


# Proxies


def test_proxy_variables_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch, untouched: Web) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, untouched.url())
    monkeypatch.setenv("no_proxy", "")
    with Web({"/x": ok()}, address="127.0.0.2") as web:
        assert fetcher().fetch(web.url("/x")) == PICTURE


def test_a_proxy_connects_to_the_checked_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with Web({"*": ok()}, address="127.0.0.9") as web, Web({"*": tunnel}) as proxy:
        with names(monkeypatch, {"images.test": ["127.0.0.9"], "proxy.test": ["127.0.0.1"]}) as requested:
            through = fetcher(proxy=f"http://me:pass%40word@proxy.test:{proxy.port}")
            assert through.fetch(web.url("/a b", "images.test")) == PICTURE
        assert requested == ["images.test", "proxy.test"]
        assert proxy.requests == [f"CONNECT 127.0.0.9:{web.port} HTTP/1.1"]
        assert "\r\nProxy-Authorization: Basic bWU6cGFzc0B3b3Jk\r\n" in proxy.heads[0]
        assert web.requests == ["GET /a%20b HTTP/1.1"]
        assert f"\r\nHost: images.test:{web.port}\r\n" in web.heads[0]
        assert "Proxy-Authorization" not in web.heads[0]


def test_ssrf_protection_holds_with_a_proxy(untouched: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    through = fetcher(private=False, proxy=untouched.url())
    with names(monkeypatch, {"inside.test": ["10.0.0.1"]}):
        for url in ("http://169.254.169.254/", "http://inside.test/", "https://127.0.0.1/"):
            with pytest.raises(ForbiddenUrlError):
                through.fetch(url)


@pytest.mark.parametrize(
    "url", ["socks5://h:1", "https://h:1", "h:1", "http://", "http://:secret@/", "http://h:secret/"]
)
def test_a_malformed_proxy_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(SettingsError, match="RUNNER_FETCH_PROXY_URL") as caught:
        fetcher(proxy=url)
    assert "secret" not in str(caught.value)


def test_each_thread_keeps_one_connection_open() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Web({"*": ok()}, keep=True)) for _ in range(5)]
        fetching = fetcher()
        for server in servers * 2:
            assert fetching.fetch(server.url("/x")) == PICTURE
        assert [server.connections for server in servers] == [2] * 5
        assert fetching.fetch(servers[-1].url("/y")) == PICTURE
        assert servers[-1].connections == 2
