"""Swarms on the local network: announced and found by multicast DNS (RFC 6762, 6763), service _wanswarm._tcp.

TXT holds only what anybody may know: v, swarm id, node id, manifest digest, and whether the swarm is open. What is
heard is a hint about whom to dial; the channel proves who answers there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from zeroconf import IPVersion, ServiceInfo, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from swarm.base.address import Address, parse_address_untrusted
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, id_text, parse_id_untrusted, short_id
from swarm.mesh.record import SWARM_ID_BYTES

log = logging.getLogger(__name__)

SERVICE = "_wanswarm._tcp.local."
VERSION = "1"
MAX_FOUND = 64
MAX_ADDRESSES = 8
ASK_MS = 1500


@dataclass(frozen=True)
class LanNode:
    """A node that announces itself here. `model`: manifest digest (32 bytes, or empty before it is known)."""

    swarm: bytes
    node: NodeId
    model: bytes
    open: bool
    addresses: tuple[Address, ...] = ()


def txt_of(node: LanNode) -> dict[str, str]:
    """The TXT entries of an announcement."""
    return {
        "v": VERSION,
        "swarm": node.swarm.hex(),
        "node": id_text(node.node),
        "model": node.model.hex(),
        "open": "1" if node.open else "0",
    }


def parse_txt_untrusted(txt: Mapping[bytes, bytes | None], addresses: Sequence[str], port: int | None) -> LanNode:
    """An announcement as it was heard. Raises PeerError for anything but what `txt_of` writes."""
    found = {}
    for name in ("v", "swarm", "node", "model", "open"):
        value = txt.get(name.encode())
        if not isinstance(value, bytes) or len(value) > 128 or not value.isascii():
            raise PeerError(f"expected {name} in an announcement, found something else")
        found[name] = value.decode("ascii")
    if found["v"] != VERSION or found["open"] not in ("0", "1"):
        raise PeerError(f"expected an announcement of version {VERSION}, found {found['v'][:8]!r}")
    try:
        swarm, model = bytes.fromhex(found["swarm"]), bytes.fromhex(found["model"])
    except ValueError as exc:
        raise PeerError("expected hexadecimal ids in an announcement, found something else") from exc
    if len(swarm) != SWARM_ID_BYTES or len(model) not in (0, 32) or not isinstance(port, int):
        raise PeerError("expected a swarm id, a model digest and a port in an announcement, found something else")
    texts = [f"[{a}]:{port}" if ":" in a else f"{a}:{port}" for a in addresses[:MAX_ADDRESSES] if "%" not in a]
    dialled = tuple(parse_address_untrusted(text) for text in texts)
    if not dialled:
        raise PeerError("an announcement without an address")
    return LanNode(swarm, parse_id_untrusted(found["node"]), model, found["open"] == "1", dialled)


class Announcement:
    """This node's word on the local network, told anew when the machine has other addresses. See `announce`.

    `heard`: whether it could be told; False where this machine has no multicast, which harms nothing else.
    """

    def __init__(self, node: LanNode, port: int, interfaces: Sequence[str] | None = None) -> None:
        self._node, self._port, self._interfaces = node, port, interfaces
        self._zone: AsyncZeroconf | None = None
        self.heard = False

    async def tell(self, hosts: Sequence[str]) -> None:
        """Announce the node at `hosts`, in place of what was told before; what is no IP address is left out.

        Anew from the sockets up, because those of before belong to the addresses of before.
        """
        await self.end()
        addresses = [host for host in hosts if _is_address(host)]
        self._zone = _open(self._interfaces) if addresses else None
        if self._zone is None:
            return
        name = short_id(self._node.node)
        info = AsyncServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=self._port,
            properties=txt_of(self._node),
            parsed_addresses=addresses,
            server=f"wanswarm-{name}.local.",
        )
        try:
            await (await self._zone.async_register_service(info, allow_name_change=True))
            self.heard = True
        except Exception as error:  # zeroconf raises its own tree and OSError; a swarm works without it
            log.info("not announced on the local network: %s", error)

    async def end(self) -> None:
        """Take it back."""
        zone, self._zone, self.heard = self._zone, None, False
        if zone is not None:
            await zone.async_close()


@contextlib.asynccontextmanager
async def announce(
    node: LanNode, port: int, hosts: Sequence[str], interfaces: Sequence[str] | None = None
) -> AsyncIterator[Announcement]:
    """Announce `node` at `hosts` (IP addresses) and `port` while the context lasts.

    `interfaces`: addresses of the interfaces to use, None for all.
    """
    announcement = Announcement(node, port, interfaces)
    try:
        await announcement.tell(hosts)
        yield announcement
    finally:
        await announcement.end()


async def find(seconds: float, *, enough: int = MAX_FOUND, interfaces: Sequence[str] | None = None) -> list[LanNode]:
    """Nodes that announce themselves within `seconds`, or the first `enough`. Garbage is skipped with a log line."""
    zone = _open(interfaces)
    if zone is None:
        return []
    found: dict[NodeId, LanNode] = {}
    names: asyncio.Queue[str] = asyncio.Queue(MAX_FOUND)
    seen: set[str] = set()

    def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed and name not in seen and len(seen) < MAX_FOUND:
            seen.add(name)
            names.put_nowait(name)

    browser = AsyncServiceBrowser(zone.zeroconf, SERVICE, handlers=[heard])
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(found) < enough:
                    info = AsyncServiceInfo(SERVICE, await names.get())
                    if await info.async_request(zone.zeroconf, ASK_MS):
                        _keep(info, found)
    finally:
        await browser.async_cancel()
        await zone.async_close()
    return list(found.values())


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _keep(info: ServiceInfo, found: dict[NodeId, LanNode]) -> None:
    try:
        node = parse_txt_untrusted(info.properties, info.parsed_addresses(IPVersion.All), info.port)
    except PeerError as error:
        log.info("an announcement on the local network is skipped: %s", error)
        return
    found[node.node] = node


def _open(interfaces: Sequence[str] | None) -> AsyncZeroconf | None:
    try:
        return AsyncZeroconf() if interfaces is None else AsyncZeroconf(interfaces=list(interfaces))
    except OSError as error:
        log.info("no multicast on this machine: %s", error.strerror or error)
        return None
