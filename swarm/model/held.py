"""Which tokens a constraint allows after the answer so far.

The rule that every part of a run follows, the tail, the requester, a replay and an audit: after the tokens of the
answer so far, `Matcher.after` gives the tokens that may come. Where the constraint leaves no choice of text, the
tokenizer's own spelling of that text is the only one allowed ("forced"), although another spelling would read the
same: so forced text is known to everybody who holds the constraint, before any model has seen it. After the end, only
the end comes. Of arrays whose items must be different ones the engine knows nothing: `swarm.model.distinct` takes
what would repeat one out of its masks. Text that the engine forces is never such, since more than that may still come.

Masks are a function of the constraint, the vocabulary and the version of the engine (llguidance); all three stand in
the order of a run. Grammars come from anybody: `swarm.model.compiling` bounds what it takes to read one.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from swarm.base.errors import ModelError, UsageError
from swarm.model.constraint import Constraint
from swarm.model.distinct import Distinct, Spelt
from swarm.model.distinct_places import apart
from swarm.model.grammars import bounds, grammar_of, refusal_of
from swarm.model.text.tokenizer import Tokenizer

_SAMPLE = '{"name": "A b", "items": [1, 2.5, true, null]}\n<tag>x</tag> \u00e9\u4e2d'


class Vocabulary:
    """The tokens of a model, as bytes. `size` logits, `ends` the tokens that end a text; making one takes about 0.3 s.

    Raises ModelError for a tokenizer that the engine cannot read.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Collection[int]) -> None:
        self.size, self.ends = size, tuple(sorted(end for end in ends if 0 <= end < size))
        if not self.ends:
            raise ModelError("this model names no token that ends a text, so no answer of it can be held to a grammar")
        try:
            # As `llguidance.hf.from_tokenizer` does it, which would import transformers for one `isinstance`.
            spelt = copy.copy(tokenizer.backend_tokenizer)  # type: ignore[attr-defined]
            spelt.no_padding()
            spelt.no_truncation()
            self._tokens = LLTokenizer(spelt.to_str(), n_vocab=size, eos_token=list(self.ends))
        except Exception as error:  # whatever a library makes of a tokenizer that it does not know
            raise ModelError(f"this model's tokenizer cannot spell grammars: {str(error)[:200]}") from error
        self.digest = self._digest()
        self._spelt: Spelt | None = None

    def _digest(self) -> str:
        parts = hashlib.sha256(json.dumps([self.size, self.ends, self._tokens.tokenize_str(_SAMPLE)]).encode())
        for token in range(self.size):
            spelt = self._tokens.decode_bytes([token])
            parts.update(len(spelt).to_bytes(4, "big") + spelt + bytes([self._tokens.is_special_token(token)]))
        return parts.hexdigest()

    def spell(self, text: bytes) -> list[int]:
        """The tokenizer's own tokens for a text."""
        return list(self._tokens.tokenize_bytes(text))

    def spelt(self) -> Spelt:
        """The tokens as bytes; made when first asked for."""
        if self._spelt is None:
            self._spelt = Spelt([self._tokens.decode_bytes([token]) for token in range(self.size)])
        return self._spelt

    def held(self, constraint: Constraint) -> Matcher:
        """A fresh matcher. Raises UsageError for what cannot be compiled, naming why.

        Takes whatever time the grammar takes: first `swarm.model.compiling.CompileTrial`.
        """
        matcher = LLMatcher(self._tokens, grammar_of(constraint), log_level=0, limits=bounds())
        if matcher.is_error():
            raise UsageError(refusal_of(constraint.kind, matcher.get_error()))
        place = apart(constraint.text)[1] if constraint.kind == "json_schema" else None
        distinct = None if place is None else Distinct(place, self.spelt())
        return Matcher(matcher, self, constraint.after, distinct)


@dataclass(frozen=True)
class Allowed:
    """What may come next: `forced` alone, or where that is -1 the tokens of `bits` (one each, the lowest first)."""

    forced: int
    bits: bytes = b""

    def mask(self, size: int) -> NDArray[np.bool_]:
        """bool [size]."""
        if self.forced >= 0:
            found = np.zeros(size, np.bool_)
            found[self.forced] = True
            return found
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=size, bitorder="little").astype(np.bool_)

    @property
    def first(self) -> int:
        """The lowest token that may come."""
        if self.forced >= 0:
            return self.forced
        return int(np.unpackbits(np.frombuffer(self.bits, np.uint8), bitorder="little").argmax())

    def few(self, most: int) -> list[int]:
        """All that may come, where that is at most so many tokens; else none."""
        if self.forced >= 0:
            return [self.forced]
        found = np.frombuffer(self.bits, np.uint8)
        some = np.flatnonzero(found)
        if len(some) > most:
            return []
        tokens = [8 * int(byte) + bit for byte in some for bit in range(8) if found[byte] >> bit & 1]
        return tokens if len(tokens) <= most else []

    def allows(self, token: int) -> bool:
        """Whether this token may come."""
        if self.forced >= 0:
            return token == self.forced
        return 0 <= token < 8 * len(self.bits) and bool(self.bits[token >> 3] >> (token & 7) & 1)


