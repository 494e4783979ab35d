"""Configuration: frozen, built once at the command line, handed down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from swarm.base.errors import UsageError


@dataclass(frozen=True)
class MemberConfig:
    """What every process of a swarm needs, node or requester.

    state      folder of the identity, peers, receipts; one process at a time
    models     folder of model files, shared by all processes of the machine
    invite     text of an invite; None: look on the LAN, then at the swarm used last
    lan        announce and look for swarms on the local network
    lan_swarm  id of the one to enter there; None: the first that lets us in
    relay      go through a relay where no direct path is found
    punch      find other paths than dialling the advertised address (dial back, hole punching, relay)
    http_proxy "http://host:port" of the HTTP proxy to go through where TCP leads nowhere; None: none
    """

    state: Path
    models: Path
    invite: str | None = None
    lan: bool = True
    lan_swarm: bytes | None = None
    relay: bool = True
    punch: bool = True
    http_proxy: str | None = None


@dataclass(frozen=True)
class JoinConfig:
    """`swarm join`.

    layers     [first, last) to host, or None to choose
    capacity   most layers to host when choosing; None: as memory allows
    gpu        index of a CUDA device; None: the CPU
    threads    compute threads; None: physical cores
    listen     (host, port); port 0 takes a free one
    advertise  (host, port) that others dial; None: found out
    dtype      "auto", "float32" or "bfloat16"
    weights_as "auto", "stored" or "expanded": how matrices are held and multiplied
    kv_bytes   memory for sessions; None: a share of what is free
    grace_s    how long a leaving node lets its sessions finish, in seconds
    open_swarm, found, owner, disclose   as the command line's help says
    offer_relay  forward (encrypted) traffic of members that cannot reach each other
    relay_at   (host, port) of a proxy in front of the relay and of the node's door for HTTP; None: there is none
    weights    "hub" (or this machine's files), "peers", or "auto": peers where the model is not to be had otherwise
    overflow_bytes  main memory for layers that the GPU has no room for; None: they are not taken
    probe      measure this machine though it was measured before
    map_port   ask the router for a port (UPnP, NAT-PMP)
    log        folder of a transparency log that ends of runs are entered in; None: they are not
    """

    member: MemberConfig
    model: str | None = None
    gpu: int | None = None
    threads: int | None = None
    layers: tuple[int, int] | None = None
    capacity: int | None = None
    listen: tuple[str, int] = ("0.0.0.0", 0)
    advertise: tuple[str, int] | None = None
    dtype: str = "auto"
    weights_as: str = "auto"
    kv_bytes: int | None = None
    grace_s: float = 10.0
    open_swarm: bool = False
    found: bool = False
    owner: str = ""
    offer_relay: bool = False
    relay_at: tuple[str, int] | None = None
    map_port: bool = False
    weights: str = "auto"
    disclose: bool = False
    overflow_bytes: int | None = None
    probe: bool = False
    log: Path | None = None


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT or [V6]:PORT. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise UsageError(f"expected HOST:PORT with a port from 0 to 65535, found {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_proxy(text: str) -> str:
    """http://HOST:PORT, with or without user:password@ before the host. Raises UsageError."""
    scheme, slashes, rest = text.partition("://")
    port = parse_address(rest.rpartition("@")[2].removesuffix("/"))[1] if slashes else 0
    if scheme != "http" or not port:
        raise UsageError(f"expected a proxy as http://HOST:PORT, found {text!r}")
    return text


def parse_layers(text: str) -> tuple[int, int]:
    """A:B, the layers from A up to and without B. Raises UsageError."""
    first, colon, last = text.partition(":")
    if not colon or not first.isdigit() or not last.isdigit() or int(first) >= int(last):
        raise UsageError(f"expected --layers A:B with A < B (layers A up to and without B), found {text!r}")
    return int(first), int(last)
