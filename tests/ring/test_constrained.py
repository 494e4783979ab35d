"""Runs that are held to a schema: what they say, what receipts prove, and what a node does that cannot hold them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from receipts.check.verdict import Level, Standing
from receipts.check.verify import Options, verify
from receipts.format.document import secrets_untrusted
from receipts.format.errors import Refusal
from swarm.base.errors import ModelError, RunError, UsageError
from swarm.model.block import load_block
from swarm.model.compiling import Compiler
from swarm.model.constraint import Constraint
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.grammars import from_choices, from_schema
from swarm.model.held import Allowed, Matcher, Vocabulary
from swarm.model.rows import Layout, no_commits
from swarm.model.sampler import Sampling, pick
from swarm.recheck.recompute import Step, run_block
from swarm.recheck.replayer import ModelReplayer
from swarm.ring.certain_rows import certain_rows
from swarm.ring.drawing import Drawing
from swarm.run.api import RunRequest
from swarm.run.engine import RunEngine
from tests.bench.structured import SCHEMAS
from tests.ring.routes import Decodes
from tests.swarm.serve.tiny import tiny_tokenizer

from .signed import signed_ring
from .test_signed import SPANS, audited, wide

__all__ = ["wide"]

TOKENIZER = tiny_tokenizer()
END = int(TOKENIZER.eos_token_id)
PROMPT = tuple(TOKENIZER.encode("A person as JSON, please: name, age and city. "))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,5}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "city": {"enum": ["Paris", "London"]},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
GREEDY = Sampling(constraint=from_schema(SCHEMA))
SAMPLED = Sampling(temperature=0.9, seed=4, top_p=0.95, constraint=from_schema(SCHEMA))
MODES = ("plain", "chain", "tree", "stream")


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    made = Compiler(lambda: Vocabulary(TOKENIZER, 311, [END]), wall_s=10.0)
    yield made
    made.close()


def said(ids: Sequence[int]) -> str:
    return str(TOKENIZER.decode([token for token in ids if token < 258], skip_special_tokens=True))


def asking(sampling: Sampling = GREEDY, mode: Any = "plain", tokens: int = 100, **more: Any) -> RunRequest:
    return RunRequest(PROMPT, tokens, sampling, speculation=mode, **more)


def alone(checkpoint: Checkpoint, held_to: Matcher, sampling: Sampling, most: int) -> list[int]:
    """The same on one machine, from the beginning for every token, masked by hand."""
    block = load_block(checkpoint, 0, 8, torch.device("cpu"), torch.float32)
    tokens = list(PROMPT)
    while len(tokens) < len(PROMPT) + most:
        layout = Layout(0, len(tokens))
        rows = certain_rows(layout, 0, tokens)
        rows.want[:] = rows.position + 1 == len(tokens)
        (logits,) = run_block(block, layout, [Step(no_commits(), rows)])
        mask = torch.from_numpy(held_to.after(tokens[len(PROMPT) :]).mask(logits.shape[-1]))
        free = replace(sampling, constraint=None)
        tokens.append(pick(torch.where(mask, logits, -torch.inf), [len(tokens)], free)[0].token)
        if tokens[-1] == END:
            break
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_every_way_to_run_says_the_same_and_fits(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler, sampling: Sampling
) -> None:
    held_to = compiler.held(compiler.ready(from_schema(SCHEMA), len(PROMPT)))
    expected = alone(wide, held_to, sampling, 100)
    person = json.loads(said(expected))
    assert set(person) == {"name", "age", "city"} and 0 <= person["age"] <= 130
    passes = {}
    async with signed_ring(wide, SPANS, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said) as ring:
        for mode in MODES:
            result = await ring.generate(asking(sampling, mode))
            assert (list(result.token_ids), result.finish_reason) == (expected, "stop"), mode
            passes[mode] = result.passes
        private = await ring.generate(asking(sampling, "stream", private=1))
        assert list(private.token_ids) == expected
        short = await ring.generate(asking(sampling, "stream", 7))  # it ends within forced text
        assert (list(short.token_ids), short.finish_reason) == (expected[:7], "length")
        many = await asyncio.gather(*(ring.generate(asking(sampling, mode)) for mode in MODES))
        assert {result.token_ids for result in many} == {tuple(expected)}
    # Forced text costs no pass: 37 of some 50 tokens are the schema's own, and one pass for each other one.
    assert passes["plain"] <= len(expected) - 30


LONG = from_schema({"const": "what is certain is sent in one pass, however many tokens it has: " + "ab " * 40})


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_an_answer_is_cut_within_rows_that_are_certain(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler, mode: str
) -> None:
    """At every kind of place of a frame of 64 forced rows: tokens, their number and the receipt are right."""
    held_to = compiler.held(compiler.ready(LONG, len(PROMPT)))
    whole = list[int]()
    while (token := held_to.after(whole).forced) != END:
        whole.append(token)
    whole.append(END)
    assert len(whole) > 130
    async with signed_ring(wide, SPANS, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said) as ring:
        for most in (1, 2, 63, 64, 65, 66, 127, 128, 129, len(whole) - 1, len(whole), len(whole) + 1):
            result = await ring.generate(asking(Sampling(constraint=LONG), mode, most))
            assert list(result.token_ids) == whole[:most] and result.new_tokens == min(most, len(whole))
            assert result.finish_reason == ("length" if most < len(whole) else "stop"), most
            verdict = verify(Path(str(result.receipt)).read_bytes())
            assert verdict.exit_code == 0, (most, verdict.line)


SET = from_schema(
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 11}, "uniqueItems": True, "minItems": 10}
)


async def test_arrays_of_different_items_are_the_same_in_every_way_to_run_and_replayed(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler
) -> None:
    sampling = replace(SAMPLED, temperature=0.3, constraint=SET)
    expected = alone(wide, compiler.held(compiler.ready(SET, len(PROMPT))), sampling, 100)
    numbers = json.loads(said(expected))
    assert 10 <= len(numbers) == len(set(numbers))
    async with signed_ring(wide, SPANS, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said) as ring:
        for mode in MODES:
            result = await ring.generate(asking(sampling, mode))
            assert (list(result.token_ids), result.finish_reason) == (expected, "stop"), mode
        path = Path(str(result.receipt))
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide, compiler))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_a_receipt_is_verified_replayed_and_audited(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler, mode: str
) -> None:
    async with signed_ring(wide, SPANS, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said) as ring:
        result = await ring.generate(asking(SAMPLED, mode))
        path = Path(str(result.receipt))
        verdict = verify(path.read_bytes())
        assert verdict.exit_code == 0 and verdict.run is not None, verdict.line
        held_to = verdict.run.order.held_to
        assert held_to is not None and held_to.text == from_schema(SCHEMA).text
        assert held_to.vocabulary == compiler.vocabulary.digest
        assert verdict.standing_of("constraint") is Standing.CLAIMED
        checked = await audited(ring, path, wide)
        assert (checked.exit_code, checked.level) == (0, Level.SAMPLED), checked.line
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide, compiler))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line
        with pytest.raises(ModelError, match="the model's tokenizer is needed"):
            await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide, None))


def replaying(path: Path, checkpoint: Checkpoint, compiler: Compiler | None) -> Options:
    secrets = secrets_untrusted(path.with_suffix(".secrets.json").read_bytes())
    replayer = ModelReplayer(checkpoint, Decodes(said), compiler=compiler)
    return Options(model=checkpoint.manifest, replayer=replayer, secrets=secrets, required=Level.REPLAYED)


@pytest.mark.parametrize("mode", ["plain", "stream"])
@pytest.mark.parametrize("after", [3, 12])
async def test_a_lost_stage_changes_nothing(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler, mode: str, after: int
) -> None:
    spans = [(0, 3), (3, 8), (3, 8)]
    async with signed_ring(wide, spans, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said) as ring:
        expected = alone(wide, compiler.held(compiler.ready(from_schema(SCHEMA), len(PROMPT))), GREEDY, 100)
        result = await ring.generate(asking(GREEDY, mode), drop_after=after)
        assert list(result.token_ids) == expected and result.recoveries == 1
        path = Path(str(result.receipt))
        assert verify(path.read_bytes()).exit_code == 0
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide, compiler))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line


async def test_a_run_that_begins_from_a_free_one_is_held(wide: Checkpoint, tmp_path: Path, compiler: Compiler) -> None:
    async with signed_ring(
        wide, SPANS, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said, keep_s=60.0
    ) as ring:
        expected = (await ring.generate(asking(prefix=None))).token_ids
        await ring.generate(asking(Sampling()))
        begun = await ring.generate(asking(mode="stream"))
        assert begun.cached_prompt_tokens > 30 and begun.token_ids == expected
        again = await ring.generate(asking(replace(SAMPLED, temperature=0.0, top_p=1.0)))
        assert again.cached_prompt_tokens > 30 and again.token_ids == expected
        checked = await audited(ring, Path(str(again.receipt)), wide)
        assert (checked.exit_code, checked.level) == (0, Level.SAMPLED), checked.line


async def test_a_tail_that_does_not_hold_to_it_is_caught(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the requester where text is forced, by an audit and a replay elsewhere."""
    honest = Drawing.allowed

    def other(self: Drawing, rows: Any) -> list[Allowed] | None:
        found = honest(self, rows)
        return None if found is None else [a if a.forced >= 0 else Allowed(-1, b"\xff" * 39) for a in found]

    monkeypatch.setattr(Drawing, "allowed", other)
    async with signed_ring(wide, SPANS, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said) as ring:
        result = await ring.generate(asking(GREEDY, "plain", 40))
        monkeypatch.undo()
        path = Path(str(result.receipt))
        checked = await audited(ring, path, wide)
        assert checked.refusal is Refusal.AUDIT, checked.line
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide, compiler))
        assert replayed.refusal is Refusal.REPLAY, replayed.line


