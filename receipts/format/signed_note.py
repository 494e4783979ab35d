"""Signed notes and checkpoints of transparency logs: c2sp.org/signed-note and c2sp.org/tlog-checkpoint.

The origin of a node's log, which is also the name of its key, is `wanswarm-log/` and the node's public key in hex: so
who may sign a checkpoint stands in the checkpoint, and no list of log keys is needed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from receipts.format.errors import ReceiptError, Refusal
from receipts.format.sign import Sign

ED25519 = b"\x01"
"""Signature type in a key id."""
MAX_NOTE = 64 << 10
_ORIGIN = re.compile(r"wanswarm-log/([0-9a-f]{64})")
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class LogCheckpoint:
    """The head of the log of node `key` (32 bytes): how many entries, and the RFC 6962 root over them."""

    key: bytes
    size: int
    root: bytes

    @property
    def origin(self) -> str:
        return f"wanswarm-log/{self.key.hex()}"

    def signed(self, sign: Sign) -> bytes:
        """The signed note, as it is published at `checkpoint`."""
        text = f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()
        signature = base64.b64encode(key_id(self.origin, self.key) + sign(text)).decode()
        return text + f"\n\u2014 {self.origin} {signature}\n".encode()


def key_id(name: str, key: bytes) -> bytes:
    """The four bytes that name an Ed25519 key in a signature line."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + key).digest()[:4]


def checkpoint_untrusted(data: bytes) -> LogCheckpoint:
    """Read a checkpoint and check the log's own signature; others are passed over. Raises ReceiptError(LOG)."""
    if len(data) > MAX_NOTE:
        raise _refused(f"a checkpoint of {len(data)} bytes")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _refused("the checkpoint is not UTF-8") from exc
    text, blank, signatures = whole.rpartition("\n\n")
    if not blank or any(ord(char) < 32 and char != "\n" for char in whole) or not whole.endswith("\n"):
        raise _refused("the checkpoint is not a signed note")
    lines = text.split("\n")
    match = _ORIGIN.fullmatch(lines[0])
    if match is None or len(lines) < 3 or "" in lines or _SIZE.fullmatch(lines[1]) is None:
        raise _refused("the checkpoint is not of a node's log: origin, size and root are its first lines")
    found = LogCheckpoint(bytes.fromhex(match[1]), int(lines[1]), _base64(lines[2], 32))
    _check_signature(found, (text + "\n").encode(), signatures.split("\n")[:-1])
    return found


def _check_signature(checkpoint: LogCheckpoint, text: bytes, lines: list[str]) -> None:
    own = key_id(checkpoint.origin, checkpoint.key)
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, value = rest.partition(" ")
        if dash != "\u2014" or not name or not value:
            raise _refused("a signature line of the checkpoint is malformed")
        if name != checkpoint.origin:
            continue
        signature = _base64(value)
        if signature[:4] != own:
            continue
        if len(signature) != 68:
            raise _refused("the signature of the checkpoint has another length than Ed25519's")
        try:
            crypto_sign_open(signature[4:] + text, checkpoint.key)
        except (BadSignatureError, ValueError) as exc:
            raise _refused("the signature of the checkpoint does not fit it") from exc
        return
    raise _refused("the checkpoint is not signed by the key of its log")


def _base64(text: str, size: int | None = None) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _refused("bad base64 in a checkpoint or proof") from exc
    if base64.b64encode(data).decode() != text or (size is not None and len(data) != size):
        raise _refused("bad base64 in a checkpoint or proof")
    return data


def _refused(why: str) -> ReceiptError:
    return ReceiptError(Refusal.LOG, why)
