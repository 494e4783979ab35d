"""What a dishonest node's process does before it starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


def _twisted(from_position: int) -> None:
    """Rows from this position on are passed on with a part that no layer gave."""
    from swarm.stage import compute

    encode = compute.encode_tensor

    def lied(tensor: torch.Tensor, wire: str) -> Any:
        return encode(tensor * (1.0 + 0.5 * (torch.arange(tensor.shape[-1]) % 2)).to(tensor.dtype), wire)

    compute.encode_tensor = lied  # type: ignore[assignment]


def always() -> None:
    """Every row is passed on with a part that no layer gave."""
    _twisted(0)


def and_drop_after_twelve() -> None:
    """The same, and the line is dropped before the end: the process is gone after twelve frames."""
    _drop_after(12)


def and_drop_after_the_prompt() -> None:
    """The same, gone as soon as the prompt has passed."""
    _drop_after(1)


def and_drop_at_the_closing() -> None:
    """The same, gone when the closing comes: everything was computed, nothing is signed."""
    from swarm.stage.session_close import SessionClose

    async def closed(self: Any, *about: Any) -> None:
        os._exit(0)

    SessionClose.close = closed  # type: ignore[method-assign]
    always()


def _drop_after(frames: int) -> None:
    from swarm.stage.server import StageServer

    always()
    dispatch, seen = StageServer.computed, [0]

    def counted(self: Any, done: Any) -> None:
        dispatch(self, done)
        seen[0] += 1
        if seen[0] > frames:
            os._exit(0)

    StageServer.computed = counted  # type: ignore[method-assign]


def silent_about_it() -> None:
    """The same, and it says of an epoch that was interrupted that it sent nothing."""
    from dataclasses import replace

    from receipts.format.closing import End
    from receipts.record.stage import StageRecord

    always()
    issue = StageRecord._issue

    def issued(self: Any, body: Any) -> Any:
        if isinstance(body, End) and body.interrupted:
            body = replace(body, sent=0, outbound=self.opening.salt_leaves(self.author.id)[1].hex())
        return issue(self, body)

    StageRecord._issue = issued  # type: ignore[method-assign]


def int8_in_one_frame_of_twenty() -> None:
    """Frames 5, 25, ... are answered by weights of a byte; keys and values are put right behind them, so that no other
    row shows it."""
    from swarm.node import host
    from swarm.stage import batcher

    compute, load, cheap = batcher.compute, host.load_block, []

    def loaded(source: Any, *about: Any, **more: Any) -> Any:
        if hasattr(source, "places"):  # the files, not what the fingerprint is measured on
            with _reading(_to_bytes):
                cheap.append(load(source, *about, **more))
        return load(source, *about, **more)

    def lied(batch: Any) -> Any:
        done = compute(batch)
        if any(arrived.frame.seq % 20 == 5 for _, arrived in batch):
            session = batch[0][0]
            true, session.block = session.block, cheap[-1].view(session.block.first, session.block.last)
            done = compute(batch)
            session.block = true
            compute(batch)
        return done

    batcher.compute, host.load_block = lied, loaded


def int8_weights() -> None:
    """All matrices have weights of a byte, under the fingerprint of the kernels that they are multiplied by."""
    _reading(_to_bytes).__enter__()


def one_flipped_bit() -> None:
    """One bit of one weight is another than the manifest's: in float32 one of the fraction (2 ** -7 of the weight), in
    bfloat16 the sign, as its rows show no less of this model's small weights."""
    _reading(_flipped).__enter__()


class _reading:
    """Weights of the files are read as `change` makes them."""

    def __init__(self, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        from swarm.model.files.weights import FileCheckpoint

        self._kind, self._read, self._change = FileCheckpoint, FileCheckpoint.read, change

    def __enter__(self) -> None:
        read, change = self._read, self._change

        def changed(source: Any, name: str, dtype: torch.dtype) -> torch.Tensor:
            return change(name, read(source, name, dtype))

        self._kind.read = changed  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        self._kind.read = self._read  # type: ignore[method-assign]


def _to_bytes(name: str, weight: torch.Tensor) -> torch.Tensor:
    """One scale a row."""
    from tests.ring.signed import _rounded

    return _rounded(weight, 8) if weight.dim() == 2 and ".layers." in name else weight


def _flipped(name: str, weight: torch.Tensor) -> torch.Tensor:
    if not name.endswith("layers.4.self_attn.o_proj.weight"):
        return weight
    weight = weight.clone()
    word = torch.int32 if weight.dtype == torch.float32 else torch.int16
    weight.view(word)[3, 5] ^= 1 << 16 if weight.dtype == torch.float32 else -(1 << 15)
    return weight


def under_a_fingerprint_of_nobody() -> None:
    """Says of its kernels what no kernels give, so that nobody can hold its rows against them bit for bit."""
    from swarm.model.fingerprint import Fingerprint
    from swarm.node import host

    host.fingerprint_of = lambda *about, **more: Fingerprint("ab" * 32, "a lie")


def signs_another_fingerprint_than_it_tells() -> None:
    """Its record names the others' kernels, so that it is asked; what it signs names other ones."""
    from receipts.record.stage import StageRecord

    accept = StageRecord.accept

    def signed(self: Any, header: Any, **about: Any) -> Any:
        return accept(self, header, **{**about, "fingerprint": "ab" * 32})

    StageRecord.accept = signed  # type: ignore[method-assign]


def hears_one_frame_otherwise() -> None:
    """Frame 6 is taken, kept and computed as if another row had come in: that which came, with two parts swapped."""
    from dataclasses import replace

    from swarm.stage.server import StageServer

    take, seen = StageServer._take_frame, [0]

    def taken(self: Any, peer: Any, message: Any) -> None:
        seen[0] += 1
        if seen[0] == 6:
            body = bytes(message.body)
            message = replace(message, body=body[:-64] + body[-32:] + body[-64:-32])  # rows stand last
        take(self, peer, message)

    StageServer._take_frame = taken  # type: ignore[method-assign]
