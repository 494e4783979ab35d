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
from typing import Any

import msgpack

from swarm.base.address import Address, format_address, parse_address_untrusted
from swarm.base.errors import PeerError
from swarm.base.nodeid import NODE_ID_BYTES, SIGNATURE_BYTES, NodeId
from swarm.mesh.admission import TOKEN_ID_BYTES
from swarm.mesh.membership import MAX_TOKEN_S, InviteError, InviteToken, Membership, say_ago
from swarm.mesh.record import MAX_PROOF_BYTES, SWARM_ID_BYTES

PREFIX = "swarm1"
MODEL_BYTES = 16
CHECK_BYTES = 4
MAX_CHARS = 6000
MAX_MEMBERS = 4
MAX_REF = 200
DEFAULT_EXPIRY_S = 7 * 86400


@dataclass(frozen=True)
class Invite:
    """What an invite says. `model`: first 16 bytes of the manifest digest; `ref`: how to find the model.

    `members`: (node id, addresses) to dial, best first. `token` None: an open swarm.
    """

    swarm: bytes
    model: bytes
    ref: str
    members: tuple[tuple[NodeId, tuple[Address, ...]], ...]
    token: InviteToken | None = None

    def text(self) -> str:
        """The one line that people pass on."""
        t = self.token
        packed: bytes = msgpack.packb(
            [
                self.swarm,
                self.model,
                self.ref,
                [[node, [format_address(a) for a in addresses]] for node, addresses in self.members],
                token_parts(t),
            ]
        )
        return PREFIX + base64.b32encode(packed + _check(packed)).decode("ascii").rstrip("=").lower()

    def require_model(self, digest: bytes, ref: str) -> None:
        """Raise InviteError unless the model with this manifest digest is the invite's."""
        if digest[:MODEL_BYTES] != self.model:
            raise InviteError(
                f"the invite is for the model {self.ref} ({self.model.hex()[:12]}), found {ref} ({digest.hex()[:12]}); "
                f"join with --model {self.ref}"
            )

    def require_fresh(self, now_wall: float) -> None:
        """Raise InviteError if the token has expired by this clock."""
        if self.token is not None and self.token.expires <= now_wall:
            ago = say_ago(now_wall - self.token.expires)
            raise InviteError(f"the invite expired {ago} ago; ask a member for a new one: swarm invite")


def make_invite(
    membership: Membership,
    model: bytes,
    ref: str,
    members: Sequence[tuple[NodeId, Sequence[Address]]],
    now_wall: float,
    expires_s: int = DEFAULT_EXPIRY_S,
    once: bool = False,
    role: str = "node",
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
        raise InviteError("the invite was damaged on the way (characters); copy it again, whole") from exc
    packed, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    if _check(packed) != check:
        raise InviteError("the invite was damaged on the way (checksum); copy it again, whole")
    if base64.b32encode(data).decode("ascii").rstrip("=") != body:  # the last character has bits that no byte needs
        raise InviteError("the invite was damaged on the way (characters); copy it again, whole")
    try:
        return _read(msgpack.unpackb(packed, raw=False))
    except InviteError:
        raise
    except (PeerError, ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise InviteError(
            f"the invite holds something else than expected ({exc}); was it made by a newer version?"
        ) from exc


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


def _read(parts: Any) -> Invite:
    if not isinstance(parts, list) or len(parts) != 5:
        raise InviteError("expected an invite of five fields, found something else; was it made by a newer version?")
    swarm, model, ref, members, token = parts
    if not isinstance(ref, str) or len(ref) > MAX_REF or not ref.isprintable():
        raise InviteError("the invite names no model")
    if not isinstance(members, list) or not 0 < len(members) <= MAX_MEMBERS:
        raise InviteError(f"expected 1 to {MAX_MEMBERS} members in an invite, found something else")
    return Invite(
        _sized(swarm, SWARM_ID_BYTES, "swarm id"),
        _sized(model, MODEL_BYTES, "model digest"),
        ref,
        tuple(_member(member) for member in members),
        None if token is None else read_token_untrusted(token),
    )


def _member(member: Any) -> tuple[NodeId, tuple[Address, ...]]:
    if (
        not isinstance(member, list)
        or len(member) != 2
        or not isinstance(member[1], list)
        or not 0 < len(member[1]) <= 8
    ):
        raise InviteError("expected a member with addresses in an invite, found something else")
    return _sized(member[0], NODE_ID_BYTES, "node id"), tuple(parse_address_untrusted(a) for a in member[1])


def token_parts(token: InviteToken | None) -> list[Any] | None:
    """A token as a message header carries it."""
    if token is None:
        return None
    flags = (token.role == "guest") | token.once << 1
    return [token.id, token.expires, flags, token.issuer, token.chain, token.signature]


def read_token_untrusted(parts: object) -> InviteToken:
    """The token of `token_parts`. Raises InviteError, a PeerError."""
    if not isinstance(parts, list) or len(parts) != 6 or type(parts[1]) is not int or not 0 <= parts[1] < 2**40:
        raise InviteError("expected a join token, found something else")
    flags, chain = parts[2], parts[4]
    if type(flags) is not int or not 0 <= flags < 4 or type(chain) is not bytes or len(chain) > MAX_PROOF_BYTES:
        raise InviteError("expected a join token, found something else")
    return InviteToken(
        _sized(parts[0], TOKEN_ID_BYTES, "token id"),
        parts[1],
        "guest" if flags & 1 else "node",
        bool(flags & 2),
        _sized(parts[3], NODE_ID_BYTES, "issuer"),
        chain,
        _sized(parts[5], SIGNATURE_BYTES, "signature"),
    )


def _sized(value: object, size: int, what: str) -> bytes:
    if type(value) is not bytes or len(value) != size:
        raise InviteError(f"expected a {what} of {size} bytes in an invite, found something else")
    return value
