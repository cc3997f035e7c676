"""Which addresses a provider may have, checked on the address that is really connected to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult

_RESOLVER_THREADS: Final = 8
# IPv6 ranges that lead to an IPv4 address inside of them, by the bits that follow it
_MAPPED: Final = ((ipaddress.IPv6Network("::ffff:0:0/96"), 0), (ipaddress.IPv6Network("64:ff9b::/96"), 0))
# tunnels and local ranges that Python's tables call global in some versions
_REFUSED: Final = tuple(
    ipaddress.IPv6Network(network) for network in ("2002::/16", "2001::/32", "64:ff9b:1::/48", "fec0::/10", "::/96")
)

GetAddresses = Callable[..., list[tuple[Any, ...]]]


class PrivateAddressError(OSError):
    """The address is not public: private, loopback, link-local, multicast, reserved, or a tunnel to such a one."""


def is_public(address: str) -> bool:
    """Return whether this IP address is one of the public internet."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        for network, shift in _MAPPED:
            if parsed in network:
                return is_public(str(ipaddress.IPv4Address(int(parsed) >> shift & 0xFFFFFFFF)))
        if any(parsed in network for network in _REFUSED):
            return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved or parsed.is_unspecified)


def public_socket(address_info: tuple[Any, ...]) -> socket.socket:
    """Return a socket for this address, as `socket_factory` of aiohttp; raises `PrivateAddressError`.

    It is called with the very address that is connected to next, so a name that resolves otherwise a moment later
    makes no difference.
    """
    family, kind, protocol, _, place = address_info
    if family not in {socket.AF_INET, socket.AF_INET6} or not is_public(str(place[0])):
        raise PrivateAddressError("the address is not public")
    return socket.socket(family, kind, protocol)


class HostResolver(AbstractResolver):
    """Resolves names in threads of its own: a DNS server that hangs must not hold those that encryption needs."""

    def __init__(self, *, get_addresses: GetAddresses = socket.getaddrinfo) -> None:
        self._get_addresses = get_addresses
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="provider-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host; raises `OSError`."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads,
            lambda: self._get_addresses(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG),
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(place[0]),
                port=int(place[1]),
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, place in found
        ]

    async def close(self) -> None:
        """End the threads that are idle, and let the others end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
