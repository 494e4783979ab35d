"""Recurrent operators over slots against transformers' own recurrences, over any course that a session can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import mamba2_selective_state_update
from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from swarm.base.errors import ModelError, PeerError
from swarm.model.attention import Attending, JobPlan
from swarm.model.kvcache import KVPool, KVShape, SessionKV
from swarm.model.linear.mixers import Operator, _causal_conv, _delta_rule, _mamba2
from swarm.model.linear.paths import Paths
from swarm.model.linear.shapes import CAPACITY, SEGMENT, WINDOW, ConvShape, RuleShape
from swarm.model.rows import Commits, Layout, Rows
from tests.swarm.model.tiny import CPU, certain, drafted, path_to

HEADS, GROUPS, KEY, VALUE, CHANNELS, WIDTH, TOKENS = 4, 2, 6, 5, 7, 4, 23
SHAPES = {
    "delta": RuleShape(GROUPS, KEY, HEADS, VALUE),
    "kimi": RuleShape(HEADS, KEY, HEADS, VALUE, KEY),
    "mamba2": RuleShape(GROUPS, KEY, HEADS, VALUE),
    "conv": ConvShape(CHANNELS, WIDTH),
}


@dataclass
class FakeBlock:
    kv_shapes: tuple[KVShape, ...]
    first: int = 0
    last: int = 1
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    gpu: None = None


class Table:
    """What each token brings to a rule, random: rows are looked up by token."""

    def __init__(self, kind: str, strong: bool) -> None:
        source = torch.Generator().manual_seed(7)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(TOKENS, *shape, generator=source)

        self.kind = kind
        keys = HEADS if kind == "kimi" else GROUPS
        self.q, self.k, self.v = random(keys, KEY), random(keys, KEY), random(HEADS, VALUE)
        self.g = -random(*((HEADS, KEY) if kind == "kimi" else (HEADS,))).abs() * (20.0 if strong else 0.05)
        self.beta, self.dt = torch.sigmoid(random(HEADS)), random(HEADS)
        self.a, self.d, self.bias = -random(HEADS)[0].abs() * (9.0 if strong else 0.05), random(HEADS)[0], random(1)[0]
        self.x, self.taps = random(CHANNELS), random(CHANNELS, WIDTH)[0]

    def ours(self, operator: Operator, tokens: torch.Tensor) -> torch.Tensor:
        """[T, ...] through the functions that stand in layers' `forward`."""
        q, k, v, g, beta = (t[tokens][None] for t in (self.q, self.k, self.v, self.g, self.beta))
        if self.kind == "conv":
            return _causal_conv(operator, self.x[tokens].T[None], self.taps, activation="silu")[0].T
        if self.kind == "mamba2":
            dt = self.dt[tokens][None]
            return _mamba2(operator, v, dt, self.a, k, q, D=self.d, dt_bias=self.bias, dt_softplus=True)[0]
        return _delta_rule(operator, q, k, v, g, beta, use_qk_l2norm_in_kernel=True)[0][0]

    def step(self, state: Any, token: int) -> tuple[torch.Tensor, Any]:
        """One token through transformers' own recurrence: what it gives and the state behind it."""
        one = torch.tensor([token])
        q, k, v, g, beta = (t[one][None] for t in (self.q, self.k, self.v, self.g, self.beta))
        if self.kind == "conv":
            line = [*(state or []), token]
            window = functional.pad(self.x[torch.tensor(line)].T, (WIDTH - 1, 0))[:, -WIDTH:]
            return functional.silu((window * self.taps).sum(1)), line[-WIDTH:]
        if self.kind == "mamba2":
            after = torch.zeros(1, HEADS, VALUE, KEY) if state is None else state.clone()
            full = (
                self.dt[one][..., None].expand(-1, -1, VALUE),
                self.a[:, None, None].expand(-1, VALUE, KEY),
                self.d[:, None].expand(-1, VALUE),
            )
            out = mamba2_selective_state_update(
                after, v[0], full[0], full[1], k[0], q[0], full[2], self.bias.expand(HEADS, VALUE), dt_softplus=True
            )
            return out[0], after
        rule: Callable[..., Any] = (
            recurrent_kimi_delta_attention if self.kind == "kimi" else torch_recurrent_gated_delta_rule
        )
        out, after = rule(
            q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
        )
        return out[0, 0], after


