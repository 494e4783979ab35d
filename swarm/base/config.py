"""Configuration: frozen, declared with its options, built once at the command line, handed down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from swarm.base.address import parse_address_untrusted
from swarm.base.errors import PeerError, UsageError
from swarm.base.option import Number, check, option, or_none
from swarm.base.paths import folder_to_write, read_folder

GPU = Number(int, 0, 64, "a GPU number")
THREADS = Number(int, 1, 1024, "a number of threads")
PORT = Number(int, 0, 65535, "a port")
GRACE = Number(float, 0, 3600, "seconds")


def parse_gpus(text: str) -> int | tuple[int, ...]:
    """ "0", or "0,1". Raises UsageError."""
    numbers = tuple(int(GPU(part)) for part in text.split(","))
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"expected GPUs that differ, found {text!r}")
    return numbers[0] if len(numbers) == 1 else numbers


DTYPES = ("auto", "float32", "bfloat16", "float16")
DEFAULT_MODEL = "smollm2-135m-instruct"
"""The model that comes with wanswarm."""


SWARM = "the swarm"
FOUND_BY_ITSELF = "(default: the swarm on the LAN, then the one used last)"


INVITE_MARK = "swarm1"
"""What every invite begins with."""
LAN = "lan"
"""In the place of an invite, for `swarm serve`: what the local network offers."""


def check_invite(text: str | None) -> None:
    """Raises UsageError for what cannot be an invite. A damaged one is found out when it is used."""
    if text is not None and not text.startswith(INVITE_MARK):
        raise UsageError(
            f"expected an invite that begins with {INVITE_MARK}, or a file that holds one, found {text[:60]!r}; copy "
            "the whole line that swarm invite prints"
        )


def read_invite(text: str) -> str:
    """An invite is given as text or as the name of a file that holds it. Raises UsageError."""
    if len(text) < 256 and "/" in text or text.endswith((".invite", ".txt")):
        try:
            return _only_invite(Path(text).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its bytes are no text in UTF-8"
            raise UsageError(f"expected an invite or a file that holds one, found {text!r}: {reason}") from error
    return _only_invite(text)


def _only_invite(text: str) -> str:
    """The text; of the lines that `swarm join` prints, the one invite that they hold."""
    found = {word for word in text.split() if word.startswith(INVITE_MARK)}
    return found.pop() if len(found) == 1 and not text.lstrip().startswith(INVITE_MARK) else text.strip()


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT or [V6]:PORT. Raises UsageError."""
    return _address(text, 0)


def parse_dialled(text: str) -> tuple[str, int]:
    """The same for an address that others dial: neither port 0 nor what stands for all. Raises UsageError."""
    host, port = _address(text, 1)
    if host.strip("0.:") == "":
        raise UsageError(f"expected an address that others can dial, found {text!r}, which stands for all; name one")
    return host, port


def _address(text: str, lowest_port: int) -> tuple[str, int]:
    try:
        return parse_address_untrusted(text, lowest_port)
    except PeerError:
        raise UsageError(
            f"expected HOST:PORT or [IPV6]:PORT with a port from {lowest_port} to 65535, found {text!r}"
        ) from None


def parse_proxy(text: str) -> str:
    """http://HOST:PORT, with or without user:password@ before the host. Raises UsageError."""
    scheme, _, rest = text.partition("://")
    try:
        if scheme != "http":
            raise PeerError(f"another scheme: {scheme}")
        parse_address_untrusted(rest.rpartition("@")[2].removesuffix("/"))
    except PeerError:
        raise UsageError(f"expected a proxy as http://HOST:PORT, found {text!r}") from None
    return text


def parse_layers(text: str) -> tuple[int, int]:
    """A:B, the layers from A up to and without B. Raises UsageError."""
    first, colon, last = text.partition(":")
    digits = all(len(end) < 6 and end.isascii() and end.isdigit() for end in (first, last))
    if not colon or not digits or int(first) >= int(last):
        raise UsageError(f"expected --layers A:B with A < B (layers A up to and without B), found {text!r}")
    return int(first), int(last)


def user_state() -> Path:
    """Where a process keeps its state when nobody says where."""
    import platformdirs

    return platformdirs.user_state_path("wanswarm")


