"""Padded frames over fixed buffers against the eager block; on a GPU also captured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.events import Event, Notice, Report, silent
from swarm.model.block import Block, Job, load_block
from swarm.model.gpu import Gpu, GraphPool
from swarm.model.graphs import FramePlan, GraphedBlock, Graphs, Shape, graphed, key_bucket
from swarm.model.kvcache import KVPool
from swarm.model.masks import AttentionChunk, note_positions, visible_slots
from swarm.model.rows import Commits, Layout, Rows, no_commits
from tests.models.configs import tiny_config as sweep_config
from tests.swarm.model.fake_cuda import FakeCuda
from tests.swarm.model.tiny import CPU, MemoryCheckpoint, certain, drafted, random_model, tiny_config

LAYOUT = Layout(scratch=16, context=600)


SWEPT = ("diffllama", "opt")
"""Asks for attention twice a layer, embeds positions."""


def frames(tokens: list[int]) -> list[tuple[Commits, Rows]]:
    """A run: chunks of a prompt, a tree, a commit, single rows over a key bucket's border."""
    parts = [(no_commits(), certain(tokens[a:b], a, LAYOUT)) for a, b in ((0, 100), (100, 140), (140, 250))]
    parts.append((no_commits(), drafted([3, 4, 5, 6, 7], [-1, 0, 0, 2, -1], [15, 2, 9, 0, 7], 250, LAYOUT)))
    commit = Commits(np.array([15, 9], np.uint32), np.array([250, 251], np.uint32))
    parts.append((commit, certain([11], 252, LAYOUT)))
    parts += [(no_commits(), certain([p % 90], p, LAYOUT, want=p != 255)) for p in range(253, 260)]
    return parts


def run(blocks: list[Block], tokens: list[int]) -> list[torch.Tensor]:
    sessions = [KVPool(block, 1 << 30).open(LAYOUT, block.first, block.last) for block in blocks]
    out = []
    for commits, rows in frames(tokens):
        hidden: torch.Tensor | None = None
        for block, kv in zip(blocks, sessions, strict=True):
            (hidden,) = block.forward([Job(kv, commits, rows, hidden)])
        assert hidden is not None
        out.append(hidden)
    return out


def block_of(family: str, device: torch.device = CPU) -> Block:
    config = sweep_config(family) if family in SWEPT else tiny_config(family)
    config.max_position_embeddings = config.n_positions = 1200
    return load_block(MemoryCheckpoint(random_model(config)), 0, 6, device, torch.float32, blocked=False)


def in_graphs(block: Block, report: Report = silent, cuda: FakeCuda | None = None) -> GraphedBlock:
    """The block in graphs, by CUDA's rules and without a GPU; the real ones where it lies on one."""
    gpu = block.gpu or Gpu(torch.device("cuda", 1), cuda or FakeCuda(home=1))
    return GraphedBlock(block, Graphs(GraphPool(gpu), report))


def check(block: Block, fast: GraphedBlock) -> None:
    """Three sessions, whole and cut: the first ones count shapes, the last ones replay."""
    tokens = np.random.default_rng(0).integers(0, 97, 300).tolist()
    expected = run([block], tokens)
    for blocks in ([fast], [fast], [fast.view(0, 2), fast.view(2, 6)], [fast], [fast.view(0, 2), fast.view(2, 6)]):
        for found, right in zip(run(blocks, tokens), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "cohere2", *SWEPT])
def test_captured_forwards_equal_the_eager_block(family: str) -> None:
    cuda, seen = FakeCuda(home=1), list[Event]()
    block = block_of(family)
    check(block, in_graphs(block, seen.append, cuda))
    assert seen == [] and cuda.replays > 10


def test_a_class_that_computes_attention_itself_is_never_captured() -> None:
    cuda = FakeCuda(home=1)
    config = sweep_config("bloom")
    block = load_block(MemoryCheckpoint(random_model(config)), 0, 6, CPU, torch.float32, blocked=False)
    fast = in_graphs(block, cuda=cuda)
    tokens = np.random.default_rng(0).integers(0, 97, 300).tolist()
    for found, right in zip(run([fast], tokens), run([block], tokens), strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=2e-5)
    assert cuda.replays == 0


def test_on_a_cpu_a_block_stays_as_it_is() -> None:
    block = block_of("llama")
    assert graphed(block) is block


def test_graphs_outlive_the_sessions_that_they_were_made_for() -> None:
    cuda = FakeCuda(home=1)
    block = block_of("llama")
    fast = in_graphs(block, cuda=cuda)
    pool, made = KVPool(fast, 1 << 30), []
    expected = steps(KVPool(block, 1 << 30), block)
    for _ in range(5):
        found = steps(pool, fast)
        for one, right in zip(found, expected, strict=True):
            torch.testing.assert_close(one, right, rtol=0, atol=2e-5)
        made.append(cuda.captures)
    assert made == [0, 0, 4, 4, 4]  # three shapes and the anchor, in the third session
    assert pool.used_bytes == 0


