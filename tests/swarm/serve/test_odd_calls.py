"""Calls that are written oddly, over all APIs: nothing is lost, and a stream says what a whole answer says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarm.model.sampler import Sampling
from swarm.model.text.spelling import Spelling
from swarm.run.api import CommittedTokens, RunRequest, RunResult
from swarm.serve.answer import ChatShape, Choice, usage
from swarm.serve.arguments import RAW, ObjectStream, for_client, for_template, text_of
from swarm.serve.compat.anthropic import AnthropicVoice
from swarm.serve.compat.ollama import OllamaVoice
from swarm.serve.compat.responses import ResponsesVoice
from swarm.serve.config import GatewayConfig
from swarm.serve.logprobs import LogprobLedger
from swarm.serve.parse import GenerationRequest, parse_chat_untrusted
from swarm.serve.tools import Marks, ToolSplitter
from swarm.serve.voice import OpenAIVoice, Voice
from tests.swarm.serve.conftest import Served
from tests.swarm.serve.test_tools import ADD, FAMILIES, THINK, TOOLS, heard, sizes, split
from tests.swarm.serve.tiny import RING, tiny_tokenizer

WORD = "zq0z"
_HEADS = re.compile(
    r"<\|start\|>.*?<\|message\|>|<\|channel\|>.*?<\|message\|>|<[^<>]*invoke[^>]*>|<[^<>]*parameter name[^>]*>"
    r'|\{\s*"[^{}]*"(?:arguments|parameters)": |<\|call\|>|<\|end\|>'
)
"""Parts of marks that say nothing themselves, and members of calls beside name and arguments: they are not told."""


@pytest.mark.parametrize("family", FAMILIES)
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_no_word_is_lost_wherever_it_stands(family: str, data: st.DataObject) -> None:
    """A word anywhere but within a mark, and a piece of what is behind or before it left out."""
    template, text, _, _ = FAMILIES[family]
    text = data.draw(st.sampled_from(["", "Then ", "<tool_call>", "<think>"])) + text
    heads = [place for found in _HEADS.finditer(text) for place in range(found.start() + 1, found.end())]
    at = data.draw(st.sampled_from(sorted({*range(len(text) + 1)} - {*heads})))
    before, behind = text[:at], text[at:]
    cut = data.draw(st.integers(0, len(behind)))
    end = data.draw(st.integers(cut, min(len(behind), cut + 30)))
    written = before + WORD + behind[:cut] + (behind[end:] if not _HEADS.search(behind) else behind[cut:])
    told = heard(written, [], Marks.of(template + "<think></think>"))
    assert WORD in "".join(part.text + part.id for part in told), told


@dataclass(frozen=True)
class Said:
    """What a client of some API has of an answer."""

    text: str
    thought: str
    calls: tuple[tuple[str, Any], ...]


SPELLING = Spelling(tiny_tokenizer())


def answered(voice: Voice, text: str, cuts: Sequence[int], marks: Marks) -> tuple[list[Any], Any]:
    """Events of a stream that is cut so, and the whole answer."""
    shape = ChatShape("chatcmpl-x", 1, "tiny", GenerationRequest(), SPELLING)
    choice = Choice(0, ToolSplitter(TOOLS, marks), LogprobLedger(SPELLING, (1,)), prompt=1)
    run = RunRequest((1,), 9, Sampling())
    events = [data for _, data in voice.opening([run])]
    for chunk in shape.opening(choice):
        events += [data for _, data in voice.chunk(chunk)]
    for size in [*cuts, len(text)]:
        for chunk in shape.more(choice, CommittedTokens((5,), text[:size], (False,))):
            events += [data for _, data in voice.chunk(chunk)]
        text = text[size:]
    choice.result = RESULT
    for chunk in shape.closing(choice):
        events += [data for _, data in voice.chunk(chunk)]
    told = usage([choice], 1)
    events += [data for _, data in voice.closing([RESULT], told, shape.chunk("", []))]
    return events, {**shape.whole([choice]), "usage": told}


RESULT = RunResult(
    text="", token_ids=(5,), prompt_token_ids=(1,), new_tokens=1, seconds=1.0, ttft_seconds=1.0, tokens_per_second=1.0,
    passes=1, tokens_per_pass=1.0, rows_sent=1, acceptance=0.0, drafter="none", speculation="plain", ring=RING,
    finish_reason="stop", receipt=None,
)  # fmt: skip


def by_chat(text: str, cuts: Sequence[int], marks: Marks) -> tuple[Said, Said]:
    events, whole = answered(OpenAIVoice(), text, cuts, marks)
    said, thought, calls = "", "", list[list[str]]()
    for event in events[:-1]:
        delta = event["choices"][0]["delta"] if event["choices"] else {}
        said, thought = said + (delta.get("content") or ""), thought + delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    told = whole["choices"][0]["message"]
    made = tuple((call["function"]["name"], call["function"]["arguments"]) for call in told.get("tool_calls", ()))
    streamed = Said(said, thought, tuple((name, arguments) for name, arguments in calls))
    return streamed, Said(told["content"] or "", told.get("reasoning_content", ""), made)


def by_responses(text: str, cuts: Sequence[int], marks: Marks) -> tuple[Said, Said]:
    def said(output: Sequence[Any]) -> Said:
        parts = {"message": "", "reasoning": ""}
        for item in output:
            for part in item.get("content", ()):
                parts[item["type"]] += part["text"]
        calls = tuple((item["name"], item["arguments"]) for item in output if item["type"] == "function_call")
        return Said(parts["message"], parts["reasoning"], calls)

    events, _ = answered(ResponsesVoice("x", {}, lambda body: None), text, cuts, marks)
    deltas = {"output_text": "", "reasoning_text": "", "function_call_arguments": ""}
    for event in events:
        kind, _, what = event["type"].removeprefix("response.").partition(".")
        if what == "delta":
            deltas[kind] += event["delta"]
    _, whole = answered(OpenAIVoice(), text, cuts, marks)
    body = ResponsesVoice("x", {}, lambda body: None).whole(whole, [RESULT])
    streamed = said(events[-1]["response"]["output"])
    assert (streamed.text, streamed.thought) == (deltas["output_text"], deltas["reasoning_text"])
    assert "".join(arguments for _, arguments in streamed.calls) == deltas["function_call_arguments"]
    return streamed, said(body["output"])


def by_anthropic(text: str, cuts: Sequence[int], marks: Marks) -> tuple[Said, Said]:
    def said(blocks: Sequence[Any]) -> Said:
        texts = [block["text"] for block in blocks if block["type"] == "text"]
        thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking"]
        calls = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
        return Said("".join(texts), "".join(thoughts), tuple(calls))

    def voice() -> AnthropicVoice:
        return AnthropicVoice("req_x", "tiny", (), BACKEND)

    events, _ = answered(voice(), text, cuts, marks)
    blocks: list[Any] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], "input": ""})
        elif event["type"] == "content_block_delta" and event["delta"]["type"] != "signature_delta":
            kind = event["delta"]["type"].removesuffix("_delta").replace("input_json", "input")
            blocks[event["index"]][kind] += event["delta"]["partial_json" if kind == "input" else kind]
    for block in blocks:
        block["input"] = json.loads(block["input"] or "{}")  # as their clients do
    _, whole = answered(OpenAIVoice(), text, cuts, marks)
    return said(blocks), said(voice().whole(whole, [RESULT])["content"])


def by_ollama(text: str, cuts: Sequence[int], marks: Marks) -> tuple[Said, Said]:
    def said(messages: Sequence[Any]) -> Said:
        calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
        texts = "".join(message["content"] for message in messages)
        thoughts = "".join(message.get("thinking") or "" for message in messages)
        return Said(texts, thoughts, tuple((call["name"], call["arguments"]) for call in calls))

    events, _ = answered(OllamaVoice("tiny", chat=True), text, cuts, marks)
    _, whole = answered(OpenAIVoice(), text, cuts, marks)
    return said([event["message"] for event in events]), said(
        [OllamaVoice("tiny", True).whole(whole, [RESULT])["message"]]
    )


APIS = {"chat": by_chat, "responses": by_responses, "anthropic": by_anthropic, "ollama": by_ollama}
BACKEND: Any = None  # no stop sequence is asked for, so nothing is decoded


@pytest.mark.parametrize("api", APIS)
@given(st.sampled_from(sorted(FAMILIES)), st.data())
@settings(max_examples=60, deadline=None)
def test_a_stream_says_what_a_whole_answer_says(api: str, family: str, data: st.DataObject) -> None:
    template, text, _, _ = FAMILIES[family]
    odd = ["", '"', "}", "{", "\\ud83d", "\\", "</tool_call>", "<think>Hm", "</think>", text, "[1e999", "é\n"]
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + data.draw(st.sampled_from(odd)) + text[data.draw(st.integers(at, len(text))) :]
    marks = Marks.of(template + "<think></think>")
    streamed, whole = APIS[api](text, data.draw(sizes), marks)
    assert streamed == whole
    openai, _ = by_chat(text, [], marks)
    assert (openai.text, openai.thought) == (whole.text, whole.thought)
    for (name, written), (_, told) in zip(openai.calls, whole.calls, strict=True):
        if isinstance(told, dict):
            value = told.get(RAW)
            assert value == written or json.loads(written or "{}", strict=False) == told, (name, written, told)
        else:
            assert told == written


# What models write that is odd, and what is told of it: text, calls with the arguments letter for letter.
_KIMI = "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
_DEEPSEEK = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>"
_HARMONY, _PYTHON, _CODER = "<|channel|><|message|>", "(params_name1=", "<function="
_ONE = [("add", '{"a": 1}')]
ODD: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "no closing brace": (
        "", '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>Done.', "Done.", _ONE,
    ),
    "a brace too many": ("", f"<tool_call>{ADD}}}</tool_call>Done.", "Done.", _ONE),
    "no closing mark": ("", f"<tool_call>{ADD}\nDone.", "\nDone.", _ONE),
    "a mark instead of the closing one": ("", f"<tool_call>{ADD}<tool_call>{ADD}", "", _ONE * 2),
    "a quote that is not escaped": (
        "", '<tool_call>{"name": "look", "arguments": {"city": "a"b"}}</tool_call>\nIt is "so" {x}.',
        '\nIt is "so" {x}.', [("look", '{"city": "a"b"}}')],
    ),
    "a mark within a string": (
        "", '<tool_call>{"name": "look", "arguments": {"city": "</tool_call><tool_call>"}}</tool_call>Done.', "Done.",
        [("look", '{"city": "</tool_call><tool_call>"}')],
    ),
    "a comma too many": (
        "", '<tool_call>{"name": "add", "arguments": {"a": 1,}}</tool_call>', "", [("add", '{"a": 1,}')],
    ),
    "no arguments": ("", '<tool_call>{"name": "add", "arguments": }</tool_call>Done.', "Done.", [("add", "{}")]),
    "null": ("", '<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [("add", "{}")]),
    "an answer that looks like a call": ("", '{"name": "add", "age": 3}', '{"name": "add", "age": 3}', []),
    "within a fence": ("", f"```\n<tool_call>{ADD}</tool_call>\n```", "```\n\n```", _ONE),
    "a mark that is talked about": ("", "Use <tool_call> " + "x" * 500, "Use <tool_call> " + "x" * 500, []),
    "qwen3-coder, a parameter not closed": (
        _CODER, "<tool_call>\n<function=look>\n<parameter=city>\nGhent\n<parameter=zip>\n9000\n</function>\n"
        "</tool_call>\nDone.", "\nDone.", [("look", '{"city": "Ghent", "zip": "9000"}')],
    ),
    "qwen3-coder, a page about it": (
        _CODER, "<tool_call><function=look>\n<parameter=city>\na\n</function>\nb\n</parameter>\n</function>"
        "</tool_call>", "", [("look", '{"city": "a\\n</function>\\nb"}')],
    ),
    "qwen3-coder, words between": (
        _CODER, "<tool_call><function=add>\n<parameter=a>1</parameter>\nNow go.</function></tool_call>",
        "\nNow go.</function></tool_call>", _ONE,
    ),
    "qwen3-coder, no number": (
        _CODER, "<tool_call><function=add><parameter=a>NaN</parameter></function></tool_call>",
        "", [("add", '{"a": "NaN"}')],
    ),
    "glm, a value not closed": (
        "<arg_key>", "<tool_call>look<arg_key>city</arg_key><arg_value>Ghent\n<arg_key>zip</arg_key>"
        "<arg_value>9</arg_value></tool_call>Done.", "Done.", [("look", '{"city": "Ghent", "zip": "9"}')],
    ),
    "kimi, no end of the call": (
        "<|tool_calls_section_begin|>", _KIMI + '{"a": 1}<|tool_calls_section_end|>Done.', "Done.", _ONE,
    ),
    "deepseek, no end of the call": ("<｜tool▁calls▁begin｜>", _DEEPSEEK + '{"a": 1}\nDone.', "Done.", _ONE),
    "deepseek, no end of the arguments": (
        "<｜tool▁calls▁begin｜>", _DEEPSEEK + '{"a": 1<｜tool▁call▁end｜><｜tool▁calls▁end｜>Done.', "Done.",
        [("add", '{"a": 1')],
    ),
    "deepseek, the first of two cut": (
        "<｜tool▁calls▁begin｜>",
        f'{_DEEPSEEK}{{"a": 1<｜tool▁call▁end｜>{_DEEPSEEK[20:]}{{"a": 1}}<｜tool▁call▁end｜>',
        "",
        [("add", '{"a": 1'), *_ONE],
    ),
    "mistral, nothing": ("", "[TOOL_CALLS]add[ARGS]", "", [("add", "{}")]),
    "python, half of a pair": (_PYTHON, '[look(city="\\ud83d")]', '[look(city="\\ud83d")]', []),
    "python, no number": (_PYTHON, "[add(a=1e999)]", "[add(a=1e999)]", []),
    "python, then words": (_PYTHON, "[add(a=1), and so on]", ", and so on]", _ONE),
    "json, half of a pair": ("", '{"name": "look", "arguments": "\\ud83d"}', "", [("look", '"\\ud83d"')]),
    "harmony without a message": (_HARMONY, "<|channel|>final Hello.", "<|channel|>final Hello.", []),
    "harmony, words between": (
        _HARMONY, "<|channel|>final<|message|>A.<|end|>B.<|start|>assistant<|channel|>final<|message|>C.", "A.B.C.", [],
    ),
    "harmony, no arguments": (
        _HARMONY, "<|channel|>commentary to=functions.add<|message|><|call|>", "", [("add", "{}")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
@given(sizes)
@settings(max_examples=8, deadline=None)
def test_odd_calls_are_told_as_they_were_written(name: str, cuts: list[int]) -> None:
    template, text, around, calls = ODD[name]
    assert split(text, cuts, Marks.of(template)) == (around, calls)


def test_thoughts_twice_and_unclosed() -> None:
    twice = "<think>A</think>B <think>C</think> D"
    assert [(part.kind, part.text) for part in heard(twice, [3, 9], THINK)] == [
        ("thought", "A"), ("text", "B "), ("thought", "C"), ("text", "D"),
    ]  # fmt: skip
    unclosed = heard(f"<think>A <tool_call>{ADD}</tool_call>", [], THINK)
    assert [(part.kind, part.text) for part in unclosed] == [("thought", f"A <tool_call>{ADD}</tool_call>")]


def test_marks_in_answers_of_a_given_form_are_a_part_of_them() -> None:
    marks = Marks.of("<think></think><|channel|><|message|>").bare()
    text = '{"tag": "<think>a</think> <tool_call>"}'
    assert split(text, [4, 5], marks) == (text, [])
    assert split(ADD, [4, 5], marks) == ("", [("add", '{"a": 1}')])


@given(st.text(alphabet=list('{}[]",:ab1 \\u\n'), max_size=30), st.lists(st.integers(1, 5), max_size=12))
@example('{"a": 1, "b": "x"y"}', [3])
@example('{"a": 1, }', [])
@example('{"a": NaN}', [])
@example('{"a": "\\ud83d"}', [4])
@example('  {"a": "x\ny", "c": []} ', [4])
def test_an_object_is_told_whatever_was_written(written: str, cuts: list[int]) -> None:
    stream, told, rest = ObjectStream(), "", written
    for size in [*cuts, len(written)]:
        told, rest = told + stream.feed(rest[:size]), rest[size:]
    value = json.loads(told + stream.finish(), parse_constant=pytest.fail)
    assert value == for_client(written)
    json.dumps(value, ensure_ascii=False).encode()
    try:
        plain = json.loads(written, strict=False)
    except ValueError:
        plain = None
    if isinstance(plain, dict) and for_template(written) == plain:
        assert value == plain
    else:
        assert value == {} if not written.strip() else value[RAW] == written
        assert text_of(value) == written or not written.strip()


@pytest.mark.parametrize(
    "written", ['{"a": 1', "[1]", '{"a": "\\ud800"}', '{"a": NaN}', "[" * 40, '{"a":' * 40 + "1" + "}" * 40]
)
async def test_broken_arguments_may_come_back(served: Served, written: str) -> None:
    """Programs send what the model wrote again, in every API, and the model sees it."""
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": written}}
    history: Any = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    parsed = parse_chat_untrusted({"messages": history}, GatewayConfig())
    assert parsed.messages[1]["tool_calls"][0]["function"]["arguments"] == {RAW: written}
    item = {"type": "function_call", "call_id": "x", "name": "add", "arguments": written}
    use = {"type": "tool_use", "id": "x", "name": "add", "input": {RAW: written}}
    back = {"function": {"name": "add", "arguments": {RAW: written}}}
    for path, body in (
        ("/v1/chat/completions", {"messages": history}),
        ("/v1/responses", {"input": [{"role": "user", "content": "hi"}, item]}),
        (
            "/v1/messages",
            {"messages": [history[0], {"role": "assistant", "content": [use]}, history[0]], "max_tokens": 1},
        ),
        ("/api/chat", {"messages": [history[0], {"role": "assistant", "tool_calls": [back]}], "stream": False}),
    ):
        async with served.http.post(path, json={**body, "max_tokens": 1}) as answer:
            assert answer.status == 200, await answer.text()
