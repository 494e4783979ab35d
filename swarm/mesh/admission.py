"""Proofs of admission: a chain of signatures from the swarm's founder to a node, with every invite that led there.

A proof is msgpack of a list of links, the founder's first; the founder's own proof is the empty list. Each link is
[node (32), role, expires, [token id (8), ...], signature (64)], signed by the node of the link before it, the first by
the founder, over CONTEXT, the swarm's id, the signer's id and the other four fields. So a proof stands for itself, no
secret is shared that could be passed on, and whoever knows that an invite is revoked sees what came of it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import msgpack

from swarm.base.bounds import AtMost, Between, Exactly, OneOf, Spelled, by_position
from swarm.base.codec import Codec
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, SignatureBytes, Signer, verify
from swarm.mesh.record import MAX_PROOF_BYTES

TOKEN_ID_BYTES = 8
MAX_DEPTH = 12
"""Links of one proof: how many members may stand between the founder and a node, one letting in the next."""
MAX_TOKENS = 24
"""Invites that one proof names."""
ROLES = ("node", "guest")
Role: TypeAlias = Annotated[str, OneOf(ROLES)]
FOUNDER_PROOF: bytes = msgpack.packb([])
_CONTEXT = b"wanswarm admission 1\0"

TokenId: TypeAlias = Annotated[bytes, Exactly(TOKEN_ID_BYTES)]
WallSeconds: TypeAlias = Annotated[int, Between(0, 2**40 - 1)]
RoleNumber: TypeAlias = Annotated[str, Spelled(ROLES.__getitem__, ROLES.index, Annotated[int, Between(0, 1)])]


@dataclass(frozen=True)
class Admission:
    """What a proof says. `expires`: wall seconds after which it is void, 0 for never. `tokens`: ids of the invites."""

    node: NodeId
    role: Role
    expires: int
    depth: int
    tokens: tuple[bytes, ...]

    def void(self, revoked: Container[bytes], now_wall: float) -> str | None:
        """Why it counts no more, or None while it does."""
        if any(token in revoked for token in self.tokens):
            return "the invite that it came of was revoked"
        return "it has expired" if self.expires and self.expires <= now_wall else None


@by_position
@dataclass(frozen=True)
class _Link:
    """One step of a proof: who was admitted, as what, until when, by which invites; signed by who admitted it."""

    node: NodeId
    role: RoleNumber
    expires: WallSeconds
    tokens: Annotated[tuple[TokenId, ...], AtMost(MAX_TOKENS)]
    signature: SignatureBytes = b""

    def signed_part(self, swarm: bytes, signer: NodeId) -> bytes:
        """What the one before it signs."""
        body: bytes = msgpack.packb([self.node, ROLES.index(self.role), self.expires, self.tokens])
        return _CONTEXT + swarm + signer + body


_PROOF = Codec.list_of(_Link, "proof", MAX_DEPTH)


def extend_proof(
    proof: bytes, signer: Signer, swarm: bytes, node: NodeId, role: Role, expires: int, tokens: Sequence[bytes]
) -> bytes:
    """The proof for `node`, by `signer`, whose own is `proof`. Raises PeerError when the chain is at its end."""
    links = _links_untrusted(proof)
    if len(links) >= MAX_DEPTH:
        raise PeerError(f"{MAX_DEPTH} members stand between the founder and this one already; knock at an older member")
    link = _Link(node, role, expires, tuple(tokens))
    made = _PROOF.pack((*links, replace(link, signature=signer.sign(link.signed_part(swarm, signer.id)))))
    if len(made) > MAX_PROOF_BYTES:
        raise PeerError("too many invites stand between the founder and this node; ask an older member for an invite")
    return made


def read_proof_untrusted(proof: object, swarm: bytes, founder: NodeId) -> Admission:
    """Check a proof, signatures and all. Raises PeerError; expiry and revocations are the caller's to look at."""
    found = Admission(founder, "node", 0, 0, ())
    for link in _links_untrusted(proof):
        found = _follow_untrusted(found, link, swarm)
    return found


def _links_untrusted(proof: object) -> tuple[_Link, ...]:
    return _PROOF.unpack_untrusted(proof, MAX_PROOF_BYTES, one_encoding=True)


def _follow_untrusted(before: Admission, link: _Link, swarm: bytes) -> Admission:
    if before.role != "node" or before.expires:
        raise PeerError("a guest admits nobody, and this proof of admission says that one did")
    if not verify(before.node, link.signature, link.signed_part(swarm, before.node)):
        raise PeerError("a proof of admission is not signed by who is named in it")
    return Admission(link.node, link.role, link.expires, before.depth + 1, (*before.tokens, *link.tokens))
