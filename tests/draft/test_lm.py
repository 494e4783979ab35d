from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from draft.base import ROOT, Child, DraftNode, DraftStep, Expansion
from draft.lm import LmDrafter
from draft.loop import ChainLoop
from draft.ranker import Ranker
from draft.window import AHEAD, SIZE, TextWindow, reading
from swarm.base.events import Event, Notice, Report, silent
from swarm.model.block import Block, load_block
from swarm.model.gpu import Gpu
from swarm.model.held import Allowed
from swarm.model.sampler import Sampling, pick
from swarm.model.shaping import Shaping
from tests.draft.tiny import VOCAB, save_tiny, tiny_block
from tests.swarm.model.fake_cuda import FakeCuda
from tests.swarm.model.tiny import MemoryCheckpoint, random_model, tiny_config

SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.7, seed=5),
    Sampling(temperature=1.1, top_p=0.8, top_k=20, seed=6),
    Sampling(temperature=0.9, repetition_penalty=1.3, seed=7),
    Sampling(shaping=Shaping(presence=1.0, frequency=1.5, bias=((4, 3.0), (9, -50.0)))),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Block]:
    folder = tmp_path_factory.mktemp("tiny")
    return save_tiny(folder), tiny_block(folder)


def graphs(cuda: FakeCuda | None = None, report: Report = silent) -> ChainLoop:
    """A loop in graphs, by CUDA's rules and without a GPU."""

    def told(event: Event) -> None:
        assert report is not silent, event  # who does not look expects every capture to be made
        report(event)

    return ChainLoop(gpu=Gpu(torch.device("cuda", 1), cuda or FakeCuda(home=1)), report=told)


LOOPS: dict[str, Callable[[], ChainLoop | None]] = {"stepwise": lambda: None, "loop": ChainLoop, "graphs": graphs}


class Reference:
    """Children of a path by a plain forward over the whole sequence, every time anew."""

    def __init__(self, model: LlamaForCausalLM, sampling: Sampling, tokens: torch.Tensor | None = None) -> None:
        self.model, self.tokens = model, tokens
        self.ranker = Ranker(VOCAB if tokens is None else len(tokens), tokens, torch.device("cpu"))
        self.begin([], sampling)

    def begin(self, prompt: list[int], sampling: Sampling) -> None:
        self.prompt = len(prompt)
        self.ranker.begin(prompt, sampling)

    def children(self, path: list[int]) -> tuple[Child, ...]:
        logits = self.model(torch.tensor([path])).logits[:, -1].float()
        logits = logits if self.tokens is None else logits[:, self.tokens]
        return self.ranker.rank(logits, [len(path)], [path[self.prompt :]] if self.ranker.needs_paths else None)[0]


def agree(found: tuple[Child, ...], expected: tuple[Child, ...], width: int) -> None:
    """Equal confidences rank by rank; equal tokens unless two confidences are too close to tell apart."""
    assert len(found) == min(width, len(expected))
    for rank, (a, b) in enumerate(zip(found, expected, strict=False)):
        assert a.confidence == pytest.approx(b.confidence, abs=2e-4)
        near = [c.token for c in expected if abs(c.confidence - b.confidence) < 4e-4]
        assert a.token in near, f"rank {rank}"