async def test_a_forced_token_that_is_not_drawn_ends_the_epoch(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drawing, "allowed", lambda self, rows: [Allowed(65) for want in rows.want if want])
    async with signed_ring(wide, SPANS, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said) as ring:
        with pytest.raises(RunError, match="does not hold to it|no ring could be formed"):
            await ring.generate(asking(patience_s=1.0))


async def test_a_tail_that_cannot_is_refused_by_name_or_passed_by(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = [(0, 3), (3, 8), (3, 8)]
    async with signed_ring(
        wide, spans, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said, unfit=[1]
    ) as ring:
        nodes = [node.identity.id for node in ring.nodes]
        refused = await ring.generate(asking())  # the ring forms again without it
        assert refused.finish_reason == "stop" and refused.ring[-1].node == nodes[2].hex()
        ring.desk.router.unfit = frozenset({nodes[1]})
        routed = await ring.generate(asking())
        assert routed.ring[-1].node == nodes[2].hex() and routed.recoveries == 0
        ring.desk.router.unfit = frozenset({nodes[1], nodes[2]})  # what nobody can, is still asked
        assert (await ring.generate(asking())).finish_reason == "stop"
    async with signed_ring(
        wide, [(0, 3), (3, 8)], tmp_path / "none", eos=frozenset({END}), compiler=compiler, unfit=[1]
    ) as ring:
        with pytest.raises(RunError, match="no tokenizer of the model"):
            await ring.generate(asking(patience_s=0.5))
        elsewhere = "llguidance 0.1.2"
        ready = Compiler.ready
        monkeypatch.setattr(
            Compiler, "ready", lambda self, said, after: replace(ready(self, said, after), engine=elsewhere)
        )
        with pytest.raises(UsageError, match="which runs here, found 'llguidance 0.1.2'"):
            await ring.generate(asking(patience_s=0.5))


HOSTILE = from_schema({"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(60)]})


async def test_a_constraint_that_never_compiles_costs_a_tail_nothing(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requester that sends it all the same, past its own check, is refused; others go on meanwhile."""

    async def unchecked(self: RunEngine, request: RunRequest) -> RunRequest:
        said = request.sampling.constraint
        assert said is not None
        return replace(request, sampling=replace(request.sampling, constraint=compiler.ready(said, len(PROMPT))))

    quick = Compiler(lambda: compiler.vocabulary, wall_s=0.8)
    async with signed_ring(wide, SPANS, tmp_path, eos=frozenset({END}), compiler=quick, decode=said) as ring:
        expected = (await ring.generate(asking())).token_ids
        monkeypatch.setattr(RunEngine, "_compiled", unchecked)
        other = compiler.ready(from_choices(["yes"]), len(PROMPT))

        def held_to(self: RunEngine, request: RunRequest) -> Matcher:
            said = request.sampling.constraint
            assert said is not None
            return compiler.held(other) if said.text == HOSTILE.text else quick.held(said)

        monkeypatch.setattr(RunEngine, "_held_to", held_to)
        hostile = asyncio.create_task(ring.generate(asking(Sampling(constraint=HOSTILE), patience_s=0.5)))
        for _ in range(3):
            assert (await ring.generate(asking())).token_ids == expected
        with pytest.raises(RunError, match="takes more than 0.8 s"):
            await hostile
    quick.close()


@pytest.mark.parametrize(
    ("constraint", "answers"),
    [
        (Constraint("regex", "(yes|no)!"), {"yes!", "no!"}),
        (from_choices(['a "b"', "c"]), {'a "b"', "c"}),
    ],
)
async def test_patterns_and_choices(
    wide: Checkpoint, tmp_path: Path, compiler: Compiler, constraint: Constraint, answers: set[str]
) -> None:
    async with signed_ring(wide, SPANS, tmp_path, eos=frozenset({END}), compiler=compiler, decode=said) as ring:
        found = [await ring.generate(asking(Sampling(2.0, seed=s, constraint=constraint), "stream")) for s in range(6)]
        assert {result.text for result in found} == answers
        assert {result.finish_reason for result in found} == {"stop"}


async def documents(wide: Checkpoint, folder: Path, compiler: Compiler, count: int) -> None:
    """So many answers to ten schemas, greedy and at random, drafted and plain: all that end fit."""
    ended = 0
    async with signed_ring(wide, SPANS, folder, eos=frozenset({END}), compiler=compiler, decode=said) as ring:
        for number in range(count):
            schema = list(SCHEMAS.values())[number % len(SCHEMAS)]
            sampling = Sampling((0.0, 0.7, 1.5)[number % 3], seed=number, constraint=from_schema(schema))
            result = await ring.generate(asking(sampling, MODES[number % 4], 440, receipt=False))
            if result.finish_reason == "stop":
                jsonschema.validate(json.loads(result.text), schema, jsonschema.Draft202012Validator)
                ended += 1
    assert ended >= 0.7 * count  # a random model may go on with a number until the context ends


async def test_documents_fit_their_schemas(wide: Checkpoint, tmp_path: Path, compiler: Compiler) -> None:
    await documents(wide, tmp_path, compiler, 10)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_a_thousand_documents_fit_their_schemas(wide: Checkpoint, tmp_path: Path, compiler: Compiler) -> None:
    await documents(wide, tmp_path, compiler, 1000)
