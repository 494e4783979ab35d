"""What a target is asked while its outputs are collected: several hundred kinds of tasks crossed with many subjects.

A drafter knows only the kinds of text that it saw: one trained on a dozen phrasings agreed with its target 0.87 of
the time on those and 0.42 on others. So variety comes first. Three sources are mixed (`draw`):

- self-talk: the target itself goes on from a chat header and at most a few words, so that it asks its own questions
  and then answers them; the widest source, since it is as wide as the target's own training;
- tasks: templates of this file with slots filled from `draft.words`, over passages and code made up on the spot;
- raw text: continuation without any chat header, from at most a few words.

Some kinds are held out: never trained on, used only to measure (`held_out`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from draft import samples
from draft.kinds import HELD_OUT, TRAIN
from draft.words import WORDS

Source = Literal["self", "task", "raw"]
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Prompt:
    """One thing to ask.

    kind       name of the template (or "self", "raw")
    register   "chat", "prose", "code" or "edit": the class that numbers are reported for
    system     system message, or None for the tokenizer's own default; unused when raw
    user       the user's message; with `source` "self" only its first words, perhaps none; with "raw" the bare opening
    follow     later user messages, asked after each answer (empty: the target makes them up when "self")
    """

    source: Source
    kind: str
    register: str
    system: str | None
    user: str
    follow: tuple[str, ...] = ()


def fill(template: str, rng: random.Random) -> str:
    """Fill every {slot}: a list of `WORDS`, a made-up {passage}, {code}, {log}, {json} or {csv}, or {n}, a number."""

    def one(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in _MADE:
            return _MADE[name](rng)
        return rng.choice(WORDS[name])

    return SLOT.sub(one, template)


def draw(rng: random.Random) -> Prompt:
    """A prompt to train on: half self-talk, a third tasks, the rest raw text."""
    pick = rng.random()
    if pick < 0.50:
        opening = "" if rng.random() < 0.25 else rng.choice(WORDS["start"])
        return Prompt("self", "self", "chat", rng.choice(WORDS["system"]), opening)
    if pick < 0.85:
        return _task(rng, rng.choice(TRAIN))
    opening = "" if rng.random() < 0.15 else rng.choice(WORDS["opening"])
    return Prompt("raw", "raw", "prose", None, opening)


def held_out(rng: random.Random) -> Prompt:
    """A prompt of a kind that is never trained on."""
    return _task(rng, rng.choice(HELD_OUT))


def _task(rng: random.Random, entry: tuple[str, str, str]) -> Prompt:
    kind, register, template = entry
    text = fill(template, rng)
    if register == "raw":
        return Prompt("raw", kind, "prose", None, text)
    if rng.random() < 0.15:
        text = text[0].lower() + text[1:].rstrip(".")
    system = None if rng.random() < 0.7 else rng.choice(WORDS["system"])
    follow = tuple(rng.choice(WORDS["follow"]) for _ in range(rng.choice((0, 1, 1, 2))))
    return Prompt("task", kind, register, system, text, follow)


_MADE: dict[str, Callable[[random.Random], str]] = {
    "sentence": lambda rng: fill(rng.choice(samples.SENTENCES), rng),
    "passage": lambda rng: samples.passage(rng, fill),
    "code": samples.code,
    "log": samples.log,
    "json": samples.json_rows,
    "csv": samples.csv_rows,
    "n": lambda rng: str(rng.randint(2, 999)),
}
