"""Who may belong to a swarm: one secret that members share, proofs for nodes, tokens for invites.

No node is special: every member holds the secret, so every member can issue, check and revoke invites, and the
first may leave. The swarm's id is a hash of the secret, so a joiner can check what it is handed.

- A node's proof is HMAC(secret, node id); its record carries it, members check it.
- A token is (id, expiry, once, issuer, HMAC(secret, these)). Expired or altered ones open nothing, and the secret
  is not in them. A token for single use is redeemed by its issuer alone, which is what makes "once" exact.
- A revocation is (token id, expiry, HMAC), spread by gossip and forgotten when the token would have expired.

Whoever was handed the secret can pass it on: membership keeps strangers out, not traitors in check.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from swarm.errors import PeerError
from swarm.mesh.record import PROOF_BYTES, SWARM_ID_BYTES
from swarm.net.nodeid import NODE_ID_BYTES, NodeId

SECRET_BYTES = 32
TOKEN_ID_BYTES = 8
MAC_BYTES = 16
MAX_TOKEN_S = 90 * 86400
MAX_REMEMBERED = 4096


class InviteError(PeerError):
    """An invite or its token does not open this swarm."""

    exit_code = 2


@dataclass(frozen=True)
class Token:
    """The part of an invite that admits. `expires`: wall seconds; `issuer`: all zero unless `once`."""

    id: bytes
    expires: int
    once: bool
    issuer: NodeId
    mac: bytes

    def signed_part(self, swarm: bytes) -> bytes:
        """What the HMAC covers."""
        return b"token" + swarm + self.id + struct.pack(">QB", self.expires, self.once) + self.issuer


@dataclass(frozen=True)
class Revocation:
    """`id` of a token that opens nothing any more; kept until `expires` (wall seconds)."""

    id: bytes
    expires: int
    mac: bytes


@dataclass(frozen=True)
class Membership:
    """What a member knows of its swarm. `secret` None: a guest, that may use the swarm and admit nobody.

    `open`: anybody may join without a token. `proof`: this node's own.
    """

    swarm: bytes
    secret: bytes | None = field(repr=False)
    open: bool
    proof: bytes = field(repr=False)

    @classmethod
    def found(cls, node: NodeId, open_swarm: bool = False) -> Membership:
        """A new swarm with `node` as its first member."""
        secret = secrets.token_bytes(SECRET_BYTES)
        return cls(swarm_id(secret), secret, open_swarm, _proof(secret, node))

    @classmethod
    def accept_untrusted(
        cls, swarm: bytes, node: NodeId, secret: object, open_swarm: object, proof: object
    ) -> Membership:
        """What a member handed over at hello; checked against the swarm id where it can be. Raises PeerError."""
        if type(open_swarm) is not bool or type(proof) is not bytes or len(proof) != PROOF_BYTES:
            raise PeerError("expected a membership, found something else")
        if secret is None:
            return cls(swarm, None, open_swarm, proof)
        if type(secret) is not bytes or len(secret) != SECRET_BYTES or swarm_id(secret) != swarm:
            raise PeerError("the peer handed over a secret of another swarm")
        return cls(swarm, secret, open_swarm, _proof(secret, node))

    def prove(self, node: NodeId) -> bytes:
        """The proof for `node`. Raises InviteError for a guest."""
        return _proof(self._need("admit nodes"), node)

    def proves(self, node: NodeId, proof: bytes) -> bool:
        """Whether `proof` shows that `node` was admitted. A guest cannot tell and takes members' word."""
        return self.secret is None or hmac.compare_digest(_proof(self.secret, node), proof)

    def issue(self, expires: int, issuer: NodeId | None = None) -> Token:
        """A new token; with `issuer` for single use there. Raises InviteError for a guest."""
        once = issuer is not None
        token = Token(secrets.token_bytes(TOKEN_ID_BYTES), expires, once, issuer or bytes(NODE_ID_BYTES), b"")
        return replace(token, mac=_mac(self._need("invite"), token.signed_part(self.swarm)))

    def revoke(self, token: Token) -> Revocation:
        """The notice that ends `token`. Raises InviteError for a guest."""
        return Revocation(
            token.id, token.expires, _mac(self._need("revoke"), _revoked_part(self.swarm, token.id, token.expires))
        )

    def genuine(self, item: Token | Revocation) -> bool:
        """Whether a member of this swarm made it."""
        if self.secret is None:
            return False
        part = (
            item.signed_part(self.swarm)
            if isinstance(item, Token)
            else _revoked_part(self.swarm, item.id, item.expires)
        )
        return hmac.compare_digest(_mac(self.secret, part), item.mac)

    def _need(self, what: str) -> bytes:
        if self.secret is None:
            raise InviteError(f"only a member can {what}; this machine joined as a guest: run swarm join on it")
        return self.secret