class Story:
    """A random but lawful requester: knows the true sequence and the live nodes, checks every expansion."""

    def __init__(self, drafter: LmDrafter, reference: Reference, prompt: list[int], rng: random.Random) -> None:
        self.drafter, self.reference, self.rng = drafter, reference, rng
        self.true = list(prompt)
        self.paths: dict[int, list[int]] = {ROOT: []}
        self.root, self.next_id = ROOT, 1
        drafter.begin(prompt, reference.ranker.sampling)
        reference.begin(prompt, reference.ranker.sampling)

    def turn(self, width: int, depth: int) -> None:
        committed, dropped = self.commit() if self.rng.random() < 0.5 else ((), ())
        nodes = tuple(self.grow() for _ in range(self.rng.randint(0, 4)))
        expand = tuple(self.rng.sample(sorted(self.paths), min(len(self.paths), self.rng.randint(0, 3))))
        out = self.drafter.step(DraftStep(committed, dropped, nodes, expand, depth, width))
        assert sorted(e.id for e in out) == sorted(expand)
        for expansion in out:
            self.check(expansion, width, depth)

    def commit(self) -> tuple[tuple[DraftNode, ...], tuple[int, ...]]:
        """Some way down a live path, then perhaps a token nobody guessed."""
        goal = self.rng.choice(sorted(self.paths))
        line, walk = [], self.paths[goal]
        for end in range(1, len(walk) + 1):
            line.append(next(i for i, p in self.paths.items() if p == walk[:end]))
        if not line or self.rng.random() < 0.5:
            taken = {p[-1] for p in self.paths.values() if len(p) == len(walk) + 1 and p[:-1] == walk}
            token = self.rng.choice([t for t in range(VOCAB) if t not in taken])
            line.append(self.name(walk + [token]))
        base, out = len(self.true), []
        for i, id in enumerate(line):
            parent = line[i - 1] if i else self.root
            out.append(DraftNode(id, parent, self.paths[id][-1], base + i))
        certain = self.paths[line[-1]]
        live = {i: p[len(certain) :] for i, p in self.paths.items() if p[: len(certain)] == certain}
        dropped = tuple(i for i in self.paths if i not in live and i not in line and i != self.root)
        self.true += certain
        self.paths, self.root = live, line[-1]
        return tuple(out), dropped

    def name(self, path: list[int]) -> int:
        self.paths[self.next_id] = path
        self.next_id += 1
        return self.next_id - 1

    def grow(self) -> DraftNode:
        """A child that the drafter would propose, or any token, under a live node."""
        parent = self.rng.choice(sorted(self.paths))
        path = self.paths[parent]
        taken = {p[-1] for p in self.paths.values() if len(p) == len(path) + 1 and p[:-1] == path}
        likely = [c.token for c in self.reference.children(self.true + path)[:2] if c.token not in taken]
        free = likely if likely and self.rng.random() < 0.7 else [t for t in range(VOCAB) if t not in taken]
        token = self.rng.choice(free)
        return DraftNode(self.name([*path, token]), parent, token, len(self.true) + len(path))

    def check(self, expansion: Expansion, width: int, depth: int) -> None:
        path = self.true + self.paths[expansion.id]
        assert len(expansion.levels) == depth
        for level in expansion.levels:
            agree(level, self.reference.children(path), width)
            path = [*path, level[0].token]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "warm", "filtered", "penalty", "counted"])
@pytest.mark.parametrize("loop", ["stepwise", "loop"])
@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_any_tree_ranks_as_the_plain_model_does(
    tiny: tuple[LlamaForCausalLM, Block], sampling: Sampling, loop: str, seed: int
) -> None:
    model, block = tiny
    rng = random.Random(seed)
    drafter = LmDrafter(block, context=128, scratch=64, loop=LOOPS[loop]())
    prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))]
    story = Story(drafter, Reference(model, sampling), prompt, rng)
    for _ in range(8):
        story.turn(width=rng.randint(1, 8), depth=rng.randint(1, 4))


@pytest.mark.parametrize("sampling", SAMPLINGS[:3], ids=["greedy", "warm", "filtered"])
def test_graphs_rank_any_tree_as_the_plain_model_does(tiny: tuple[LlamaForCausalLM, Block], sampling: Sampling) -> None:
    rng = random.Random(7)
    drafter = LmDrafter(tiny[1], context=128, scratch=64, loop=graphs())
    story = Story(drafter, Reference(tiny[0], sampling), [5, 2, 8], rng)
    for _ in range(12):
        story.turn(width=rng.randint(1, 8), depth=rng.choice([1, 3]))


def chain(drafter: LmDrafter, prompt: list[int], steps: int, depth: int, rng: random.Random) -> list[list[int]]:
    """Draft chains of `depth`, accept a random part of each and correct the next token; what was drafted."""
    drafter.begin(prompt, Sampling(temperature=0.8, seed=3))
    out, root, known, next_id, position = [], ROOT, (), 1, len(prompt)
    for _ in range(steps):
        levels = drafter.step(DraftStep(committed=known, expand=(root,), depth=depth, width=1))[0].levels
        drafted = [level[0].token for level in levels]
        out.append(drafted)
        line = [*drafted[: rng.randint(0, depth)], rng.randrange(VOCAB)]
        nodes = []
        for token in line:
            nodes.append(DraftNode(next_id, root, token, position))
            root, next_id, position = next_id, next_id + 1, position + 1
        known = tuple(nodes)
    return out