def steps(pool: KVPool, block: Block, layout: Layout = LAYOUT) -> list[torch.Tensor]:
    """A session of single rows over a border of key buckets, opened and closed."""
    kv = pool.open(layout, block.first, block.last)
    rows = [certain(list(range(7, 20)), 0, layout), drafted([4, 5], [-1, 0], [3, 1], 13, layout)]
    rows += [certain(list(range(90)) * 3, 13, layout), certain([8], 283, layout)]
    out = [block.forward([Job(kv, no_commits(), each, None)])[0] for each in rows]
    kv.close()
    return out


def test_layouts_that_share_a_size_share_graphs() -> None:
    cuda = FakeCuda(home=1)
    block = block_of("gemma2")
    fast = in_graphs(block, cuda=cuda)
    pool = KVPool(fast, 1 << 30)
    for scratch, context in ((16, 600), (64, 540), (8, 610), (128, 490)):
        layout = Layout(scratch, context)
        expected = steps(KVPool(block, 1 << 30), block, layout)
        for one, right in zip(steps(pool, fast, layout), expected, strict=True):
            torch.testing.assert_close(one, right, rtol=0, atol=2e-5)
    assert len({key[2] for key in fast._graphs.shapes}) == 1 and cuda.replays > 0


def test_what_a_session_left_behind_is_not_there_for_the_next() -> None:
    fast = in_graphs(block_of("llama"))
    pool = KVPool(fast, 1 << 30)
    kv = pool.open(LAYOUT, 0, 6)
    with pytest.raises(ValueError, match="no memory yet"):
        kv.layer(0)  # taken by the thread that computes
    kv.prepare()
    seat = kv.seat
    for store in seat.stores:
        store.fill_(float("nan"))
    kv.close()
    again = pool.open(LAYOUT, 0, 6)
    again.prepare()
    assert again.seat is seat and not any(store.any() for store in seat.stores)


def test_seats_that_are_kept_stay_within_the_budget() -> None:
    fast = in_graphs(block_of("llama"))
    pool = KVPool(fast, 1 << 40)
    small, large = Layout(8, 400), Layout(8, 1000)
    pool.budget_bytes = pool.session_bytes(large, 0, 6) + pool.session_bytes(small, 0, 6)
    for _ in range(2):
        each = [pool.open(small, 0, 6), pool.open(small, 0, 6)]
        for kv in each:
            kv.prepare()
        for kv in each:
            kv.close()
    gone = [kv for kv in each]
    seats = list(pool._free[0, 6, 512])
    kv = pool.open(large, 0, 6)
    kv.prepare()
    assert [seat.gone for seat in seats] == [True, False]
    kv.close()
    assert all(kv.closed for kv in gone) and pool.used_bytes == 0


def test_a_prefix_is_copied_when_memory_is_taken_and_not_before() -> None:
    fast = in_graphs(block_of("llama"))
    pool = KVPool(fast, 1 << 30)
    base, other = pool.open(LAYOUT, 0, 6), pool.open(LAYOUT, 0, 6)
    assert not other.begin_from(base, 4)  # which never computed
    base.prepare()
    base.layer(2)[0].fill_(3.0)
    assert other.begin_from(base, 4)
    base.close()
    third = pool.open(LAYOUT, 0, 6)
    third.prepare()  # does not get the seat that is still to be copied from
    other.prepare()
    keys = other.layer(2)[0]
    assert bool((keys[:, 16:20] == 3.0).all()) and not keys[:, 20:].any() and not third.layer(2)[0].any()
    assert sum(len(seats) for seats in pool._free.values()) == 1
    fourth = pool.open(LAYOUT, 0, 6)
    assert fourth.begin_from(other, 4)
    fourth.close()
    other.close()
    assert sum(len(seats) for seats in pool._free.values()) == 2


@pytest.mark.parametrize(
    ("error", "level", "again"),
    [(torch.OutOfMemoryError("CUDA out of memory."), "warning", True), (RuntimeError("not permitted"), "info", False)],
)
def test_a_capture_that_fails_costs_nothing_but_speed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, level: str, again: bool
) -> None:
    now, seen, cuda = [0.0], list[Event](), FakeCuda(home=1)
    monkeypatch.setattr("swarm.model.graphs.time.monotonic", lambda: now[0])
    block = block_of("llama")
    fast = in_graphs(block, seen.append, cuda)
    pool, expected = KVPool(fast, 1 << 30), steps(KVPool(block, 1 << 30), block)
    for turn in range(12):
        now[0] += 1000.0
        cuda.fail = error if turn < 10 else None
        for one, right in zip(steps(pool, fast), expected, strict=True):
            torch.testing.assert_close(one, right, rtol=0, atol=2e-5)
    levels = [e.level for e in seen if isinstance(e, Notice)]
    assert levels[0] == "warning" and levels[-1] == level and len(levels) == (1 if again else 2)
    assert fast._graphs.trust.given_up is not again
    assert any(shape.graph is not None for shape in fast._graphs.shapes.values()) == again


