"""Into a swarm of the local network by the word of its owner: two machines show one code, and people compare them.

The code is a short authentication string (as in ZRTP, RFC 6189, and Bluetooth's numeric comparison; Vaudenay, CRYPTO
2005): six digits of a hash over both node ids, as each side's channel proved them, the swarm's id and a nonce of each
side. The member commits to its nonce before it hears the newcomer's, so nobody in between can choose a nonce that makes
two codes equal: one who talks to both with keys of its own has one chance in a million each time that a code is shown,
and codes are shown one at a time, TRIES of them in an hour.

    newcomer                               member
    ask (swarm, role)             ->
                                  <-       commitment to its nonce
    share (nonce)                 ->
                                  <-       its nonce; both show the code
    wait, again and again         ->
                                  <-       not yet | a token for one use, once the owner said yes

The token lets in whoever holds it as that of any invite does (`swarm.mesh.hello`), and can be revoked like one.
Decisions are functions of the `Door` and the time; `swarm.discovery.lan_admission` carries them.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

from swarm.base.bounds import Between, Exactly, by_name
from swarm.base.codec import Codec
from swarm.base.errors import BusyError, PeerError
from swarm.base.nodeid import NodeId
from swarm.mesh.admission import Role
from swarm.mesh.invite import TokenWire
from swarm.mesh.record import SwarmId

PAIR = "mesh.pair"
NONCE_BYTES = 32
DIGITS = 6
WAITS_S = 120.0
"""How long a code is shown."""
POLL_S = 1.0
GONE_S = 15.0
"""A newcomer that has not asked for so long is gone. Longer than strangers keep a connection, which they make anew."""
TRIES = 10
TRIES_IN_S = 3600.0
TOKEN_S = 600
"""How long what the owner allowed can be used, in wall seconds."""
_CODE, _COMMITMENT = b"wanswarm pair 1", b"wanswarm pair c"

Nonce: TypeAlias = Annotated[bytes, Exactly(NONCE_BYTES)]


@by_name(tag=("step", "ask"))
@dataclass(frozen=True)
class AskIn:
    """A newcomer wants to be let in."""

    swarm: SwarmId
    role: Role


@by_name(tag=("step", "share"))
@dataclass(frozen=True)
class Share:
    """The newcomer's nonce, told when it has the member's commitment."""

    nonce: Nonce


@by_name(tag=("step", "wait"))
@dataclass(frozen=True)
class Wait:
    """Has the owner said anything yet? `swarm`: which is meant."""

    swarm: SwarmId


@by_name(tag=("now", "committed"))
@dataclass(frozen=True)
class Committed:
    """The answer to `AskIn`: a hash that holds the member to its nonce."""

    commitment: Annotated[bytes, Exactly(32)]


@by_name(tag=("now", "shown"))
@dataclass(frozen=True)
class Shown:
    """The answer to `Share`: the member's nonce, and for how long it shows the code."""

    nonce: Nonce
    seconds: Annotated[float, Between(0, 3600)]
    terminal: bool


@by_name(tag=("now", "waiting"))
@dataclass(frozen=True)
class Waiting:
    """The answer to `Wait` until the owner has spoken."""

    seconds: Annotated[float, Between(0, 3600)]


@by_name(tag=("now", "admitted"))
@dataclass(frozen=True)
class Admitted:
    """The answer to `Wait` when the owner said yes."""

    token: TokenWire


Step: TypeAlias = AskIn | Share | Wait
Answer: TypeAlias = Committed | Shown | Waiting | Admitted
STEPS: Codec[Step] = Codec.any_of("pairing", AskIn, Share, Wait)
ANSWERS: Codec[Answer] = Codec.any_of("pairing", Committed, Shown, Waiting, Admitted)


def commitment(swarm: bytes, member: NodeId, newcomer: NodeId, nonce: bytes) -> bytes:
    """What holds `member` to `nonce`, towards this newcomer and no other."""
    said = swarm + member + newcomer + nonce
    return hashlib.blake2b(said, digest_size=32, person=_COMMITMENT).digest()


def keeps(said: bytes, swarm: bytes, member: NodeId, newcomer: NodeId, nonce: bytes) -> bool:
    """Whether a member that said this commitment told the nonce that it had committed to."""
    return hmac.compare_digest(said, commitment(swarm, member, newcomer, nonce))


def code_of(swarm: bytes, member: NodeId, newcomer: NodeId, member_nonce: bytes, newcomer_nonce: bytes) -> str:
    """The six digits that both sides show. Each puts in the ids that its own channel proved."""
    said = swarm + member + newcomer + member_nonce + newcomer_nonce
    number = int.from_bytes(hashlib.blake2b(said, digest_size=16, person=_CODE).digest(), "big")
    return f"{number % 10**DIGITS:0{DIGITS}}"


@dataclass(frozen=True)
class Pairing:
    """One newcomer at the door. Times are monotonic seconds.

    code    "" before it is shown
    agreed  the owner's word; None before it
    """

    node: NodeId
    role: Role
    nonce: bytes
    seen: float
    ends: float
    code: str = ""
    agreed: bool | None = None


@dataclass(frozen=True)
class Door:
    """What a member keeps: the one newcomer that it attends to, and when codes were asked for in the last hour."""

    pairing: Pairing | None = None
    begun: tuple[float, ...] = ()

    def at(self, now: float) -> Door:
        """With what is over left out."""
        begun = tuple(at for at in self.begun if now - at < TRIES_IN_S)
        pairing = self.pairing
        over = pairing is not None and (now >= pairing.ends or now - pairing.seen >= GONE_S)
        return Door(None if over else pairing, begun)


def asked(door: Door, node: NodeId, role: Role, nonce: bytes, now: float) -> Door:
    """`node` asks; `nonce` is the one to commit to. Raises BusyError while another is attended to, or too many came."""
    door = door.at(now)
    if door.pairing is not None and door.pairing.node != node:
        raise BusyError("that machine attends to another newcomer; try again in two minutes, or use an invite")
    if len(door.begun) >= TRIES:
        raise BusyError(f"that machine showed {TRIES} codes within the hour and shows no more; use an invite")
    return Door(Pairing(node, role, nonce, now, now + WAITS_S), (*door.begun, now))


def shared(door: Door, node: NodeId, here: NodeId, swarm: bytes, nonce: bytes, now: float) -> Door:
    """`node` told its nonce, once: the code stands. Raises PeerError out of turn."""
    pairing = _of(door, node, now)
    if pairing.code:
        raise PeerError("expected one nonce of a newcomer, found a second; ask anew")
    code = code_of(swarm, here, node, pairing.nonce, nonce)
    return replace(door.at(now), pairing=replace(pairing, code=code, seen=now))


def waits(door: Door, node: NodeId, now: float) -> Door:
    """`node` still waits. Raises PeerError when its time is over or the owner said no."""
    pairing = _of(door, node, now)
    if pairing.agreed is False:
        raise PeerError("the owner of that machine said no")
    return replace(door.at(now), pairing=replace(pairing, seen=now))


def decided(door: Door, node: NodeId, code: str, yes: bool, now: float) -> Door:
    """The owner's word about the code that `node` and this member share; of no use when that is over."""
    pairing = door.at(now).pairing
    if pairing is None or pairing.node != node or pairing.code != code:
        return door
    return replace(door, pairing=replace(pairing, agreed=yes))


def _of(door: Door, node: NodeId, now: float) -> Pairing:
    pairing = door.at(now).pairing
    if pairing is None or pairing.node != node:
        raise PeerError(f"nobody said yes within {WAITS_S:.0f} seconds, or that machine was not asked; try again")
    return pairing
