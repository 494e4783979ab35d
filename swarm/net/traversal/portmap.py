"""A port on the home router, where it offers one: UPnP (optional extra `portmap`) and NAT-PMP, asked at once."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.net.traversal import natpmp

LEASE_SECONDS = 3600
_SEARCH_SECONDS = 2
_DEVICE = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
_DESCRIPTION = "wanswarm"


@dataclass(frozen=True)
class PortMapping:
    """A port that the router leads here. `outer` is what others dial; `way` "UPnP" or "NAT-PMP"."""

    outer: Address
    way: str
    seconds: int


async def map_port(inner: Address, lease_seconds: int = LEASE_SECONDS, timeout: float = 4.0) -> PortMapping:
    """Ask the router for a port that leads to `inner` (this machine's own IPv4 address and TCP port).

    Raises PeerError with each way's reason when none works, or when the router is behind another NAT itself.
    """
    tasks = [
        asyncio.create_task(_map_natpmp(inner, lease_seconds, timeout)),
        asyncio.create_task(_map_upnp(inner, lease_seconds, timeout)),
    ]
    reasons = []
    try:
        for task in asyncio.as_completed(tasks):
            try:
                mapping = await task
            except PeerError as exc:
                reasons.append(str(exc))
                continue
            if lease_seconds and not ipaddress.ip_address(mapping.outer[0]).is_global:
                reasons.append(f"{mapping.way}: the router's own address {mapping.outer[0]} is not public")
                continue
            return mapping
    finally:
        for pending in tasks:
            pending.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise PeerError("; ".join(sorted(reasons)))


@contextlib.asynccontextmanager
async def kept_port(inner: Address, changed: Callable[[PortMapping], None]) -> AsyncIterator[PortMapping]:
    """A mapping that is renewed at half its lease and removed at the end; `changed` is told of another outer address.

    Raises PeerError when there is none to be had.
    """
    mapping = await map_port(inner)

    async def renew() -> None:
        nonlocal mapping
        while True:
            await asyncio.sleep(max(60, mapping.seconds / 2))
            with contextlib.suppress(PeerError):  # tried again at the next half: the router may be restarting
                fresh = await map_port(inner)
                if fresh.outer != mapping.outer:
                    changed(fresh)
                mapping = fresh

    task = asyncio.create_task(renew())
    try:
        yield mapping
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(PeerError):
            await map_port(inner, lease_seconds=0, timeout=2.0)


async def _map_natpmp(inner: Address, lease_seconds: int, timeout: float) -> PortMapping:
    gateway = natpmp.default_gateway()
    if gateway is None:
        raise PeerError("NAT-PMP: this machine has no default route")
    outer, granted = await natpmp.map_port(gateway, inner[1], lease_seconds, timeout)
    return PortMapping(outer, "NAT-PMP", granted)


async def _map_upnp(inner: Address, lease_seconds: int, timeout: float) -> PortMapping:
    try:
        async with asyncio.timeout(timeout):
            return await upnp_map(await upnp_find(), inner, lease_seconds)
    except TimeoutError as exc:
        raise PeerError(f"UPnP: no router finished within {timeout:g} s") from exc


async def upnp_find(target: Address | None = None) -> str:
    """The description URL of the first UPnP router that answers a search. Raises PeerError."""
    try:
        from async_upnp_client.search import SsdpSearchListener
    except ImportError as exc:
        raise PeerError("UPnP: not installed; pip install 'wanswarm[portmap]'") from exc
    found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_answer(headers: Any) -> None:
        location = str(headers.get("location", ""))
        if not found.done() and _is_router(location):
            found.set_result(location)

    search = SsdpSearchListener(callback=on_answer, timeout=_SEARCH_SECONDS, search_target=_DEVICE, target=target)
    try:
        await search.async_start()
        search.async_search()
        async with asyncio.timeout(_SEARCH_SECONDS):
            return await found
    except TimeoutError as exc:
        raise PeerError("UPnP: no router answered") from exc
    except OSError as exc:
        raise PeerError(f"UPnP: {exc.strerror or exc}") from exc
    finally:
        search.async_stop()


def _is_router(location: str) -> bool:
    """Whether a search answer points to a machine of this network, and nowhere else."""
    try:
        parts = urlsplit(location)
        return parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "").is_private
    except ValueError:
        return False


async def upnp_map(location: str, inner: Address, lease_seconds: int) -> PortMapping:
    """Map the port at the router whose description is at `location`. Raises PeerError."""
    from async_upnp_client.aiohttp import AiohttpRequester
    from async_upnp_client.client_factory import UpnpFactory
    from async_upnp_client.exceptions import UpnpError
    from async_upnp_client.profiles.igd import IgdDevice

    host, port = inner
    try:
        router = IgdDevice(await UpnpFactory(AiohttpRequester(timeout=3)).async_create_device(location), None)
        anywhere = ipaddress.IPv4Address(0)
        if lease_seconds:
            lease = timedelta(seconds=lease_seconds)
            mine = ipaddress.IPv4Address(host)
            await router.async_add_port_mapping(anywhere, port, "TCP", port, mine, True, _DESCRIPTION, lease)
        else:
            await router.async_delete_port_mapping(anywhere, port, "TCP")
        outer = await router.async_get_external_ip_address()
        return PortMapping((str(ipaddress.IPv4Address(outer or "")), port), "UPnP", lease_seconds)
    except (UpnpError, ValueError, OSError) as exc:
        raise PeerError(f"UPnP: the router refuses: {exc}") from exc
