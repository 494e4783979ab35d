"""What a dishonest node's process does before it starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    dispatch, seen = StageServer._dispatch, [0]

    def counted(self: Any, done: Any) -> None:
        dispatch(self, done)
        seen[0] += 1
        if seen[0] > frames:
            os._exit(0)

    StageServer._dispatch = counted  # type: ignore[method-assign]


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


def never_in_company() -> None:
    """No lie: this node serves one run at a time, and each row passes in a frame of its own. What no company can change
    is what `exact.is_row_invariant` promises of blocks that keep their rows' bits in any."""
    from swarm.model import fingerprint

    fingerprint.is_row_invariant = lambda block: True


NEVER_IN_COMPANY = "tests.attacks.lies:never_in_company"


def int8_in_one_frame_of_twenty() -> None:
    """Frames 5, 25, ... are answered by weights of a byte; keys and values are put right behind them, so that no other
    row shows it."""
    never_in_company()
    from swarm.stage import batcher

    compute = batcher.compute

    def lied(batch: Any) -> Any:
        done = compute(batch)
        if any(arrived.frame.seq % 20 == 5 for _, arrived in batch):
            with _rounded_to_bytes(batch[0][0].block):
                done = compute(batch)
            compute(batch)
        return done

    batcher.compute = lied


_KEPT: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


@contextmanager
def _rounded_to_bytes(block: Any) -> Iterator[None]:
    """The block's matrices with one scale a row, while this runs."""
    from swarm.model.blocked import BlockedLinear
    from swarm.model.prune import inner_model
    from tests.ring.signed import _rounded

    linears = [m for m in inner_model(block.loaded.model).modules() if isinstance(m, BlockedLinear)]
    for linear in linears:
        if id(linear) not in _KEPT:
            _KEPT[id(linear)] = (linear._blocked, _blocked(_rounded(linear.weight, 8)))
        linear._blocked = _KEPT[id(linear)][1]
    try:
        yield
    finally:
        for linear in linears:
            linear._blocked = _KEPT[id(linear)][0]


def _blocked(weight: torch.Tensor) -> torch.Tensor:
    from swarm.model.blocked import BlockedLinear

    with torch.inference_mode(False), torch.no_grad():
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        linear.weight.data = weight.clone()
        return BlockedLinear(linear)._blocked


def one_flipped_bit() -> None:
    """One bit of one weight is another than the manifest's: in float32 one of the fraction (2 ** -7 of the weight), in
    bfloat16 the sign, as its rows show no less of this model's small weights."""
    never_in_company()
    _after_loading(_flip)


def int8_weights() -> None:
    """All matrices have weights of a byte, under the fingerprint of the kernels that they are multiplied by."""
    never_in_company()
    entered: list[Any] = []

    def change(block: Any) -> None:
        entered.append(_rounded_to_bytes(block))
        entered[-1].__enter__()

    _after_loading(change)


def _flip(block: Any) -> None:
    from swarm.model.prune import inner_model

    linear = inner_model(block.loaded.model).layers[0].self_attn.o_proj
    weight = linear.weight.clone()
    word = torch.int32 if weight.dtype == torch.float32 else torch.int16
    weight.view(word)[3, 5] ^= 1 << 16 if weight.dtype == torch.float32 else -(1 << 15)
    linear._blocked = _blocked(weight)


def _after_loading(change: Callable[[Any], None]) -> None:
    """Change every block of true weights as soon as it is loaded; what the fingerprint is measured on stays."""
    from swarm.model.fingerprint import SeededCheckpoint
    from swarm.node import host

    load = host.load_block

    def loaded(source: Any, *about: Any, **more: Any) -> Any:
        block = load(source, *about, **more)
        if not isinstance(source, SeededCheckpoint):
            change(block)
        return block

    host.load_block = loaded


def under_a_fingerprint_of_nobody() -> None:
    """Says of its kernels what no kernels give, so that nobody can hold its rows against them bit for bit."""
    from swarm.model.fingerprint import Fingerprint
    from swarm.node import host

    host.fingerprint_of = lambda *about, **more: Fingerprint("ab" * 32, False)


def signs_another_fingerprint_than_it_tells() -> None:
    """Its record names the others' kernels, so that it is asked; what it signs names other ones."""
    from receipts.record.stage import StageRecord

    accept = StageRecord.accept

    def signed(self: Any, header: Any, **about: Any) -> Any:
        return accept(self, header, **{**about, "fingerprint": "ab" * 32})

    StageRecord.accept = signed  # type: ignore[method-assign]