@pytest.mark.parametrize("loop", [False, True], ids=["stepwise", "loop"])
def test_a_chain_equals_token_by_token_after_rollbacks(tiny: tuple[LlamaForCausalLM, Block], loop: bool) -> None:
    model, block = tiny
    prompt, reference = [3, 1, 4, 1, 5], Reference(model, Sampling(temperature=0.8, seed=3))
    drafter = LmDrafter(block, context=128, scratch=64, loop=ChainLoop() if loop else None)
    drafted = chain(drafter, prompt, 12, 6, random.Random(1))
    rng, true = random.Random(1), list(prompt)
    for tokens in drafted:
        path = list(true)
        for token in tokens:
            assert token == reference.children(path)[0].token
            path.append(token)
        true += [*tokens[: rng.randint(0, 6)], rng.randrange(VOCAB)]


def test_its_first_choice_is_what_a_tail_with_the_same_weights_draws(tiny: tuple[LlamaForCausalLM, Block]) -> None:
    model, block = tiny
    sampling = Sampling(temperature=0.9, top_p=0.9, seed=11)
    drafter = LmDrafter(block, context=64)
    for start in range(20):
        prompt = [start, 2, 3 + start]
        drafter.begin(prompt, sampling)
        ((first, *_),) = drafter.step(DraftStep(expand=(ROOT,)))[0].levels
        drawn = pick(model(torch.tensor([prompt])).logits[:, -1].float(), [3], sampling)[0]
        assert first.token == drawn.token


