"""Letting the target speak: batches of scripts are played with one model, and its best logits are written down."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, StaticCache

from draft.chat import Script
from draft.corpus import TOP, Sample

MIN_VARIETY = 14
"""A sequence whose last 48 tokens have fewer distinct ones is caught in a loop and is ended."""


@dataclass
class _Play:
    """One script under way."""

    script: Script
    tokens: list[int]
    temperature: float
    forced: list[int] = field(default_factory=list)
    turns: list[tuple[tuple[int, ...], float]] = field(default_factory=list)
    ids: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    done: bool = False

    def take(self, token: int, ids: torch.Tensor, logits: torch.Tensor, ends: frozenset[int]) -> int:
        """Write a position down; returns the token that comes next (a forced one where the script says so)."""
        was_forced = bool(self.forced)
        token = self.forced.pop(0) if was_forced else token
        self.ids.append(ids)
        self.logits.append(logits)
        self.tokens.append(token)
        made = len(self.ids)
        if token in ends and not was_forced:
            if self.turns:
                tokens, self.temperature = self.turns.pop(0)
                self.forced = list(tokens)
            else:
                self.done = True
        elif made > 64 and made % 16 == 0 and len(set(self.tokens[-48:])) < MIN_VARIETY:
            self.done = True
        if made == self.script.settle:
            self.temperature = 0.0
        return token

    def sample(self) -> Sample:
        script = self.script
        ids, logits = torch.stack(self.ids).int(), torch.stack(self.logits).half()
        tokens = torch.tensor(self.tokens, dtype=torch.int32)
        return Sample(tokens, len(script.prompt) - 1, ids, logits, script.register, script.kind, script.greedy)


def _begin(script: Script) -> _Play:
    turns = [(turn.tokens, turn.temperature) for turn in script.turns]
    return _Play(script, list(script.prompt), script.temperature, turns=turns)


@torch.inference_mode()
def play(model: PreTrainedModel, scripts: Sequence[Script], ends: frozenset[int], new: int, seed: int) -> list[Sample]:
    """Play scripts as one batch, at most `new` tokens each. The draws depend on `seed`; so do the batch's samples."""
    device = model.device
    noise = torch.Generator(device).manual_seed(seed)
    plays = [_begin(script) for script in scripts]
    width = max(len(p.tokens) for p in plays)
    inputs = torch.zeros(len(plays), width, dtype=torch.long)
    visible = torch.zeros(len(plays), width + new, dtype=torch.long)
    for i, item in enumerate(plays):
        inputs[i, width - len(item.tokens) :] = torch.tensor(item.tokens)
        visible[i, width - len(item.tokens) :] = 1
    inputs, visible = inputs.to(device), visible.to(device)
    place = (visible.cumsum(1) - 1).clamp(min=0)
    cache = StaticCache(config=model.config, max_cache_len=width + new)
    low = 0
    for high in range(width, width + new):
        out = model(
            input_ids=inputs,
            attention_mask=visible[:, :high],
            position_ids=place[:, low:high],
            past_key_values=cache,
            logits_to_keep=1,
        )
        inputs = _advance(plays, out.logits[:, -1].float(), ends, noise).to(device)
        low = high
        if all(p.done for p in plays):
            break
    return [p.sample() for p in plays]


def _advance(plays: list[_Play], logits: torch.Tensor, ends: frozenset[int], noise: torch.Generator) -> torch.Tensor:
    """Draw a token per row from the best logits [b, vocab] and let unfinished plays take it. Next inputs [b, 1]."""
    top, ids = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    if top.shape[-1] < TOP:  # a tiny vocabulary: filled up with impossible ids
        short = TOP - top.shape[-1]
        top = torch.nn.functional.pad(top, (0, short), value=-1e4)
        ids = torch.nn.functional.pad(ids, (0, short))
    warm = torch.tensor([p.temperature for p in plays], device=logits.device)[:, None]
    gumbel = -torch.empty_like(top).exponential_(generator=noise).log()
    choice = torch.where(warm > 0, top / warm.clamp(min=1e-3) + gumbel, top).argmax(-1, keepdim=True)
    drawn = ids.gather(1, choice)[:, 0].tolist()
    ids, top = ids.cpu(), top.cpu()
    following = [0 if p.done else p.take(drawn[i], ids[i], top[i], ends) for i, p in enumerate(plays)]
    return torch.tensor(following)[:, None]


def length_groups(scripts: Sequence[Script], size: int, rng: random.Random) -> list[list[Script]]:
    """Groups of `size` scripts with prompts of like length, in random order; a rest that is too small is left out."""
    ordered = sorted(scripts, key=lambda s: len(s.prompt))
    groups = [ordered[i : i + size] for i in range(0, len(ordered) - size + 1, size)]
    rng.shuffle(groups)
    return groups
