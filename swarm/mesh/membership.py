"""Who may belong to a swarm: proofs for nodes, tokens for invites, notices that end them. Nothing secret is shared.

No node is special but by its name: every member can issue, check and revoke invites, and the founder may leave. What
the founder's key signed leads to every member (`swarm.mesh.admission`); the swarm's id is a hash of that key and salt.

- A node's proof names its role, its expiry and the invites that led to it; its record carries it.
- A token is (id, expiry, role, once, issuer, the issuer's proof, the issuer's signature). A token for single use is
  redeemed by its issuer alone, which is what makes "once" exact.
- A revocation is (token id, expiry, revoker, the revoker's proof, signature), spread by gossip. It ends the token, the
  proofs that came of it, the tokens that those issued, and so on.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from swarm.base.bounds import AtMost, by_position
from swarm.base.errors import PeerError
from swarm.base.nodeid import NODE_ID_BYTES, NodeId, SignatureBytes, Signer, verify
from swarm.mesh.admission import (
    FOUNDER_PROOF,
    MAX_DEPTH,
    TOKEN_ID_BYTES,
    Admission,
    Role,
    TokenId,
    WallSeconds,
    extend_proof,
    read_proof_untrusted,
)
from swarm.mesh.record import MAX_PROOF_BYTES, SWARM_ID_BYTES

SALT_BYTES = 16
CHARTER_BYTES = NODE_ID_BYTES + SALT_BYTES
MAX_TOKEN_S = 90 * 86400
MAX_REMEMBERED = 4096
MAX_PER_REVOKER = 1024
"""Revocations of one member that others remember, so that no member takes all the room."""
MAX_READ = 4096
"""Proofs whose signatures are not checked again."""


class InviteError(PeerError):
    """An invite or its token does not open this swarm."""

    exit_code = 2


@dataclass(frozen=True)
class InviteToken:
    """The part of an invite that admits. `expires`: wall seconds; `role`: the most that it lets anybody be.

    `once`: for one use, at `issuer`; `chain`: the issuer's proof.
    """

    id: bytes
    expires: int
    role: Role
    once: bool
    issuer: NodeId
    chain: bytes
    signature: bytes

    def signed_part(self, swarm: bytes) -> bytes:
        """What the issuer signs."""
        body = struct.pack(">QBB", self.expires, self.role == "node", self.once)
        return b"wanswarm token 1\0" + swarm + self.id + body + self.issuer


@by_position
@dataclass(frozen=True)
class Revocation:
    """`id` of a token that opens nothing any more; kept until `expires` (wall seconds), 0: for ever.

    What a guest's token led to ends with the token, so that its revocation may be forgotten then.
    """

    id: TokenId
    expires: WallSeconds
    revoker: NodeId
    chain: Annotated[bytes, AtMost(MAX_PROOF_BYTES)]
    signature: SignatureBytes

    def outlasts(self, other: Revocation | None) -> bool:
        """Whether it says more than `other` of the same token, which ends sooner; the longest one counts."""
        return other is None or bool(other.expires and (not self.expires or self.expires > other.expires))

    def signed_part(self, swarm: bytes) -> bytes:
        """What the revoker signs."""
        return b"wanswarm revocation 1\0" + swarm + self.id + struct.pack(">Q", self.expires) + self.revoker


@dataclass(frozen=True)
class Membership:
    """What this node knows of its swarm. `charter`: the founder's id and a salt; `proof`: this node's own.

    `open`: anybody may join without a token. A guest may use the swarm and admit nobody.
    """

    swarm: bytes
    charter: bytes
    open: bool
    proof: bytes = field(repr=False)
    signer: Signer = field(repr=False, compare=False)
    _read: dict[bytes, Admission] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def found(cls, signer: Signer, open_swarm: bool = False) -> Membership:
        """A new swarm with `signer` as its first member."""
        charter = signer.id + secrets.token_bytes(SALT_BYTES)
        return cls(swarm_id(charter), charter, open_swarm, FOUNDER_PROOF, signer)

    @classmethod
    def accept_untrusted(
        cls, swarm: bytes, signer: Signer, charter: object, open_swarm: object, proof: object
    ) -> Membership:
        """What a member handed over at hello, checked against the swarm's id. Raises PeerError."""
        if type(charter) is not bytes or len(charter) != CHARTER_BYTES or swarm_id(charter) != swarm:
            raise PeerError("expected the charter of this swarm, found that of another")
        if type(open_swarm) is not bool or type(proof) is not bytes:
            raise PeerError("expected a membership, found something else")
        found = cls(swarm, charter, open_swarm, proof, signer)
        if found.admission_untrusted(proof).node != signer.id:
            raise PeerError("expected a proof of admission for this node, found one for another")
        return found

    @property
    def founder(self) -> NodeId:
        return self.charter[:NODE_ID_BYTES]

    @property
    def own(self) -> Admission:
        """What this node's own proof says."""
        return self.admission_untrusted(self.proof)

    @property
    def is_member(self) -> bool:
        """Whether this node may admit others; a guest may not."""
        return self.own.role == "node" and not self.own.expires

    def admission_untrusted(self, proof: object) -> Admission:
        """What a proof says, signatures checked (once). Raises PeerError."""
        if not isinstance(proof, bytes):
            raise PeerError(f"expected a proof of admission, found {type(proof).__name__}")
        found = self._read.get(proof)
        if found is None:
            found = read_proof_untrusted(proof, self.swarm, self.founder)
            while len(self._read) >= MAX_READ:
                del self._read[next(iter(self._read))]
            self._read[proof] = found
        return found

    def prove(self, node: NodeId, role: Role = "node", expires: int = 0, token: InviteToken | None = None) -> bytes:
        """The proof for `node`, let in by `token` or by this member's own word. Raises InviteError for a guest."""
        self._need("admit nodes")
        if node == self.founder:
            return FOUNDER_PROOF
        tokens: tuple[bytes, ...] = ()
        if token is not None:
            own = self.own.tokens
            issuer = self.admission_untrusted(token.chain).tokens
            tokens = (token.id, *(used for used in issuer if used not in own))
        return extend_proof(self.proof, self.signer, self.swarm, node, role, expires, tokens)

    def proves(self, node: NodeId, proof: object, role: str = "guest") -> bool:
        """Whether `proof` shows that `node` was admitted, as `role` at least."""
        try:
            found = self.admission_untrusted(proof)
        except PeerError:
            return False
        return found.node == node and role in (found.role, "guest")

    def issue(self, expires: int, once: bool = False, role: Role = "node") -> InviteToken:
        """A new token; with `once` for single use here. Raises InviteError for a guest."""
        self._need("invite")
        token = InviteToken(secrets.token_bytes(TOKEN_ID_BYTES), expires, role, once, self.signer.id, self.proof, b"")
        return replace(token, signature=self.signer.sign(token.signed_part(self.swarm)))

    def revoke(self, token: InviteToken) -> Revocation:
        """The notice that ends `token`. Raises InviteError for a guest, or for a token that no member made."""
        self._need("revoke")
        if not self.genuine(token):
            raise InviteError("the invite was not issued by a member of this swarm, or was altered; nothing is revoked")
        notice = Revocation(token.id, token.expires if token.role == "guest" else 0, self.signer.id, self.proof, b"")
        return replace(notice, signature=self.signer.sign(notice.signed_part(self.swarm)))

    def genuine(self, item: InviteToken | Revocation) -> bool:
        """Whether a member of this swarm made it; whether that member still is one, `Ledger` knows."""
        maker = item.issuer if isinstance(item, InviteToken) else item.revoker
        return self.proves(maker, item.chain, "node") and verify(maker, item.signature, item.signed_part(self.swarm))

    def _need(self, what: str) -> None:
        if not self.is_member:
            raise InviteError(f"only a member can {what}; this machine joined as a guest: run swarm join on it")


