"""URLs as the API writes them, and as an attacker would."""

from __future__ import annotations

import pytest

from runner.errors import ForbiddenUrlError
from runner.images.urls import host_name, readings

BASE = "https://storage.example/albums/a"


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("photo.jpg", ["photo.jpg"]),
        ("two words.jpg", ["two%20words.jpg"]),
        ("trailing ", ["trailing%20"]),
        ("a#b.jpg", ["a%23b.jpg", "a"]),
        ("what?.jpg", ["what%3F.jpg", "what?.jpg"]),
        ("a#b?c#d.jpg", ["a%23b%3Fc%23d.jpg", "a"]),
        ("100%.jpg", ["100%25.jpg"]),
        ("100%25.jpg", ["100%2525.jpg", "100%25.jpg"]),
        ("%zz.jpg", ["%25zz.jpg"]),
        ("a%20b.jpg", ["a%2520b.jpg", "a%20b.jpg"]),
        ("фото.jpg", ["%D1%84%D0%BE%D1%82%D0%BE.jpg"]),
        ("写真 🎉.jpg", ["%E5%86%99%E7%9C%9F%20%F0%9F%8E%89.jpg"]),
        ("e\u0301.jpg", ["e%CC%81.jpg"]),  # not composed: object stores compare bytes
        ("a&b=c;d,e+f'(g)!$*~@:.jpg", ["a&b=c;d,e+f'(g)!$*~@:.jpg"]),
        ('a"<>\\^`{|}.jpg', ["a%22%3C%3E%5C%5E%60%7B%7C%7D.jpg"]),
        ("a.jpg?Signature=ab%2Fcd&e=1", ["a.jpg%3FSignature=ab%252Fcd&e=1", "a.jpg?Signature=ab%2Fcd&e=1"]),
        ("x//y.jpg", ["x//y.jpg"]),
        ("a.j\tpg", ["a.j%09pg"]),
        ("a.jpg\t", ["a.jpg%09"]),
        ("a\tb?.jpg", ["a%09b%3F.jpg", "a%09b?.jpg"]),
        (".", ["%2E"]),
        ("../../x.jpg", ["%2E%2E/%2E%2E/x.jpg"]),
        ("..x/.y.jpg", ["..x/.y.jpg"]),
    ],
)  # fmt: skip
def test_file_names_that_the_api_does_not_encode_are_encoded(name: str, paths: list[str]) -> None:
    assert [target.path for target in readings(f"{BASE}/{name}")] == [f"/albums/a/{path}" for path in paths]


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://example.com", "example.com", 80),
        ("https://example.com", "example.com", 443),
        ("HTTPS://EXAMPLE.com:8443/x", "example.com", 8443),
        ("http://example.com:/x", "example.com", 80),
        ("http://example.com./x", "example.com", 80),
        ("http://bücher.example/x", "xn--bcher-kva.example", 80),
        ("http://a_b.example/x", "a_b.example", 80),
        ("http://１２７.０.０.１/", "127.0.0.1", 80),  # noqa: RUF001 - full-width digits
        ("http://127。0。0。1/", "127.0.0.1", 80),
        ("http://[::1]:81/", "::1", 81),
        ("http://[0:0:0:0:0:0:0:1]/", "::1", 80),
        ("http://example.com?x=1", "example.com", 80),
        ("http://example.com#x", "example.com", 80),
    ],
)
def test_spellings_of_a_host_are_normalised(url: str, host: str, port: int) -> None:
    assert {(target.host, target.port) for target in readings(url)} == {(host, port)}


@pytest.mark.parametrize(
    "url",
    [
        "", " ", "x", "/etc/passwd", "file:///etc/passwd", "ftp://h/x", "gopher://h/", "data:image/png;base64,AA==",
        "javascript:1", "unix:///run/x", "http:", "http:/", "http://", "http:///x", "http:h/x", "//h/x", "http//h/x",
        "http://?x", "http://#x", "http:\\\\h\\x", "https://user@h/", "https://user:pass@h/", "https://@h/",
        "https://a@b@h/", "http://h@/", "http://h:0/", "http://h:65536/", "http://h:x/", "http://h:-1/",
        "http://h:8 0/", "http://h:٨٠/", "http://h h/", "http://h%20h/", "http://h%00/", "http://%31%32%37.0.0.1/",
        "http://[::1", "http://::1/", "http://[::1]x/", "http://[]/", "http://[g::1]/", "http://[1:2]/", "http://[127.0.0.1]/",
        "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://h\0/", "http://h/\0", "http://h/\r\nHost: x",
        "http://h/\n", "\thttp://h/", "http://h\t/", "http://h/\x7f", "http://h/\ud800", "http://./", "http://../",
        "http://.h/", "http://a..b/", "http://" + "a" * 64 + ".example/", "http://" + "a." * 127 + "a/",
        "http://" + "ü" * 4000 + "/", "http://a℀b.example/", "http://a＠b.example/", "http://h/" + "x" * 8200,  # noqa: RUF001 - look-alikes are the point
        "http://h\uff01/", "http://-\u2488.example/", "http://h,h2/", "http://h;h2/", "http://<h>/", "http://h|/", "http://*/",
    ],
)  # fmt: skip
def test_urls_that_are_not_http_or_have_a_malformed_host_are_refused(url: str) -> None:
    with pytest.raises(ForbiddenUrlError) as caught:
        readings(url)
    assert "pass" not in str(caught.value).replace("password", "")


def test_a_backslash_ends_the_host() -> None:
    (target,) = readings("http://example.com\\@evil.example/x")
    assert (target.host, target.path) == ("example.com", "/%5C@evil.example/x")


def test_a_path_starts_with_a_slash_whatever_follows_the_host() -> None:
    assert [target.path for target in readings("http://h\\x?y")] == ["/%5Cx%3Fy", "/%5Cx?y"]
    assert [target.path for target in readings("http://h?y#z")] == ["/%3Fy%23z", "/?y"]
    assert [target.path for target in readings("http://h#z")] == ["/%23z", "/"]


@pytest.mark.parametrize(("url", "header"), [
    ("http://h/", "h"), ("http://h:80/", "h"), ("https://h:443/", "h"), ("http://h:443/", "h:443"),
    ("http://[::1]/", "[::1]"), ("http://[::1]:81/", "[::1]:81"),
])  # fmt: skip
def test_the_host_header_names_only_ports_that_are_not_the_default(url: str, header: str) -> None:
    assert readings(url)[0].host_header == header


@pytest.mark.parametrize(("text", "name"), [("[::1]", "::1"), ("::1", "::1"), ("Minio.", "minio"), ("127.0.0.1",) * 2])
def test_hosts_of_the_allow_list_are_normalised(text: str, name: str) -> None:
    assert host_name(text) == name
