"""What `test_row_tiles` holds about the kernels for GPUs, under Triton's interpreter, which a process asks for before
it imports Triton: `TRITON_INTERPRET=1 python -m tests.swarm.model.interpreted_tiles CHECK ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from swarm.model.inorder import AttentionCall
from swarm.model.masks import AttentionChunk, Span
from swarm.model.quant.on_device import FEW_ROWS, on_device
from swarm.model.quant.triton_dense import INTERPRETED
from swarm.model.rows import Commits, Layout, Rows, no_commits
from swarm.model.tiles.kernels import RowTiles
from swarm.model.tiles.sight import DeviceSight, sight_of
from tests.swarm.model.tiny import CPU, VOCAB, certain, drafted

TILES = RowTiles()
KINDS = (torch.float32, torch.bfloat16, torch.float16)
STEP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Of a type, the largest rounding over a number's size: the interpreter cuts bfloat16 off, which a card rounds."""


def products() -> None:
    """Alone, in company of 1 to 65 others, at any place: the same bits; and close to the sum of float64."""
    for kind in KINDS:
        torch.manual_seed(0)
        x, weight, bias = torch.randn(66, 200).to(kind), torch.randn(70, 200).to(kind), torch.randn(70)
        whole = TILES.linear(x, weight, bias)
        right = x.double() @ weight.double().T + bias.double()
        size = x.double().abs() @ weight.double().abs().T
        assert bool(((whole.double() - right).abs() <= 1e-5 * size + STEP[kind] * right.abs()).all()), kind
        for count in (1, 2, 3, 15, 16, 17, 32, 33, 64, 65):
            for first in (0, 1, 66 - count):
                part = TILES.linear(x[first : first + count], weight, bias)
                assert torch.equal(part, whole[first : first + count]), (kind, count, first)
        mixed = [65, 3, 40, 17, 0]
        assert torch.equal(TILES.linear(x[mixed], weight, bias), whole[mixed])
        laid = torch.randn(200, 70).to(kind)  # the other way round, a part of something wider, a batch
        wide = torch.randn(2, 5, 300).to(kind)[..., 50:250]
        found = TILES.product(wide, laid.T)
        assert torch.equal(found, TILES.product(wide.contiguous(), laid.T.contiguous()))
        assert torch.equal(found[1, 3:4], TILES.product(wide[1, 3:4], laid.T))


def sums() -> None:
    for kind in KINDS:
        torch.manual_seed(1)
        x = torch.randn(33, 2100).to(kind)
        whole = TILES.total(x)
        right = x.double().sum(-1, keepdim=True)
        assert bool(((whole.double() - right).abs() <= 1e-6 * x.double().abs().sum(-1, keepdim=True)).all())
        assert torch.equal(TILES.total(x[7]), whole[7]) and torch.equal(TILES.total(x[20:]), whole[20:])
        assert torch.equal(TILES.total(x.T.contiguous().T), whole)


def packed() -> None:
    """Few rows by the kernel of packed matrices, many unpacked: one row has the same bits among 1, 64, 65 and 70."""
    from tests.swarm.model.test_panels import packed as random_matrix

    for name in ("Q8_0", "Q4_K", "MXFP4"):
        matrix = on_device(random_matrix(name, (40, 512)), CPU, triton=True, tiled=True)
        for kind in (torch.float32, torch.float16):  # the interpreter would cut weights off to bfloat16
            torch.manual_seed(2)
            x, bias = torch.randn(FEW_ROWS + 6, 512).to(kind), torch.randn(40)
            whole = matrix.product(x, bias)
            for rows in (range(FEW_ROWS + 1), range(5, FEW_ROWS + 5), range(3, 20), [66], [69, 1]):
                assert torch.equal(matrix.product(x[list(rows)], bias), whole[list(rows)]), (name, kind, rows)