@dataclass(frozen=True)
class Ledger:
    """Tokens that are revoked (id -> notice) and single-use ones that were used (id -> expiry, node)."""

    revoked: Mapping[bytes, Revocation] = field(default_factory=dict)
    used: Mapping[bytes, tuple[int, NodeId]] = field(default_factory=dict)

    def revoking(self, notices: Iterable[Revocation], membership: Membership, now_wall: float) -> Ledger:
        """With genuine notices more, but those whose maker's own proof is void or that take too much room; old ones go.

        Each step away from the founder has less room than the one before it, so that whoever lets in keys of his own
        to fill it leaves some to everybody nearer than those.
        """
        kept = dict(self.at(now_wall).revoked)
        by_maker = Counter(notice.revoker for notice in kept.values())
        for notice in notices:
            maker = membership.admission_untrusted(notice.chain)
            room = MAX_REMEMBERED * (MAX_DEPTH + 1 - maker.depth) // (MAX_DEPTH + 1)
            many = by_maker[notice.revoker] >= MAX_PER_REVOKER and notice.revoker != membership.founder
            known = kept.get(notice.id)
            if known is None and (many or len(kept) >= room):
                continue
            if notice.outlasts(known) and maker.void(kept, now_wall) is None:
                kept[notice.id] = notice
                by_maker[notice.revoker] += 1
        return replace(self, revoked=kept)

    def at(self, now_wall: float) -> Ledger:
        """Without the notices that are over."""
        return replace(self, revoked={i: r for i, r in self.revoked.items() if not r.expires or r.expires > now_wall})

    def using(self, token: InviteToken, node: NodeId, now_wall: float) -> Ledger:
        """With a single use noted. Raises InviteError at MAX_REMEMBERED: forgetting a use would allow a second."""
        kept = {i: u for i, u in self.used.items() if u[0] > now_wall}
        if len(kept) >= MAX_REMEMBERED and token.id not in kept:
            raise InviteError("this node remembers no more single-use invites; try later or ask for a plain invite")
        return replace(self, used={**kept, token.id: (token.expires, node)})


