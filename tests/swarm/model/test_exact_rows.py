"""A row's bits are a function of the weights and of its own path: the same text in any company, parts and slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.model.block import load_block
from swarm.model.exact import first_difference, is_row_invariant, stands_against, why_not
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.quant.native import library
from swarm.model.rows import Commits, no_commits
from tests.swarm.model.exact_rows import (
    KINDS,
    LAYERS,
    LAYOUT,
    Session,
    block_of,
    config_of,
    ends,
    forward,
    random_text,
    reference,
)
from tests.swarm.model.tiny import CPU, VOCAB, MemoryCheckpoint, certain, drafted, random_model

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")

TEXT = 150
"""More than two of attention's chunks of 64."""
ALL = [(family, kind) for family in ("llama", "qwen2", "gemma3", "gpt2", "mixtral") for kind in KINDS]
ALL = [case for case in ALL if case not in (("gpt2", "Q8_0"), ("gpt2", "Q4_0"))]
ALL += [("llama-large", kind) for kind in ("Q4_K", "Q6_K")]
_made: dict[tuple[str, str], tuple[Any, list[int], dict[int, torch.Tensor]]] = {}


def made(family: str, kind: str) -> tuple[Any, list[int], dict[int, torch.Tensor]]:
    """A block, a text, and its rows after every layer."""
    if (family, kind) not in _made:
        block, text = block_of(family, kind), random_text(5, TEXT)
        _made[family, kind] = block, text, reference(block, text)
    return _made[family, kind]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_it_says_that_its_rows_are_invariant(family: str, kind: str) -> None:
    assert why_not(made(family, kind)[0]) is None


class History:
    """A text that goes on step by step, as `data` has it; every row of it must have the reference's bits."""

    def __init__(self, data: st.DataObject, family: str, kind: str) -> None:
        self.data = data
        self.block, self.text, self.want = made(family, kind)
        self.cuts = sorted(data.draw(st.sets(st.integers(1, LAYERS - 1)), label="cuts"))
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
        stop = min(self.at + n, TEXT)
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
            place = None if before is None or before + 1 >= TEXT else before + 1
            place = place if place not in places and self.data.draw(st.booleans(), label="right") else None
            tokens.append((i * 31 + self.at) % VOCAB if place is None else self.text[place])
            places.append(place)
        if self.at + count > TEXT:
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


@pytest.mark.parametrize(("family", "kind"), ALL)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_history_gives_the_same_bits(family: str, kind: str, data: st.DataObject) -> None:
    live(data, family, kind, 12)


@pytest.mark.soak
@pytest.mark.parametrize(("family", "kind"), ALL)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_longer_history_gives_the_same_bits(family: str, kind: str, data: st.DataObject) -> None:
    live(data, family, kind, 40)


def live(data: st.DataObject, family: str, kind: str, steps: int) -> None:
    history = History(data, family, kind)
    history.part(data.draw(st.integers(1, 130), label="prompt"))
    for _ in range(steps):
        if history.at >= TEXT:
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


@pytest.mark.parametrize("kind", KINDS)
def test_logits_too_do_not_depend_on_how_many_are_wanted(kind: str) -> None:
    block, text, want = made("llama", kind)
    kv = KVPool(block, 1 << 40).open(LAYOUT, 0, LAYERS)
    for at in range(0, 40, 4):
        rows = certain(text[at : at + 4], at, LAYOUT)
        rows.want[:] = [False, True, False, at % 8 == 0]
        (found,) = block.forward([Job(kv, no_commits(), rows, None)])
        assert torch.equal(found, want[LAYERS][at : at + 4][torch.from_numpy(rows.want)])


def test_torchs_own_order_is_not_claimed() -> None:
    block = load_block(MemoryCheckpoint(random_model(config_of("llama"))), 0, LAYERS, CPU, torch.float32, exact=False)
    assert not is_row_invariant(block) and "kernels" in str(why_not(block))
    assert "scaled_dot_product_attention" in str(stands_against(block, library(), [(0, LAYERS)]))


def test_a_layer_that_looks_at_other_rows_is_seen() -> None:
    block = load_block(MemoryCheckpoint(random_model(config_of("gemma3"))), 0, LAYERS, CPU, torch.float32)
    assert first_difference(block) is None
    spoilt = block.loaded.model.model.layers[1].mlp.register_forward_hook(  # type: ignore[union-attr]
        lambda module, given, out: out + 1e-6 * out.shape[1]
    )
    assert first_difference(block) == 0 and "row 0" in str(stands_against(block, library(), [(0, LAYERS)]))
    spoilt.remove()
    assert first_difference(block) is None


def test_what_multiplies_elsewhere_is_named() -> None:
    """gpt-oss multiplies by its experts with an operator, whose sums follow the number of rows."""
    block = load_block(MemoryCheckpoint(random_model(config_of("gpt-oss"))), 0, LAYERS, CPU, torch.float32)
    assert not is_row_invariant(block) and "matmul" in str(why_not(block))


def test_a_view_says_what_its_block_says() -> None:
    block = made("llama", "float32")[0]
    assert is_row_invariant(block.view(1, 2)) and not is_row_invariant(object())
