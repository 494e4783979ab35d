"""What holding an answer to a schema costs and saves: `python -m tests.bench.structured [masks] [passes]`.

masks   processor time of one mask over SmolLM2's 49,152 tokens, by llguidance and, where it is installed, by xgrammar;
        and of arrays of different items (`uniqueItems`), which are held to beside llguidance
passes  passes of ten JSON answers round a ring of three real nodes, and of free text of the same lengths, in one run
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from swarm.base.config import MemberConfig
from swarm.client.client import Requester, RequesterConfig
from swarm.model.compiling import Compiler
from swarm.model.files.checkpoint import load_tokenizer
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.grammars import from_schema
from swarm.model.held import Vocabulary
from swarm.model.sampler import Sampling
from swarm.run.api import Finished, RunRequest, RunResult, Speculation
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

VOCAB, ENDS = 49_152, [2]


def thing(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def words(most: int = 40) -> dict[str, Any]:
    return {"type": "string", "maxLength": most}


SCHEMAS: dict[str, dict[str, Any]] = {
    "a person": thing(name=words(), age={"type": "integer", "minimum": 0, "maximum": 120}, city=words()),
    "a book": thing(title=words(60), author=words(), year={"type": "integer", "minimum": 1450, "maximum": 2030}),
    "a recipe": thing(name=words(), minutes={"type": "integer", "minimum": 1, "maximum": 600},
                      ingredients={"type": "array", "items": words(), "minItems": 2, "maxItems": 5}),
    "a product": thing(name=words(), price={"type": "number", "minimum": 0, "maximum": 10_000},
                       currency={"enum": ["EUR", "USD", "GBP"]}, in_stock={"type": "boolean"}),
    "an event": thing(title=words(), date={"type": "string", "format": "date"}, place=words()),
    "a film": thing(title=words(), director=words(), genre={"enum": ["drama", "comedy", "horror", "documentary"]},
                    year={"type": "integer", "minimum": 1890, "maximum": 2030}),
    "an address": thing(street=words(), number={"type": "integer", "minimum": 1, "maximum": 999}, city=words(),
                        postal_code={"type": "string", "pattern": "^[0-9]{5}$"}, country=words(30)),
    "a bug report": thing(title=words(60), severity={"enum": ["low", "medium", "high"]},
                          steps={"type": "array", "items": words(60), "minItems": 2, "maxItems": 3}),
    "a city": thing(name=words(), country=words(30),
                    population={"type": "integer", "minimum": 0, "maximum": 40_000_000},
                    position=thing(latitude={"type": "number"}, longitude={"type": "number"})),
    "a tool call": thing(name={"const": "search_the_web"}, arguments=thing(query=words(60),
                         language={"enum": ["en", "de", "fr"]},
                         results={"type": "integer", "minimum": 1, "maximum": 50})),
}  # fmt: skip
DOCUMENTS = [
    {"name": "Anna Smith", "age": 42, "city": "Rotterdam"},
    {"title": "The Old Man and the Sea", "author": "Ernest Hemingway", "year": 1952},
    {"name": "Pancakes", "minutes": 25, "ingredients": ["flour", "two eggs", "a pinch of salt"]},
    {"name": "Desk lamp", "price": 39.9, "currency": "EUR", "in_stock": True},
    {"title": "Spring concert", "date": "2026-04-11", "place": "Town hall, second floor"},
    {"title": "Stalker", "director": "Andrei Tarkovsky", "genre": "drama", "year": 1979},
    {"street": "Keizersgracht", "number": 174, "city": "Amsterdam", "postal_code": "10160", "country": "Netherlands"},
    {"title": "Window does not close", "severity": "high", "steps": ["Open the settings", "Press escape twice"]},
    {"name": "Lyon", "country": "France", "population": 522250, "position": {"latitude": 45.76, "longitude": 4.83}},
    {"name": "search_the_web", "arguments": {"query": "grammar constrained decoding", "language": "en", "results": 10}},
]
"""One for each schema, as a model would write it."""
SETS: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("10 strings", {"type": "string"}, "apple river old blue green window copper paper zebra table".split()),
    (
        "10 short",
        {"type": "string", "maxLength": 40},
        "apple river old blue green window copper paper zebra table".split(),
    ),
    ("57 numbers", {"type": "integer"}, list(range(3, 400, 7))),
    ("57 of 501", {"type": "integer", "minimum": 0, "maximum": 500}, list(range(3, 400, 7))),
    ("20 of an enum", {"enum": [f"value {n}" for n in range(20)]}, [f"value {n}" for n in range(20)]),
    ("300 strings", {"type": "string"}, [f"name {n}" for n in range(300)]),
]
"""Arrays: what their items are, and one of them."""


def timed(work: Callable[[], object]) -> float:
    """Microseconds of this thread's processor time: others on the machine do not count."""
    began = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began) / 1000


