"""Invites: one line of text that finds a swarm, its model and a member, and opens the door.

Text form: "swarm1" + base32 in lower case without padding of (msgpack of [swarm id, 16 bytes of the model digest,
model reference, members, token], then 4 bytes of BLAKE2b over them). Base32 survives being read aloud, clicked
twice and turned to capitals; a QR code holds it in its alphanumeric mode.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgpack

from swarm.base.address import Address, AddressText
from swarm.base.bounds import AtMost, Between, Exactly, Printable, Spelled, by_position
from swarm.base.codec import Codec
from swarm.base.nodeid import NodeId, SignatureBytes
from swarm.mesh.admission import Role, TokenId, WallSeconds
from swarm.mesh.membership import MAX_TOKEN_S, InviteError, InviteToken, Membership, say_ago
from swarm.mesh.record import MAX_PROOF_BYTES, SwarmId

if TYPE_CHECKING:
    from swarm.mesh.saved import Saved

PREFIX = "swarm1"
MODEL_BYTES = 16
CHECK_BYTES = 4
MAX_CHARS = 6000
MAX_MEMBERS = 4
MAX_REF = 200
DEFAULT_EXPIRY_S = 7 * 86400
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz234567")


@by_position
@dataclass(frozen=True)
class _TokenParts:
    """A token on the wire. Flags: 1 for guests, 2 for one use."""

    id: TokenId
    expires: WallSeconds
    flags: Annotated[int, Between(0, 3)]
    issuer: NodeId
    chain: Annotated[bytes, AtMost(MAX_PROOF_BYTES)]
    signature: SignatureBytes


def _parts(t: InviteToken) -> _TokenParts:
    return _TokenParts(t.id, t.expires, (t.role == "guest") | t.once << 1, t.issuer, t.chain, t.signature)


def _token(p: _TokenParts) -> InviteToken:
    role: Role = "guest" if p.flags & 1 else "node"
    return InviteToken(p.id, p.expires, role, bool(p.flags & 2), p.issuer, p.chain, p.signature)


TokenWire: TypeAlias = Annotated[InviteToken, Spelled(_token, _parts, _TokenParts)]
_TOKEN: Codec[InviteToken] = Codec(TokenWire, "token", InviteError)

InviteMember: TypeAlias = tuple[NodeId, Annotated[tuple[AddressText, ...], AtMost(8, least=1)]]


@by_position
@dataclass(frozen=True)
class Invite:
    """What an invite says. `model`: first 16 bytes of the manifest digest; `ref`: how to find the model.

    `members`: (node id, addresses) to dial, best first. `token` None: an open swarm.
    """

    swarm: SwarmId
    model: Annotated[bytes, Exactly(MODEL_BYTES)]
    ref: Annotated[str, AtMost(MAX_REF), Printable()]
    members: Annotated[tuple[InviteMember, ...], AtMost(MAX_MEMBERS, least=1)]
    token: TokenWire | None = None

    def text(self) -> str:
        """The one line that people pass on."""
        packed = _INVITE.pack(self)
        return PREFIX + base64.b32encode(packed + _check(packed)).decode("ascii").rstrip("=").lower()

    def require_model(self, digest: bytes, ref: str) -> None:
        """Raise InviteError unless the model with this manifest digest is the invite's."""
        if digest[:MODEL_BYTES] != self.model:
            raise InviteError(
                f"the invite is for the model {self.ref} ({self.model.hex()[:12]}), found {ref} ({digest.hex()[:12]}); "
                f"join with --model {self.ref} (cause: model)"
            )

    def require_node(self) -> None:
        """Raise InviteError if nobody becomes a node by it."""
        if self.token is not None and self.token.role != "node":
            raise InviteError("the invite lets in guests, not nodes; ask a member for one that does: swarm invite")

    def require_fresh(self, now_wall: float) -> None:
        """Raise InviteError if the token has expired by this clock."""
        if self.token is not None and self.token.expires <= now_wall:
            ago = say_ago(now_wall - self.token.expires)
            raise InviteError(f"the invite expired {ago} ago; ask a member for a new one: swarm invite")


_INVITE = Codec(Invite, "invite", InviteError, "was it made by a newer version?")


