"""Which addresses images may be fetched from: public ones, unless a setting says otherwise."""

from __future__ import annotations

import ipaddress
import socket

from runner.errors import FetchError, ForbiddenUrlError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Ranges that translate to IPv4: what they lead to is judged, and what hides its target is refused.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_REFUSED = (
    ipaddress.ip_network("64:ff9b:1::/48"),  # local-use translation, RFC 8215
    ipaddress.ip_network("2001::/32"),  # Teredo, RFC 4380
    ipaddress.ip_network("100.64.0.0/10"),  # shared address space, RFC 6598
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays, RFC 7526
    ipaddress.ip_network("fec0::/10"),  # site-local, RFC 3879
    ipaddress.ip_network("5f00::/16"),  # segment routing, RFC 9602
    ipaddress.ip_network("::/96"),  # IPv4-compatible, RFC 4291
)


def is_public(address: Address) -> bool:
    """Return whether `address`, and the IPv4 address that it may carry, is one of the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    if any(address in network for network in _REFUSED if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Return the addresses of `host`, to be connected to as they are: there is no second resolution.

    Raises `ForbiddenUrlError` when any of them is not public (a name with one public and one internal address is
    how a check is got around), and `FetchError` when the name does not resolve.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchError(f"the name {host} does not resolve") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not allow_private and ("%" in text or not is_public(address)):
            raise ForbiddenUrlError(
                f"{host} leads to {address}, which is no public address (RUNNER_ALLOW_PRIVATE_URLS, "
                "RUNNER_ALLOWED_HOSTS)"
            )
    return addresses
