"""What a node says of itself: one signed, versioned, expiring record.

Wire form: msgpack [payload, signature]. The payload is a msgpack array of fixed fields, integers in fixed units, so
that one record has one encoding; the Ed25519 signature covers a context string and the payload. Only the key that
a record names can make it, so peers may pass records on without being believed.

Clocks: `issued` is wall time and only bounds how old a record may be (MAX_SKEW_S either way). How long it lives is
counted by each receiver on its own monotonic clock from the age that travels beside the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from swarm.base.address import AddressText
from swarm.base.bounds import AtMost, Between, Exactly, Printable, Since, Spelled, by_format, by_position
from swarm.base.codec import Codec
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, SignatureBytes, short_id, verify

FORMAT = 4
BEFORE = 3
"""The format before: without a fingerprint, and written where there is none, so that older nodes read it."""
CONTEXT = b"wanswarm node record 1\0"
MAX_RECORD_BYTES = 3072
MAX_SKEW_S = 7200
MIN_TTL_S = 10
MAX_TTL_S = 3600
MAX_ADDRESSES = 8
MAX_RTTS = 16
MAX_TEXT = 64
MAX_LAYERS = 4096
SWARM_ID_BYTES = 10
MAX_PROOF_BYTES = 1800
KEY_BYTES = 8
State: TypeAlias = Literal["joining", "serving", "draining", "left"]
EDGES = ("", "direct", "reverse", "punched", "http", "relay")
"""Kinds of connections (see `swarm.net.peer`), by their numbers in a record; "" is none that is known."""
NOWHERE = (0, 0)

SwarmId: TypeAlias = Annotated[bytes, Exactly(SWARM_ID_BYTES)]
Proof: TypeAlias = Annotated[bytes, AtMost(MAX_PROOF_BYTES, least=1)]
Line: TypeAlias = Annotated[str, AtMost(MAX_TEXT), Printable()]
LayerCount: TypeAlias = Annotated[int, Between(0, MAX_LAYERS)]
KvBytes: TypeAlias = Annotated[int, Between(0, 2**60)]
Kbps: TypeAlias = Annotated[int, Between(0, 2**40)]
LayerUs: TypeAlias = Annotated[int, Between(0, 10**10)]
Rtt: TypeAlias = tuple[Annotated[bytes, Exactly(KEY_BYTES)], Annotated[int, Between(0, 10**9)]]


def _edges(kinds: bytes) -> tuple[str, ...]:
    if any(kind >= len(EDGES) for kind in kinds):
        raise ValueError("kinds of edges that are known")
    return tuple(EDGES[kind] for kind in kinds)


def _edge_numbers(edges: tuple[str, ...]) -> bytes:
    return bytes(map(EDGES.index, edges))


class ClockError(PeerError):
    """A record's time cannot be right by this clock; whoever passed it on need not be at fault."""


def key_of(node: NodeId) -> int:
    """The first 8 bytes of a node id as a number: how gossip names the node's record."""
    return int.from_bytes(node[:KEY_BYTES], "big")