def make_invite(
    membership: Membership,
    model: bytes,
    ref: str,
    members: Sequence[tuple[NodeId, Sequence[Address]]],
    now_wall: float,
    expires_s: int = DEFAULT_EXPIRY_S,
    once: bool = False,
    role: Role = "node",
) -> Invite:
    """A new invite of the swarm; with `once` it is redeemed at the first of `members`, which must be the issuer.

    `role`: the most that it lets anybody be. Raises InviteError for a guest, or an expiry over MAX_TOKEN_S.
    """
    if not 0 < expires_s <= MAX_TOKEN_S:
        raise InviteError(f"expected an expiry of 1 second to {MAX_TOKEN_S // 86400} days, found {expires_s} seconds")
    named = tuple((node, tuple(addresses)[:3]) for node, addresses in members if addresses)[:MAX_MEMBERS]
    if not named:
        raise InviteError("no member with an address to put into the invite; start a node with --advertise HOST:PORT")
    token = None
    if once or not membership.open:
        token = membership.issue(int(now_wall) + expires_s, once, role)
    return Invite(membership.swarm, model[:MODEL_BYTES], ref, named, token)


def passed_on(given: Invite | None, saved: Saved, now_wall: float) -> Invite | None:
    """An invite by which a node comes into the swarm of `saved`, told by somebody who cannot make one himself.

    Of an open swarm it is written anew. Else it is the one that was given, if it lets in more than one, and nodes; None
    where it does not.
    """
    membership = saved.membership
    if membership.open and saved.peers:
        return make_invite(membership, saved.model, saved.ref, saved.peers, now_wall)
    if given is None or given.swarm != membership.swarm or given.token is None:
        return None
    token = given.token
    return given if token.role == "node" and not token.once and token.expires > now_wall else None


def parse_invite_untrusted(text: object) -> Invite:
    """Read an invite as it was pasted (spaces and line breaks allowed). Raises InviteError, a PeerError."""
    if not isinstance(text, str) or len(text) > 2 * MAX_CHARS:
        raise InviteError(f"expected an invite of at most {MAX_CHARS} characters, found something longer")
    line = "".join(text.split()).lower()
    if not line.startswith(PREFIX):
        raise InviteError(
            f"expected an invite that begins with {PREFIX}, found {text[:20]!r}; "
            "copy the whole line that swarm invite prints"
        )
    body = line.removeprefix(PREFIX).upper()
    try:
        data = base64.b32decode(body + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError) as exc:
        raise _damaged_untrusted(line) from exc
    packed, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    # The last character has bits that no byte needs.
    if _check(packed) != check or base64.b32encode(data).decode("ascii").rstrip("=") != body:
        raise _damaged_untrusted(line)
    return _INVITE.unpack_untrusted(packed, MAX_CHARS)


def _damaged_untrusted(line: str) -> InviteError:
    """What happened to an invite that cannot be read, as far as what is left of it tells."""
    body = line.removeprefix(PREFIX)
    if (times := line.count(PREFIX)) > 1:
        return InviteError(f"the invite was damaged on the way (it is there {times} times); paste it once")
    if (at := next((at for at, one in enumerate(body) if one not in _LETTERS), None)) is not None:
        place = f"{body[at]!r} at character {len(PREFIX) + at + 1}, which no invite has"
        return InviteError(f"the invite was damaged on the way ({place}); copy it again, whole")
    whole = body[: len(body) - (len(body) % 8 in (1, 3, 6))]
    data = base64.b32decode(whole.upper() + "=" * (-len(whole) % 8))
    return InviteError(
        f"the invite was damaged on the way ({_ending_untrusted(data, len(line))}); copy it again, whole"
    )


def _ending_untrusted(data: bytes, count: int) -> str:
    """Whether bytes that do not fit their check end too early or too late, as far as their structure can be trusted;
    `count`: characters that there were."""
    cut = f"its end seems to be missing behind {count} characters"
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) + 1)
    unpacker.feed(data)
    try:
        unpacker.skip()
    except msgpack.OutOfData:
        return cut
    except (ValueError, msgpack.UnpackException):
        return "a character is another one"
    end = unpacker.tell()
    if end + CHECK_BYTES > len(data):
        return cut
    follows = _check(data[:end]) == data[end : end + CHECK_BYTES]
    return "something follows its end" if follows else "a character is another one"


def qr_text(text: str, border: int = 2) -> str:
    """The invite as a QR code for a terminal with dark background, two rows of modules per line."""
    import qrcode

    code = qrcode.QRCode(error_correction=qrcode.constants.ERROR_CORRECT_L, border=border)
    code.add_data(text.upper())
    out = io.StringIO()
    code.print_ascii(out=out, invert=True)
    return out.getvalue()


def _check(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=CHECK_BYTES, person=b"swarm invite 1").digest()


def token_parts(token: InviteToken | None) -> list[object] | None:
    """A token as a message header carries it."""
    return None if token is None else _TOKEN.write(token)


def read_token_untrusted(parts: object) -> InviteToken:
    """The token of `token_parts`. Raises InviteError, a PeerError."""
    return _TOKEN.read_untrusted(parts)
