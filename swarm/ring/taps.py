"""Taps: hidden rows of named layers, sent by the stages that hold them straight to the requester, whose drafter reads
them (EAGLE-3, DFlash). They are no part of a pass: late, lost or wrong ones cost speed and nothing else, so nobody
waits for them, and no receipt counts them.

A tap is named by the layers before it: tap b is what leaves layer b - 1 and enters layer b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from swarm.base.bounds import AtMost, Between, Key, by_name
from swarm.base.codec import Codec
from swarm.base.errors import PeerError
from swarm.model.rows import MAX_ROWS
from swarm.net.channel.message import Message
from swarm.net.channel.wire import decode_tensor_untrusted, encode_tensor
from swarm.ring.frame import Epoch, RunId, Seq, Tensor
from swarm.ring.opening import MAX_TAPS, TapLayer

TAPS = "ring.taps"


@by_name()
@dataclass(slots=True)
class _TapsHead:
    """The header of taps: whose they are, the row of the frame that they begin with, and the layers."""

    run: Annotated[RunId, Key("r")]
    epoch: Annotated[Epoch, Key("e")]
    seq: Annotated[Seq, Key("q")]
    first: Annotated[int, Key("f"), Between(0, MAX_ROWS - 1)]
    layers: Annotated[tuple[TapLayer, ...], Key("b"), AtMost(MAX_TAPS, least=1)]
    hidden: Annotated[Tensor, Key("x")]


_TAPS = Codec(_TapsHead, "taps")


@dataclass(frozen=True)
class Taps:
    """Rows [first, first + n) of frame `seq` as they left layers `layers` - 1: hidden [len(layers), n, hidden_size]."""

    run: bytes
    epoch: int
    seq: int
    first: int
    layers: tuple[int, ...]
    hidden: torch.Tensor


def encode_taps(taps: Taps, wire: str) -> Message:
    """The message that carries taps, in a format of `swarm.net.channel.wire`."""
    tensor, body = encode_tensor(taps.hidden, wire)
    return Message(TAPS, _TAPS.header(_TapsHead(taps.run, taps.epoch, taps.seq, taps.first, taps.layers, tensor)), body)


def parse_taps_untrusted(message: Message, dtype: torch.dtype) -> Taps:
    """The taps in a message of a stage, of finite numbers. Raises PeerError."""
    head = _TAPS.read_untrusted(message.header)
    hidden = decode_tensor_untrusted(head.hidden, message.body, dtype)
    if hidden.dim() != 3 or hidden.shape[0] != len(head.layers) or not 1 <= hidden.shape[1] <= MAX_ROWS:
        raise PeerError(f"expected taps of {len(head.layers)} layers x rows x values, found {list(hidden.shape)[:4]}")
    if not torch.isfinite(hidden).all():
        raise PeerError("expected finite numbers in taps, found others")
    return Taps(head.run, head.epoch, head.seq, head.first, head.layers, hidden)