@dataclass
class Session:
    """Keys and values of one session whose layer has some key heads."""

    layout: Layout
    heads: int
    dim: int
    width: int
    kind: torch.dtype
    position: Any = field(init=False)
    stores: tuple[torch.Tensor, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.position = np.zeros(self.layout.scratch, np.int64)
        slots = self.layout.slots
        sizes = [(self.heads, slots, width) for width in (self.dim, self.width or self.dim)]
        first, second = (torch.zeros(size, dtype=self.kind) for size in sizes)
        self.stores = (first, second if self.width else first[..., : self.dim // 2])

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.stores

    def commit(self, commits: Commits) -> None:
        slot = torch.from_numpy(commits.slot.astype(np.int64))
        to = torch.from_numpy(commits.position.astype(np.int64)) + self.layout.scratch
        for store in self.stores:
            store[:, to] = store[:, slot]


@dataclass
class Plan:
    kv: Session
    rows: Rows
    start: int = 0

    def __post_init__(self) -> None:
        drafted_rows = self.rows.slot < self.kv.layout.scratch
        self.kv.position[self.rows.slot[drafted_rows]] = self.rows.position[drafted_rows]

    @property
    def stop(self) -> int:
        return self.start + len(self.rows)

    @property
    def write(self) -> torch.Tensor:
        return torch.from_numpy(self.rows.slot.astype(np.int64))

    def sight(self) -> DeviceSight:
        return sight_of(self.rows, self.kv.position, CPU)


LENGTH = 150
"""Positions: more than two of attention's chunks of 64."""


def attention(
    heads: int, shared: int, dim: int, width: int, kind: torch.dtype, span: Span, cap: float | None, sinks: bool
) -> None:
    """A text at once; in parts; a row alone; in a tree of drafts, any slots; behind commits; beside another session."""
    torch.manual_seed(3)
    query, key = torch.randn(heads, LENGTH, dim).to(kind), torch.randn(shared, LENGTH, dim).to(kind)
    value = torch.randn(shared, LENGTH, width).to(kind) if width else None
    sink = torch.randn(heads) if sinks else None
    given = AttentionCall(query, None, None, 0, slice(0, shared), dim**-0.5, span, cap, sink)

    def run(jobs: list[tuple[Session, Rows]]) -> list[torch.Tensor]:
        at = [torch.from_numpy(rows.position.astype(np.int64)) for _, rows in jobs]
        plans, start = [], 0
        for kv, rows in jobs:
            plans.append(Plan(kv, rows, start))
            start += len(rows)
        every = torch.cat(at)
        asked = replace(
            given,
            query=query[None, :, every],
            key=key[None, :, every],
            value=None if value is None else value[None, :, every],
        )
        return list(TILES.attend(plans, asked)[0].split([len(rows) for _, rows in jobs]))

    layout = Layout(scratch=24, context=LENGTH + 10)
    one, other, third = (Session(layout, shared, dim, width, kind) for _ in range(3))
    (whole,) = run([(one, certain([0] * LENGTH, 0, layout))])
    check_close(whole, query, key, key[..., : dim // 2] if value is None else value, given)
    parts = run([(other, certain([0] * 61, 0, layout))])
    beside = run([(third, certain([0] * 20, 0, layout)), (other, certain([0], 61, layout))])
    assert torch.equal(beside[0], whole[:20])
    parts.append(beside[1])
    # Drafts over a chunk's border, two branches; those of the text are every second row.
    slots = [5, 0, 19, 2, 9, 11, 3, 23]
    tree = drafted([0] * 8, [-1, -1, 0, 0, 2, 3, 4, 4], slots, 62, layout)
    (rows,) = run([(other, tree)])
    for row, position in enumerate(tree.position):
        assert torch.equal(rows[row], whole[position]), (row, position)
    other.commit(Commits(np.array([5, 19, 9], np.uint32), np.array([62, 63, 64], np.uint32)))
    parts += [whole[62:65]] + run([(other, certain([0] * 40, 65, layout))])
    for at in (105, 106):
        parts += run([(other, certain([0], at, layout))])
    assert torch.equal(torch.cat(parts), whole[:107])


def check_close(
    found: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, asked: AttentionCall
) -> None:
    """Of float64: softmax over what each row sees."""
    groups = query.shape[0] // key.shape[0]
    key, value = (x.double().repeat_interleave(groups, 0) for x in (key, value))
    scores = query.double() @ key.transpose(1, 2) * asked.scale
    scores = scores if asked.softcap is None else torch.tanh(scores / asked.softcap) * asked.softcap
    row, place = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    seen = place <= row
    if isinstance(asked.span, AttentionChunk):
        seen = seen & (place >= row // asked.span.size * asked.span.size)
    elif asked.span is not None:
        seen = seen & (place > row - asked.span)
    scores = scores.masked_fill(~seen, float("-inf"))
    if asked.sinks is not None:
        scores = torch.cat([scores, asked.sinks.double()[:, None, None].expand(-1, LENGTH, 1)], -1)
    share = torch.softmax(scores, -1)[..., :LENGTH]
    right = (share @ value).transpose(0, 1)
    size = (share @ value.abs()).transpose(0, 1)
    bound = 3 * STEP[query.dtype] * size + 2e-6
    assert bool(((found.double() - right).abs() <= bound).all()), (asked.span, asked.softcap)


ATTENTIONS: dict[str, tuple[Any, ...]] = {
    "plain": (4, 2, 32, 32, torch.float32, None, None, False),
    "narrow": (4, 2, 32, 32, torch.bfloat16, None, None, False),
    "one-each": (3, 3, 24, 40, torch.float16, None, None, False),
    "window": (4, 2, 32, 32, torch.float32, 37, None, False),
    "chunks": (7, 1, 16, 16, torch.float32, AttentionChunk(50), None, True),
    "capped": (4, 2, 80, 80, torch.float32, 70, 5.0, True),
    "latent": (20, 1, 96, 0, torch.float32, None, None, False),
}


def block(family: str, kind: str) -> None:
    """A block computed as on a GPU: the same rows in parts, alone, drafted, beside others, cut, and in padded frames;
    close to the CPU's own."""
    from swarm.model.block import Block, load_block
    from swarm.model.graphs import ROW_BUCKETS, FramePlan
    from swarm.model.kvcache import KVPool
    from swarm.model.masks import note_positions
    from tests.swarm.model.exact_rows import LAYOUT, Session, config_of, forward, loaded, random_text
    from tests.swarm.model.tiny import MemoryCheckpoint, random_model

    config = config_of(family)
    model = random_model(config)
    dtype = getattr(torch, kind)
    made = load_block(MemoryCheckpoint(model), 0, 3, CPU, dtype, blocked=False, tiles=TILES)
    assert made.why_not_exact is None, made.why_not_exact
    text = random_text(5, 80)
    (whole,) = forward([Session.open(made, [])], [certain(text, 0, LAYOUT)], [no_commits()])
    (usual,) = forward([Session.open(loaded(model, kind), [])], [certain(text, 0, LAYOUT)], [no_commits()])
    apart = (whole[0] - usual[0]).norm(dim=1) / usual[0].norm(dim=1)
    assert float(apart.median()) <= (1e-4 if kind == "float32" else 0.05), apart.median()

    def history(on: Block, cuts: list[int]) -> list[torch.Tensor]:
        mine, other = Session.open(on, cuts), Session.open(on, cuts)
        (first,) = forward([mine], [certain(text[:60], 0, LAYOUT)], [no_commits()])
        company = [certain(text[:9], 0, LAYOUT), certain(text[60:62], 60, LAYOUT)]
        beside = forward([other, mine], company, [no_commits()] * 2)
        tokens = [text[62], (text[62] + 1) % VOCAB, text[63], text[64]]
        tree = drafted(tokens, [-1, -1, 0, 2], [7, 3, 30, 11], 62, LAYOUT)
        (drafts,) = forward([mine], [tree], [no_commits()])
        kept = Commits(np.array([7, 30, 11], np.uint32), np.array([62, 63, 64], np.uint32))
        (alone,) = forward([mine], [certain(text[65:66], 65, LAYOUT)], [kept])
        (rest,) = forward([mine], [certain(text[66:], 66, LAYOUT)], [no_commits()])
        assert torch.equal(beside[0][-1], whole[-1][:9])
        return [first[-1], beside[1][-1], drafts[-1][[0, 2, 3]], alone[-1], rest[-1]]

    assert torch.equal(torch.cat(history(made, [])), whole[-1])
    if family == "llama":
        assert torch.equal(torch.cat(history(made, [1])), whole[-1])
    if family in ("mixtral", "gpt-oss"):
        return  # which experts rows go to is read on the host
    kv = KVPool(made, 1 << 40).open(LAYOUT, 0, 3)
    frames = [certain(text[first:last], first, LAYOUT) for first, last in ((0, 40), (40, 43), (43, 52), (52, 53))]
    frames.append(drafted([text[53], 5, text[54]], [-1, -1, 0], [7, 3, 30], 53, LAYOUT))
    for rows in frames:  # as a graph has them: in a bucket of rows, the last ones for nothing
        bucket = next(size for size in ROW_BUCKETS if size >= len(rows))
        plan = FramePlan(kv, bucket, kv.seat.slots, CPU, dtype)
        note_positions(rows, kv)
        plan.frame.copy_(plan.describe(rows, kv))
        found = made.compute([plan], plan.token, plan.position)[: len(rows)]
        of_text = [row for row in range(len(rows)) if rows.token[row] == text[rows.position[row]]]
        assert torch.equal(found[of_text], whole[-1][rows.position[of_text]]), rows.position


CHECKS: dict[str, Callable[[], None]] = {
    "products": products,
    "sums": sums,
    "packed": packed,
    **{f"attention-{name}": partial(attention, *case) for name, case in ATTENTIONS.items()},
    **{
        f"block-{family}-{kind}": partial(block, family, kind)
        for family in ("llama", "qwen2", "gemma3", "gpt2", "mixtral", "gpt-oss")
        for kind in ("float32", "bfloat16")
    },
}

if __name__ == "__main__":
    assert INTERPRETED, "run with TRITON_INTERPRET=1"
    torch.set_num_threads(1)
    for check in sys.argv[1:]:
        CHECKS[check]()
        print("held", check, flush=True)
