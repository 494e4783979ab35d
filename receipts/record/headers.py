"""What a ring's messages carry for receipts, declared: what opens a run, what closes it, what is collected.

Each part names what one reader wants of a map; other entries walk on untouched, since newer sides may add some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from receipts.format.closing import RttSeries
from receipts.format.codec import LATER, Many, Range, Raw, Text, among_others, decode_untrusted, encode
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.salt import Secret
from receipts.record.tail import Drawn

T = TypeVar("T")

Header = dict[str, Any]
"""Bytes, integers, strings and lists, as a message of the ring carries them."""

MAX_ENVELOPES = 2048
MAX_EPOCHS = 256
MAX_DRAWN = 1 << 20
MAX_SHOWN = 512
MAX_SHOWN_CHARS = 200

MAX_MESSAGE = 64 << 20

EnvelopeBytes = Annotated[bytes, Raw(0, MAX_MESSAGE)]
"""Not read yet: `receipts.format.sign` does, and says of one that is too large that it is (SIZE)."""
Envelopes = Annotated[tuple[EnvelopeBytes, ...], Many(0, MAX_ENVELOPES)]
Position = Annotated[int, Range(0, 2**32 - 1)]


@among_others
@dataclass(frozen=True)
class OpenPart:
    """Of an opening: the signed order, this epoch's plan unless it is the order's, the run's secret."""

    order: EnvelopeBytes
    secret: Annotated[bytes, Raw(32, 32)]
    replan: EnvelopeBytes | None


@among_others
@dataclass(frozen=True)
class AcceptsPart:
    """What the stages so far have accepted."""

    accepts: Envelopes | None = field(default=None, metadata=LATER)


@among_others
@dataclass(frozen=True)
class UntilPart:
    """Of a closing: the position after the last token that the run keeps."""

    until: Position


@among_others
@dataclass(frozen=True)
class HalfPart:
    """Of a closing and of the answer to it: the sender's half of the edge, and whether addresses may be shown."""

    half: RttSeries
    disclose: bool | None = field(default=None, metadata=LATER)


@among_others
@dataclass(frozen=True)
class StartsPart:
    """Where epochs began to draw, by number."""

    starts: Annotated[tuple[Position, ...], Many(0, MAX_EPOCHS)] | None = field(default=None, metadata=LATER)


@among_others
@dataclass(frozen=True)
class ShownPart:
    """A value behind a salted digest."""

    name: Annotated[str, Text(MAX_SHOWN_CHARS)]
    salt: Annotated[bytes, Raw(32, 32)]
    value: Annotated[str, Text(MAX_SHOWN_CHARS)]


@among_others
@dataclass(frozen=True)
class DrawnPart:
    """Tokens that a tail drew from position `first` on."""

    first: Annotated[int, Range()]
    tokens: Annotated[tuple[Annotated[int, Range()], ...], Many(0, MAX_DRAWN)]
    margins_ppm: Annotated[tuple[Annotated[int, Range()], ...], Many(0, MAX_DRAWN)]


@among_others
@dataclass(frozen=True)
class CollectPart:
    """What stages signed, the tokens that tails drew, values that may be shown."""

    envelopes: Envelopes | None = field(default=None, metadata=LATER)
    drawn: Annotated[tuple[DrawnPart, ...], Many(0, MAX_EPOCHS)] | None = field(default=None, metadata=LATER)
    disclosed: Annotated[tuple[ShownPart, ...], Many(0, MAX_SHOWN)] | None = field(default=None, metadata=LATER)


def part_untrusted(cls: type[T], header: Mapping[str, Any], where: str) -> T:
    """What `cls` wants of a map that came with the message `where`. Raises ReceiptError(SHAPE or COUNT)."""
    return decode_untrusted(cls, header, where)


def half_fields(half: RttSeries, disclose: bool | None = None) -> Header:
    """The map that `HalfPart` reads."""
    fields: Header = encode(HalfPart(half, disclose))
    return fields


def drawn_fields(drawn: Drawn) -> Header:
    """The map that `DrawnPart` reads."""
    fields: Header = encode(DrawnPart(drawn.first, drawn.tokens, drawn.margins_ppm))
    return fields


def shown_fields(secret: Secret) -> Header:
    """The map that `ShownPart` reads."""
    fields: Header = encode(ShownPart(secret.name, secret.salt, secret.value))
    return fields


def drawn_of(part: CollectPart) -> list[Drawn]:
    """Raises ReceiptError where tokens and margins differ in number."""
    found = [Drawn(each.first, each.tokens, each.margins_ppm) for each in part.drawn or ()]
    if any(len(each.tokens) != len(each.margins_ppm) for each in found):
        raise ReceiptError(Refusal.SHAPE, "collect: tokens and margins differ in number")
    return found


def shown_of(part: CollectPart) -> list[Secret]:
    """Values that stages disclose."""
    return [Secret(each.name, each.salt, each.value) for each in part.disclosed or ()]
