"""Port mapping against routers made here: a NAT-PMP one (UDP) and a UPnP one (SSDP, HTTP and SOAP)."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.net.traversal import natpmp, portmap
from swarm.net.traversal.natpmp import default_gateway, parse_address_answer_untrusted, parse_mapping_answer_untrusted
from swarm.net.traversal.portmap import PortMapping, upnp_find, upnp_map

OUTER = "8.8.4.4"


class Router(asyncio.DatagramProtocol):
    """Answers NAT-PMP after dropping the first datagram; `result` makes it refuse."""

    def __init__(self, result: int = 0) -> None:
        self.result = result
        self.leases: dict[int, int] = {}
        self.dropped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if not self.dropped:
            self.dropped = True
            return
        head = struct.pack(">BBHI", 0, 128 + data[1], self.result, 1000)
        if data[1] == 0:
            self.transport.sendto(head + bytes(map(int, OUTER.split("."))), addr)
            return
        port, _, lease = struct.unpack(">HHI", data[4:])
        self.leases[port] = lease
        self.transport.sendto(head + struct.pack(">HHI", port, port + 1 if lease else 0, lease // 2), addr)


@asynccontextmanager
async def natpmp_router(result: int = 0) -> AsyncIterator[tuple[Router, int]]:
    loop = asyncio.get_running_loop()
    transport, router = await loop.create_datagram_endpoint(lambda: Router(result), local_addr=("127.0.0.1", 0))
    try:
        yield router, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


async def test_natpmp_maps_and_removes() -> None:
    async with natpmp_router() as (router, to):
        assert await natpmp.map_port("127.0.0.1", 7000, 3600, 5.0, to) == ((OUTER, 7001), 1800)
        assert router.leases == {7000: 3600}
        assert (await natpmp.map_port("127.0.0.1", 7000, 0, 5.0, to))[1] == 0
        assert router.leases == {7000: 0}


async def test_natpmp_refusal_and_silence_are_told() -> None:
    async with natpmp_router(result=2) as (_, to):
        with pytest.raises(PeerError, match="the router refuses: it does not allow it"):
            await natpmp.map_port("127.0.0.1", 7000, 3600, 5.0, to)
    with pytest.raises(PeerError, match=r"did not answer within 0\.05 s"):
        await natpmp.map_port("127.0.0.1", 7000, 3600, 0.05, to)


@given(st.binary(max_size=20))
def test_random_answers_raise_the_one_error(data: bytes) -> None:
    for parse in (parse_address_answer_untrusted, lambda d: parse_mapping_answer_untrusted(d, 7)):
        try:
            parse(data)
        except PeerError:
            pass


def test_the_gateway_is_read_from_the_routing_table(tmp_path: Path) -> None:
    table = tmp_path / "route"
    assert default_gateway(table) is None
    table.write_text("Iface Destination Gateway Flags\neth0 0001A8C0 00000000 0001\neth0 00000000 0101A8C0 0003\n")
    assert default_gateway(table) == "192.168.1.1"


SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
CONTROL = "urn:schemas-upnp-org:control-1-0"
IN = ("RemoteHost", "ExternalPort", "Protocol", "InternalPort", "InternalClient", "Enabled", "PortMappingDescription")
TYPES = {"ExternalPort": "ui2", "InternalPort": "ui2", "Enabled": "boolean", "LeaseDuration": "ui4"}


def action(name: str, arguments: tuple[str, ...], direction: str = "in") -> str:
    listed = "".join(
        f"<argument><name>New{a}</name><direction>{direction}</direction><relatedStateVariable>{a}"
        "</relatedStateVariable></argument>"
        for a in arguments
    )
    return f"<action><name>{name}</name><argumentList>{listed}</argumentList></action>"


def scpd() -> str:
    variables = "".join(
        f'<stateVariable sendEvents="no"><name>{name}</name><dataType>{TYPES.get(name, "string")}</dataType>'
        "</stateVariable>"
        for name in (*IN, "LeaseDuration", "ExternalIPAddress")
    )
    actions = (
        action("AddPortMapping", (*IN, "LeaseDuration"))
        + action("DeletePortMapping", IN[:3])
        + action("GetExternalIPAddress", ("ExternalIPAddress",), "out")
    )
    return (
        '<?xml version="1.0"?><scpd xmlns="urn:schemas-upnp-org:service-1-0">'
        "<specVersion><major>1</major><minor>0</minor></specVersion>"
        f"<actionList>{actions}</actionList><serviceStateTable>{variables}</serviceStateTable></scpd>"
    )


def device(kind: str, inside: str) -> str:
    return (
        f"<device><deviceType>urn:schemas-upnp-org:device:{kind}:1</deviceType><friendlyName>r</friendlyName>"
        f"<manufacturer>m</manufacturer><modelName>n</modelName><UDN>uuid:{kind}</UDN>{inside}</device>"
    )


def description() -> str:
    service = (
        f"<serviceList><service><serviceType>{SERVICE}</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1"
        "</serviceId><controlURL>/control</controlURL><eventSubURL>/event</eventSubURL><SCPDURL>/scpd.xml</SCPDURL>"
        "</service></serviceList>"
    )
    inner = device("WANDevice", f"<deviceList>{device('WANConnectionDevice', service)}</deviceList>")
    return (
        '<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">'
        "<specVersion><major>1</major><minor>0</minor></specVersion>"
        f"{device('InternetGatewayDevice', f'<deviceList>{inner}</deviceList>')}</root>"
    )


class UpnpRouter:
    def __init__(self) -> None:
        self.mapped: dict[str, tuple[str, str, str]] = {}
        self.refuses = False

    async def control(self, request: web.Request) -> web.Response:
        body = await request.text()
        name = request.headers["SOAPAction"].split("#")[1].strip('"')
        given = dict(re.findall(r"<New(\w+)>([^<]*)</New", body))
        if self.refuses:
            fault = "<errorCode>718</errorCode><errorDescription>ConflictInMappingEntry</errorDescription>"
            return self.soap(
                f'<s:Fault><detail><UPnPError xmlns="{CONTROL}">{fault}</UPnPError></detail></s:Fault>',
                500,
            )
        answer = ""
        if name == "AddPortMapping":
            self.mapped[given["ExternalPort"]] = (given["InternalClient"], given["Protocol"], given["LeaseDuration"])
        elif name == "DeletePortMapping":
            self.mapped.pop(given["ExternalPort"], None)
        else:
            answer = f"<NewExternalIPAddress>{OUTER}</NewExternalIPAddress>"
        return self.soap(f'<u:{name}Response xmlns:u="{SERVICE}">{answer}</u:{name}Response>')

    @staticmethod
    def soap(inside: str, status: int = 200) -> web.Response:
        envelope = (
            f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{inside}</s:Body></s:Envelope>'
        )
        return web.Response(text=f'<?xml version="1.0"?>{envelope}', content_type="text/xml", status=status)


@asynccontextmanager
async def upnp_router() -> AsyncIterator[tuple[UpnpRouter, str]]:
    pytest.importorskip("async_upnp_client")
    router = UpnpRouter()
    app = web.Application()

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=scpd() if "scpd" in request.path else description(), content_type="text/xml")

    app.add_routes([web.get("/root.xml", page), web.get("/scpd.xml", page), web.post("/control", router.control)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield router, f"http://127.0.0.1:{runner.addresses[0][1]}/root.xml"
    finally:
        await runner.cleanup()


async def test_upnp_maps_removes_and_tells_a_refusal() -> None:
    async with upnp_router() as (router, location):
        mapping = await upnp_map(location, ("192.168.1.7", 7000), 3600)
        assert mapping == PortMapping((OUTER, 7000), "UPnP", 3600)
        assert router.mapped == {"7000": ("192.168.1.7", "TCP", "3600")}
        await upnp_map(location, ("192.168.1.7", 7000), 0)
        assert router.mapped == {}
        router.refuses = True
        with pytest.raises(PeerError, match="UPnP: the router refuses: .*718"):
            await upnp_map(location, ("192.168.1.7", 7000), 3600)


class Ssdp(asyncio.DatagramProtocol):
    """Answers a search, first with a location outside of this network."""

    def __init__(self, locations: list[str]) -> None:
        self.locations = locations

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        kind = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
        for location in self.locations:
            answer = f"HTTP/1.1 200 OK\r\nST: {kind}\r\nUSN: uuid:x::{kind}\r\nLOCATION: {location}\r\nEXT:\r\n\r\n"
            self.transport.sendto(answer.encode(), addr)


async def test_upnp_follows_only_locations_in_this_network() -> None:
    pytest.importorskip("async_upnp_client")
    loop = asyncio.get_running_loop()
    good = "http://127.0.0.1:9/root.xml"
    transport, _ = await loop.create_datagram_endpoint(
        lambda: Ssdp(["http://8.8.8.8/x", "file:///etc/passwd", "http://router.example/", good]),
        local_addr=("127.0.0.1", 0),
    )
    try:
        assert await upnp_find(target=transport.get_extra_info("sockname")) == good
    finally:
        transport.close()


async def test_the_first_public_address_wins_and_every_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(inner: Address, lease: int, timeout: float) -> PortMapping:
        raise PeerError("UPnP: no router answered")

    async def found(inner: Address, lease: int, timeout: float) -> PortMapping:
        return PortMapping((host, inner[1]), "NAT-PMP", lease)

    monkeypatch.setattr(portmap, "_map_upnp", nothing)
    monkeypatch.setattr(portmap, "_map_natpmp", found)
    host = OUTER
    assert (await portmap.map_port(("192.168.1.7", 7000))).outer == (OUTER, 7000)
    async with portmap.kept_port(("192.168.1.7", 7000), lambda mapping: None) as mapping:
        assert mapping.way == "NAT-PMP"
    host = "100.64.0.9"  # carrier-grade NAT: a port there leads nowhere
    with pytest.raises(PeerError, match=r"NAT-PMP: .*100\.64\.0\.9 is not public; UPnP: no router answered"):
        await portmap.map_port(("192.168.1.7", 7000))