def user_models() -> Path:
    """Where model files lie when nobody says where."""
    import platformdirs

    return platformdirs.user_cache_path("wanswarm") / "models"


@dataclass(frozen=True)
class MemberConfig:
    """What every process of a swarm needs, node or requester.

    state      folder of the identity, peers, receipts; one process at a time
    models     folder of model files, shared by all processes of the machine
    invite     text of an invite; None: look on the LAN, then at the swarm used last
    remember   keep what is known of the swarm, so that the next command needs no invite; no for one that ends with this
    lan        announce and look for swarms on the local network
    lan_swarm  id of the one to enter there; None: the first that lets us in
    relay      go through a relay where no direct path is found
    punch      find other paths than dialling the advertised address (dial back, hole punching, relay)
    http_proxy "http://host:port" of the HTTP proxy to go through where TCP leads nowhere; None: none
    """

    state: Path = option(
        Path(),
        "identity, peers, receipts (default: the user's state folder)",
        "DIR",
        factory=user_state,
        read=read_folder,
        group="folders",
    )
    models: Path = option(
        Path(),
        "model files, shared by all nodes of this machine (default: the user's cache folder)",
        "DIR",
        factory=user_models,
        read=read_folder,
        group="folders",
    )
    invite: str | None = option(
        None,
        f"invite text, or a file that holds it {FOUND_BY_ITSELF}",
        "INVITE",
        name="--swarm",
        read=read_invite,
        group=SWARM,
        everyday=True,
    )
    lan: bool = option(True, "neither announce nor look on the local network", name="--no-lan", off=True, group=SWARM)
    lan_swarm: bytes | None = None
    remember: bool = True
    relay: bool = option(True, "never go through a relay", name="--no-relay", off=True, group=SWARM)
    punch: bool = option(
        True,
        "only dial advertised addresses: no dialling back, no hole punching, no relay",
        name="--no-punch",
        off=True,
        group=SWARM,
    )
    http_proxy: str | None = option(
        None,
        "HTTP proxy (http://HOST:PORT) to go through where TCP leads nowhere; without one HTTP is tried too",
        "URL",
        read=or_none(parse_proxy),
        group=SWARM,
    )


MOST_OVERFLOW_GB = 65_536.0


def log_help(what: str, more: str = "") -> str:
    """What `--log DIR` does. `more`: what else there is to say of it."""
    return (
        f"append the digest of {what} to a transparency log in DIR (C2SP tlog-tiles), for any static file server; "
        f"swarm verify --log checks receipts against it{more}"
    )


