"""Matchers: what they allow does not depend on the way there, and what they take is bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from functools import cache
from threading import Event, Thread

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from transformers import PreTrainedTokenizerFast

from draft.base import Child
from draft.tree import TokenTree
from swarm.base.errors import ModelError, UsageError
from swarm.model.compiling import KEPT, Compiler
from swarm.model.constraint import MAX_CHARS, Constraint, engine
from swarm.model.grammars import from_choices, from_grammar, from_schema, grammar_of
from swarm.model.held import Allowed, Matcher, Vocabulary
from swarm.model.sampler import LEAST_LOGPROB, MAX_MARGIN, Sampling, masked, pick
from swarm.ring.guide import ConstraintGuide
from tests.swarm.model.lettered import lettered, merged

WORDS = ['{"', '":', ' "', '", "', "name", "age", "city", "Paris", '"}', "tr", "ue"]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and a few words made of them by merges, so that text has more than one spelling."""
    return merged(WORDS)


SIZE = 320
END = int(tokenizer().eos_token_id)


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(tokenizer(), SIZE, [END])


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    made = Compiler(vocabulary)
    yield made
    made.close()


@pytest.fixture(scope="module")
def by_letters() -> Iterator[Compiler]:
    made = Compiler(lettered)
    yield made
    made.close()


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "city": {"enum": ["Paris", "Pau", True]},
    },
    "required": ["name", "city"],
    "additionalProperties": False,
}
CONSTRAINTS = [
    from_schema(SCHEMA),
    from_schema({"type": "array", "items": {"type": "boolean"}, "maxItems": 3}),
    Constraint("regex", "(name|age)+: [0-9]{1,3}"),
    from_choices(["name", "names", "nam"]),
    from_grammar('root ::= item ("," item)*\nitem ::= "a" [0-9] | "tr" "ue"'),
]


def walk(held: Matcher, choices: Sequence[int], most: int = 60) -> list[int]:
    """A text that is allowed, each token chosen by a number."""
    tokens: list[int] = []
    for choice in choices[:most]:
        allowed = np.flatnonzero(held.after(tokens).mask(SIZE))
        tokens.append(int(allowed[choice % len(allowed)]))
    return tokens


numbers = st.lists(st.integers(0, 10_000), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CONSTRAINTS), st.lists(numbers, min_size=2, max_size=4), st.integers(0, 2**32))
def test_what_is_allowed_does_not_depend_on_the_way_there(
    constraint: Constraint, ways: list[list[int]], seed: int
) -> None:
    """One matcher that goes back and forth between texts, as over a tree, and a fresh one for each."""
    one = vocabulary().held(constraint)
    texts = [walk(vocabulary().held(constraint), way) for way in ways]
    asked = [text[:end] for text in texts for end in range(len(text) + 1)]
    for index in np.random.default_rng(seed).permutation(len(asked)):
        text = asked[int(index)]
        assert one.after(text) == vocabulary().held(constraint).after(text)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CONSTRAINTS), numbers, st.integers(0, SIZE + 5))
def test_after_what_is_not_allowed_only_the_end_comes(constraint: Constraint, way: list[int], wrong: int) -> None:
    held = vocabulary().held(constraint)
    text = walk(held, way, 6)
    allowed = held.after(text)
    if not allowed.allows(wrong) and not np.isin(END, text):
        # Another spelling of forced text is not what comes, but it reads the same; whatever it is, it ends well.
        assert held.after([*text, wrong, wrong]).mask(SIZE).any()
    assert held.after([*text, SIZE + 1]) == Allowed(END)
    assert held.after(text) == allowed


@settings(max_examples=40, deadline=None)
@given(numbers, st.integers(0, 5))
def test_a_whole_walk_fits_the_schema(way: list[int], seed: int) -> None:
    held = vocabulary().held(CONSTRAINTS[0])
    rng = np.random.default_rng(seed)
    tokens = walk(held, way)
    for _ in range(400):
        if tokens and tokens[-1] == END:
            break
        allowed = held.after(tokens)
        tokens.append(END if allowed.allows(END) else int(rng.choice(np.flatnonzero(allowed.mask(SIZE)))))
    if tokens[-1] == END:
        tokens = tokens[: tokens.index(END)]
        jsonschema.validate(json.loads(tokenizer().decode(tokens)), SCHEMA)
        assert held.after([*tokens, END]) == Allowed(END) == held.after([*tokens, END, END])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CONSTRAINTS), numbers, st.integers(0, 2**32), st.sampled_from([0.0, 0.7, 3.0]))