def check_token(
    token: InviteToken, node: NodeId, here: NodeId, membership: Membership, ledger: Ledger, now_wall: float
) -> None:
    """Raise InviteError unless `token` admits `node` at the member `here` now.

    1. made by a member; 2. not expired; 3. not revoked, nor what let its maker in; 4. if once: redeemed at its issuer;
    5. and not used by another node before.
    """
    if not membership.genuine(token):
        raise InviteError("the invite was not issued by a member of this swarm; ask a member for a new one")
    if token.expires <= now_wall:
        raise InviteError(
            f"the invite expired {say_ago(now_wall - token.expires)} ago; ask a member for a new one: swarm invite"
        )
    if token.id in ledger.revoked:
        raise InviteError("the invite was revoked; ask a member for a new one: swarm invite (cause: revoked)")
    if membership.admission_untrusted(token.chain).void(ledger.revoked, now_wall):
        raise InviteError(
            "the invite was issued by a node that is no member any more; ask a member for a new one (cause: revoked)"
        )
    if token.once:
        if token.issuer != here:
            raise InviteError(
                "an invite for one use is redeemed where it was issued; start that node or ask for a plain invite"
            )
        used = ledger.used.get(token.id)
        if used is not None and used[1] != node:
            raise InviteError("the invite was for one use and is used; ask a member for a new one: swarm invite --once")


def swarm_id(charter: bytes) -> bytes:
    """The id of the swarm with this charter."""
    return hashlib.blake2b(b"wanswarm swarm 2" + charter, digest_size=SWARM_ID_BYTES).digest()


def say_ago(seconds: float) -> str:
    """A span for people: "40 seconds", "3 hours"."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'' if count == 1 else 's'}"
    return "a moment"
