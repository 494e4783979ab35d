"""Addresses as people write them: "host:port", "[v6]:port"."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, TypeAlias

from swarm.base.bounds import Spelled
from swarm.base.errors import PeerError

Address: TypeAlias = tuple[str, int]
"""Host name or IP address, and TCP port."""

MAX_HOST_CHARS = 253
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


def format_address(address: Address) -> str:
    """`host:port`, with brackets round an IPv6 address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address_untrusted(text: object, lowest_port: int = 1) -> Address:
    """Read `host:port` or `[v6]:port`. Raises PeerError; nothing is looked up."""
    if not isinstance(text, str) or len(text) > MAX_HOST_CHARS + 8:
        raise PeerError(f"expected an address like host:port, found {str(text)[:60]!r}")
    host, colon, digits = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise PeerError(f"expected an IPv6 address in brackets, found {text!r}")
    elif not _NAME.fullmatch(host):  # an IPv4 address is spelled as a name is
        raise PeerError(f"expected an address like host:port, found {text!r}")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", digits) or not lowest_port <= int(digits) <= 65535:
        raise PeerError(f"expected a port from {lowest_port} to 65535 after the colon, found {text!r}")
    return host, int(digits)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


AddressText: TypeAlias = Annotated[Address, Spelled(parse_address_untrusted, format_address)]
"""An address in a record or message, where it travels as `host:port`."""