def test_a_warm_up_that_fails_does_not_commit_twice() -> None:
    """Rows of the frame may lie already where a commit reads."""
    cuda, block = FakeCuda(home=1), block_of("llama")
    fast = in_graphs(block, cuda=cuda)
    expected = run([block], list(range(90)) * 4)

    def half_way(shape: Shape) -> torch.Tensor:
        assert shape.plan is not None
        for layer in range(6):
            shape.plan.kv.layer(layer)[0][:, :16].fill_(9.0)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    fast._run = half_way  # type: ignore[method-assign]
    fast._graphs.trust.may = lambda now: True  # type: ignore[method-assign]
    for _ in range(4):
        for found, right in zip(run([fast], list(range(90)) * 4), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=0, atol=2e-5)


def test_nothing_is_captured_where_memory_is_short() -> None:
    cuda, seen = FakeCuda(home=1), list[Event]()
    cuda.free = 100 << 20
    fast = in_graphs(block_of("llama"), seen.append, cuda)
    pool = KVPool(fast, 1 << 30)
    for _ in range(5):
        steps(pool, fast)
    assert cuda.captures == 0 and not fast._graphs.trust.given_up
    assert len(seen) == 1 and "100 MiB of the device are free" in str(seen)


def test_few_sizes_of_keys_for_a_long_text() -> None:
    sizes = sorted({key_bucket(n) for n in range(1, 4097)})
    assert len(sizes) == 12 and sizes[:3] == [256, 512, 768] and sizes[-1] == 4096
    assert all(n <= key_bucket(n) <= max(256, n * 5 // 4 + 256) for n in range(1, 40_000, 7))


@given(data=st.data())
@settings(max_examples=30)
def test_masks_made_on_the_device_are_those_made_on_the_host(data: st.DataObject) -> None:
    scratch = data.draw(st.sampled_from([8, 16, 512]))
    layout = Layout(scratch, 300)
    fast = in_graphs(MASKED)
    kv = KVPool(fast, 1 << 30).open(layout, 0, 1)
    kv.prepare()
    kv.position[:] = data.draw(st.lists(st.integers(0, 250), min_size=scratch, max_size=scratch))
    count = data.draw(st.integers(1, 4))
    slots = data.draw(st.lists(st.integers(0, scratch - 1), min_size=count, max_size=count, unique=True))
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(count)]
    rows = drafted([1] * count, parents, slots, data.draw(st.integers(1, 200)), layout)
    note_positions(rows, kv)
    high = min(key_bucket(scratch + int(rows.prefix.max())), kv.seat.slots)
    plan = FramePlan(kv, 4, high, CPU, torch.float32)
    plan.frame.copy_(plan.describe(rows, kv))
    for span in (None, 1, 7, 100, AttentionChunk(16)):
        seen = plan.mask(span, 2).view(2, 4, high) == 0
        right = visible_slots(rows, kv, span, 0, high)
        assert np.array_equal(seen[0, :count].numpy(), right) and torch.equal(seen[0], seen[1])
        assert seen[0, count:].any(-1).all()  # rows that fill the frame up see something, or softmax gives NaN


MASKED = load_block(MemoryCheckpoint(random_model(tiny_config("llama"))), 0, 1, CPU, torch.float32, blocked=False)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "qwen3-moe", "mixtral"])
def test_captured_forwards_equal_the_eager_block_on_a_gpu(family: str) -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    block = block_of(family, device)
    fast = graphed(block)
    if isinstance(fast, GraphedBlock):  # experts are captured in bfloat16 on Hopper and Blackwell alone
        check(block, fast)
        assert any(shape.graph is not None for shape in fast._graphs.shapes.values())


@pytest.mark.gpu
def test_a_thousand_sessions_lose_neither_graphs_nor_memory() -> None:
    block = block_of("llama", torch.device("cuda", 0))
    fast = in_graphs(block)
    pool, held = KVPool(fast, 1 << 30), []
    for turn in range(1000):
        steps(pool, fast)
        if turn in (10, 999):
            held.append((torch.cuda.memory_reserved(0), len(fast._graphs.shapes)))
    assert held[0] == held[1]