@dataclass
class Course:
    """A session in the course of a text, beside the recurrence of that text."""

    table: Table
    layout: Layout
    kv: SessionKV = field(init=False)
    text: list[int] = field(default_factory=list)
    states: list[Any] = field(default_factory=lambda: [None])

    def __post_init__(self) -> None:
        pool = KVPool(FakeBlock((KVShape(0, 0, states=(SHAPES[self.table.kind],)),)), 1 << 30)
        self.kv = pool.open(self.layout, 0, 1)

    def _run(self, rows: Rows) -> torch.Tensor:
        attending = Attending()
        attending.jobs = [JobPlan(self.kv, rows, 0, CPU, torch.float32)]
        return self.table.ours(Operator(0, attending), torch.from_numpy(rows.token.astype(np.int64)))

    def prompt(self, tokens: list[int]) -> None:
        got = self._run(certain(tokens, len(self.text), self.layout))
        for row, token in zip(got, tokens, strict=True):
            self._grow(token, row)

    def tree(self, tokens: list[int], parents: list[int], kept: int, shuffled: bool) -> None:
        """Rows of a tree, the path to row `kept` committed."""
        slots = [self.layout.scratch - 1 - i for i in range(len(tokens))]
        order = np.random.default_rng(len(self.text)).permutation(len(tokens)) if shuffled else np.arange(len(tokens))
        rows = drafted(tokens, parents, slots, len(self.text), self.layout)
        got = self._run(_take(rows, order))
        states: list[Any] = []
        expected: list[torch.Tensor] = []
        for token, parent in zip(tokens, parents, strict=True):
            out, state = self.table.step(self.states[-1] if parent < 0 else states[parent], token)
            states.append(state)
            expected.append(out)
        for place, row in enumerate(order):
            _same(got[place], expected[row])
        path = path_to(kept, parents)
        places = np.arange(len(self.text), len(self.text) + len(path), dtype=np.uint32)
        self.kv.commit(Commits(np.array([slots[i] for i in path], np.uint32), places))
        for i in path:
            self.text.append(tokens[i])
            self.states.append(states[i])

    def go_back(self, far: int) -> None:
        """A fault: the session goes on from an earlier place that it still can go on from."""
        place = max(self.kv.floor, len(self.text) - far)
        del self.text[place:], self.states[place + 1 :]

    def take_over(self, less: int, scratch: int) -> Course:
        """Another session that begins with this one's text, or nearly all of it."""
        other = Course(self.table, Layout(scratch, self.layout.context))
        keep = max(0, len(self.text) - less)
        if not other.kv.begin_from(self.kv, keep):
            assert keep < self.kv.floor
            return self
        other.text, other.states = self.text[:keep], self.states[: keep + 1]
        return other

    def _grow(self, token: int, row: torch.Tensor) -> None:
        out, state = self.table.step(self.states[-1], token)
        _same(row, out)
        self.text.append(token)
        self.states.append(state)


def _same(got: torch.Tensor, expected: torch.Tensor) -> None:
    apart = float((got - expected).abs().max()), float(expected.abs().max())
    assert apart[0] <= 5e-5 * (1 + apart[1]), apart


def _take(rows: Rows, order: Any) -> Rows:
    return Rows(*(getattr(rows, name)[order] for name in ("slot", "position", "prefix", "ancestors", "token", "want")))


TREES = st.lists(st.tuples(st.integers(0, TOKENS - 1), st.floats(0, 0.999)), min_size=1, max_size=14)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("prompt"), st.integers(1, 200)),
        st.tuples(st.just("tree"), TREES, st.floats(0, 0.999), st.booleans()),
        st.tuples(st.just("back"), st.integers(0, 150)),
        st.tuples(st.just("over"), st.integers(0, 60), st.sampled_from([16, 24])),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("kind", SHAPES)
@settings(max_examples=12, deadline=None)
@given(steps=STEPS, strong=st.booleans(), length=st.integers(1, 500))
def test_any_course_gives_what_the_recurrence_gives(
    kind: str, steps: list[tuple[Any, ...]], strong: bool, length: int
) -> None:
    course = Course(Table(kind, strong), Layout(16, 2000))
    course.prompt([i * i % TOKENS for i in range(length)])
    for step in steps:
        if step[0] == "prompt":
            course.prompt([(i * step[1] + 3) % TOKENS for i in range(step[1])])
        elif step[0] == "tree":
            nodes = step[1]
            parents = [int(where * (i + 1)) - 1 for i, (_, where) in enumerate(nodes)]
            course.tree([token for token, _ in nodes], parents, int(step[2] * len(nodes)), step[3])
        elif step[0] == "back":
            course.go_back(step[1])
        else:
            course = course.take_over(step[1], step[2])


@pytest.mark.parametrize("kind", SHAPES)
def test_memory_does_not_grow_with_the_text(kind: str) -> None:
    pool = KVPool(FakeBlock((KVShape(0, 0, states=(SHAPES[kind],)),)), 1 << 30)
    near, far = (pool.session_bytes(Layout(16, context), 0, 1) for context in (CAPACITY, 100_000))
    assert near == far
    kv = pool.open(Layout(16, 100_000), 0, 1)
    held = 0
    for store in kv.states(0):
        held += sum(t.numel() * t.element_size() for t in store.tensors)
        for name in ("state", "near", "near_sum"):
            extra = getattr(store, name, None)
            held += 0 if extra is None else extra.numel() * extra.element_size()
    assert abs(held - far) <= 8 * HEADS * KEY


@pytest.mark.parametrize("kind", SHAPES)
def test_a_session_can_go_back_over_the_window_and_not_behind_it(kind: str) -> None:
    course = Course(Table(kind, False), Layout(16, 2000))
    course.prompt([i % TOKENS for i in range(3 * CAPACITY)])
    assert 0 < course.kv.floor <= len(course.text) - WINDOW + SEGMENT
    other = Course(course.table, Layout(16, 2000))
    assert not other.kv.begin_from(course.kv, course.kv.floor - 1) and other.kv.floor == 0
    with pytest.raises(ModelError, match="begin the session anew"):
        course._run(certain([1, 2], 5, course.layout))


def test_rows_that_do_not_follow_their_ancestors_are_refused() -> None:
    rows = drafted([1, 2], [-1, 0], [15, 14], 3, Layout(16, 64))
    rows.position[1] = 1
    position = np.zeros(16, np.int64)
    position[[15, 14]] = rows.position
    with pytest.raises(PeerError, match="does not come before it"):
        Paths(rows, position)
