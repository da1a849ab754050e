"""SSRF protection: images are fetched only from public addresses, unless a setting allows others."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading

from runner.errors import FetchError, FetchTimeoutError, ForbiddenUrlError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_UNICAST = ipaddress.IPv6Network("2000::/3")  # all of IPv6 that is allocated (IANA: IPv6 address space)
# Ranges that embed an IPv4 address, which is checked instead.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: the upper half of the interface identifier
# Ranges that Python's tables leave out, in some versions or in all.
_REFUSED_4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "100.64.0.0/10",  # shared address space, RFC 6598; a cloud's metadata at 100.100.100.200
        "168.63.129.16/32",  # Azure's platform services, at a public address
        "192.0.0.0/24",  # protocol assignments, RFC 6890; a cloud's metadata at 192.0.0.192
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
    )
)
_REFUSED_6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, RFC 2928: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation, RFC 3849
        "3fff::/20",  # documentation, RFC 9637
    )
)


def is_public(address: Address) -> bool:
    """Return whether `address`, or the IPv4 address that it embeds, belongs to the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        refused = any(address in network for network in _REFUSED_4)
        return address.is_global and not (refused or address.is_multicast or address.is_reserved)
    inner = _embedded(address)
    if inner is not None:
        return is_public(inner)
    return address in _UNICAST and not any(address in network for network in _REFUSED_6)


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that a mapped, 6to4, NAT64 or ISATAP address embeds."""
    number = int(address)
    if address in _NAT64 or (number >> 32 & 0xFFFFFFFF) in _ISATAP:
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def resolve(host: str, port: int, *, allow_private: bool, seconds: float) -> list[str]:
    """Return the addresses of `host`, to connect to without resolving it again (protection from DNS rebinding).

    Raises `ForbiddenUrlError` if any of them is not public (a name with a public and an internal address could bypass
    such checks), `FetchError` if the name does not resolve, and `FetchTimeoutError` if that takes longer than
    `seconds`.
    """
    addresses = _look_up(host, port, seconds)
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not allow_private and ("%" in text or not is_public(address)):
            raise ForbiddenUrlError(
                f"{host} resolves to {address}, which is not a public address: add the host to "
                "RUNNER_ALLOWED_PRIVATE_HOSTS, or set RUNNER_ALLOW_PRIVATE_ADDRESSES"
            )
    return addresses


def _look_up(host: str, port: int, seconds: float) -> list[str]:
    """Query the system's resolver, which has no timeout, in a thread that is abandoned after `seconds`."""
    answers: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, ValueError):  # ValueError: names that its encoding refuses
            answers.put(None)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        addresses = answers.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        raise FetchTimeoutError(f"{host}: resolving its name") from None
    if not addresses:
        raise FetchError(f"the name {host} does not resolve")
    return addresses