def spread(times: Sequence[float]) -> str:
    ordered = sorted(times)
    median, mean, high = statistics.median(ordered), statistics.mean(ordered), ordered[int(0.95 * len(ordered))]
    return f"median {median:.0f} us, mean {mean:.0f} us, 95% {high:.0f} us, most {ordered[-1]:.0f} us"


def masks(models: Path) -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL, ModelStore(models))
    texts = [json.dumps(document) for document in DOCUMENTS]
    ours(tokenizer, texts)
    theirs(tokenizer, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])


def ours(tokenizer: Any, texts: Sequence[str]) -> None:
    began = time.monotonic()
    compiler = Compiler(lambda: Vocabulary(tokenizer, VOCAB, ENDS))
    vocabulary = compiler.vocabulary
    print(f"llguidance: vocabulary {time.monotonic() - began:.2f} s")
    compiling, first, rows, bits, wild = [], [], [], [], []
    for schema, text in zip(SCHEMAS.values(), texts, strict=True):
        ready = compiler.ready(from_schema(schema), 0)
        compiling.append(timed(lambda ready=ready: vocabulary.held(ready)))  # type: ignore[misc]
        held, said, rest = vocabulary.held(ready), list[int](), text
        while rest:
            (rows if said else first).append(timed(lambda held=held, said=said: held.after(said)))  # type: ignore[misc]
            allowed = held.after(said)
            bits.append(timed(lambda allowed=allowed: allowed.mask(VOCAB)))  # type: ignore[misc]
            token = allowed.forced if allowed.forced >= 0 else tokenizer(rest, add_special_tokens=False)["input_ids"][0]
            assert allowed.allows(token), (rest, tokenizer.decode([token]))
            said, rest = [*said, token], rest.removeprefix(tokenizer.decode([token]))
        walk: list[int] = []
        for step in range(60):
            wild.append(timed(lambda held=held, walk=walk: held.after(walk)))  # type: ignore[misc]
            choices = held.after(walk).mask(VOCAB).nonzero()[0]
            walk = [*walk, int(choices[step * 13 % len(choices)])]
    print(f"  compile               {spread(compiling)}")
    print(f"  first row             {spread(first)}")
    print(f"  row of a usual answer {spread(rows)}")
    print(f"  row of a random walk  {spread(wild)}")
    print(f"  its bits as booleans  {spread(bits)}")
    for name, items, document in SETS:
        for unique in (False, True):
            listing = {"type": "array", "items": items, "uniqueItems": unique}
            held, said, rest = (
                vocabulary.held(compiler.ready(from_schema(listing), 0)),
                list[int](),
                json.dumps(document),
            )
            times: list[float] = []
            while rest:
                times.append(timed(lambda held=held, said=said: held.after(said)))  # type: ignore[misc]
                forced = held.after(said).forced
                token = forced if forced >= 0 else tokenizer(rest, add_special_tokens=False)["input_ids"][0]
                said, rest = [*said, token], rest.removeprefix(tokenizer.decode([token]))
            print(f"  row of {name:14} {'different' if unique else 'any'} {spread(times)}")


