"""The receipt file: its one layout, how it is read, and how private values are disclosed later.

{"disclosed":[
{"name":...,"salt":...,"value":...}
],"envelopes":[
{"payload":...,"payloadType":...,"signatures":[...]},
...
],"format":"wanswarm-receipt","readable":[
{...the payload of envelope 0...},
...
],"version":1}

Each entry is one line of canonical JSON. `readable` repeats the payloads so that a person can read the file without
the program; it must equal them byte for byte. Every byte of the file is therefore bound to something that is signed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from receipts.format.canonical import emit, parse_untrusted
from receipts.format.closing import MAX_STATEMENTS
from receipts.format.codec import Hex, Text, decode_untrusted
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.salt import Secret
from receipts.format.sign import SignedEnvelope, envelope_from_json_untrusted, sha256

FORMAT = "wanswarm-receipt"
SECRETS_FORMAT = "wanswarm-receipt-secrets"
VERSION = 1
MAX_DISCLOSED = 1024
SECRET_NAMES = ("prompt", "tokens", "text", "address", "uuid")


@dataclass(frozen=True)
class Document:
    """A receipt as read: envelopes in order (signatures not yet checked) and disclosed values."""

    envelopes: tuple[SignedEnvelope, ...]
    disclosed: tuple[Secret, ...]
    digest: str
    """Hex SHA-256 of the file: what the requester's next order names."""


def document_bytes(envelopes: Sequence[SignedEnvelope], disclosed: Sequence[Secret]) -> bytes:
    """The bytes of a receipt file; disclosures sorted, so that one content has one layout."""
    secrets = sorted({emit(secret.as_json()) for secret in disclosed})
    return _layout(secrets, [envelope.to_bytes() for envelope in envelopes], [e.payload for e in envelopes])


def document_untrusted(data: bytes) -> Document:
    """Read a receipt file: bounded parsing, layout, shape, readable copy. Raises ReceiptError."""
    value = parse_untrusted(data)
    if not isinstance(value, dict):
        raise ReceiptError(Refusal.SHAPE, "a receipt is a JSON object")
    if value.get("format") != FORMAT or type(value.get("version")) is not int or value["version"] != VERSION:
        found = f"{str(value.get('format'))[:40]!r} version {str(value.get('version'))[:20]}"
        raise ReceiptError(Refusal.VERSION, f"expected {FORMAT} version {VERSION}, found {found}")
    if value.keys() != {"disclosed", "envelopes", "format", "readable", "version"}:
        raise ReceiptError(Refusal.SHAPE, f"a receipt has other fields than {sorted(value)[:8]}")
    listed, readable, disclosed = value["envelopes"], value["readable"], value["disclosed"]
    if not all(isinstance(part, list) for part in (listed, readable, disclosed)):
        raise ReceiptError(Refusal.SHAPE, "envelopes, readable and disclosed are lists")
    if not listed:
        raise ReceiptError(Refusal.EMPTY, "the list of envelopes is empty: nothing is signed")
    if len(listed) > MAX_STATEMENTS or len(disclosed) > MAX_DISCLOSED:
        raise ReceiptError(Refusal.COUNT, f"{len(listed)} envelopes, {len(disclosed)} disclosures")
    readable_lines = [emit(item) for item in readable]
    if _layout([emit(item) for item in disclosed], [emit(item) for item in listed], readable_lines) != data:
        raise ReceiptError(Refusal.LAYOUT, "bytes differ from the layout receipts are written in (reformatted?)")
    envelopes = tuple(envelope_from_json_untrusted(item) for item in listed)
    if readable_lines != [envelope.payload for envelope in envelopes]:
        raise ReceiptError(Refusal.READABLE, "the readable copy is not what was signed")
    return Document(envelopes, _secrets_untrusted(disclosed), sha256(data))


def disclose(data: bytes, secrets: Iterable[Secret], names: Collection[str]) -> bytes:
    """The same receipt with the named values ("prompt", "tokens", "text", "address", "uuid") in the clear.

    `secrets` come from `secrets_untrusted` (the requester's file beside the receipt). Signatures stay as they are.
    """
    document = document_untrusted(data)
    chosen = [secret for secret in secrets if secret.name in names]
    return document_bytes(document.envelopes, [*document.disclosed, *chosen])


def redact(data: bytes, names: Collection[str]) -> bytes:
    """The same receipt without the named disclosures."""
    document = document_untrusted(data)
    return document_bytes(document.envelopes, [s for s in document.disclosed if s.name not in names])


def secrets_bytes(secrets: Iterable[Secret]) -> bytes:
    """The file that a signer keeps to itself: everything it could disclose later."""
    listed = [secret.as_json() for secret in secrets]
    return emit({"format": SECRETS_FORMAT, "secrets": listed, "version": VERSION}) + b"\n"


def secrets_untrusted(data: bytes) -> tuple[Secret, ...]:
    """Read such a file. Raises ReceiptError."""
    value = parse_untrusted(data)
    if not isinstance(value, dict) or value.get("format") != SECRETS_FORMAT or value.get("version") != VERSION:
        raise ReceiptError(Refusal.VERSION, f"expected {SECRETS_FORMAT} version {VERSION}")
    if not isinstance(value.get("secrets"), list):
        raise ReceiptError(Refusal.SHAPE, "secrets is a list")
    return _secrets_untrusted(value["secrets"])


@dataclass(frozen=True)
class _Label:
    name: Annotated[str, Text(8, SECRET_NAMES)]
    salt: Annotated[str, Hex(32)]


def _secrets_untrusted(listed: list[Any]) -> tuple[Secret, ...]:
    secrets = []
    for index, item in enumerate(listed):
        if not isinstance(item, dict) or "value" not in item:
            raise ReceiptError(Refusal.SHAPE, f"disclosed[{index}]: expected name, salt and value")
        value = item["value"]
        rest = {key: entry for key, entry in item.items() if key != "value"}
        label = decode_untrusted(_Label, rest, f"disclosed[{index}]")
        secrets.append(Secret(label.name, bytes.fromhex(label.salt), value))
    return tuple(secrets)


def _layout(disclosed: Sequence[bytes], envelopes: Sequence[bytes], readable: Sequence[bytes]) -> bytes:
    def lines(items: Sequence[bytes]) -> bytes:
        return b"[\n" + b",\n".join(items) + b"\n]" if items else b"[]"

    parts = (lines(disclosed), lines(envelopes), FORMAT.encode(), lines(readable), VERSION)
    return b'{"disclosed":%b,"envelopes":%b,"format":"%b","readable":%b,"version":%d}\n' % parts
