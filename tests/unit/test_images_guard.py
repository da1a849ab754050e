"""SSRF protection: which addresses are public."""

from __future__ import annotations

import ipaddress

import pytest

from runner.errors import FetchError, ForbiddenUrlError
from runner.images.ssrf import is_public, resolve

INTERNAL = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255",
    "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.0.9", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1",
    "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::8.8.8.8", "100::1", "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::1",
    "2002:a00:1::1", "2002:a9fe:a9fe::1", "2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:a00:1", "3fff::1", "4000::1",
    "5f00::1", "fc00::1", "fd00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::a9fe:a9fe", "fec0::1",
    "ff02::1", "ff0e::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.255.255.255", "128.0.0.1",
    "142.250.1.128", "168.63.129.15", "172.15.255.255", "172.32.0.1", "192.167.255.255", "192.169.0.1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2a00:1450:4001:80b::2010", "2606:4700:4700::1111",
    "2600:1901::1", "223.255.255.255",
]  # fmt: skip


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0177.0.0.1", "0x7f.1", "0x7f000001", "127.1", "127.0.1", "0", "00000177.1", "::1",
     "::ffff:127.0.0.1", "localhost"],
)  # fmt: skip
def test_every_spelling_of_loopback_is_refused(host: str) -> None:
    with pytest.raises(ForbiddenUrlError, match="not a public address"):
        resolve(host, 80, allow_private=False, seconds=5)
    assert set(resolve(host, 80, allow_private=True, seconds=5)) <= {"127.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1"}


def test_a_name_that_does_not_resolve_is_a_fetch_error() -> None:
    with pytest.raises(FetchError, match=r"name no-such-host\.invalid does not resolve"):
        resolve("no-such-host.invalid", 80, allow_private=False, seconds=20)
