"""General text that a drafter must not forget while it learns from one user's runs.

A made drafter carries some of what its target said over many kinds of prompts: `general/mix` is mixed into what it
learns from (kinds that it was made with), `general/guard` is measured on alone (kinds that were held out then). So
neither needs the target's weights. A drafter made without it has the prompts themselves: what it says of the text of
prompts of many kinds is kept by its own word, and how often it says the next token of held-out kinds is measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from draft import prompts
from draft.corpus import Sample, batches, load_samples, recorded, save_samples
from draft.student import Student
from swarm.base.errors import UsageError
from swarm.model.text.tokenizer import Tokenizer

FOLDER, MIX, GUARD = "general", "mix.safetensors", "guard.safetensors"
KEPT = 8
"""Of the target's likeliest tokens at a position."""
MIX_POSITIONS, GUARD_POSITIONS = 20_000, 6_000


@dataclass(frozen=True)
class GeneralText:
    """mix: to train on; guard: to measure on; said: whose words they are, for people."""

    mix: list[Sample]
    guard: list[Sample]
    said: str


def write_general(folder: Path, mix: Sequence[Sample], guard: Sequence[Sample]) -> None:
    """Put some of what a target said beside the drafter that was trained on it (`mix`) and measured on it (`guard`)."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, samples, most in ((MIX, mix, MIX_POSITIONS), (GUARD, guard, GUARD_POSITIONS)):
        if samples:
            save_samples(folder / FOLDER / name, _some(samples, most))


def read_general(folder: Path) -> GeneralText | None:
    """What lies beside a drafter; None: nothing. Raises UsageError for a damaged file."""
    where = folder / FOLDER
    if not (where / GUARD).is_file() or not (where / MIX).is_file():
        return None
    try:
        return GeneralText(load_samples(where / MIX), load_samples(where / GUARD), "the target's words on many kinds")
    except Exception as error:  # safetensors, JSON and shapes each have errors of their own
        raise UsageError(f"cannot read the general text in {where}: {error}; distil the drafter again") from error


def prompts_text(tokenizer: Tokenizer, mix: int = 8000, guard: int = GUARD_POSITIONS) -> GeneralText:
    """Of prompts alone, at least so many positions each: the same every time."""
    rng = random.Random(5)
    said = "the text of prompts of many kinds: this drafter carries none of its target's"
    return GeneralText(_of(tokenizer, prompts.draw, mix, rng), _of(tokenizer, prompts.held_out, guard, rng), said)


@torch.no_grad()
def in_its_own_words(student: Student, samples: Sequence[Sample]) -> list[Sample]:
    """The same text with what the student would say there in the target's place."""
    out = list[Sample]()
    for batch in batches(samples, 2048, random.Random(0)):
        hidden = student(batch.inputs, batch.rows)
        top, places = (hidden.to(student.head.dtype) @ student.head.T).float().topk(KEPT, dim=-1)
        row = 0
        for sample in batch.samples:
            rows = slice(row, row := row + len(sample.ids))
            out.append(replace(sample, ids=student.head_tokens[places[rows]].int(), logits=top[rows].half()))
    return out


def _some(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Drawn, the same each time, of at most so many positions but at least one."""
    drawn = random.Random(3).sample(list(samples), len(samples))
    out = list[Sample]()
    for sample in drawn:
        if out and recorded(out) + len(sample.ids) > most:
            break
        ids, logits = sample.ids[:, :KEPT].contiguous(), sample.logits[:, :KEPT].contiguous()
        out.append(replace(sample, ids=ids, logits=logits))
    return out


def _of(
    tokenizer: Tokenizer, draw: Callable[[random.Random], prompts.Prompt], most: int, rng: random.Random
) -> list[Sample]:
    out, held = list[Sample](), 0
    while held < most:
        prompt = draw(rng)
        tokens = torch.tensor(tokenizer(prompt.user, add_special_tokens=False)["input_ids"][:256], dtype=torch.int32)
        if len(tokens) < 4:
            continue
        following = tokens[1:, None]
        out.append(
            Sample(tokens, 0, following, torch.zeros(following.shape).half(), prompt.register, prompt.kind, True)
        )
        held += len(following)
    return out