@by_format(BEFORE, FORMAT)
@dataclass(frozen=True)
class NodeRecord:
    """One node as it described itself. Immutable; a change is a new record with a higher `version`.

    The order of the fields is the order on the wire.

    version     grows with every record of this node; wall milliseconds, or the last one plus 1
    issued      wall clock, seconds; ttl: seconds that the record lives after it was issued
    instance    number drawn when the process started; two at once mean two nodes with one key
    swarm       id of the swarm; proof: of its admission (`swarm.mesh.admission`)
    addresses   where to dial it; relay: it forwards for nodes that cannot be dialled
    model       manifest digest (32 bytes, or empty); n_layers: layers of the model
    layers      hosted range [first, last), (0, 0) for none; claim: the range it is about to take, or None
    speed_us    microseconds per layer for 1, 8 and 64 rows, (0, 0, 0) unmeasured
    overflow    so many of the last hosted layers run at overflow_us
    kv_*        bytes for sessions; bandwidths in kbit/s, 0 unknown
    rtts        (first 8 bytes of a peer's id, microseconds) measured lately
    edges       how it was connected to each of these, one of EDGES; as many as `rtts`, or none
    coordinate  Vivaldi x, y, z, height in microseconds, then error in thousandths; empty when unknown
    sessions    open now; queue_us: mean wait of a frame before it is computed
    fingerprint digest of what its kernels compute (32 bytes, or empty): `swarm.model.fingerprint`
    """

    node: NodeId
    swarm: SwarmId
    version: Annotated[int, Between(0, 2**53)]
    issued: Annotated[int, Between(0, 2**40)]
    ttl: Annotated[int, Between(MIN_TTL_S, MAX_TTL_S)]
    instance: Annotated[int, Between(0, 2**63)] = 0
    proof: Proof = b"\x90"
    state: State = "joining"
    addresses: Annotated[tuple[AddressText, ...], AtMost(MAX_ADDRESSES)] = ()
    relay: bool = False
    model: Annotated[bytes, Exactly(0, 32)] = b""
    n_layers: LayerCount = 0
    layers: tuple[LayerCount, LayerCount] = NOWHERE
    claim: tuple[LayerCount, LayerCount] | None = None
    device: Line = ""
    dtype: Line = ""
    speed_us: tuple[LayerUs, LayerUs, LayerUs] = (0, 0, 0)
    overflow: LayerCount = 0
    overflow_us: tuple[LayerUs, LayerUs, LayerUs] = (0, 0, 0)
    kv_capacity: KvBytes = 0
    kv_free: KvBytes = 0
    up_kbps: Kbps = 0
    down_kbps: Kbps = 0
    rtts: Annotated[tuple[Rtt, ...], AtMost(MAX_RTTS)] = ()
    edges: Annotated[tuple[str, ...], Spelled(_edges, _edge_numbers, Annotated[bytes, AtMost(MAX_RTTS)])] = ()
    coordinate: Annotated[tuple[Annotated[int, Between(-(10**8), 10**8)], ...], Exactly(0, 5)] = ()
    sessions: Annotated[int, Between(0, 10**6)] = 0
    queue_us: Annotated[int, Between(0, 10**9)] = 0
    owner: Line = ""
    software: Line = ""
    fingerprint: Annotated[bytes, Exactly(32), Since(FORMAT)] = b""

    def contradiction(self) -> str:
        """What its fields say against each other, "" for nothing."""
        for first, last in (self.layers, self.claim or NOWHERE):
            if not first <= last <= self.n_layers:
                return f"ranges of the model's {self.n_layers} layers, found {first}:{last}"
        if self.overflow > self.layers[1] - self.layers[0]:
            return f"at most the {self.layers[1] - self.layers[0]} hosted layers to overflow, found {self.overflow}"
        if len(self.edges) not in (0, len(self.rtts)):
            return f"no kind of edge or one for each of {len(self.rtts)} peers, found {len(self.edges)}"
        return ""

    def edge_to(self, node: NodeId) -> str:
        """How it says that it is connected to `node`; "" where it does not say."""
        told = zip(self.rtts, self.edges, strict=False)
        return next((edge for (peer, _), edge in told if peer == node[:KEY_BYTES]), "")

    @property
    def key(self) -> int:
        """How gossip names it."""
        return key_of(self.node)


@dataclass(frozen=True)
class Signed:
    """A record with the bytes that carry its signature."""

    record: NodeRecord
    wire: bytes


@by_position
@dataclass(frozen=True)
class _Sealed:
    """A record on the wire: its fields as bytes, and the signature over them."""

    payload: Annotated[bytes, AtMost(MAX_RECORD_BYTES)]
    signature: SignatureBytes


_RECORD = Codec(NodeRecord, "record")
_SEALED = Codec(_Sealed, "record")


def sign_record(record: NodeRecord, sign: Callable[[bytes], bytes]) -> Signed:
    """Encode and sign an own record; `sign` is `Identity.sign`. Raises PeerError if a field is out of bounds."""
    payload = _RECORD.pack(record)
    wire = _SEALED.pack(_Sealed(payload, sign(CONTEXT + payload)))
    if len(wire) > MAX_RECORD_BYTES:
        raise PeerError(f"expected a record of at most {MAX_RECORD_BYTES} bytes, found {len(wire)}")
    _fields_untrusted(payload)
    return Signed(record, wire)


def peek_record_untrusted(wire: object) -> NodeRecord:
    """The fields of a record whose signature nobody checked yet: to drop old ones cheaply. Raises PeerError."""
    return _fields_untrusted(_open_untrusted(wire).payload)


def parse_record_untrusted(wire: object, swarm: bytes, now_wall: float) -> Signed:
    """Read and check a record from a peer: bounds, one encoding, swarm, clock, signature. Raises PeerError."""
    sealed = _open_untrusted(wire)
    record = _fields_untrusted(sealed.payload)
    if record.swarm != swarm:
        raise PeerError(f"the record of node {short_id(record.node)} belongs to another swarm")
    check_clock_untrusted(record, now_wall)
    if not verify(record.node, sealed.signature, CONTEXT + sealed.payload):
        raise PeerError(f"the record of node {short_id(record.node)} is not signed by its key")
    assert isinstance(wire, bytes | bytearray | memoryview)
    return Signed(record, bytes(wire))


def check_clock_untrusted(record: NodeRecord, now_wall: float) -> None:
    """Raise ClockError unless the record's time is possible for clocks that differ by at most MAX_SKEW_S."""
    ahead = record.issued - now_wall
    if ahead > MAX_SKEW_S:
        raise ClockError(
            f"node {short_id(record.node)} signs {ahead / 3600:.1f} hours ahead of this clock; set the wrong clock"
        )
    if -ahead > record.ttl + MAX_SKEW_S:
        raise ClockError(f"the record of node {short_id(record.node)} is {-ahead / 3600:.1f} hours old")


def _open_untrusted(wire: object) -> _Sealed:
    return _SEALED.unpack_untrusted(wire, MAX_RECORD_BYTES, one_encoding=True)


def _fields_untrusted(payload: bytes) -> NodeRecord:
    return _RECORD.unpack_untrusted(payload, MAX_RECORD_BYTES, one_encoding=True)
