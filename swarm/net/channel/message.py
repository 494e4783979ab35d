"""One message: a kind, a small msgpack header and a raw body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

import msgpack

from swarm.base.errors import PeerError
from swarm.net.channel.limits import ChannelLimits

Body: TypeAlias = bytes | bytearray | memoryview

MAX_KIND_CHARS = 64
MAX_CALL = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Message:
    """What handlers get and callers send.

    `header` holds None, bool, int (64 bit), float, str, bytes, lists and maps with str keys. `body` is raw bytes
    and may be a view of a tensor: it must not change until the message has left (`Peer.flush`).
    """

    kind: str
    header: Mapping[str, Any] = field(default_factory=dict)
    body: Body = b""


class Mode(IntEnum):
    """What a message is to the correlation of calls."""

    SEND = 0
    CALL = 1
    ANSWER = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message on its way: `call` ties an answer to its call, 0 for a plain message."""

    message: Message
    mode: Mode = Mode.SEND
    call: int = 0


def pack_header(envelope: Envelope) -> bytes:
    """The header bytes: msgpack of [kind, mode, call, header]. Raises PeerError for what msgpack cannot hold."""
    message = envelope.message
    try:
        return bytes(
            msgpack.packb([message.kind, int(envelope.mode), envelope.call, message.header], use_bin_type=True)
        )
    except (TypeError, ValueError, OverflowError) as exc:
        raise PeerError(f"the header of message {message.kind!r} cannot be packed: {exc}") from exc


def unpack_untrusted(header: Body, body: Body, limits: ChannelLimits) -> Envelope:
    """Read the header bytes of a message from an authenticated peer; `body` is passed on unread.

    Raises PeerError for anything but the four fields within the limits.
    """
    if len(header) > limits.header_bytes:
        raise PeerError(f"expected a header of at most {limits.header_bytes} bytes, found {len(header)}")
    try:
        fields = msgpack.unpackb(header, raw=False, strict_map_key=True, ext_hook=_refuse_ext, timestamp=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise PeerError(f"a message header is not msgpack: {type(exc).__name__}") from exc
    if not isinstance(fields, list) or len(fields) != 4:
        raise PeerError("expected a message header of four fields, found something else")
    kind, mode, call, values = fields
    if not isinstance(kind, str) or not 0 < len(kind) <= MAX_KIND_CHARS:
        raise PeerError(f"expected a message kind of 1 to {MAX_KIND_CHARS} characters, found {str(kind)[:40]!r}")
    if type(mode) is not int or mode not in _MODES or type(call) is not int or not 0 <= call <= MAX_CALL:
        raise PeerError(f"message {kind!r} has no valid mode and call number")
    if not isinstance(values, dict):
        raise PeerError(f"expected a map as header of {kind!r}, found {type(values).__name__}")
    _check_values_untrusted(values, limits)
    return Envelope(Message(kind, values, body), Mode(mode), call)


_MODES = frozenset(int(mode) for mode in Mode)
_SCALARS = (str, int, float, bytes, bool, type(None))


def _refuse_ext(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _check_values_untrusted(values: dict[str, Any], limits: ChannelLimits) -> None:
    """Bound depth and count and allow only plain types, without recursion."""
    items = 0
    level: list[Any] = [values]
    for _ in range(limits.header_depth):
        below: list[Any] = []
        for container in level:
            items += len(container)
            if isinstance(container, dict):
                if not all(isinstance(key, str) for key in container):
                    raise PeerError("expected str keys in a message header")
                container = container.values()
            for value in container:
                if isinstance(value, dict | list):
                    below.append(value)
                elif not isinstance(value, _SCALARS):
                    raise PeerError(f"a message header holds a {type(value).__name__}")
        if items + len(below) > limits.header_items:
            raise PeerError(f"expected at most {limits.header_items} values in a message header, found more")
        if not below:
            return
        level = below
    raise PeerError(f"expected a message header at most {limits.header_depth} deep, found deeper")