def test_it_proposes_only_what_a_mask_lets_follow(tmp_path: Path) -> None:
    """Weighed among what may follow; also where it was computed before the mask was known, and with a short head."""
    save_tiny(tmp_path)
    for tokens in (None, torch.arange(3, VOCAB, 2)):
        block = tiny_block(tmp_path)
        if tokens is not None:
            block.narrow_head(tokens)
        drafter = LmDrafter(block, tokens, context=64)
        for known in (False, True):
            drafter.begin([5, 6, 7], Sampling(temperature=0.8, seed=1))
            node = DraftNode(1, ROOT, 9, 3)
            drafter.step(DraftStep(nodes=(node,), expand=(1,) if known else ()))
            mask = bytearray(-(-VOCAB // 8))
            for token in (3, 8, 9, 21):
                mask[token >> 3] |= 1 << (token & 7)
            (expansion,) = drafter.step(DraftStep(expand=(1,), width=8, allowed={1: Allowed(-1, bytes(mask))}))
            found = {child.token for level in expansion.levels for child in level}
            assert found <= {3, 8, 9, 21}
            if not known:
                assert found == ({3, 8, 9, 21} if tokens is None else {3, 9, 21})
                assert sum(child.confidence for child in expansion.levels[0]) == pytest.approx(1.0, abs=1e-4)


def test_a_short_head_scores_its_tokens_only(tmp_path: Path) -> None:
    model = save_tiny(tmp_path)
    tokens = torch.arange(3, VOCAB, 2)
    block = tiny_block(tmp_path)
    block.narrow_head(tokens)
    drafter = LmDrafter(block, tokens, context=64)
    reference = Reference(model, Sampling(temperature=0.8, seed=1), tokens)
    drafter.begin([5, 6, 7], reference.ranker.sampling)
    (level,) = drafter.step(DraftStep(expand=(ROOT,), width=8))[0].levels
    agree(level, reference.children([5, 6, 7]), 8)
    assert {c.token for c in level} <= set(tokens.tolist())


def test_nothing_is_proposed_beyond_the_context(tiny: tuple[LlamaForCausalLM, Block]) -> None:
    drafter = LmDrafter(tiny[1], context=8, scratch=16)
    drafter.begin(list(range(6)), Sampling())
    levels = drafter.step(DraftStep(expand=(ROOT,), depth=6))[0].levels
    assert len(levels) == 2
    drafter.begin(list(range(12)), Sampling())
    assert drafter.step(DraftStep(expand=(ROOT,))) == [Expansion(ROOT, ())]


@settings(max_examples=200)
@given(size=st.integers(1, 200), head=st.integers(0, 199), spare=st.integers(0, 200), length=st.integers(1, 2000))
def test_a_window_reads_beginning_and_end(size: int, head: int, spare: int, length: int) -> None:
    if head >= size:
        with pytest.raises(ValueError, match="head < size"):
            TextWindow(size, head, size + AHEAD + spare)
        return
    window = TextWindow(size, head, size + AHEAD + spare)
    before, behind = window.read(length)
    held = [*range(before), *range(behind, length)]
    assert held == sorted(set(held)) and len(held) == min(size, length) and held[-1] == length - 1
    assert held[:head] == list(range(min(head, length)))
    assert not window.full(len(held)), "what was read leaves room to go on"
    assert window.full(window.context), "it moves on before the cache is full"


@given(context=st.integers(2 * AHEAD, 100_000))
def test_what_is_read_fits_the_cache_that_a_drafter_may_have(context: int) -> None:
    window = reading(context)
    assert window.context <= context and window.size <= SIZE
    assert window.context - window.size >= min(SIZE, context // 2), "it moves on after about as many tokens as it reads"


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("loop", ["stepwise", "loop"])
def test_of_a_long_text_beginning_and_end_are_read(tiny: tuple[LlamaForCausalLM, Block], warm: bool, loop: str) -> None:
    """As the model would read them alone, with the noise of the true positions, through drafts, corrections and several
    moves of the window."""
    model, block = tiny
    sampling = Sampling(temperature=0.8, seed=3) if warm else Sampling()
    window, rng, text = TextWindow(12, 3, 48), random.Random(4), list(range(40))
    drafter = LmDrafter(block, context=48, scratch=64, window=window, loop=LOOPS[loop]())
    drafter.begin(text, sampling)
    root, known, next_id, held, moves = ROOT, tuple[DraftNode, ...](), 1, 12, 0
    while moves < 3:
        if window.full(held):
            held, moves = 12, moves + 1
        read = text[:3] + text[len(text) - held + 3 :]
        (expansion,) = drafter.step(DraftStep(committed=known, expand=(root,), depth=3, width=4))
        drafted = list[int]()
        for level in expansion.levels:
            logits = model(torch.tensor([[*read, *drafted]])).logits[:, -1].float()
            assert level[0].token == pick(logits, [len(text) + len(drafted)], sampling)[0].token
            drafted.append(level[0].token)
        assert len(drafted) == 3
        line, known = [*drafted[: rng.randint(0, 3)], rng.randrange(VOCAB)], ()
        for token in line:
            known += (DraftNode(next_id, root, token, len(text)),)
            root, next_id = next_id, next_id + 1
            text.append(token)
        held += len(line)


def test_full_slots_leave_ids_unserved_until_some_are_dropped(tiny: tuple[LlamaForCausalLM, Block]) -> None:
    drafter = LmDrafter(tiny[1], context=64, scratch=8)
    drafter.begin([1, 2], Sampling())
    nodes = tuple(DraftNode(i, ROOT, 10 + i, 2) for i in range(1, 11))
    served = {e.id for e in drafter.step(DraftStep(nodes=nodes, expand=tuple(range(1, 11))))}
    assert len(served) == 8
    left = tuple({*range(1, 11)} - served)
    assert {e.id for e in drafter.step(DraftStep(dropped=tuple(served), expand=left))} == set(left)


@pytest.mark.parametrize("sampling", SAMPLINGS[:3], ids=["greedy", "warm", "filtered"])
def test_graphs_are_made_at_the_second_use_and_then_replayed(
    tiny: tuple[LlamaForCausalLM, Block], sampling: Sampling
) -> None:
    cuda, events = FakeCuda(home=1), list[Event]()
    drafter = LmDrafter(tiny[1], context=64, scratch=64, loop=graphs(cuda, events.append))
    plain = LmDrafter(tiny[1], context=64, scratch=64)
    made = []
    for _ in range(4):
        for each in (drafter, plain):
            each.begin([1, 2, 3], sampling)
        found, expected = (d.step(DraftStep(expand=(ROOT,), depth=5))[0] for d in (drafter, plain))
        assert [level[0].token for level in found.levels] == [level[0].token for level in expected.levels]
        made.append((cuda.captures, cuda.replays))
    assert made == [(0, 0), (2, 0), (2, 1), (2, 2)]  # one of them is the pool's anchor
    assert events == []


@pytest.mark.parametrize(
    ("error", "again"),
    [(torch.OutOfMemoryError("CUDA out of memory."), True), (RuntimeError("operation not permitted"), False)],
)
def test_a_capture_that_fails_warns_once_and_drafts_on(
    tiny: tuple[LlamaForCausalLM, Block], monkeypatch: pytest.MonkeyPatch, error: Exception, again: bool
) -> None:
    events, now = list[Event](), [0.0]
    monkeypatch.setattr("draft.loop.time.monotonic", lambda: now[0])
    cuda = FakeCuda(home=1)
    drafter = LmDrafter(tiny[1], context=64, scratch=64, loop=graphs(cuda, events.append))
    plain = LmDrafter(tiny[1], context=64, scratch=64)
    for _ in range(8):
        now[0] += 1000.0
        cuda.fail = error
        for each in (drafter, plain):
            each.begin([1, 2, 3], Sampling())
        found, expected = (d.step(DraftStep(expand=(ROOT,), depth=4))[0] for d in (drafter, plain))
        assert [level[0].token for level in found.levels] == [level[0].token for level in expected.levels]
    cuda.fail, now[0] = None, now[0] + 1000.0
    drafter.begin([1, 2, 3], Sampling())
    drafter.step(DraftStep(expand=(ROOT,), depth=4))
    assert [e.level for e in events if isinstance(e, Notice)] == ["warning"]
    assert (drafter.loop is not None and drafter.loop.trust.given_up) is not again
    assert bool(cuda.captures > 8) == again


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "mistral", "cohere2"])
@pytest.mark.parametrize("loop", ["loop", "graphs"])
def test_models_with_windows_draft_in_loops_what_they_draft_step_by_step(family: str, loop: str) -> None:
    checkpoint = MemoryCheckpoint(random_model(tiny_config(family)))
    block = load_block(checkpoint, 0, 6, torch.device("cpu"), torch.float32, exact=False)  # by torch, as on a GPU
    sides = [LmDrafter(block, context=96, scratch=64, loop=LOOPS[kind]()) for kind in (loop, "stepwise")]
    drafted = [chain(side, [3, 1, 4, 1, 5, 9, 2, 6], 10, 6, random.Random(2)) for side in sides]
    assert drafted[0] == drafted[1]
    assert sides[0].loop is not None and not sides[0].loop.broken


def test_a_model_whose_steps_are_not_alike_drafts_level_by_level(
    tiny: tuple[LlamaForCausalLM, Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list[Event]()
    loop = ChainLoop(report=events.append)
    drafter, plain = (LmDrafter(tiny[1], context=128, scratch=64, loop=each) for each in (loop, None))

    def refuse(*args: object) -> torch.Tensor:
        raise RuntimeError("this layer reads its rows on the host")

    monkeypatch.setattr(loop, "_loop", refuse)
    drafted = [chain(side, [3, 1, 4, 1, 5], 8, 5, random.Random(2)) for side in (drafter, plain)]
    assert drafted[0] == drafted[1] and loop.broken
    assert ["level by level" in e.text for e in events if isinstance(e, Notice)] == [True]


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", SAMPLINGS[:3], ids=["greedy", "warm", "filtered"])
def test_graphs_draft_what_single_steps_draft_on_a_gpu(tmp_path: Path, sampling: Sampling) -> None:
    model = save_tiny(tmp_path).to("cuda")
    events: list[Event] = []
    for seed in range(5):
        rng = random.Random(seed)
        drafter = LmDrafter(tiny_block(tmp_path, "cuda"), context=128, scratch=64, loop=ChainLoop(report=events.append))
        story = Story(drafter, Reference(model.cpu(), sampling), [1, 2, 3], rng)
        for _ in range(8):
            story.turn(width=8, depth=rng.randint(1, 6))
    assert events == []
