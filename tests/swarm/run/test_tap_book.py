"""What is asked of stages for a drafter that reads hidden rows, and what of their answers is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from draft.tapped_text import WINDOW
from draft.taps import TapStore, at_position
from swarm.base.errors import PeerError
from swarm.model.rows import Layout, Rows, no_commits
from swarm.model.sampler import Sampling
from swarm.ring.opening import OpenRun, StagePlan
from swarm.ring.taps import Taps
from swarm.run.planned_frame import PlannedFrame
from swarm.run.tap_book import DRAFTED_ROWS, MOST_BEHIND, MOST_FRAMES, TapBook, tap_wire, whose_taps

RUN, HIDDEN = bytes(16), 4
A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


class Reader:
    reach = WINDOW
    layers = (2, 3, 5)

    def __init__(self) -> None:
        self.store = TapStore()


def opening(epoch: int = 0) -> OpenRun:
    stages = tuple(StagePlan(node, (), 2 * i, 2 * i + 2) for i, node in enumerate((A, B, C)))
    return OpenRun(RUN, epoch, A, "m", "bfloat16", Layout(64, 512), Sampling(), stages, taps=(2, 3, 5))


def planned(seq: int, certain: range, nodes: tuple[int, ...] = ()) -> PlannedFrame:
    n = len(certain) + len(nodes)
    position = np.array([*certain, *range(certain.stop, certain.stop + len(nodes))], np.uint32)
    plain: Any = np.zeros(n, np.uint32)
    rows = Rows(plain, position, plain, np.zeros((n, 8), np.uint8), plain.astype(np.int32), plain.astype(np.bool_))
    return PlannedFrame(seq, no_commits(), rows, 0, nodes)


def sent(seq: int, layers: tuple[int, ...], rows: int, first: int = 0, epoch: int = 0, width: int = HIDDEN) -> Taps:
    made = torch.stack([torch.full((rows, width), float(layer)) for layer in layers])
    return Taps(RUN, epoch, seq, first, layers, made)


def test_rows_are_whole_when_every_stage_has_sent_its_own() -> None:
    book = TapBook(Reader(), HIDDEN, prompt=6)
    assert book.ask(planned(0, range(4, 6), (7, 8))) == (0, 4)
    assert book.store.awaits(7) and book.store.awaits(at_position(5))
    assert not book.take_untrusted(opening(), A, sent(0, (2,), 4))
    assert not book.take_untrusted(opening(), C, sent(0, (5,), 4))
    assert book.take_untrusted(opening(), B, sent(0, (3,), 4))
    row = book.store.take(at_position(4))
    assert row is not None and row.tolist() == [2.0] * 4 + [3.0] * 4 + [5.0] * 4
    assert book.store.look(8) is not None and not book.store.awaits(7)
    assert not book.take_untrusted(opening(), B, sent(0, (3,), 4))  # once more


def test_of_a_long_prompt_a_window_is_asked_for_and_of_a_tree_the_likeliest() -> None:
    book = TapBook(Reader(), HIDDEN, prompt=2000)
    assert book.ask(planned(0, range(0, 256))) == (0, 0)
    assert book.ask(planned(1, range(1280, 1536))) == (80, 176)
    assert book.ask(planned(2, range(1999, 2000), tuple(range(1, 60)))) == (0, 1 + DRAFTED_ROWS)


def test_a_narrow_line_is_asked_for_less_until_it_has_caught_up() -> None:
    book = TapBook(Reader(), HIDDEN, prompt=1)
    for seq in range(MOST_BEHIND + 1):
        assert book.ask(planned(seq, range(seq, seq + 1), (100 + seq,)))[1] == 2
        book.answered(seq)
    assert book.ask(planned(50, range(60, 61), (99,)))[1] == 1
    book.answered(50)  # taps of far older frames will not come
    assert not book.store.awaits(100)
    for seq in range(51, 51 + 2 * MOST_FRAMES):
        book.ask(planned(seq, range(seq, seq + 1)))
    assert len(book._asked) <= MOST_FRAMES
    book.restart()
    assert not book._asked and not book.store.awaits(at_position(60))


@pytest.mark.parametrize(
    ("node", "taps", "why"),
    [
        (A, sent(0, (3,), 3), "layers that this stage computes"),
        (b"x" * 32, sent(0, (2,), 3), "layers that this stage computes"),
        (A, sent(0, (1,), 3), "layers that this stage computes"),
        (A, sent(0, (2,), 4), "taps of 3 rows"),
        (A, sent(0, (2,), 3, first=1), "from row 0"),
        (A, sent(0, (2,), 3, width=5), "of 4 values"),
    ],
)
def test_what_was_not_asked_of_a_stage_is_refused(node: bytes, taps: Taps, why: str) -> None:
    book = TapBook(Reader(), HIDDEN, prompt=3)
    book.ask(planned(0, range(0, 3)))
    with pytest.raises(PeerError, match=why):
        book.take_untrusted(opening(), node, taps)
    assert not book.take_untrusted(opening(epoch=1), A, sent(0, (2,), 3))  # of the ring before
    assert not book.take_untrusted(opening(), A, sent(9, (2,), 3))  # of a frame that asked for none


def test_who_sends_and_how() -> None:
    assert list(whose_taps(opening())) == [0, 1, 2]
    assert tap_wire("float32") == "bfloat16" and tap_wire("fp8") == "fp8"
