"""What penalties see of a text that grows, held against counting it anew for every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.model.rows import Commits, Layout, Rows
from swarm.model.sampler import pick
from swarm.model.sampling import Sampling
from swarm.model.shaping import Shaping
from swarm.model.thought import ThoughtLimit
from swarm.model.token_counts import TokenCounts
from swarm.ring.drawing import Drawing
from swarm.ring.kept_rows import SlotTokens
from tests.swarm.model.tiny import certain, drafted

LAYOUT, VOCAB, AFTER = Layout(scratch=16, context=64), 12, 5
SAMPLINGS = (
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=0.8, seed=3, repetition_penalty=0.7, shaping=Shaping(frequency=0.5, after=AFTER)),
    Sampling(temperature=1.1, seed=4, top_p=0.9, shaping=Shaping(presence=-0.7, frequency=0.1, after=AFTER)),
)


@dataclass
class Plain:
    """The same, by the plain form: tokens by position and by scratch slot, looked through for each row."""

    committed: list[int] = field(default_factory=lambda: [-1] * LAYOUT.context)
    scratch: dict[int, tuple[int, int]] = field(default_factory=dict)

    def write(self, rows: Rows) -> None:
        for slot, position, token in zip(rows.slot, rows.position, rows.token, strict=True):
            if slot >= LAYOUT.scratch:
                self.committed[slot - LAYOUT.scratch] = int(token)
            else:
                self.scratch[int(slot)] = int(position), int(token)

    def commit(self, slots: list[int], start: int) -> None:
        for offset, slot in enumerate(slots):
            self.committed[start + offset] = self.scratch[slot][1]

    def seen(self, rows: Rows, first: int) -> list[list[int]]:
        """For each wanted row, its tokens from position `first` on."""
        found = []
        for index in np.flatnonzero(rows.want):
            bits = np.unpackbits(rows.ancestors[index], bitorder="little")
            own = sorted(self.scratch[int(slot)] for slot in np.flatnonzero(bits))
            tokens = self.committed[first : int(rows.prefix[index])]
            found.append([t for t in (*tokens, *(token for at, token in own if at >= first)) if t >= 0])
        return found


def check(kept: SlotTokens, plain: Plain, rows: Rows, noise: int) -> None:
    """What a frame's rows see, how often, and what is drawn by that."""
    whole, answers = plain.seen(rows, 0), plain.seen(rows, AFTER)
    assert [set(map(int, context)) for context in kept.contexts(rows)] == [set(tokens) for tokens in whole]
    for found, tokens in zip(kept.counts(rows, AFTER), answers, strict=True):
        assert dict(zip(found.ids.tolist(), found.counts.tolist(), strict=True)) == Counter(tokens)
        assert found.ids.tolist() == sorted(set(tokens))
    positions = [int(position) + 1 for position in rows.position[rows.want]]
    logits = torch.randn(len(positions), VOCAB, generator=torch.Generator().manual_seed(noise))
    for sampling in SAMPLINGS:
        drawn = Drawing(sampling, kept).pick(logits, positions, rows)
        assert drawn == pick(logits, positions, sampling, whole, None, answers)


