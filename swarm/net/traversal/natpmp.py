"""NAT-PMP (RFC 6886): ask the home router for a port in two datagrams of a dozen bytes."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from pathlib import Path

from swarm.base.address import Address
from swarm.base.errors import PeerError

PORT = 5351
_ASK_ADDRESS, _ASK_TCP, _ANSWER = 0, 2, 128
_REQUEST = struct.Struct(">BBHHHI")
_FIRST_WAIT_SECONDS = 0.25
RESULTS = {1: "it speaks another version", 2: "it does not allow it", 3: "it has no network", 4: "it is out of ports"}


def default_gateway(routes: Path = Path("/proc/net/route")) -> str | None:
    """The IPv4 router of this machine, or None where it cannot be told (not Linux, no default route)."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) > 3 and fields[1] == "00000000" and int(fields[3], 16) & 2:
            return str(ipaddress.IPv4Address(struct.pack("<I", int(fields[2], 16))))
    return None


async def map_port(gateway: str, port: int, lease_seconds: int, timeout: float, to: int = PORT) -> tuple[Address, int]:
    """Map TCP `port`; returns the outer address and the seconds granted. A lease of 0 removes the mapping.

    Raises PeerError when the router does not answer or refuses.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, client = await loop.create_datagram_endpoint(_Client, remote_addr=(gateway, to))
    except OSError as exc:
        raise PeerError(f"NAT-PMP: {exc.strerror or exc}") from exc
    try:
        async with asyncio.timeout(timeout):
            answer = await client.ask(transport, struct.pack(">BB", 0, _ASK_ADDRESS))
            host = parse_address_answer_untrusted(answer)
            answer = await client.ask(transport, _REQUEST.pack(0, _ASK_TCP, 0, port, port, lease_seconds))
            outer, granted = parse_mapping_answer_untrusted(answer, port)
    except TimeoutError as exc:
        raise PeerError(f"NAT-PMP: router {gateway} did not answer within {timeout:g} s") from exc
    finally:
        transport.close()
    return (host, outer), granted


def parse_address_answer_untrusted(data: bytes) -> str:
    """The outer IPv4 address. Raises PeerError."""
    _check_untrusted(data, _ASK_ADDRESS, 12)
    return str(ipaddress.IPv4Address(data[8:12]))


def parse_mapping_answer_untrusted(data: bytes, port: int) -> tuple[int, int]:
    """Outer port and seconds granted of the mapping of inner `port`. Raises PeerError."""
    _check_untrusted(data, _ASK_TCP, 16)
    inner, outer, seconds = struct.unpack(">HHI", data[8:16])
    if inner != port:
        raise PeerError(f"NAT-PMP: expected an answer about port {port}, found port {inner}")
    return outer, seconds


def _check_untrusted(data: bytes, asked: int, size: int) -> None:
    if len(data) < 4 or data[0] != 0 or data[1] != _ANSWER + asked:
        raise PeerError("NAT-PMP: the router's answer makes no sense")
    result = struct.unpack(">H", data[2:4])[0]
    if result:
        raise PeerError(f"NAT-PMP: the router refuses: {RESULTS.get(result, f'result {result}')}")
    if len(data) != size:
        raise PeerError(f"NAT-PMP: expected an answer of {size} bytes, found {len(data)}")


class _Client(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def ask(self, transport: asyncio.DatagramTransport, request: bytes) -> bytes:
        """Send until an answer of this kind comes; the caller sets the deadline."""
        self._kind, wait = _ANSWER + request[1], _FIRST_WAIT_SECONDS
        self._answer = asyncio.get_running_loop().create_future()
        while True:
            transport.sendto(request)
            try:
                async with asyncio.timeout(wait):
                    return await asyncio.shield(self._answer)
            except TimeoutError:
                wait *= 2

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._answer.done() and len(data) >= 2 and data[1] == self._kind:
            self._answer.set_result(data[:64])

    def error_received(self, exc: Exception) -> None:
        """A refused datagram (no NAT-PMP there) is a missing answer: the deadline says so."""
