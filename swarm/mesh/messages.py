"""The bytes of membership messages. Lists of names are packed structs, records travel as they were signed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias, assert_never

from swarm.base.bounds import AtMost, Between, by_name, by_position
from swarm.base.codec import Codec
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, verify
from swarm.mesh.action import SendDelta, SendDigest, SendHints, SendWant
from swarm.mesh.membership import Membership, Revocation
from swarm.mesh.record import MAX_PROOF_BYTES, MAX_RECORD_BYTES
from swarm.mesh.state import Blame, Hint, Suspicion
from swarm.mesh.table import DIGEST_BYTES
from swarm.net.channel.message import Message

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


AgedRecord: TypeAlias = tuple[Annotated[int, Between(0, MAX_AGE_MS)], Annotated[bytes, AtMost(MAX_RECORD_BYTES)]]
"""Milliseconds, and a record as it was signed."""


@by_position
@dataclass(frozen=True)
class _Delta:
    """The body of DELTA."""

    records: Annotated[tuple[AgedRecord, ...], AtMost(MAX_RECORDS)]
    suspicions: Annotated[tuple[Suspicion, ...], AtMost(MAX_ITEMS)]
    revocations: Annotated[tuple[Revocation, ...], AtMost(MAX_ITEMS)]


@by_name()
@dataclass(frozen=True)
class _Names:
    """The header of HINTS and WANT: how many names its body begins with."""

    n: Annotated[int, Between(0, MAX_NAMES)]


_DELTA, _NAMES = Codec(_Delta, "delta"), Codec(_Names, "names")
_REVOCATION = Codec(Revocation, "revocation")
MAX_DELTA_BYTES = MAX_RECORDS * (MAX_RECORD_BYTES + 16) + MAX_ITEMS * (MAX_PROOF_BYTES + 160)


@dataclass(frozen=True)
class Parcel:
    """A delta as it arrived: (age in seconds, signed bytes) of records, and revocations, that nobody checked yet.

    The suspicions are signed by their reporters.
    """

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
    return Message(kind, _NAMES.header(_Names(len(names))), body + b"".join(_BLAME.pack(*blame) for blame in blames))


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
    n = _NAMES.read_untrusted(message.header).n
    if len(body) > MAX_NAMES * (form.size + _BLAME.size):
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
    records = tuple((max(0, round((now - held.born) * 1000)), held.wire) for held in action.records)
    return Message(DELTA, {}, _DELTA.pack(_Delta(records, action.suspicions, action.revocations)))


def parse_delta_untrusted(message: Message, membership: Membership) -> Parcel:
    """Check form, sizes and the proofs of suspicions; records and revocations are left to their own checks.

    Raises PeerError.
    """
    delta = _DELTA.unpack_untrusted(message.body, MAX_DELTA_BYTES)
    for said in delta.suspicions:
        if not verify(said.reporter, said.wire, _SUSPICION + membership.swarm + _HINT.pack(said.target, said.version)):
            raise PeerError("a suspicion is not signed by its reporter")
    return Parcel(tuple((ms / 1000, wire) for ms, wire in delta.records), delta.suspicions, delta.revocations)


def sign_suspicion(target: int, version: int, node: NodeId, swarm: bytes, sign: Callable[[bytes], bytes]) -> Suspicion:
    """This node's word that it could not reach the node with key `target` at record `version`."""
    return Suspicion(target, version, node, sign(_SUSPICION + swarm + _HINT.pack(target, version)))


def revocation_parts(notice: Revocation) -> list[object]:
    """A notice as messages and files carry it."""
    return _REVOCATION.write(notice)


def read_revocation_untrusted(item: object, membership: Membership) -> Revocation:
    """A notice as messages and files carry it, checked. Raises PeerError."""
    notice = _REVOCATION.read_untrusted(item)
    check_revocation(notice, membership)
    return notice


def check_revocation(notice: Revocation, membership: Membership) -> None:
    """Raise PeerError unless a member made `notice`."""
    if not membership.genuine(notice):
        raise PeerError("a revocation was not made by a member")