tokens = st.integers(-1, VOCAB - 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_rows_see_is_what_counting_anew_finds(data: st.DataObject) -> None:
    """Through certain rows, trees, commits, text that is taken back and written anew, and the text of another run."""
    kept, plain, end = SlotTokens(LAYOUT), Plain(), 0

    def write(rows: Rows) -> None:
        kept.write(rows)
        plain.write(rows)
        check(kept, plain, rows, data.draw(st.integers(0, 99)))

    def sure() -> None:
        nonlocal end
        end = min(end, data.draw(st.integers(max(0, end - 4), end)))  # back a little, as after a loss
        new = data.draw(st.lists(tokens, min_size=1, max_size=8))[: LAYOUT.context - end]
        if new:
            write(certain(new, end, LAYOUT, want=data.draw(st.booleans())))
        end += len(new)

    def tree() -> None:
        nonlocal end
        new = data.draw(st.lists(tokens, min_size=1, max_size=6))[: LAYOUT.context - end]
        if not new:
            return
        parents = [-1] + [data.draw(st.integers(-1, at - 1)) for at in range(1, len(new))]
        slots = data.draw(st.permutations(range(LAYOUT.scratch)))[: len(new)]
        write(drafted(new, parents, slots, end, LAYOUT))
        path, at = [], data.draw(st.integers(-1, len(new) - 1))
        while at >= 0:
            path, at = [slots[at], *path], parents[at]
        kept.commit(Commits(np.array(path, np.uint32), np.arange(end, end + len(path)).astype(np.uint32)))
        plain.commit(path, end)
        end += len(path)

    def begin() -> None:
        nonlocal end
        other, new = SlotTokens(LAYOUT), data.draw(st.lists(tokens, min_size=1, max_size=9))
        other.write(certain(new, 0, LAYOUT))
        kept.copy_prefix(other, len(new))
        plain.write(certain(new, 0, LAYOUT))
        end = max(end, len(new))

    steps: list[Callable[[], None]] = data.draw(st.lists(st.sampled_from([sure, tree, tree, begin]), max_size=8))
    for step in (sure, *steps):
        step()


def test_a_row_that_sees_less_than_one_before_it() -> None:
    kept, plain = SlotTokens(LAYOUT), Plain()
    for rows in (certain([1, 2, 3, 3, 4, 2], 0, LAYOUT), drafted([7, 7], [-1, 0], [3, 1], 6, LAYOUT)):
        kept.write(rows)
        plain.write(rows)
        check(kept, plain, rows, 1)
    check(kept, plain, drafted([7, 7], [-1, 0], [3, 1], 2, LAYOUT), 2)
    check(kept, plain, drafted([7, 7], [-1, 0], [3, 1], 6, LAYOUT), 3)


def test_rows_of_a_frame_share_what_they_count() -> None:
    """What makes a frame behind a long text as cheap as one behind a short text."""
    kept = SlotTokens(LAYOUT)
    kept.write(certain([1, 2, 3, 4, 5, 6, 7, 8], 0, LAYOUT))
    rows = drafted([1, 2, 2], [-1, -1, -1], [0, 1, 2], 8, LAYOUT)
    kept.write(rows)
    one, two, three = kept.counts(rows, AFTER)
    assert one.ids.tolist() == [1, 6, 7, 8]
    first, again = (TokenCounts.of(np.array([3, 1, 3], np.int64)).plus(np.array(more, np.int64)) for more in ([], [-1]))
    assert first.ids.tolist() == again.ids.tolist() == [1, 3] and first.counts.tolist() == [1, 2]
    before = kept._up_to(AFTER, 8)
    kept.counts(rows, AFTER)
    assert kept._up_to(AFTER, 8) is before and two.counts.tolist() == three.counts.tolist()
    kept.write(certain([9], 6, LAYOUT))
    assert kept._up_to(AFTER, 8).ids.tolist() == [6, 8, 9]


def test_a_thoughts_limit_needs_the_order() -> None:
    """Counts alone do not say where thoughts begin: nothing is guessed of them."""
    kept, rows = SlotTokens(LAYOUT), certain([1, 2, 3, 9, 4], 0, LAYOUT)
    kept.write(rows)
    shaping = Shaping(frequency=0.5, after=1, thought=ThoughtLimit(2, (8,), (2,)))
    sampling, positions, logits = Sampling(shaping=shaping), [1, 2, 3, 4, 5], torch.zeros(5, VOCAB)
    assert [picked.token for picked in Drawing(sampling, kept).pick(logits, positions, rows)][3] == 8
    with pytest.raises(ValueError, match="in order"):
        pick(logits, positions, sampling, None, None, kept.counts(rows, 1))
