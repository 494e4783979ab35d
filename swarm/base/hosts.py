"""What counts as one host, where places are given by address."""

from __future__ import annotations

import ipaddress


def host_key(host: str) -> str:
    """What counts as one host: an IPv4 address, or the /64 of an IPv6 one, since its owner has all of it."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return host
    mapped = address.ipv4_mapped
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64))) if mapped is None else str(mapped)
