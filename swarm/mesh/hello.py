"""The hello between two nodes: the door of the swarm. Pure checks; `swarm.mesh.neighbours` and `knock` carry them.

Header of the call: {"swarm", "model", "role", "proof", "token", "clock"}. The answer is {"refused": why} or
{"charter", "proof", "open", "model", "ref", "welcome"}: `proof` admits the caller in the role that it asked for and
that its proof or token allows; `welcome` is the proof that the answering node is itself a member.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

from swarm.base.address import Address
from swarm.base.bounds import AtMost, Between, Exactly, MayLack, Spelled, by_name
from swarm.base.codec import Codec
from swarm.base.errors import PeerError, shortly
from swarm.base.nodeid import NodeId, Signer, short_id
from swarm.mesh.admission import Role
from swarm.mesh.invite import MAX_REF, Invite, read_token_untrusted, token_parts
from swarm.mesh.membership import CHARTER_BYTES, InviteError, InviteToken, Ledger, Membership, check_token
from swarm.mesh.messages import HELLO
from swarm.mesh.record import MAX_PROOF_BYTES, SwarmId
from swarm.net.channel.message import Message
from swarm.net.switchboard import Switchboard

HELLO_TIMEOUT_S = 10.0
KNOCK_PAUSES_S = (0.1, 0.3, 1.0)
"""Before each further knock at a member whose connection broke under the hello.

Where another process uses the same key, each of the two takes the other's place at the member: whoever asks again gets
its answer between two turns, and hears of the other from the member's records.
"""


ShownProof: TypeAlias = Annotated[bytes, AtMost(MAX_PROOF_BYTES)]


def _token_untrusted(parts: object) -> InviteToken | None:
    return None if parts is None else read_token_untrusted(parts)


@by_name()
@dataclass(frozen=True)
class Hello:
    """What a caller says.

    model  manifest digest or its first 16 bytes, empty for whoever brings no model
    clock  its seconds of Unix time, so that both sides learn of it when it is off; None: not told
    """

    swarm: SwarmId
    model: Annotated[bytes, AtMost(32)]
    role: Role
    proof: Annotated[ShownProof | None, MayLack()] = None
    token: Annotated[InviteToken | None, MayLack(), Spelled(_token_untrusted, token_parts)] = None
    clock: Annotated[float | None, MayLack(), Between(-(2**53), 2**53)] = None


@by_name()
@dataclass(frozen=True)
class _Granted:
    """The answer to a hello that opened: the swarm's charter, the caller's proof, and the answering node's own."""

    charter: Annotated[bytes, Exactly(CHARTER_BYTES)]
    proof: ShownProof
    open: bool
    model: Annotated[bytes, Exactly(0, 32)]
    ref: Annotated[str, AtMost(MAX_REF)]
    welcome: ShownProof


_HELLO, _GRANTED = Codec(Hello, "hello"), Codec(_Granted, "welcome")


@dataclass(frozen=True)
class Welcome:
    """What the caller gets: its membership, and the swarm's model (manifest digest and reference).

    `shown`: the proof of whoever answered.
    """

    membership: Membership
    model: bytes
    ref: str
    shown: bytes


def hello_message(hello: Hello, now_wall: float | None = None) -> Message:
    """The call. `now_wall`: the caller's clock, so that both sides learn of it when it is off."""
    return Message(HELLO, _HELLO.header(replace(hello, clock=now_wall)))


def parse_hello_untrusted(header: Mapping[str, object]) -> Hello:
    """Read the call. Raises PeerError, for a token InviteError."""
    return _HELLO.read_untrusted(header)


