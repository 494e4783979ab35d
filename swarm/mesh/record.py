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
from typing import Any

import msgpack

from swarm.base.address import Address, format_address, parse_address_untrusted
from swarm.base.errors import PeerError
from swarm.base.nodeid import NODE_ID_BYTES, SIGNATURE_BYTES, NodeId, short_id, verify

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
STATES = ("joining", "serving", "draining", "left")
EDGES = ("", "direct", "reverse", "punched", "http", "relay")
"""Kinds of connections (see `swarm.net.peer`), by their numbers in a record; "" is none that is known."""
NOWHERE = (0, 0)


class ClockError(PeerError):
    """A record's time cannot be right by this clock; whoever passed it on need not be at fault."""


def key_of(node: NodeId) -> int:
    """The first 8 bytes of a node id as a number: how gossip names the node's record."""
    return int.from_bytes(node[:KEY_BYTES], "big")


@dataclass(frozen=True)
class NodeRecord:
    """One node as it described itself. Immutable; a change is a new record with a higher `version`.

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
    swarm: bytes
    version: int
    issued: int
    ttl: int
    instance: int = 0
    proof: bytes = b"\x90"
    state: str = "joining"
    addresses: tuple[Address, ...] = ()
    relay: bool = False
    model: bytes = b""
    n_layers: int = 0
    layers: tuple[int, int] = NOWHERE
    claim: tuple[int, int] | None = None
    device: str = ""
    dtype: str = ""
    speed_us: tuple[int, int, int] = (0, 0, 0)
    overflow: int = 0
    overflow_us: tuple[int, int, int] = (0, 0, 0)
    kv_capacity: int = 0
    kv_free: int = 0
    up_kbps: int = 0
    down_kbps: int = 0
    rtts: tuple[tuple[bytes, int], ...] = ()
    edges: tuple[str, ...] = ()
    coordinate: tuple[int, ...] = ()
    sessions: int = 0
    queue_us: int = 0
    owner: str = ""
    software: str = ""
    fingerprint: bytes = b""

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


def sign_record(record: NodeRecord, sign: Callable[[bytes], bytes]) -> Signed:
    """Encode and sign an own record; `sign` is `Identity.sign`. Raises PeerError if a field is out of bounds."""
    payload = _pack(record)
    wire: bytes = msgpack.packb([payload, sign(CONTEXT + payload)])
    if len(wire) > MAX_RECORD_BYTES:
        raise PeerError(f"expected a record of at most {MAX_RECORD_BYTES} bytes, found {len(wire)}")
    _read_payload_untrusted(payload)
    return Signed(record, wire)


def peek_record_untrusted(wire: object) -> NodeRecord:
    """The fields of a record whose signature nobody checked yet: to drop old ones cheaply. Raises PeerError."""
    return _read_payload_untrusted(_open_untrusted(wire)[0])


def parse_record_untrusted(wire: object, swarm: bytes, now_wall: float) -> Signed:
    """Read and check a record from a peer: bounds, one encoding, swarm, clock, signature. Raises PeerError."""
    payload, signature = _open_untrusted(wire)
    record = _read_payload_untrusted(payload)
    if record.swarm != swarm:
        raise PeerError(f"the record of node {short_id(record.node)} belongs to another swarm")
    check_clock_untrusted(record, now_wall)
    if not verify(record.node, signature, CONTEXT + payload):
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


def _open_untrusted(wire: object) -> tuple[bytes, bytes]:
    if not isinstance(wire, bytes | bytearray | memoryview) or len(wire) > MAX_RECORD_BYTES:
        raise PeerError(f"expected a record of at most {MAX_RECORD_BYTES} bytes, found something else")
    parts = _unpack_untrusted(wire)
    if not isinstance(parts, list) or len(parts) != 2 or not all(type(part) is bytes for part in parts):
        raise PeerError("expected a record of payload and signature, found something else")
    if len(parts[1]) != SIGNATURE_BYTES or msgpack.packb(parts) != bytes(wire):
        raise PeerError("expected a record with a 64-byte signature in its one encoding, found another form")
    return parts[0], parts[1]


def _unpack_untrusted(data: bytes | bytearray | memoryview) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise PeerError(f"a record is not msgpack: {type(exc).__name__}") from exc


def _pack(r: NodeRecord) -> bytes:
    packed: bytes = msgpack.packb(
        [
            *(
                FORMAT if r.fingerprint else BEFORE,
                r.node,
                r.swarm,
                r.version,
                r.issued,
                r.ttl,
                r.instance,
                r.proof,
                r.state,
            ),
            *([format_address(a) for a in r.addresses], r.relay, r.model, r.n_layers, r.layers, r.claim),
            *(r.device, r.dtype, r.speed_us, r.overflow, r.overflow_us, r.kv_capacity, r.kv_free),
            *(r.up_kbps, r.down_kbps, r.rtts, bytes(EDGES.index(edge) for edge in r.edges), r.coordinate),
            *(r.sessions, r.queue_us, r.owner, r.software, *((r.fingerprint,) if r.fingerprint else ())),
        ]
    )
    return packed


FIELDS = 31
"""Of the format before; a fingerprint is one more."""


def _read_payload_untrusted(payload: bytes) -> NodeRecord:
    v = _unpack_untrusted(payload)
    if not isinstance(v, list) or not v or type(v[0]) is not int:
        raise PeerError("expected a record, found something else")
    if v[0] not in (BEFORE, FORMAT):
        raise PeerError(f"expected a record of format {FORMAT}, found format {v[0]}; the older side needs an update")
    fields = FIELDS + (v[0] == FORMAT)
    if len(v) != fields:
        raise PeerError(f"expected {fields} fields in a record, found {len(v)}")
    n_layers = _int(v[12], "layers of the model", MAX_LAYERS)
    layers = _range(v[13], n_layers)
    record = NodeRecord(
        node=_bytes(v[1], "node id", NODE_ID_BYTES),
        swarm=_bytes(v[2], "swarm id", SWARM_ID_BYTES),
        version=_int(v[3], "version", 2**53),
        issued=_int(v[4], "time", 2**40),
        ttl=_int(v[5], "ttl", MAX_TTL_S, MIN_TTL_S),
        instance=_int(v[6], "instance", 2**63),
        proof=_proof(v[7]),
        state=_one_of(v[8]),
        addresses=tuple(parse_address_untrusted(a) for a in _list(v[9], "addresses", MAX_ADDRESSES)),
        relay=_bool(v[10]),
        model=_bytes(v[11], "model digest", 0, 32),
        n_layers=n_layers,
        layers=layers,
        claim=None if v[14] is None else _range(v[14], n_layers),
        device=_text(v[15]),
        dtype=_text(v[16]),
        speed_us=_three(v[17]),
        overflow=_int(v[18], "overflow layers", layers[1] - layers[0]),
        overflow_us=_three(v[19]),
        kv_capacity=_int(v[20], "bytes", 2**60),
        kv_free=_int(v[21], "bytes", 2**60),
        up_kbps=_int(v[22], "kbit/s", 2**40),
        down_kbps=_int(v[23], "kbit/s", 2**40),
        rtts=tuple(_rtt(pair) for pair in _list(v[24], "RTTs", MAX_RTTS)),
        edges=_edges(_bytes(v[25], "kinds of edges", 0, len(v[24]))),
        coordinate=_coordinate(v[26]),
        sessions=_int(v[27], "sessions", 10**6),
        queue_us=_int(v[28], "microseconds", 10**9),
        owner=_text(v[29]),
        software=_text(v[30]),
        fingerprint=_bytes(v[31], "fingerprint", 32) if v[0] == FORMAT else b"",
    )
    if _pack(record) != payload:
        raise PeerError(f"the record of node {short_id(record.node)} is not in its one encoding")
    return record


def _int(value: object, what: str, most: int, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= most:
        raise PeerError(f"expected {what} from {least} to {most} in a record, found {str(value)[:24]!r}")
    return value


def _bytes(value: object, what: str, *sizes: int) -> bytes:
    if type(value) is not bytes or len(value) not in sizes:
        raise PeerError(f"expected {what} of {' or '.join(map(str, sizes))} bytes in a record, found something else")
    return value


def _proof(value: object) -> bytes:
    if type(value) is not bytes or not 0 < len(value) <= MAX_PROOF_BYTES:
        raise PeerError(f"expected a proof of at most {MAX_PROOF_BYTES} bytes in a record, found something else")
    return value


def _text(value: object) -> str:
    if type(value) is not str or len(value) > MAX_TEXT or not value.isprintable():
        raise PeerError(f"expected printable text of at most {MAX_TEXT} characters in a record, found something else")
    return value


def _bool(value: object) -> bool:
    if type(value) is not bool:
        raise PeerError("expected true or false in a record, found something else")
    return value


def _one_of(value: object) -> str:
    if type(value) is not str or value not in STATES:
        raise PeerError(f"expected a state out of {', '.join(STATES)}, found {str(value)[:24]!r}")
    return value


def _list(value: object, what: str, most: int) -> list[Any]:
    if type(value) is not list or len(value) > most:
        raise PeerError(f"expected at most {most} {what} in a record, found something else")
    return value


def _range(value: object, n_layers: int) -> tuple[int, int]:
    first, last = (_int(edge, "layer", n_layers) for edge in _pair(value))
    if first > last:
        raise PeerError(f"expected a range of layers, found {first}:{last}")
    return first, last


def _pair(value: object) -> list[Any]:
    found = _list(value, "numbers", 2)
    if len(found) != 2:
        raise PeerError("expected a pair in a record, found something else")
    return found


def _three(value: object) -> tuple[int, int, int]:
    found = _list(value, "numbers", 3)
    if len(found) != 3:
        raise PeerError("expected three measured times in a record, found something else")
    a, b, c = (_int(us, "microseconds", 10**10) for us in found)
    return a, b, c


def _rtt(value: object) -> tuple[bytes, int]:
    peer, us = _pair(value)
    return _bytes(peer, "peer", KEY_BYTES), _int(us, "microseconds", 10**9)


def _edges(kinds: bytes) -> tuple[str, ...]:
    if any(kind >= len(EDGES) for kind in kinds):
        raise PeerError("expected kinds of edges that are known in a record, found another")
    return tuple(EDGES[kind] for kind in kinds)


def _coordinate(value: object) -> tuple[int, ...]:
    found = _list(value, "numbers", 5)
    if len(found) not in (0, 5):
        raise PeerError("expected a coordinate of five numbers in a record, found something else")
    return tuple(_int(number, "coordinate", 10**8, -(10**8)) for number in found)
