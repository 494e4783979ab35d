"""Chat templates in processes of their own: what transformers says, and hostile ones ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm.base.errors import UsageError
from swarm.model.files.checkpoint import load_tokenizer, transformers_tokenizer
from swarm.model.files.store import ModelStore
from swarm.model.text.template import TemplateOptions, TemplateRenderer, Turn
from tests.swarm.serve.tiny import TEMPLATE, tiny_tokenizer

HELLO = [{"role": "user", "content": "héllo"}]
TALK = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    made = TemplateRenderer(wall_s=20.0)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("messages", "tools", "options", "turn"),
    [
        (HELLO, None, {}, Turn()),
        (TALK, TOOLS, {"enable_thinking": False}, Turn(add_generation_prompt=False)),
        (TALK, None, {}, Turn(continue_final_message=True)),
    ],
)
def test_prompts_are_those_of_transformers(
    renderer: TemplateRenderer, tmp_path: Path, messages: Any, tools: Any, options: Any, turn: Turn
) -> None:
    store, ref = ModelStore(tmp_path), "smollm2-135m-instruct"
    whole = transformers_tokenizer(store.tokenizer_source(ref), ref)
    tiny = tiny_tokenizer()
    for tokenizer, theirs in ((tiny, tiny), (whole, whole), (load_tokenizer(ref, store), whole)):
        expected = theirs.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=turn.add_generation_prompt and not turn.continue_final_message,
            continue_final_message=turn.continue_final_message,
            return_dict=False,
            **options,
        )
        assert renderer.encode(tokenizer, messages, TemplateOptions(tools or (), options or {}, turn)) == tuple(
            expected
        )


def test_options_reach_the_template(renderer: TemplateRenderer) -> None:
    tokenizer = tiny_tokenizer("{% if enable_thinking is defined and not enable_thinking %}off{% else %}on{% endif %}")
    told = [
        tokenizer.decode(renderer.encode(tokenizer, HELLO, TemplateOptions(variables=o)))
        for o in ({}, {"enable_thinking": False})
    ]
    assert told == ["on", "off"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ nothing.there.at_all }}", "refuses these messages"),
        ("{% if %}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "refuses these messages"),
        ("{% for i in range(90000) %}{{ 'x' * 900 }}{% endfor %}", "[0-9]+ characters for"),
        ("{{ ('x' * 900000000) | length }}", "256 MiB of memory"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "5 s of a processor"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{{ 'ab ' * 50000 }}", "[0-9]+ characters for"),
        ("{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}", "recursion"),
        ("{{ 'a' | center(2000000000) }}", "256 MiB of memory"),
        ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
        ("{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "256 MiB"),
        ("{{ ('a' * 100000) | replace('a', 'b' * 100000) | length }}", "256 MiB of memory"),
        ("{{ '{:>1000000000}'.format(1) }}", "256 MiB of memory"),
        ("{{ (10 ** 400000) | string }}", "refuses these messages"),
    ],
    ids=[
        "refuses",
        "breaks",
        "no-template",
        "escapes",
        "recurs",
        "floods",
        "fills",
        "hangs",
        "halves",
        "whispers",
        "nests-while-it-is-compiled",
        "pads",
        "recurs-in-a-loop",
        "doubles",
        "replaces",
        "formats",
        "counts-far",
    ],
)
def test_a_template_ends_within_its_bounds(renderer: TemplateRenderer, template: str, says: str) -> None:
    tokenizer = tiny_tokenizer(template)
    with pytest.raises(UsageError, match=says):
        renderer.encode(tokenizer, HELLO)
    # The next one is served, by another process where the last had to be ended.
    tokenizer.chat_template = TEMPLATE
    assert renderer.encode(tokenizer, HELLO)


def test_wall_clock_ends_what_uses_no_processor() -> None:
    impatient = TemplateRenderer(wall_s=0.3)
    try:
        with pytest.raises(UsageError, match="0.3 s"):
            impatient.encode(
                tiny_tokenizer("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"), HELLO
            )
    finally:
        impatient.close()


def test_one_process_serves_all_honest_ones_and_ends_with_its_owner() -> None:
    own = TemplateRenderer()
    own.warm()
    (process,) = (one._process for one in own._idle)
    for _ in range(5):
        own.encode(tiny_tokenizer(), HELLO)
    assert [one._process for one in own._idle] == [process] and process.poll() is None
    own.close()
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
