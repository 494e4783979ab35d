"""A small causal language model as drafter.

The whole model runs through the same slot-addressed block that stages use, with a cache of its own: tree branches,
chains and rollbacks are rows that name slots, so several leaves are expanded in one forward and forgetting a branch
costs nothing. Sampling with temperature adds the noise that the tail will add, so both rank alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

import torch

from draft.base import Child, DraftStep, Expansion
from draft.cached_tokens import CachedTokens
from draft.drafted import Token
from draft.ranker import Ranker
from draft.window import TextWindow
from swarm.model.job import Job
from swarm.model.kvcache import HoldsLayers, KVPool
from swarm.model.rows import Commits, Layout, no_commits
from swarm.model.sampler import Sampling

if TYPE_CHECKING:
    from draft.loop import ChainLoop
    from swarm.model.block import Block

PREFILL_ROWS = 256
"""Prompt rows per forward: enough to use the device well, few enough to keep the attention scores small."""


class WholeModel(HoldsLayers, Protocol):
    """All layers of a small model: a `Block` of transformers' classes, or a `MadeBlock`."""

    head: bool
    tail: bool
    vocab_size: int

    def forward(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        """Per job float32 logits [rows with want, vocab_size]."""


class LmDrafter:
    """Implements `draft.base.Drafter` with a block that holds all layers of a small model.

    tokens    token ids that the block's head scores, ascending (int64 [v]); None: the whole vocabulary
    context   positions that its cache holds; beyond them nothing is proposed
    window    what is read of longer texts, which may then have any length; None: all
    scratch   drafted tokens that are held at once, a multiple of 8
    loop      computes whole chains on the device (see draft.loop); None: level by level
    """

    name = "lm"

    def __init__(
        self,
        block: WholeModel,
        tokens: torch.Tensor | None = None,
        *,
        context: int = 4096,
        scratch: int = 256,
        window: TextWindow | None = None,
        loop: ChainLoop | None = None,
    ) -> None:
        if not (block.head and block.tail):
            raise ValueError("a drafter needs all layers of its model in one block")
        self.block = block
        self.loop = loop
        self.window = window
        self._tokens = tokens
        self.layout = Layout(scratch, context)
        self._pool = KVPool(block, 1 << 62)
        self._kv = self._pool.open(self.layout, block.first, block.last)
        self._kv.prepare()
        logits_on = block.device if block.gpu is None or block.gpu.cuda.has_float64 else torch.device("cpu")
        self._ranker = Ranker(block.vocab_size, tokens, logits_on)
        if loop is not None:
            loop.attach(cast("Block", block), self._kv, self._ranker)
        self._text = CachedTokens(self.layout, Token(None, 0, 0))
        self._certain: list[int] = []

    def another(self) -> LmDrafter:
        """A second drafter over the same weights, for a run beside this one's."""
        loop = self.loop.another() if self.loop else None
        context, scratch = self.layout.context, self.layout.scratch
        return LmDrafter(self.block, self._tokens, context=context, scratch=scratch, window=self.window, loop=loop)

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start a run: computes what is read of the prompt. One beyond the context is accepted, and nothing is then
        proposed."""
        self._ranker.begin(prompt, sampling)
        root = Token(None, prompt[-1], len(prompt) - 1)
        reserved = self.loop.reserved if self.loop else 0
        self._text = CachedTokens(self.layout, root, reserved)
        self._certain = list(prompt)
        if self.window is not None or len(prompt) <= self.layout.context:
            self._read()

    def _read(self) -> None:
        """Fill the cache with what is read of the certain text, and rank what follows it."""
        text, length = self._text, len(self._certain)
        head, rest = (length, length) if self.window is None else self.window.read(length)
        held = self._certain[:head] + self._certain[rest:]
        text.move_to(length - len(held))
        certain = [Token(None, token, text.first + i) for i, token in enumerate(held[:-1])] + [text.root]
        for start in range(0, len(certain), PREFILL_ROWS):
            logits = self._forward(no_commits(), certain[start : start + PREFILL_ROWS], [])
        self._rank([text.root], logits)

    def step(self, step: DraftStep) -> list[Expansion]:
        """See `Drafter.step`. Raises KeyError for an id that nobody told of."""
        text = self._text
        for node in step.committed:
            self._ranker.saw(node.token)
            self._certain.append(node.token)
        text.apply(step)
        if self.window is not None and self.window.full(text.place_of(text.root) + 1):
            self._read()
        self._ranker.forget_before(text.root.position)
        for wanted in step.expand:
            text.by_id[wanted].allowed = step.allowed.get(wanted)
        served, out = self._make_room(step), list[Expansion]()
        inside = [t for t in served if text.place_of(t) + 1 < self.layout.context]
        self._compute(inside)
        levels = {id(t): [_possible(t)[: step.width]] for t in inside if t.ranks is not None}
        if step.depth > 1:
            self._go_on(inside, levels, step)
        for token in served:
            out.append(Expansion(token.id, tuple(levels.get(id(token), ()))))
        return out

    def _make_room(self, step: DraftStep) -> list[Token]:
        """The tokens to expand for which there are slots, ancestors and later levels included."""
        text, served, planned = self._text, list[Token](), set[int]()
        if any(len(text.missing(text.by_id[i])) > text.free for i in step.expand) or (
            text.free < len(step.expand) * step.depth
        ):
            text.forget_nameless()
        for node in step.expand:
            token = text.by_id[node]
            new = [t for t in text.missing(token) if id(t) not in planned]
            if len(planned) + len(new) <= text.free:
                planned.update(id(t) for t in new)
                served.append(token)
        return served

    def _compute(self, wanted: Sequence[Token]) -> None:
        """Make sure that every wanted token has its children ranked: one forward for all that is missing."""
        text, todo = self._text, list[Token]()
        for token in wanted:
            for missing in text.missing(token):
                if missing.slot < 0:
                    text.place(missing)
                    todo.append(missing)
        waiting = text.take_waiting() if text.place_of(text.root) < self.layout.context else []
        if not todo and not waiting:
            return
        if self.loop is not None and self.loop.fits(len(waiting) + len(todo), 1) and self._static(waiting, todo):
            return
        logits = self._forward(text.take_commits(), waiting, todo)
        self._rank(waiting[-1:] + todo, logits)

    def _static(self, waiting: list[Token], todo: list[Token]) -> bool:
        """Compute one level on the device; whether that could be done."""
        assert self.loop is not None
        self._kv.commit(self._text.take_commits())
        levels = self.loop.run(self._text.rows(waiting, todo), [], self._text.first)
        if levels is None:
            return False
        for token, ranks in zip(waiting + todo, levels[0], strict=True):
            token.ranks = ranks
        return True

    def _go_on(self, starts: Sequence[Token], levels: dict[int, list[tuple[Child, ...]]], step: DraftStep) -> None:
        """Levels 2 to `step.depth` below each start: first child after first child."""
        tips = {id(start): start for start in starts if _possible(start)}
        for level in range(1, step.depth):
            for key, tip in list(tips.items()):
                ranks = _possible(tip)
                if not ranks or self._text.place_of(tip) + 2 >= self.layout.context:
                    del tips[key]
                else:
                    tips[key] = tip.child(ranks[0].token)
            new = [tip for tip in tips.values() if tip.slot < 0]
            left = min(
                [step.depth - level, *(self.layout.context - 1 - self._text.place_of(tip) for tip in tips.values())]
            )
            if not tips or len(new) > self._text.free:
                return
            if self.loop is not None and left > 1 and new and self.loop.fits(len(new), left):
                self._chain(self.loop, new, left)
            self._compute(list(tips.values()))
            for key, tip in tips.items():
                levels[key].append((tip.ranks or ())[: step.width])

    def _chain(self, loop: ChainLoop, starts: list[Token], steps: int) -> None:
        """Compute `starts` and the first child after first child behind them, `steps` tokens each, on the device."""
        text = self._text
        if text.free < len(starts) * steps:
            return
        self._kv.commit(text.take_commits())
        for start in starts:
            text.place(start)
        later = [[text.take_slot() for _ in starts] for _ in range(steps - 1)]
        levels = loop.run(text.rows([], starts), later, text.first)
        if levels is None:
            for slot in (slot for slots in later for slot in slots):
                text.give_slot(slot)
            for start in starts:
                text.give_slot(start.slot)
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
                    text.give_slot(slot)
                else:
                    child.slot, child.ranks = slot, ranked[i]
                tips[i] = child or tips[i]

    def _forward(self, commits: Commits, waiting: list[Token], placed: list[Token]) -> torch.Tensor:
        """Logits float32 [1 if waiting + len(placed), head's vocabulary]."""
        rows = self._text.rows(waiting, placed)
        return self.block.forward([Job(self._kv, commits, rows, None)])[0]

    def _rank(self, tokens: Sequence[Token], logits: torch.Tensor) -> None:
        paths = [token.drafted() for token in tokens] if self._ranker.needs_paths else None
        logits = self._ranker.masked(logits, [token.allowed for token in tokens])
        ranked = self._ranker.rank(logits, [token.position + 1 for token in tokens], paths)
        for token, ranks in zip(tokens, ranked, strict=True):
            token.ranks = ranks


def _possible(token: Token) -> tuple[Child, ...]:
    """Its children without those that may not follow; it may have been computed before that was known."""
    allowed, ranks = token.allowed, token.ranks or ()
    return ranks if allowed is None else tuple(child for child in ranks if allowed.allows(child.token))
