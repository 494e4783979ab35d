"""Entries that stand for many positions, against what the whole path of a row makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import ModelError
from swarm.model.linear.paths import Paths
from swarm.model.linear.pooled import PoolStore, run_pool
from swarm.model.linear.shapes import PoolShape
from swarm.model.rows import Commits, Layout
from tests.swarm.model.tiny import CPU, certain, drafted, path_to

LAYOUT = Layout(scratch=32, context=1024)


@dataclass
class Text:
    """A session with one pooled layer; what a row gives is the token and its position, so any mix-up shows."""

    shape: PoolShape
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = PoolStore(self.shape, LAYOUT, CPU, torch.float32)
        self.position = np.zeros(LAYOUT.scratch, np.int64)

    def pool(self, given: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(1, given.shape[1] + 1).float()
        summed = (given * weights[:, None]).sum(1)[:, : self.shape.entry]
        return summed + 1000 * windows[:, None]

    def gift(self, tokens: list[int], places: list[int]) -> torch.Tensor:
        width = torch.arange(self.shape.width).float()
        return torch.tensor(tokens)[:, None] * 1.0 + torch.tensor(places)[:, None] / 64 + width

    def expected(self, path: list[int]) -> torch.Tensor:
        """Of a row that ends the path."""
        rate, reach = self.shape.rate, self.shape.reach
        count = len(path) // rate
        given = torch.cat([torch.zeros(reach, self.shape.width), self.gift(path, list(range(len(path))))])
        windows = [given[reach + (w + 1) * rate - reach : reach + (w + 1) * rate] for w in range(count)]
        if not windows:
            return torch.zeros(0, self.shape.entry)
        return self.pool(torch.stack(windows), torch.arange(count))

    def check(self, rows: object, tokens: list[int], paths: list[list[int]]) -> None:
        drafts = rows.slot < LAYOUT.scratch  # type: ignore[attr-defined]
        self.position[rows.slot[drafts]] = rows.position[drafts]  # type: ignore[attr-defined]
        given = self.gift(tokens, rows.position.tolist())  # type: ignore[attr-defined]
        found = run_pool(self.store, Paths(rows, self.position), given, self.pool)  # type: ignore[arg-type]
        for row, path in enumerate(paths):
            mine = found.seen[row]
            order = found.windows[mine].argsort()
            assert torch.equal(found.windows[mine][order], torch.arange(len(path) // self.shape.rate))
            assert torch.allclose(found.entries[mine][order], self.expected(path))

    def say(self, tokens: list[int]) -> None:
        start = len(self.tokens)
        self.tokens += tokens
        paths = [self.tokens[: start + i + 1] for i in range(len(tokens))]
        self.check(certain(tokens, start, LAYOUT), tokens, paths)

    def tree(self, tokens: list[int], parents: list[int]) -> None:
        slots = list(range(31, 31 - len(tokens), -1))
        rows = drafted(tokens, parents, slots, len(self.tokens), LAYOUT)
        paths = [self.tokens + [tokens[i] for i in path_to(row, parents)] for row in range(len(tokens))]
        self.check(rows, tokens, paths)

    def commit(self, tokens: list[int], parents: list[int], row: int) -> None:
        path = path_to(row, parents)
        places = np.arange(len(self.tokens), len(self.tokens) + len(path), dtype=np.uint32)
        self.store.commit(Commits(np.array([31 - i for i in path], np.uint32), places))
        self.tokens += [tokens[i] for i in path]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rows_see_the_entries_of_their_own_path(data: st.DataObject) -> None:
    rate = data.draw(st.sampled_from([1, 2, 3, 4, 16]))
    text = Text(PoolShape(rate, 3, data.draw(st.booleans())))
    tokens = st.lists(st.integers(1, 96), min_size=1, max_size=200)
    for _ in range(data.draw(st.integers(1, 6))):
        if len(text.tokens) > 700:
            break
        text.say(data.draw(tokens))
        drafts = data.draw(st.lists(st.integers(1, 96), min_size=1, max_size=12))
        parents = [data.draw(st.integers(-1, i - 1)) for i in range(len(drafts))]
        text.tree(drafts, parents)
        if data.draw(st.booleans()):
            text.commit(drafts, parents, data.draw(st.integers(0, len(drafts) - 1)))
        if data.draw(st.booleans()):  # a fault: the session goes on from an earlier place
            keep = data.draw(st.integers(min(text.store.floor, len(text.tokens)), len(text.tokens)))
            if data.draw(st.booleans()):
                other = Text(text.shape)
                other.store.begin_from(text.store, keep)
                text.store = other.store
            text.tokens = text.tokens[:keep]


def test_memory_behind_the_window_is_the_entries_alone() -> None:
    shape = PoolShape(4, 3, True)
    short, long = (shape.bytes(32, context, 4) for context in (1024, 1024 + 4000))
    assert long - short == 1000 * shape.entry * 4


def test_going_back_behind_the_window_is_refused() -> None:
    text = Text(PoolShape(4, 3))
    for _ in range(4):
        text.say([5] * 200)
    assert text.store.floor > 400
    text.tokens = text.tokens[:100]
    with pytest.raises(ModelError, match="begin the session anew"):
        text.say([7, 7, 7, 7, 7])
