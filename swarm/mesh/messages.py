"""The bytes of membership messages. Lists of names are packed structs, records travel as they were signed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import msgpack

from swarm.base.errors import PeerError
from swarm.base.nodeid import NODE_ID_BYTES, SIGNATURE_BYTES, NodeId, check_id_untrusted, verify
from swarm.mesh.action import SendDelta, SendDigest, SendHints, SendWant
from swarm.mesh.admission import TOKEN_ID_BYTES
from swarm.mesh.membership import Membership, Revocation
from swarm.mesh.record import MAX_PROOF_BYTES, MAX_RECORD_BYTES
from swarm.mesh.state import Blame, Hint, Suspicion
from swarm.mesh.table import DIGEST_BYTES
from swarm.net.channel.message import Body, Message

HELLO, BYE = "mesh.hello", "mesh.bye"
"""The hello is the one kind that a stranger may send; see `Switchboard(open_kinds=...)`."""
HINTS, WANT, DELTA, DIGEST = "mesh.hints", "mesh.want", "mesh.delta", "mesh.digest"

MAX_NAMES = 8192
MAX_RECORDS = 256
MAX_ITEMS = 4096
MAX_AGE_MS = 24 * 3600 * 1000
_SUSPICION = b"wanswarm suspicion 1\0"
_HINT = struct.Struct(">QQ")
_KEY = struct.Struct(">Q")
_BLAME = struct.Struct(">QQQ")


@dataclass(frozen=True)
class Parcel:
    """A delta as it arrived: (age in seconds, signed bytes) of records that nobody checked yet, and checked notices."""

    records: tuple[tuple[float, bytes], ...]
    suspicions: tuple[Suspicion, ...]
    revocations: tuple[Revocation, ...]


def message_of(action: SendHints | SendWant | SendDelta | SendDigest, now: float) -> Message:
    """What to post for an action; `now`: monotonic seconds, for the ages of records."""
    match action:
        case SendHints(_, hints, blames):
            return names_message(HINTS, hints, blames)
        case SendWant(_, keys, blames):
            return names_message(WANT, keys, blames)
        case SendDelta():
            return delta_message(action, now)
        case SendDigest(_, digest):
            return digest_message(digest)
        case _:
            assert_never(action)


def names_message(kind: str, names: Sequence[Hint] | Sequence[int], blames: Sequence[Blame]) -> Message:
    """HINTS with (key, version) pairs, or WANT with keys; both with names of suspicions."""
    pack = _HINT.pack if kind == HINTS else _KEY.pack
    body = b"".join(pack(*(name if isinstance(name, tuple) else (name,))) for name in names)
    return Message(kind, {"n": len(names)}, body + b"".join(_BLAME.pack(*blame) for blame in blames))


def parse_hints_untrusted(message: Message) -> tuple[tuple[Hint, ...], tuple[Blame, ...]]:
    """(key, version) pairs and names of suspicions. Raises PeerError."""
    names, blames = _names_untrusted(message, _HINT)
    return tuple((key, version) for key, version in names), blames


def parse_want_untrusted(message: Message) -> tuple[tuple[int, ...], tuple[Blame, ...]]:
    """Keys and names of suspicions. Raises PeerError."""
    names, blames = _names_untrusted(message, _KEY)
    return tuple(key for (key,) in names), blames


def _names_untrusted(message: Message, form: struct.Struct) -> tuple[Iterator[tuple[int, ...]], tuple[Blame, ...]]:
    body = memoryview(message.body)
    n = message.header.get("n")
    if type(n) is not int or not 0 <= n <= MAX_NAMES or len(body) > MAX_NAMES * (form.size + _BLAME.size):
        raise PeerError(f"expected at most {MAX_NAMES} names in {message.kind}, found more")
    split = n * form.size
    if len(body) < split or (len(body) - split) % _BLAME.size:
        raise PeerError(f"the names in {message.kind} are cut short")
    blames = tuple((t, v, r) for t, v, r in _BLAME.iter_unpack(body[split:]))
    return form.iter_unpack(body[:split]), blames


def digest_message(digest: bytes) -> Message:
    """DIGEST: one 8-byte mark per bucket."""
    return Message(DIGEST, {}, digest)


def parse_digest_untrusted(message: Message) -> bytes:
    """The marks. Raises PeerError."""
    if len(memoryview(message.body)) != DIGEST_BYTES:
        raise PeerError(f"expected a digest of {DIGEST_BYTES} bytes, found {len(memoryview(message.body))}")
    return bytes(message.body)


def delta_message(action: SendDelta, now: float) -> Message:
    """DELTA: records with their ages, suspicions, revocations."""
    body: bytes = msgpack.packb(
        [
            [[max(0, round((now - held.born) * 1000)), held.wire] for held in action.records],
            [[said.target, said.version, said.reporter, said.wire] for said in action.suspicions],
            [revocation_parts(notice) for notice in action.revocations],
        ]
    )
    return Message(DELTA, {}, body)


def parse_delta_untrusted(message: Message, membership: Membership) -> Parcel:
    """Check form, sizes and the proofs of suspicions and revocations; records are left to their own parser.

    Raises PeerError.
    """
    lists = _unpack_untrusted(message.body, MAX_RECORDS * (MAX_RECORD_BYTES + 16) + MAX_ITEMS * (MAX_PROOF_BYTES + 160))
    if not isinstance(lists, list) or len(lists) != 3 or not all(isinstance(part, list) for part in lists):
        raise PeerError("expected records, suspicions and revocations in a delta, found something else")
    records, said, revoked = lists
    if len(records) > MAX_RECORDS or len(said) > MAX_ITEMS or len(revoked) > MAX_ITEMS:
        raise PeerError(f"expected at most {MAX_RECORDS} records in a delta, found more")
    return Parcel(
        tuple(_aged(item) for item in records),
        tuple(_suspicion_untrusted(item, membership.swarm) for item in said),
        tuple(read_revocation_untrusted(item, membership) for item in revoked),
    )


def sign_suspicion(target: int, version: int, node: NodeId, swarm: bytes, sign: Callable[[bytes], bytes]) -> Suspicion:
    """This node's word that it could not reach the node with key `target` at record `version`."""
    return Suspicion(target, version, node, sign(_SUSPICION + swarm + _HINT.pack(target, version)))