def test_masked_sampling_is_sampling_of_masked_logits(
    constraint: Constraint, way: list[int], seed: int, temperature: float
) -> None:
    held = vocabulary().held(constraint)
    text = walk(held, way)
    prefixes = [text[:end] for end in range(len(text))]
    allowed = [held.after(prefix) for prefix in prefixes]
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 4, (len(text), SIZE)).astype(np.float32))
    positions = list(range(len(text)))
    sampling = Sampling(temperature, seed=seed, top_p=0.9, top_k=20, logprobs=2, constraint=constraint)
    by_hand = torch.full_like(logits, -torch.inf)
    for row, entry in enumerate(allowed):
        for token in range(SIZE):
            if entry.allows(token):
                by_hand[row, token] = logits[row, token]
    assert torch.equal(masked(logits, allowed), by_hand)
    free = Sampling(temperature, seed=seed, top_p=0.9, top_k=20, logprobs=2)
    found = pick(logits, positions, sampling, allowed=allowed)
    assert found == pick(by_hand, positions, free)
    for entry, drawn in zip(allowed, found, strict=True):
        assert entry.allows(drawn.token) and drawn.logprob <= 1e-6
        assert all(value >= LEAST_LOGPROB for _, value in drawn.top)
        if entry.forced >= 0:
            assert (drawn.token, drawn.margin, drawn.logprob) == (entry.forced, MAX_MARGIN, 0.0)


def test_forced_text_is_the_tokenizers_own_spelling() -> None:
    held = vocabulary().held(CONSTRAINTS[0])
    tokens: list[int] = []
    while (forced := held.after(tokens).forced) >= 0:
        tokens.append(forced)
    assert tokenizer().decode(tokens) in ('{"name": "', '{"name":', '{"name": ')
    assert tokens == tokenizer().encode('{"name": "x')[: len(tokens)] and len(tokens) < len('{"name":')


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CONSTRAINTS), numbers)
def test_forced_is_every_token_that_the_mask_leaves_alone(constraint: Constraint, way: list[int]) -> None:
    """And no other; where the engine leaves several spellings of one text, the tokenizer's own is among them."""
    held = vocabulary().held(constraint)
    text = walk(held, way)
    for end in range(len(text) + 1):
        allowed = held.after(text[:end])
        left = np.flatnonzero(allowed.mask(SIZE))
        assert len(left) >= 1 and (len(left) == 1) == (allowed.forced >= 0)
        if allowed.forced >= 0:
            assert left[0] == allowed.forced and allowed.few(1) == [allowed.forced]
            engine_allows = np.unpackbits(np.frombuffer(raw(constraint, text[:end]), np.uint8), bitorder="little")
            assert engine_allows[allowed.forced] or END in text[:end]


def raw(constraint: Constraint, text: list[int]) -> bytes:
    """The engine's own mask after a text."""
    engines = LLMatcher(vocabulary()._tokens, grammar_of(constraint), log_level=0)
    assert all(engines.consume_token(token) for token in text[: text.index(END) + 1 if END in text else None])
    return bytes(engines.compute_bitmask())


moves = st.lists(st.tuples(st.sampled_from(["force", "propose", "advance", "lose", "recover"]), st.integers(0, 999)))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(CONSTRAINTS), moves)
def test_a_guide_of_any_tree_says_what_a_fresh_matcher_says(
    constraint: Constraint, done: list[tuple[str, int]]
) -> None:
    """Over drafts that are made and dropped, the root's moves, lost rows, and a recovery that starts with a prefix."""
    answer, guide, tree = list[int](), ConstraintGuide(vocabulary().held(constraint)), TokenTree(7, 3, 32, ends={END})
    for move, choice in done:
        node = sorted(tree.live.values(), key=lambda node: node.id)[choice % len(tree.live)]
        after = [*answer, *(below.token for below in tree.path(node))]
        allowed = vocabulary().held(constraint).after(after)
        assert guide.after(tree, node) == allowed
        match move:
            case "force":
                guide.extend(tree, node, 1e-9)
            case "propose":
                wanted = [Child((choice * 7 + step * 13) % SIZE, 0.2) for step in range(4)]
                children = guide.legal(tree, node, [*wanted, *(Child(token, 0.1) for token in allowed.few(2))])
                assert all(allowed.allows(child.token) for child in children)
                tree.propose(node, 0, children, [child.confidence for child in children])
            case "advance":
                legal = np.flatnonzero(guide.after(tree, tree.root).mask(SIZE))
                tree.root.answer = int(legal[choice % len(legal)])
                for _, new in tree.advance():
                    guide.advanced(new.token)
                    answer.append(new.token)
            case "lose":
                tree.take(choice % 8, 1e-9)
                tree.forget_sent()
            case "recover":  # somebody else goes on from the committed tokens
                guide = ConstraintGuide(vocabulary().held(constraint))
                tree = TokenTree(answer[-1] if answer else 7, 3 + len(answer), 32, ends={END})
                for token in answer:
                    guide.advanced(token)
    for node in tree.live.values():
        after = [*answer, *(below.token for below in tree.path(node))]
        assert guide.after(tree, node) == vocabulary().held(constraint).after(after)


