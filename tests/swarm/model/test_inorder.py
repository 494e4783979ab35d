"""The attention kernels by themselves: the right sums, the same bits in any company and with every instruction set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swarm.model.inorder import Sight, attend_in_order
from swarm.model.quant.native import library
from swarm.model.rows import Layout, Rows
from tests.swarm.model.tiny import certain, drafted

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")

LAYOUT = Layout(scratch=32, context=700)
SLOTS = LAYOUT.scratch + LAYOUT.context
HEADS, KEY_HEADS = 6, 2


@dataclass
class Memory:
    """Stands for a session's keys and values: one layer, [KEY_HEADS, SLOTS, dim]."""

    keys: torch.Tensor
    values: torch.Tensor
    layout: Layout = LAYOUT
    position: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LAYOUT.scratch, np.int64))

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values


@dataclass
class Asked:
    """Rows over a memory with random numbers in every slot, those that nobody may see no numbers at all."""

    rows: Rows
    dim: int = 32
    value_dim: int = 32
    dtype: torch.dtype = torch.bfloat16
    span: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    scale: float = 0.2

    def __post_init__(self) -> None:
        source = torch.Generator().manual_seed(3)

        def numbers(heads: int, n: int, width: int) -> torch.Tensor:
            return torch.randn(1, heads, n, width, generator=source).to(self.dtype)

        self.keys, self.values = numbers(KEY_HEADS, SLOTS, self.dim)[0], numbers(KEY_HEADS, SLOTS, self.value_dim)[0]
        n = len(self.rows)
        self.query, self.key = numbers(HEADS, n, self.dim), numbers(KEY_HEADS, n, self.dim)
        self.value = numbers(KEY_HEADS, n, self.value_dim)

    def memory(self) -> Memory:
        kv = Memory(self.keys.clone(), self.values.clone())
        tree = self.rows.slot < LAYOUT.scratch
        kv.position[self.rows.slot[tree]] = self.rows.position[tree]
        seen = int(self.rows.prefix.max())
        kv.keys[:, LAYOUT.scratch + seen :] = torch.nan
        kv.values[:, LAYOUT.scratch + seen :] = torch.nan
        return kv

    def run(self, only: list[int] | None = None) -> torch.Tensor:
        """[n, heads, value dim]: all rows at once, or each of `only` alone behind all the others."""
        lib, kv = library(), self.memory()
        assert lib is not None
        given = self.query, self.key, self.value, self.scale, self.span, self.softcap, self.sinks
        whole = attend_in_order(lib, [(Sight(self.rows, kv), 0)], 0, *given)[0]  # type: ignore[arg-type]
        if only is None:
            return whole
        return torch.stack([self.alone(row, kv) for row in only])

    def alone(self, row: int, kv: Memory) -> torch.Tensor:
        lib = library()
        assert lib is not None
        some = slice(row, row + 1)
        rows = Rows(*(getattr(self.rows, name)[some] for name in self.rows.__dataclass_fields__))
        parts = (x[:, :, some] for x in (self.query, self.key, self.value))
        rest = self.scale, self.span, self.softcap, self.sinks
        return attend_in_order(lib, [(Sight(rows, kv), 0)], 0, *parts, *rest)[0, 0]  # type: ignore[arg-type, misc]

    def expected(self) -> torch.Tensor:
        """The same in float64, straight from the definition."""
        kv, out = self.memory(), torch.zeros(len(self.rows), HEADS, self.value_dim, dtype=torch.float64)
        kv.keys[:, self.rows.slot.astype(np.int64)] = self.key[0]
        kv.values[:, self.rows.slot.astype(np.int64)] = self.value[0]
        paths = np.unpackbits(self.rows.ancestors, axis=1, bitorder="little").astype(bool)
        for row in range(len(self.rows)):
            place = np.concatenate([kv.position, np.arange(LAYOUT.context)])
            sees = np.concatenate([paths[row], np.arange(LAYOUT.context) < self.rows.prefix[row]])
            if self.span is not None:
                sees &= int(self.rows.position[row]) - place < self.span
            slots = torch.from_numpy(np.nonzero(sees)[0])
            for head in range(HEADS):
                group = head // (HEADS // KEY_HEADS)
                scores = kv.keys[group, slots].double() @ self.query[0, head, row].double() * self.scale
                if self.softcap is not None:
                    scores = self.softcap * torch.tanh(scores / self.softcap)
                if self.sinks is not None:
                    scores = torch.cat([scores, self.sinks[head : head + 1].double()])
                shares = torch.softmax(scores, 0)[: len(slots)]
                out[row, head] = shares @ kv.values[group, slots].double()
        return out


def tree(prefix: int, n: int) -> Rows:
    """Chains of three on top of `prefix` positions, in slots that are out of order."""
    parents = [-1 if i % 3 == 0 else i - 1 for i in range(n)]
    return drafted([1] * n, parents, [(7 * i + 5) % LAYOUT.scratch for i in range(n)], prefix, LAYOUT)


CASES = {
    "prompt": Asked(certain([1] * 70, 0, LAYOUT)),
    "behind": Asked(certain([1] * 9, 415, LAYOUT)),
    "tree": Asked(tree(639, 13)),
    "window": Asked(tree(500, 7), span=37),
    "odd widths": Asked(certain([1] * 5, 201, LAYOUT), dim=20, value_dim=27),
    "softcap": Asked(certain([1] * 3, 130, LAYOUT), softcap=2.0),
    "sinks": Asked(certain([1] * 3, 130, LAYOUT), sinks=torch.linspace(-3, 4, HEADS)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_computes_attention(case: str, dtype: torch.dtype) -> None:
    asked = replace(CASES[case], dtype=dtype)
    found, want = asked.run().double(), asked.expected()
    apart = float((found - want).norm() / want.norm())
    assert apart < (4e-3 if dtype == torch.bfloat16 else 2e-6), apart


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_instruction_set_gives_the_same_bits(
    case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, lib = replace(CASES[case], dtype=dtype), library()
    assert lib is not None
    want = asked.run()
    for isa in range(lib.best_isa):
        monkeypatch.setattr(lib, "best_isa", isa)
        assert torch.equal(asked.run(), want), isa


@settings(deadline=None, max_examples=15)
@given(
    prefix=st.integers(1, 640),
    n=st.integers(1, 24),
    span=st.one_of(st.none(), st.integers(1, 200)),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    drafts=st.booleans(),
)
def test_a_row_alone_has_the_bits_that_it_has_in_company(
    prefix: int, n: int, span: int | None, dtype: torch.dtype, drafts: bool
) -> None:
    asked = Asked(tree(prefix, n) if drafts else certain([1] * n, prefix, LAYOUT), dtype=dtype, span=span)
    chosen = sorted({0, n // 2, n - 1})
    assert torch.equal(asked.run(chosen), asked.run()[chosen])
