"""Documents drawn at random from what a schema leaves open, in the tokens of a real model: each fits its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from swarm.base.errors import ModelError, UsageError
from swarm.model.compiling import Compiler
from swarm.model.files.checkpoint import load_tokenizer
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.grammars import from_schema
from swarm.model.held import Matcher, Vocabulary
from tests.bench.structured import ENDS, SCHEMAS, VOCAB
from tests.swarm.model.schema_maker import SchemaMaker, fits

FREE = 24
"""Tokens that are drawn from all that may come; then those that end something are preferred."""
MOST = 600


@dataclass
class Spelling:
    """A model's vocabulary, and which of its tokens lead to an end."""

    tokenizer: Any
    vocabulary: Vocabulary = field(init=False)
    closing: dict[str, NDArray[np.intp]] = field(init=False)
    compiler: Compiler = field(init=False)

    def __post_init__(self) -> None:
        self.vocabulary = Vocabulary(self.tokenizer, VOCAB, ENDS)
        self.compiler = Compiler(lambda: self.vocabulary)
        texts = [self.tokenizer.decode([token]) for token in range(VOCAB)]
        self.closing = {
            mark: np.array([token for token, text in enumerate(texts) if text.strip()[:1] == mark]) for mark in '"}],'
        }

    def document(self, held: Matcher, random: Random) -> str | None:
        """A text that ended; None: it did not, or the constraint took too much to follow."""
        tokens: list[int] = []
        while len(tokens) < MOST:
            try:
                allowed = held.after(tokens)
            except ModelError:
                return None
            if allowed.forced >= 0:
                token = allowed.forced
            else:
                token = self._drawn(allowed.mask(VOCAB), random, tokens)
            if token in ENDS:
                return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
            tokens.append(token)
        return None

    def _drawn(self, mask: NDArray[np.bool_], random: Random, tokens: list[int]) -> int:
        closing = len(tokens) > FREE
        if mask[ENDS[0]] and (closing or random.random() < 0.3):
            return ENDS[0]
        if closing:
            marks = re.findall(r'(?<!\\)(?:\\\\)*"', self.tokenizer.decode(tokens))
            for ends in '"' if len(marks) % 2 else "}],":
                if len(found := self.closing[ends][mask[self.closing[ends]]]):
                    return int(found[random.randrange(min(3, len(found)))])
        choices = np.flatnonzero(mask)
        return int(choices[random.randrange(len(choices))])


@pytest.fixture(scope="module")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spelling]:
    made = Spelling(load_tokenizer(DEFAULT_MODEL, ModelStore(tmp_path_factory.mktemp("models"))))
    yield made
    made.compiler.close()


def check(spelling: Spelling, wanted: int, each: int) -> None:
    """So many documents, some of each schema; what is refused is refused by name, and is little."""
    documents, refused, schemas, endless = 0, 0, 0, 0
    lives = list(SCHEMAS.values())
    while documents < wanted:
        schema = lives[schemas // 2] if schemas % 2 == 0 and schemas // 2 < len(lives) else SchemaMaker(schemas).made()
        schemas += 1
        try:
            held = spelling.compiler.held(spelling.compiler.ready(from_schema(schema), 0))
        except UsageError:
            refused += 1
            assert refused <= 2 + schemas // 5, (refused, schemas)
            continue
        for number in range(each):
            text = spelling.document(held, Random(1000 * schemas + number))
            if text is None:
                endless += 1
                assert endless <= 2 + documents // 50
                continue
            assert fits(json.loads(text), schema), (schema, text)
            documents += 1


def test_documents_fit_their_schemas(spelling: Spelling) -> None:
    check(spelling, 40, 2)


@pytest.mark.soak
def test_a_thousand_documents_fit_their_schemas(spelling: Spelling) -> None:
    check(spelling, 1000, 3)