def test_a_guide_leaves_only_legal_drafts_and_makes_what_is_forced() -> None:
    guide, start = ConstraintGuide(vocabulary().held(from_choices(["name: a", "name: b"]))), 7
    tree = TokenTree(start, 3, 32)
    guide.extend(tree, tree.root, 0.01)
    chain = [node.token for node in tree.live.values()][1:]
    assert tokenizer().decode(chain) in ("name:", "name: ")
    assert all(node.share == 1.0 for node in tree.live.values())
    tip = max(tree.live.values(), key=lambda node: node.position)
    children = [Child(token, 0.5) for token in tokenizer().encode("ab")] + [Child(END, 0.1)]
    legal = guide.legal(tree, tip, [*children, Child(5, 0.1)])
    spelt = [tokenizer().decode([child.token]) for child in legal]
    assert spelt in (["a", "b"], []) and Child(5, 0.1) not in legal
    moved = ConstraintGuide(vocabulary().held(from_choices(["name: a", "name: b"])))
    for token in chain:
        moved.advanced(token)
    other = TokenTree(chain[-1], 3 + len(chain), 32)
    assert moved.after(other, other.root) == vocabulary().held(from_choices(["name: a", "name: b"])).after(chain)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CONSTRAINTS), numbers)
def test_a_guess_of_the_spelling_is_allowed_and_changes_nothing(constraint: Constraint, way: list[int]) -> None:
    """It is only made where the next token is open, and asking for it leaves the matcher as it was."""
    held = vocabulary().held(constraint)
    text = walk(held, way)
    for end in range(len(text) + 1):
        allowed, guess = held.after(text[:end]), held.spelling(text[:end])
        assert guess < 0 or (allowed.forced < 0 and allowed.allows(guess))
        assert held.after(text[:end]) == allowed


def test_a_text_that_may_go_on_in_one_token_is_guessed() -> None:
    held = vocabulary().held(from_choices(["name: a", "name: b"]))
    tokens: list[int] = []
    while (token := max(held.after(tokens).forced, held.spelling(tokens))) >= 0:
        tokens.append(token)
    assert tokenizer().decode(tokens) == "name: "


def test_what_takes_too_long_is_ended_and_the_next_is_read(compiler: Compiler) -> None:
    with pytest.raises(UsageError, match="more than 0.8 s"):
        compiler.held(compiler.ready(ENDLESS, 0))
    assert compiler.held(compiler.ready(from_choices(["a"]), 0)).after([]).mask(SIZE).sum() == 1