def theirs(tokenizer: Any, texts: Sequence[Sequence[int]]) -> None:
    try:
        xgrammar: Any = importlib.import_module("xgrammar")  # no dependency of ours
    except ImportError:
        print("xgrammar is not installed here")
        return
    began = time.monotonic()
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=VOCAB)
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    print(f"xgrammar: vocabulary {time.monotonic() - began:.2f} s")
    bitmask = xgrammar.allocate_token_bitmask(1, VOCAB)
    compiling, first, rows = [], [], []
    for schema, text in zip(SCHEMAS.values(), texts, strict=True):
        source, began_ns = json.dumps(schema), time.perf_counter_ns()
        compiled = compiler.compile_json_schema(source, any_whitespace=False)
        compiling.append((time.perf_counter_ns() - began_ns) / 1000)
        matcher = xgrammar.GrammarMatcher(compiled)
        for number, token in enumerate(text):
            times = timed(lambda matcher=matcher: matcher.fill_next_token_bitmask(bitmask))  # type: ignore[misc]
            (rows if number else first).append(times)
            assert matcher.accept_token(token), tokenizer.decode(text[: number + 1])
    print(f"  compile               {spread(compiling)}")
    print(f"  first row             {spread(first)}")
    print(f"  row of a usual answer {spread(rows)}")


async def passes(models: Path, modes: Sequence[Speculation], rtt_ms: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        words_ = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(models))
        swarm = LocalSwarm(Path(folder), arguments=words_, rtt_ms=rtt_ms)
        async with local_ring(swarm, split_layers(30, 3)) as ring:
            member = MemberConfig(Path(folder) / "asker", models, ring.invite, lan=False)
            async with await Requester.connect(RequesterConfig(member)) as requester:
                for mode in modes:
                    await compare(requester, mode)


async def compare(requester: Requester, mode: Speculation) -> None:
    held_passes, free_passes, tokens = 0, 0, 0
    for name, schema in SCHEMAS.items():
        said = [
            {"role": "user", "content": f"Describe {name} as JSON with the fields {', '.join(schema['required'])}."}
        ]
        about = [{"role": "user", "content": f"Tell me about {name} in some sentences."}]
        held = await one(requester, said, mode, 160, Sampling(constraint=from_schema(schema)))
        json.loads(held.text)
        free = await one(requester, about, mode, held.new_tokens, Sampling())
        held_passes += held.passes
        free_passes += free.passes
        tokens += held.new_tokens
        print(
            f"{mode:6} {name:13} {held.new_tokens:4} tokens  {held.passes:4} passes, free text {free.passes:4}",
            flush=True,
        )
    print(
        f"{mode}: {tokens} tokens, {held_passes} passes against {free_passes}: {held_passes / free_passes:.2f}",
        flush=True,
    )


async def one(requester: Requester, said: Any, mode: Speculation, most: int, sampling: Sampling) -> RunResult:
    draft = "none" if mode == "plain" else "auto"
    ids = tuple(await asyncio.to_thread(requester.encode_chat, said))
    request = RunRequest(
        ids, most, sampling, speculation=mode, draft=draft, receipt=False, ignore_eos=sampling.constraint is None
    )
    async with aclosing(requester.run(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("the run has no end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["masks", "passes"])
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "wanswarm-bench-models")
    parser.add_argument("--modes", nargs="+", default=["plain", "chain", "stream"])
    parser.add_argument("--rtt", type=float, default=0.0, help="emulated between nodes, in ms (default: %(default)g)")
    arguments = parser.parse_args()
    if "masks" in arguments.what:
        masks(arguments.models)
    if "passes" in arguments.what:
        asyncio.run(passes(arguments.models, arguments.modes, arguments.rtt))


if __name__ == "__main__":
    main()