def _suspicion_untrusted(item: Any, swarm: bytes) -> Suspicion:
    if not isinstance(item, list) or len(item) != 4 or not _u64(item[0]) or not _u64(item[1]):
        raise PeerError("expected a suspicion, found something else")
    reporter = check_id_untrusted(item[2])
    if type(item[3]) is not bytes or len(item[3]) != SIGNATURE_BYTES:
        raise PeerError("expected a signed suspicion, found something else")
    if not verify(reporter, item[3], _SUSPICION + swarm + _HINT.pack(item[0], item[1])):
        raise PeerError("a suspicion is not signed by its reporter")
    return Suspicion(item[0], item[1], reporter, item[3])


def revocation_parts(notice: Revocation) -> list[Any]:
    """A notice as messages and files carry it."""
    return [notice.id, notice.expires, notice.revoker, notice.chain, notice.signature]


def read_revocation_untrusted(item: Any, membership: Membership) -> Revocation:
    """A notice as messages and files carry it, checked. Raises PeerError."""
    if not isinstance(item, list) or len(item) != 5 or not _u64(item[1]) or item[1] >= 2**40:
        raise PeerError("expected a revocation, found something else")
    sizes = (item[0], TOKEN_ID_BYTES), (item[2], NODE_ID_BYTES), (item[4], SIGNATURE_BYTES)
    sized = type(item[3]) is bytes and all(type(b) is bytes and len(b) == n for b, n in sizes)
    notice = Revocation(item[0], item[1], item[2], item[3], item[4]) if sized else None
    if notice is None or not membership.genuine(notice):
        raise PeerError("a revocation was not made by a member")
    return notice


def _aged(item: Any) -> tuple[float, bytes]:
    if not isinstance(item, list) or len(item) != 2 or type(item[0]) is not int or type(item[1]) is not bytes:
        raise PeerError("expected a record with its age, found something else")
    if not 0 <= item[0] <= MAX_AGE_MS or len(item[1]) > MAX_RECORD_BYTES:
        raise PeerError("a record in a delta is too old or too large")
    return item[0] / 1000, item[1]


def _u64(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _unpack_untrusted(body: Body, most: int) -> Any:
    if len(memoryview(body)) > most:
        raise PeerError(f"expected at most {most} bytes, found {len(memoryview(body))}")
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise PeerError(f"a delta is not msgpack: {type(exc).__name__}") from exc