ENDLESS = from_schema({"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(60)]})


def test_others_go_on_while_one_is_compiled() -> None:
    """What was compiled is handed out meanwhile; and a compiler that is closed lets nobody wait."""
    compiler = Compiler(vocabulary, wall_s=60.0)
    known = compiler.ready(from_choices(["a"]), 0)
    compiler.held(known)
    said: list[str] = []
    slow = Thread(target=lambda: said.append(refusal(compiler, compiler.ready(ENDLESS, 0))))
    slow.start()
    while compiler._trial.alone.acquire(blocking=False):  # until it is being compiled
        compiler._trial.alone.release()
    assert compiler.held(known).after([]).forced >= 0 and compiler.vocabulary.size == SIZE
    assert slow.is_alive()
    while slow.is_alive():
        compiler.close()
        slow.join(0.05)
    assert "more than 60 s" in said[0]


def test_nobody_finds_what_another_had_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name; and one who asks for much drives nothing out but his own."""
    compiler, read = Compiler(vocabulary), list[str]()
    monkeypatch.setattr(compiler._trial, "read", lambda constraint: read.append(constraint.text))
    asked = [compiler.ready(from_choices([f"a{number}"]), 0) for number in range(KEPT + 5)]
    for of in ("ann", "bob", "ann", None, None):
        compiler.held(asked[0], of)
    assert read == [asked[0].text] * 4
    for each in asked:
        compiler.held(each, "bob")
    read.clear()
    compiler.held(asked[0], "ann")
    assert read == [] and len(compiler._kept) == KEPT
    compiler.held(asked[0], "bob")
    assert read == [asked[0].text]


async def test_who_asks_for_much_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each name at a time, in the order of asking; and nobody waits in a thread."""
    compiler, read, go = Compiler(vocabulary), list[str](), Event()

    def reading(constraint: Constraint) -> None:
        assert go.wait(30)
        read.append(constraint.text)
        if "bad" in constraint.text:
            raise UsageError("bad")

    monkeypatch.setattr(compiler._trial, "read", reading)
    bad = [compiler.ready(from_choices([f"bad {number}"]), 0) for number in range(40)]
    many = [asyncio.create_task(compiler.held_soon(each, "eve")) for each in bad]
    await asyncio.sleep(0)
    good = compiler.ready(from_choices(["good"]), 0)
    one = asyncio.create_task(compiler.held_soon(good, "ann"))
    await asyncio.sleep(0)
    assert len(compiler._turns["eve"]) == 40 and await asyncio.to_thread(lambda: True)
    many[7].cancel()
    go.set()
    assert (await one).after([]).forced >= 0
    assert read.index(good.text) <= 1
    ended = await asyncio.gather(*many, return_exceptions=True)
    assert sum(isinstance(error, UsageError) for error in ended) == 39 and not compiler._turns
    compiler.close()


def test_a_node_takes_as_long_again_for_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, slept = Compiler(vocabulary, even=True), list[float]()
    monkeypatch.setattr("swarm.model.compiling.time.sleep", slept.append)
    asked = compiler.ready(from_choices(["a"]), 0)
    try:
        compiler.held(asked)
        assert slept == []
        compiler.held(asked)
        assert slept == [compiler._kept["", asked.kind, asked.text].took_s] and slept[0] > 0
    finally:
        compiler.close()


def refusal(compiler: Compiler, constraint: Constraint) -> str:
    with pytest.raises(UsageError) as caught:
        compiler.held(constraint)
    return str(caught.value)


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("regex", "a{1000000}"), "too much to follow"),
        (Constraint("json_schema", '{"$ref":"#"}'), "without an end"),
        (from_schema({"type": "object", "properties": {f"p{i}": {} for i in range(1000)}}), "at one place"),
        (from_grammar("root ::= root"), "without an end"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_it_is_begun(
    by_letters: Compiler, constraint: Constraint, said: str
) -> None:
    lettered().held(constraint)  # it compiles
    with pytest.raises(UsageError, match=said):
        by_letters.held(by_letters.ready(constraint, 0))


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (from_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (from_schema({"type": "objct"}), "objct"),
        (Constraint("regex", "(a"), "regex"),
        (Constraint("lark", "start: missing"), "missing"),
        (Constraint("json_schema", "{"), "JSON"),
    ],
)
def test_a_refusal_says_why(compiler: Compiler, constraint: Constraint, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compiler.held(compiler.ready(constraint, 0))


def test_constraints_for_other_readers_are_refused(compiler: Compiler) -> None:
    digest = compiler.vocabulary.digest
    for other, said in (
        (Constraint("regex", "a", "x 1", digest), "x 1"),
        (Constraint("regex", "a", engine(), "00"), "00"),
    ):
        with pytest.raises(UsageError, match=said):
            compiler.held(other)


def test_sizes_are_bounded() -> None:
    for text in ("", "x" * (MAX_CHARS + 1), "é" * MAX_CHARS, "\ud800"):
        with pytest.raises(UsageError, match="constraint of 1 to"):
            Constraint("regex", text)
    with pytest.raises(UsageError, match="kind"):
        Constraint("xml", "a")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no token that ends"):
        Vocabulary(tokenizer(), SIZE, [])
