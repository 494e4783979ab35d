"""Prompts as token ids, for any tokenizer: what opens a conversation and what stands between its turns.

The pieces are cut out of what the tokenizer's chat template renders around marks, so no template is known by name.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from draft.prompts import Prompt

_MARKS = ("\x01one\x01", "\x01two\x01", "\x01three\x01")
_USER_TEMPERATURES = (0.8, 0.9, 1.0, 1.0)
_ANSWER_TEMPERATURES = (0.6, 0.8, 0.8, 0.9, 1.0)
GREEDY_SHARE = 0.45


@dataclass(frozen=True)
class TurnChange:
    """What is put into the sequence when the target ends its turn, and how it goes on: `temperature` 0 is greedy."""

    tokens: tuple[int, ...]
    temperature: float


@dataclass(frozen=True)
class Script:
    """How one sequence comes about.

    prompt       token ids to start from
    temperature  of the first turn; after `settle` tokens of raw text the rest is greedy (-1: never)
    turns        what follows each end of a turn; when none is left, an end of turn ends the sequence
    """

    prompt: tuple[int, ...]
    temperature: float
    settle: int
    turns: tuple[TurnChange, ...]
    register: str
    kind: str
    greedy: bool


class Chat:
    """Turns prompts into scripts. `ends`: token ids that end a turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
        self.tokenizer, self.ends = tokenizer, ends
        self.has_template = bool(tokenizer.chat_template)

    def script(self, prompt: Prompt, rng: random.Random) -> Script:
        """Sampled or greedy by chance. Prompts for a model without chat template are continued as raw text."""
        greedy = rng.random() < GREEDY_SHARE
        answer = 0.0 if greedy else rng.choice(_ANSWER_TEMPERATURES)
        user = rng.choice(_USER_TEMPERATURES)
        plain = Script((), user, -1, (), prompt.register, prompt.kind, greedy)
        if prompt.source == "raw" or not self.has_template:
            ids = self._encode(prompt.user.rstrip(" "))
            if not ids or rng.random() < 0.7:
                ids = [min(self.ends), *ids]  # a text begins where another ended
            return replace(plain, prompt=tuple(ids), settle=rng.randint(4, 30) if greedy else -1)
        opening, to_answer, to_user = self._pieces(prompt.system)
        head = self._encode(opening + prompt.user)
        if prompt.source == "self":
            back, forth = TurnChange(self._after_end(to_answer), answer), TurnChange(self._after_end(to_user), user)
            return replace(plain, prompt=tuple(head), turns=(back, forth, back, forth, back))
        turns = tuple(TurnChange(self._after_end(to_user + text + to_answer), answer) for text in prompt.follow)
        whole = tuple(self._encode(opening + prompt.user + to_answer))
        return replace(plain, prompt=whole, temperature=answer, turns=turns)

    def _pieces(self, system: str | None) -> tuple[str, str, str]:
        """Text before the user's first words, between user and answer, between answer and user."""
        one, two, three = _MARKS
        messages = [{"role": "user", "content": one}, {"role": "assistant", "content": two}]
        messages.append({"role": "user", "content": three})
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        opening, rest = text.split(one, 1)
        to_answer, rest = rest.split(two, 1)
        return opening, to_answer, rest.split(three, 1)[0]

    def _after_end(self, text: str) -> tuple[int, ...]:
        """The tokens of `text` without the end of turn it starts with: the target said that itself."""
        ids = self._encode(text)
        return tuple(ids[1:] if ids and ids[0] in self.ends else ids)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