def answer_hello(
    hello: Hello,
    node: NodeId,
    here: NodeId,
    membership: Membership,
    ledger: Ledger,
    model: bytes,
    ref: str,
    now_wall: float,
) -> tuple[Message, Ledger]:
    """Admit `node` or raise InviteError.

    1. the same swarm; 2. the same model; 3. admitted before in that role (proof), or a token that opens for it, or an
    open swarm. A guest's invite lets in guests until it expires; whoever came by a node's stays until that is revoked.
    """
    if hello.swarm != membership.swarm:
        raise InviteError("the invite is for another swarm than the one at this address; ask for a new one")
    if hello.model and hello.model[:16] != model[:16]:
        raise InviteError(
            f"this swarm serves {ref} (digest {model.hex()[:12]}), found a hello for digest {hello.model.hex()[:12]}; "
            f"join with --model {ref} (cause: model)"
        )
    proof, void = _shown(hello, node, membership, ledger, now_wall)
    if proof is None:
        token = hello.token
        if token is not None:
            check_token(token, node, here, membership, ledger, now_wall)
            if hello.role == "node" and token.role != "node":
                raise InviteError("the invite lets in guests, not nodes; ask a member for one that does: swarm invite")
            if token.once:
                ledger = ledger.using(token, node, now_wall)
            proof = membership.prove(node, hello.role, token.expires if token.role == "guest" else 0, token)
        elif void is not None:
            raise InviteError(
                f"what admitted this machine counts no more: {void}; ask a member: swarm invite (cause: revoked)"
            )
        elif not membership.open:
            raise InviteError("this swarm admits by invite; ask a member for one: swarm invite")
        else:
            proof = membership.prove(node, hello.role)
    granted = _Granted(membership.charter, proof, membership.open, model, ref, membership.proof)
    return Message(HELLO, _GRANTED.header(granted)), ledger


def _shown(
    hello: Hello, node: NodeId, membership: Membership, ledger: Ledger, now_wall: float
) -> tuple[bytes | None, str | None]:
    """The proof that the caller shows, if it counts for the role that it asks for, and why it counts no more, if so."""
    if hello.proof is None or not membership.proves(node, hello.proof, hello.role):
        return None, None
    void = membership.admission_untrusted(hello.proof).void(ledger.revoked, now_wall)
    return (hello.proof if void is None else None), void


def parse_welcome_untrusted(header: Mapping[str, object], swarm: bytes, signer: Signer, peer: NodeId) -> Welcome:
    """Read the answer of `peer` to this node, `signer`. Raises InviteError when refused, PeerError when malformed."""
    refused = header.get("refused")
    if isinstance(refused, str):
        raise InviteError("".join(c for c in refused[:300] if c.isprintable()))
    granted = _GRANTED.read_untrusted(header)
    membership = Membership.accept_untrusted(swarm, signer, granted.charter, granted.open, granted.proof)
    if not membership.proves(peer, granted.welcome, "node"):
        raise PeerError(f"node {short_id(peer)} answers for the swarm, but is no member of it")
    return Welcome(membership, granted.model, granted.ref, granted.welcome)


async def knock(board: Switchboard, hello: Hello, peer: NodeId, addresses: Sequence[Address]) -> Welcome:
    """Dial one member and say hello, again where the connection breaks under it.

    Raises InviteError when refused, PeerError when not reached or when another process has this node's key.
    """
    for pause in (*KNOCK_PAUSES_S, None):
        connected = await board.peer(peer, addresses, HELLO_TIMEOUT_S)
        try:
            answer = await connected.call(hello_message(hello, time.time()), HELLO_TIMEOUT_S)
            break
        except PeerError as error:
            if connected.closed_reason is None or (connected.leaving and not connected.replaced):
                raise  # it lives and did not answer, or it said why it leaves
            if pause is None:
                raise (_same_key(board.id, peer) if connected.replaced else error) from error
        await asyncio.sleep(pause)
    return parse_welcome_untrusted(answer.header, hello.swarm, board.identity, peer)


def _same_key(own: NodeId, member: NodeId) -> PeerError:
    return PeerError(
        f"two nodes use the key of {short_id(own)}; another process took this one's place at node {short_id(member)}; "
        "give one of them another --state"
    )


async def enter(
    board: Switchboard,
    hello: Hello,
    members: Sequence[tuple[NodeId, Sequence[Address]]],
) -> tuple[Welcome, NodeId]:
    """Knock at `members` in order until one opens; the welcome and who gave it.

    Raises InviteError as soon as one refuses, PeerError naming all that were tried when none is reached.
    """
    tried: list[str] = []
    for node, addresses in members:
        if node == board.id:
            continue
        try:
            return await knock(board, hello, node, addresses), node
        except InviteError as error:
            if hello.token is None or not hello.token.once:
                raise
            tried.append(str(error))
        except PeerError as error:
            tried.append(str(error))
    if not tried:
        raise PeerError("expected a member of the swarm to dial, found none but this node itself; ask for a new invite")
    of = f" (of {len(tried)})" if len(tried) > 1 else ""
    raise PeerError(f"no member of the swarm could be reached{of}: {shortly(tried)}; ask for a newer invite")


def invited(invite: Invite, role: str, model: bytes = b"", proof: bytes | None = None) -> Hello:
    """The hello of whoever holds `invite`."""
    return Hello(invite.swarm, model or invite.model, role, proof, invite.token)
