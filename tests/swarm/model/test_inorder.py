"""The attention kernels by themselves: the right sums, the same bits in any company and with every instruction set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swarm.model.inorder import AttentionCall as Call
from swarm.model.inorder import LatentHeads, Sight, attend_in_order, attend_latent_in_order
from swarm.model.kvcache import addresses_of
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

    def addresses(self, layers: range) -> NDArray[np.int64]:
        return addresses_of([self.layer(layer) for layer in layers])


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
        given = self.call(self.query, self.key, self.value)
        whole = attend_in_order(lib, [(Sight(self.rows, kv), 0)], given)[0]  # type: ignore[arg-type]
        if only is None:
            return whole
        return torch.stack([self.alone(row, kv) for row in only])

    def alone(self, row: int, kv: Memory) -> torch.Tensor:
        lib = library()
        assert lib is not None
        some = slice(row, row + 1)
        rows = Rows(*(getattr(self.rows, name)[some] for name in self.rows.__dataclass_fields__))
        one = self.call(*(x[:, :, some] for x in (self.query, self.key, self.value)))
        return attend_in_order(lib, [(Sight(rows, kv), 0)], one)[0, 0]  # type: ignore[arg-type]

    def call(self, *given: torch.Tensor | None) -> Call:
        return Call(*given, 0, slice(0, KEY_HEADS), self.scale, self.span, self.softcap, self.sinks)  # type: ignore[arg-type]

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_entries_that_are_there_are_read_and_not_written(dtype: torch.dtype) -> None:
    """A layer that reads another's keys, and one of several attentions of a layer."""
    asked, lib = Asked(tree(130, 9), dtype=dtype), library()
    assert lib is not None
    kv = asked.memory()
    sight = Sight(asked.rows, kv)  # type: ignore[arg-type]
    want = attend_in_order(lib, [(sight, 0)], asked.call(asked.query, asked.key, asked.value))
    before = kv.keys.clone(), kv.values.clone()
    again = attend_in_order(lib, [(sight, 0)], asked.call(asked.query, None, None))
    assert torch.equal(again, want)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, (kv.keys, kv.values), strict=True))
    parts = [
        attend_in_order(lib, [(sight, 0)], asked.call(asked.query, asked.key, asked.value).of_head(h, KEY_HEADS))
        for h in range(KEY_HEADS)
    ]
    assert torch.equal(torch.cat(parts, 2), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_picked_has_the_bits_of_what_is_seen(dtype: torch.dtype) -> None:
    """An index that picks all that rows see changes nothing; one that leaves something out is attention without it."""
    asked, lib = Asked(tree(130, 9), dtype=dtype), library()
    assert lib is not None
    kv = asked.memory()
    sight, call = Sight(asked.rows, kv), asked.call(asked.query, asked.key, asked.value)  # type: ignore[arg-type]
    want = attend_in_order(lib, [(sight, 0)], call)
    drafts = np.unpackbits(asked.rows.ancestors, axis=1, bitorder="little").astype(bool)
    seen = np.concatenate([drafts, np.arange(LAYOUT.context) < asked.rows.prefix[:, None]], 1)
    assert torch.equal(attend_in_order(lib, [(sight.chosen(seen, 0), 0)], call), want)
    seen[:, LAYOUT.scratch + 70] = False
    fewer = attend_in_order(lib, [(sight.chosen(seen, 0), 0)], call)
    assert not torch.equal(fewer, want)
    for row in (0, 5, 8):
        slots = torch.from_numpy(np.nonzero(seen[row])[0])
        shares = torch.softmax(kv.keys[0, slots].double() @ asked.query[0, 0, row].double() * asked.scale, 0)
        found = fewer[0, row, 0].double()
        assert float((found - shares @ kv.values[0, slots].double()).norm() / found.norm()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_latents_give_what_their_heads_would_see(dtype: torch.dtype) -> None:
    """Multi-head latent attention, against keys and values made of every slot in float64."""
    nope, rank, rope, width = 8, 16, 4, 12
    source, lib, rows = torch.Generator().manual_seed(5), library(), tree(130, 9)
    assert lib is not None
    up = torch.randn(HEADS * (nope + width), rank, generator=source).to(dtype)
    entries = torch.randn(1, SLOTS, rank + rope, generator=source).to(dtype)
    query = torch.randn(1, HEADS, len(rows), nope + rope, generator=source).to(dtype)
    entry = torch.randn(1, 1, len(rows), rank + rope, generator=source).to(dtype)
    kv = Memory(entries, entries[..., :rank])
    kv.position[rows.slot] = rows.position
    heads = LatentHeads.of(lib, up, HEADS, nope)
    assert heads is not None
    call = Call(query, entry, None, 0, slice(0, 1), 0.3)
    found = attend_latent_in_order(lib, [(Sight(rows, kv), 0)], call, heads)[0]  # type: ignore[arg-type]
    seen = np.unpackbits(rows.ancestors, axis=1, bitorder="little").astype(bool)
    seen = np.concatenate([seen, np.arange(LAYOUT.context) < rows.prefix[:, None]], 1)
    each = up.view(HEADS, nope + width, rank).double()
    for row in range(len(rows)):
        slots = torch.from_numpy(np.nonzero(seen[row])[0])
        kept = entries[0, slots].double()
        for head in range(HEADS):
            keys = torch.cat([kept[:, :rank] @ each[head, :nope].T, kept[:, rank:]], 1)
            shares = torch.softmax(keys @ query[0, head, row].double() * 0.3, 0)
            want = shares @ (kept[:, :rank] @ each[head, nope:].T)
            apart = float((found[row, head].double() - want).norm() / want.norm())
            assert apart < (3e-2 if dtype == torch.bfloat16 else 2e-6), apart