@dataclass(frozen=True)
class JoinConfig:
    """`swarm join`, and the keywords of `swarm.Node`.

    layers     [first, last) to host, or None to choose
    gpu        index of a CUDA device, or several; None: the CPU
    listen, advertise, relay_at   (host, port)
    kv_bytes   memory for sessions; None: a share of what is free
    overflow_bytes  main memory for layers that the GPU has no room for; None: they are not taken
    log        folder of a transparency log that ends of runs are entered in; None: they are not
    The others are as their help says.
    """

    member: MemberConfig
    model: str | None = option(
        None,
        f"model: {DEFAULT_MODEL}, a folder, a .gguf file or a hub id (default: the swarm's, or {DEFAULT_MODEL})",
        "REF",
        everyday=True,
    )
    gpu: int | tuple[int, ...] | None = option(
        None,
        "compute on CUDA device N; of several (0,1) each takes the layers that those before it have no room for",
        "N",
        read=parse_gpus,
        excludes="device",
        everyday=True,
    )
    threads: int | None = option(None, "compute threads (default: physical cores)", "N", read=THREADS, everyday=True)
    layers: tuple[int, int] | None = option(
        None, "host layers A up to and without B", "A:B", read=or_none(parse_layers), excludes="block", everyday=True
    )
    capacity: int | None = option(
        None,
        "host at most this many layers, chosen by need",
        "LAYERS",
        read=Number(int, 1, 10_000, "a number of layers"),
        excludes="block",
    )
    listen: tuple[str, int] = option(
        ("::", 0),
        "where to listen; [::] is IPv6 and IPv4, port 0 takes a free one (default: %(default)s)",
        "HOST:PORT",
        read=parse_address,
        shown="[::]:0",
        everyday=True,
    )
    advertise: tuple[str, int] | None = option(
        None,
        "address that others dial (port forwarding, containers, proxies)",
        "HOST:PORT",
        read=or_none(parse_dialled),
        everyday=True,
    )
    dtype: str = option(
        "auto",
        "auto: bfloat16 where the device computes it natively, else float16 on GPUs and float32 on CPUs "
        "(default: %(default)s)",
        choices=DTYPES,
    )
    weights_as: str = option(
        "auto",
        "stored: hold and multiply weights as the file has them, 4-bit files in 4 bits and a quarter of the "
        "memory; expanded: as --dtype; auto: stored where there is a fast kernel, unless memory "
        "allows the other and it was faster when one layer was measured; expanded with --dtype float32 and on GPUs "
        "(default: %(default)s)",
        choices=("auto", "stored", "expanded"),
    )
    exact_on_gpu: bool = option(
        False,
        "on a GPU, compute rows by kernels (Triton) whose bits do not depend on what shares a pass, so that audits are "
        "exact; written and interpreted, not yet run on a card, and slower for prompts (default: torch's own)",
    )
    kv_bytes: int | None = option(
        None,
        "memory for sessions (default: a share of what is free)",
        "GB",
        name="--kv-memory",
        read=Number(float, 0.001, 4096, "gigabytes", scale=10**9),
    )
    grace_s: float = option(
        10.0,
        "how long runs may take to end when leaving, and those that do not to move (default: %(default)s)",
        "S",
        name="--grace",
        read=GRACE,
    )
    open_swarm: bool = option(
        False, "when starting a swarm: let anybody in who knows its address", name="--open", everyday=True
    )
    found: bool = option(False, "start a swarm of its own though others are heard on the local network", everyday=True)
    owner: str = option("", "who runs this node, for routes that want several owners", "NAME")
    offer_relay: bool = option(
        False, "forward (encrypted) traffic of members that cannot reach each other", name="--relay"
    )
    relay_at: tuple[str, int] | None = option(
        None,
        "where else the relay is reached, and this node by those who can only speak HTTP: a proxy on its address; "
        "HTTPS is spoken to port 443",
        "HOST:PORT",
        read=or_none(parse_dialled),
    )
    map_port: bool = option(False, "ask the router for a port (UPnP, NAT-PMP)")
    weights: str = option(
        "auto",
        "where the layers come from: the hub or this machine, members that hold them, or members only where the "
        "model is not to be had otherwise (default: %(default)s)",
        choices=("auto", "hub", "peers"),
    )
    disclose: bool = option(False, "show GPU UUIDs and addresses in receipts, not only their salted digests")
    recompute: bool = option(
        True,
        "recompute nothing for those who audit other nodes' runs (swarm verify --via)",
        name="--no-recompute",
        off=True,
    )
    overflow_bytes: int | None = option(
        None,
        "with --gpu: layers that it has no room for, or runs out of memory for, are computed by the CPU, from main "
        "memory (GB of it at most)",
        "GB",
        name="--overflow",
        read=Number(float, 0.001, MOST_OVERFLOW_GB, "gigabytes", scale=10**9),
        alone=int(MOST_OVERFLOW_GB * 10**9),
    )
    probe: bool = option(False, "measure this machine's speed though it was measured before")
    log: Path | None = option(
        None, log_help("what this node signs at the end of each run"), "DIR", read=folder_to_write
    )

    def __post_init__(self) -> None:
        check(self)
        if self.layers is not None and not 0 <= self.layers[0] < self.layers[1]:
            raise UsageError(f"expected layers from A up to and without B, 0 <= A < B, found {self.layers}")
        if self.overflow_bytes is not None and self.gpu is None:
            raise UsageError(
                "expected --gpu N with --overflow (in a program: gpu with overflow_bytes), found none: on the CPU all "
                "layers are in main memory"
            )
        if self.relay_at is not None and not self.offer_relay:
            raise UsageError("expected --relay with --relay-at, found no relay to put a proxy in front of")
        if self.found and self.member.invite is not None:
            raise UsageError("expected either --found or --swarm, found both: one starts a swarm, the other enters one")