class Matcher:
    """A constraint being followed. Goes from one text to another by what they share; not thread-safe.

    `begins`: how many tokens of a sequence come before those that are held to it.
    """

    def __init__(
        self, matcher: LLMatcher, vocabulary: Vocabulary, begins: int, distinct: Distinct | None = None
    ) -> None:
        """`distinct`: what else is held to, where arrays must have different items."""
        self._matcher, self._vocabulary, self.begins, self._distinct = matcher, vocabulary, begins, distinct
        self._at: list[int] = []
        """The tokens that the matcher has consumed."""
        self._dead_end = Allowed(vocabulary.ends[0])

    def fresh(self, begins: int) -> Matcher:
        """Another one of the same constraint, with nothing consumed."""
        copy = self._matcher.deep_copy()
        copy.reset()
        return Matcher(copy, self._vocabulary, begins, self._distinct and self._distinct.fresh())

    def after(self, tokens: Sequence[int]) -> Allowed:
        """What may follow these tokens of the answer. After an end, or a text that was not allowed: the end alone.

        Raises ModelError where the constraint takes more than `bounds` to go on from here.
        """
        if not self._go_to(list(tokens)):
            return self._dead_end
        matcher = self._matcher
        if matcher.is_stopped():
            self._check()
            return self._dead_end
        if forced := matcher.compute_ff_tokens():
            return Allowed(int(forced[0]))
        bits = matcher.compute_bitmask()
        self._check()
        if self._distinct is not None:
            bits = self._distinct.without(bits)
        found = np.frombuffer(bits, np.uint8)
        some = np.flatnonzero(found)
        if len(some) == 0:
            raise ModelError("nothing that goes on from here fits this answer's constraint")
        if len(some) == 1 and (only := int(found[some[0]])) & (only - 1) == 0:
            return Allowed(8 * int(some[0]) + only.bit_length() - 1)
        return Allowed(-1, bits)

    def spelling(self, tokens: Sequence[int]) -> int:
        """The token that most likely follows where text is certain to come but not how it goes on: the tokenizer's own
        spelling of that text, were nothing to follow it. -1 where no text is certain, or the next token is.

        A guess for drafts: the text's last token may be spelt together with what comes after it.
        """
        if not self._go_to(list(tokens)) or self._matcher.is_stopped() or self._matcher.compute_ff_tokens():
            return -1
        text = self._matcher.compute_ff_bytes()
        return int(self._vocabulary.spell(text)[0]) if text else -1

    def _go_to(self, tokens: list[int]) -> bool:
        """Whether the constraint allows these tokens, end included; the matcher stands after them then."""
        shared = _shared(self._at, tokens)
        if shared < len(self._at):
            self._matcher.rollback(len(self._at) - shared)
            del self._at[shared:]
            if self._distinct is not None:
                self._distinct.back(shared)
        wanted = tokens[shared:]
        if wanted:
            if any(token in self._vocabulary.ends for token in wanted[:-1]):
                return False
            size = self._vocabulary.size
            if not all(0 <= token < size for token in wanted):
                return False
            fit = len(wanted) if self._distinct is None else self._distinct.taken(wanted, self._vocabulary.ends)
            taken = self._matcher.try_consume_tokens(wanted[:fit]) if fit else 0
            self._check()
            self._at += wanted[:taken]
            if self._distinct is not None:
                self._distinct.back(len(self._at))
            return taken == len(wanted)
        return True

    def _check(self) -> None:
        if self._matcher.is_error():
            said = " ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())[:200]
            if "NoExtension" in said:
                raise ModelError("nothing fits it: what it refers to comes back to itself without an end")
            raise ModelError(f"this answer's constraint takes too much to follow: {said}")


def _shared(one: list[int], other: list[int]) -> int:
    """Length of the common beginning."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(index for index in range(most) if one[index] != other[index])
