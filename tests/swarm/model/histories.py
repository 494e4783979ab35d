"""Histories of a text, drawn by hypothesis: whatever happens on the way, every row has the bits of the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from swarm.model.block import Block
from swarm.model.rows import Commits, no_commits
from tests.swarm.model.exact_rows import LAYOUT, Session, ends, forward, places_to_cut, random_text
from tests.swarm.model.tiny import VOCAB, certain, drafted


class History:
    """A text that goes on step by step, as `data` has it; every row of it must have the reference's bits."""

    def __init__(self, data: st.DataObject, block: Block, text: list[int], want: dict[int, torch.Tensor]) -> None:
        self.data, self.block, self.text, self.want = data, block, text, want
        places = places_to_cut(block)
        self.cuts = sorted(data.draw(st.sets(st.sampled_from(places), max_size=3), label="cuts")) if places else []
        self.session = Session.open(self.block, self.cuts)
        self.other, self.other_at = Session.open(self.block, self.cuts), 0
        self.at = 0
        self.commits = no_commits()

    def run(self, rows: Any, places: list[int | None]) -> None:
        """One forward. places: per row its position in the text, or None where it left the text."""
        torch.set_num_threads(self.data.draw(st.integers(1, 3), label="threads"))
        jobs, commits, mine = [rows], [self.commits], 0
        sessions = [self.session]
        if self.data.draw(st.booleans(), label="company"):
            n = self.data.draw(st.integers(1, 40), label="rows of the other")
            self.other_at = 0 if self.other_at + n > LAYOUT.context else self.other_at
            company = certain(random_text(self.other_at + n, n), self.other_at, LAYOUT)
            self.other_at += n
            mine = self.data.draw(st.integers(0, 1), label="place")
            sessions.insert(1 - mine, self.other)
            jobs.insert(1 - mine, company)
            commits.insert(1 - mine, no_commits())
        found = forward(sessions, jobs, commits)[mine]
        self.commits = no_commits()
        for last, rows_out in zip(ends(self.session), found, strict=True):
            for row, place in enumerate(places):
                if place is not None:
                    assert torch.equal(rows_out[row], self.want[last][place]), (
                        f"position {place} after layer {last - 1}"
                    )

    def part(self, n: int) -> None:
        """So many certain rows: a part of a prompt, a plain token, or what a recovery sends again."""
        stop = min(self.at + n, len(self.text))
        self.run(certain(self.text[self.at : stop], self.at, LAYOUT), list(range(self.at, stop)))
        self.at = stop

    def tree(self) -> None:
        """Drafted rows: some go on with the text, others leave it; those that do are committed later."""
        count = self.data.draw(st.integers(1, 12), label="drafted rows")
        parents = [self.data.draw(st.integers(-1, i - 1), label="parent") for i in range(count)]
        slots = self.data.draw(st.permutations(range(LAYOUT.scratch)), label="slots")[:count]
        tokens: list[int] = []
        places: list[int | None] = []
        for i, parent in enumerate(parents):
            before = self.at - 1 if parent < 0 else places[parent]
            place = None if before is None or before + 1 >= len(self.text) else before + 1
            place = place if place not in places and self.data.draw(st.booleans(), label="right") else None
            tokens.append((i * 31 + self.at) % VOCAB if place is None else self.text[place])
            places.append(place)
        if self.at + count > len(self.text):
            return
        self.run(drafted(tokens, parents, slots, self.at, LAYOUT), places)
        right = [(slot, place) for slot, place in zip(slots, places, strict=True) if place is not None]
        keep = self.data.draw(st.integers(0, len(right)), label="committed")
        right = sorted(right, key=lambda item: item[1])[:keep]
        self.commits = Commits(
            np.array([slot for slot, _ in right], np.uint32), np.array([place for _, place in right], np.uint32)
        )
        self.at += len(right)

    def back(self) -> None:
        """A ring broke: what was committed last is sent again, and commits that were on their way are forgotten."""
        lost = len(self.commits)
        self.at -= self.data.draw(st.integers(lost, max(lost, min(self.at, 9))), label="back")
        self.commits = no_commits()

    def takeover(self) -> None:
        """Another run begins with the same text."""
        if len(self.commits):
            return
        fresh = Session.open(self.block, self.cuts)
        for new, old in zip(fresh.kvs, self.session.kvs, strict=True):
            assert new.begin_from(old, self.at)
        self.session = fresh


def live(data: st.DataObject, block: Block, text: list[int], want: dict[int, torch.Tensor], steps: int) -> None:
    """A history of so many steps: parts of the text, trees, commits, recoveries, takeovers, in company or alone."""
    history = History(data, block, text, want)
    history.part(data.draw(st.integers(1, 130), label="prompt"))
    for _ in range(steps):
        if history.at >= len(text):
            break
        match data.draw(st.sampled_from(("part", "tree", "tree", "back", "takeover")), label="step"):
            case "part":
                history.part(data.draw(st.integers(1, 30), label="part"))
            case "tree":
                history.tree()
            case "back":
                history.back()
            case "takeover":
                history.takeover()
