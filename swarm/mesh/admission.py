"""Proofs of admission: a chain of signatures from the swarm's founder to a node, with every invite that led there.

A proof is msgpack of a list of links, the founder's first; the founder's own proof is the empty list. Each link is
[node (32), role, expires, [token id (8), ...], signature (64)], signed by the node of the link before it, the first by
the founder, over CONTEXT, the swarm's id, the signer's id and the other four fields. So a proof stands for itself, no
secret is shared that could be passed on, and whoever knows that an invite is revoked sees what came of it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from swarm.base.errors import PeerError
from swarm.base.nodeid import NODE_ID_BYTES, SIGNATURE_BYTES, NodeId, Signer, verify
from swarm.mesh.record import MAX_PROOF_BYTES

TOKEN_ID_BYTES = 8
MAX_DEPTH = 12
"""Links of one proof: how many members may stand between the founder and a node, one letting in the next."""
MAX_TOKENS = 24
"""Invites that one proof names."""
ROLES = ("node", "guest")
FOUNDER_PROOF: bytes = msgpack.packb([])
_CONTEXT = b"wanswarm admission 1\0"


@dataclass(frozen=True)
class Admission:
    """What a proof says. `expires`: wall seconds after which it is void, 0 for never. `tokens`: ids of the invites."""

    node: NodeId
    role: str
    expires: int
    depth: int
    tokens: tuple[bytes, ...]

    def void(self, revoked: Container[bytes], now_wall: float) -> str | None:
        """Why it counts no more, or None while it does."""
        if any(token in revoked for token in self.tokens):
            return "the invite that it came of was revoked"
        return "it has expired" if self.expires and self.expires <= now_wall else None


def extend_proof(
    proof: bytes, signer: Signer, swarm: bytes, node: NodeId, role: str, expires: int, tokens: Sequence[bytes]
) -> bytes:
    """The proof for `node`, by `signer`, whose own is `proof`. Raises PeerError when the chain is at its end."""
    links = _links_untrusted(proof)
    if len(links) >= MAX_DEPTH:
        raise PeerError(f"{MAX_DEPTH} members stand between the founder and this one already; knock at an older member")
    body = [node, ROLES.index(role), expires, list(tokens)]
    made: bytes = msgpack.packb([*links, [*body, signer.sign(_signed(swarm, signer.id, body))]])
    if len(made) > MAX_PROOF_BYTES:
        raise PeerError("too many invites stand between the founder and this node; ask an older member for an invite")
    return made


def read_proof_untrusted(proof: object, swarm: bytes, founder: NodeId) -> Admission:
    """Check a proof, signatures and all. Raises PeerError; expiry and revocations are the caller's to look at."""
    links = _links_untrusted(proof)
    found = Admission(founder, "node", 0, 0, ())
    for link in links:
        found = _follow_untrusted(found, link, swarm)
    return found


def _links_untrusted(proof: object) -> list[Any]:
    if type(proof) is not bytes or len(proof) > MAX_PROOF_BYTES:
        raise PeerError(f"expected a proof of admission of at most {MAX_PROOF_BYTES} bytes, found something else")
    try:
        links = msgpack.unpackb(proof, raw=False, max_ext_len=0, max_map_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise PeerError("a proof of admission is not msgpack") from exc
    if type(links) is not list or len(links) > MAX_DEPTH or msgpack.packb(links) != proof:
        raise PeerError(f"expected a proof of admission of at most {MAX_DEPTH} links, found something else")
    return links


def _follow_untrusted(before: Admission, link: Any, swarm: bytes) -> Admission:
    if type(link) is not list or len(link) != 5:
        raise PeerError("expected a link of five fields in a proof of admission, found something else")
    node, role, expires, tokens, signature = link
    if type(node) is not bytes or len(node) != NODE_ID_BYTES or type(role) is not int or role not in (0, 1):
        raise PeerError("expected a node and its role in a proof of admission, found something else")
    if type(expires) is not int or not 0 <= expires < 2**40 or type(tokens) is not list or len(tokens) > MAX_TOKENS:
        raise PeerError("expected an expiry and invites in a proof of admission, found something else")
    if any(type(token) is not bytes or len(token) != TOKEN_ID_BYTES for token in tokens):
        raise PeerError("expected ids of invites in a proof of admission, found something else")
    if type(signature) is not bytes or len(signature) != SIGNATURE_BYTES:
        raise PeerError("expected a signature in a proof of admission, found something else")
    if before.role != "node" or before.expires:
        raise PeerError("a guest admits nobody, and this proof of admission says that one did")
    if not verify(before.node, signature, _signed(swarm, before.node, link[:4])):
        raise PeerError("a proof of admission is not signed by who is named in it")
    return Admission(node, ROLES[role], expires, before.depth + 1, (*before.tokens, *tokens))


def _signed(swarm: bytes, signer: NodeId, body: Sequence[Any]) -> bytes:
    packed: bytes = msgpack.packb(list(body))
    return _CONTEXT + swarm + signer + packed
