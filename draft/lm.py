"""A small causal language model as drafter.

The whole model runs through the same slot-addressed block that stages use, with a cache of its own: tree branches,
chains and rollbacks are rows that name slots, so several leaves are expanded in one forward and forgetting a branch
costs nothing. Sampling with temperature adds the noise that the tail will add, so both rank alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from draft.base import Child, DraftStep, Expansion
from draft.lm_nodes import Guess, Guesses
from draft.loop import ChainLoop
from draft.ranker import Ranker
from swarm.model.block import Block, Job
from swarm.model.kvcache import KVPool
from swarm.model.rows import Commits, Layout, no_commits
from swarm.model.sampler import Sampling

PREFILL_ROWS = 256
"""Prompt rows per forward: enough to use the device well, few enough to keep the attention scores small."""


class LmDrafter:
    """Implements `draft.base.Drafter` with a block that holds all layers of a small model.

    tokens    token ids that the block's head scores, ascending (int64 [v]); None: the whole vocabulary
    context   positions that a run may have; beyond them nothing is proposed
    scratch   drafted tokens that are held at once, a multiple of 8
    loop      computes whole chains on the device (see draft.loop); None: level by level
    """

    name = "lm"

    def __init__(
        self,
        block: Block,
        tokens: torch.Tensor | None = None,
        *,
        context: int = 4096,
        scratch: int = 256,
        loop: ChainLoop | None = None,
    ) -> None:
        if not (block.head and block.tail):
            raise ValueError("a drafter needs all layers of its model in one block")
        self.block = block
        self.loop = loop
        self._tokens = tokens
        self.layout = Layout(scratch, context)
        self._pool = KVPool(block, 1 << 62)
        self._kv = self._pool.open(self.layout, block.first, block.last)
        self._kv.prepare()
        logits_on = block.device if block.gpu is None or block.gpu.cuda.has_float64 else torch.device("cpu")
        self._ranker = Ranker(block.vocab_size, tokens, logits_on)
        if loop is not None:
            loop.attach(block, self._kv, self._ranker)
        self._guesses = Guesses(self.layout, Guess(None, 0, 0))

    def another(self) -> LmDrafter:
        """A second drafter over the same weights, for a run beside this one's."""
        loop = self.loop.another() if self.loop else None
        return LmDrafter(self.block, self._tokens, context=self.layout.context, scratch=self.layout.scratch, loop=loop)

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start a run: computes the prompt. A prompt beyond the context is accepted, and nothing is then proposed."""
        self._ranker.begin(prompt, sampling)
        root = Guess(None, prompt[-1], len(prompt) - 1)
        reserved = self.loop.reserved if self.loop else 0
        self._guesses = Guesses(self.layout, root, reserved)
        if len(prompt) > self.layout.context:
            return
        certain = [Guess(None, token, i) for i, token in enumerate(prompt[:-1])] + [root]
        for start in range(0, len(certain), PREFILL_ROWS):
            part = certain[start : start + PREFILL_ROWS]
            logits = self._forward(no_commits(), part, [])
        self._rank([root], logits)

    def step(self, step: DraftStep) -> list[Expansion]:
        """See `Drafter.step`. Raises KeyError for an id that nobody told of."""
        guesses = self._guesses
        for node in step.committed:
            self._ranker.saw(node.token)
        guesses.apply(step)
        self._ranker.forget_before(guesses.root.position)
        for wanted in step.expand:
            guesses[wanted].mask = step.masks.get(wanted)
        served, out = self._make_room(step), list[Expansion]()
        inside = [g for g in served if g.position + 1 < self.layout.context]
        self._compute(inside)
        levels = {id(g): [_possible(g)[: step.width]] for g in inside if g.ranks is not None}
        if step.depth > 1:
            self._go_on(inside, levels, step)
        for guess in served:
            out.append(Expansion(guess.id, tuple(levels.get(id(guess), ()))))
        return out

    def _make_room(self, step: DraftStep) -> list[Guess]:
        """The guesses to expand for which there are slots, ancestors and later levels included."""
        guesses, served, planned = self._guesses, list[Guess](), set[int]()
        if any(len(guesses.missing(guesses[i])) > guesses.free for i in step.expand) or (
            guesses.free < len(step.expand) * step.depth
        ):
            guesses.forget_nameless()
        for node in step.expand:
            guess = guesses[node]
            new = [g for g in guesses.missing(guess) if id(g) not in planned]
            if len(planned) + len(new) <= guesses.free:
                planned.update(id(g) for g in new)
                served.append(guess)
        return served

    def _compute(self, wanted: Sequence[Guess]) -> None:
        """Make sure that every wanted guess has its children ranked: one forward for all that is missing."""
        guesses, todo = self._guesses, list[Guess]()
        for guess in wanted:
            for missing in guesses.missing(guess):
                if missing.slot < 0:
                    guesses.place(missing)
                    todo.append(missing)
        waiting = guesses.take_waiting() if guesses.root.position < self.layout.context else []
        if not todo and not waiting:
            return
        if self.loop is not None and self.loop.fits(len(waiting) + len(todo), 1) and self._static(waiting, todo):
            return
        logits = self._forward(guesses.take_commits(), waiting, todo)
        self._rank(waiting[-1:] + todo, logits)

    def _static(self, waiting: list[Guess], todo: list[Guess]) -> bool:
        """Compute one level on the device; whether that could be done."""
        assert self.loop is not None
        self._kv.commit(self._guesses.take_commits())
        levels = self.loop.run(self._guesses.rows(waiting, todo), [])
        if levels is None:
            return False
        for guess, ranks in zip(waiting + todo, levels[0], strict=True):
            guess.ranks = ranks
        return True

    def _go_on(self, starts: Sequence[Guess], levels: dict[int, list[tuple[Child, ...]]], step: DraftStep) -> None:
        """Levels 2 to `step.depth` below each start: first child after first child."""
        tips = {id(start): start for start in starts if _possible(start)}
        for level in range(1, step.depth):
            for key, tip in list(tips.items()):
                ranks = _possible(tip)
                if not ranks or tip.position + 2 >= self.layout.context:
                    del tips[key]
                else:
                    tips[key] = tip.child(ranks[0].token)
            new = [tip for tip in tips.values() if tip.slot < 0]
            left = min([step.depth - level, *(self.layout.context - 1 - tip.position for tip in tips.values())])
            if not tips or len(new) > self._guesses.free:
                return
            if self.loop is not None and left > 1 and new and self.loop.fits(len(new), left):
                self._chain(self.loop, new, left)
            self._compute(list(tips.values()))
            for key, tip in tips.items():
                levels[key].append((tip.ranks or ())[: step.width])

    def _chain(self, loop: ChainLoop, starts: list[Guess], steps: int) -> None:
        """Compute `starts` and the first child after first child behind them, `steps` tokens each, on the device."""
        guesses = self._guesses
        if guesses.free < len(starts) * steps:
            return
        self._kv.commit(guesses.take_commits())
        for start in starts:
            guesses.place(start)
        later = [[guesses.take_slot() for _ in starts] for _ in range(steps - 1)]
        levels = loop.run(guesses.rows([], starts), later)
        if levels is None:
            for slot in (slot for slots in later for slot in slots):
                guesses.give_slot(slot)
            for start in starts:
                guesses.give_slot(start.slot)
                start.slot = -1
            return
        tips = list(starts)
        for tip, ranks in zip(tips, levels[0], strict=True):
            tip.ranks = ranks
        for slots, ranked in zip(later, levels[1:], strict=True):
            for i, slot in enumerate(slots):
                known = tips[i].ranks
                child = tips[i].child(known[0].token) if known else None
                if child is None or child.slot >= 0:
                    guesses.give_slot(slot)
                else:
                    child.slot, child.ranks = slot, ranked[i]
                tips[i] = child or tips[i]

    def _forward(self, commits: Commits, waiting: list[Guess], guesses: list[Guess]) -> torch.Tensor:
        """Logits float32 [1 if waiting + len(guesses), head's vocabulary]."""
        rows = self._guesses.rows(waiting, guesses)
        return self.block.forward([Job(self._kv, commits, rows, None)])[0]

    def _rank(self, guesses: Sequence[Guess], logits: torch.Tensor) -> None:
        paths = [self._path_tokens(g) for g in guesses] if self._ranker.needs_paths else None
        logits = self._ranker.masked(logits, [g.mask for g in guesses])
        ranked = self._ranker.rank(logits, [g.position + 1 for g in guesses], paths)
        for guess, ranks in zip(guesses, ranked, strict=True):
            guess.ranks = ranks

    def _path_tokens(self, guess: Guess) -> list[int]:
        tokens, walk = list[int](), guess
        while walk.parent is not None:
            tokens.append(walk.token)
            walk = walk.parent
        return tokens


def _possible(guess: Guess) -> tuple[Child, ...]:
    """Its children without those that may not follow; it may have been computed before that was known."""
    mask, ranks = guess.mask, guess.ranks or ()
    if mask is None:
        return ranks
    return tuple(
        child for child in ranks if child.token < 8 * len(mask) and mask[child.token >> 3] >> (child.token & 7) & 1
    )