@dataclass(frozen=True)
class Ledger:
    """Tokens that are revoked (id -> expiry) and single-use ones that were used (id -> expiry, node)."""

    revoked: Mapping[bytes, int] = field(default_factory=dict)
    used: Mapping[bytes, tuple[int, NodeId]] = field(default_factory=dict)

    def revoking(self, revocation: Revocation, now_wall: float) -> Ledger:
        """With one revocation more; expired ones go. At MAX_REMEMBERED the soonest to expire goes."""
        kept = {i: e for i, e in self.revoked.items() if e > now_wall}
        kept[revocation.id] = revocation.expires
        while len(kept) > MAX_REMEMBERED:
            del kept[min(kept, key=kept.__getitem__)]
        return replace(self, revoked=kept)

    def using(self, token: Token, node: NodeId, now_wall: float) -> Ledger:
        """With a single use noted. Raises InviteError at MAX_REMEMBERED: forgetting a use would allow a second."""
        kept = {i: u for i, u in self.used.items() if u[0] > now_wall}
        if len(kept) >= MAX_REMEMBERED and token.id not in kept:
            raise InviteError("this node remembers no more single-use invites; try later or ask for a plain invite")
        return replace(self, used={**kept, token.id: (token.expires, node)})


def check_token(
    token: Token, node: NodeId, here: NodeId, membership: Membership, ledger: Ledger, now_wall: float
) -> None:
    """Raise InviteError unless `token` admits `node` at the member `here` now.

    1. made by a member; 2. not expired; 3. not revoked; 4. if once: redeemed at its issuer;
    5. and not used by another node before.
    """
    if not membership.genuine(token):
        raise InviteError("the invite was not issued by a member of this swarm; ask a member for a new one")
    if token.expires <= now_wall:
        raise InviteError(
            f"the invite expired {say_ago(now_wall - token.expires)} ago; ask a member for a new one: swarm invite"
        )
    if token.id in ledger.revoked:
        raise InviteError("the invite was revoked; ask a member for a new one: swarm invite")
    if token.once:
        if token.issuer != here:
            raise InviteError(
                "an invite for one use is redeemed where it was issued; start that node or ask for a plain invite"
            )
        used = ledger.used.get(token.id)
        if used is not None and used[1] != node:
            raise InviteError("the invite was for one use and is used; ask a member for a new one: swarm invite --once")


def swarm_id(secret: bytes) -> bytes:
    """The id of the swarm that shares `secret`."""
    return hashlib.blake2b(b"wanswarm swarm" + secret, digest_size=SWARM_ID_BYTES).digest()


def say_ago(seconds: float) -> str:
    """A span for people: "40 seconds", "3 hours"."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'' if count == 1 else 's'}"
    return "a moment"


def _proof(secret: bytes, node: NodeId) -> bytes:
    return _mac(secret, b"member" + node)


def _revoked_part(swarm: bytes, token: bytes, expires: int) -> bytes:
    return b"revoke" + swarm + token + struct.pack(">Q", expires)


def _mac(secret: bytes, data: bytes) -> bytes:
    return hmac.new(secret, data, hashlib.sha256).digest()[:MAC_BYTES]
