"""Answers taken apart: calls in every family's way of writing them, thoughts, text; however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.run.api import Special
from swarm.serve.tape import Heard
from swarm.serve.tools import Marks, ToolSplitter, short_id

TOOLS: dict[str, dict[str, Any]] = {
    "add": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["number", "null"]}}},
    "look": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "zip": {"type": "string"}, "days": {"type": "array"}},
    },
}
ADD = '{"name": "add", "arguments": {"a": 1}}'
Calls = list[tuple[str, str]]
WEATHER = {"city": "Ghent", "zip": "9000", "days": [1, 2]}

# Family, its template's marks, what the model writes, the text around it, the calls (arguments as values).
FAMILIES: dict[str, tuple[str, str, str, list[tuple[str, Any]]]] = {
    "hermes": (
        "<tool_call>", f"Well. <tool_call>\n{ADD}\n</tool_call> and <tool_call>{ADD}</tool_call>.",
        "Well.  and .", [("add", {"a": 1}), ("add", {"a": 1})],
    ),
    "hermes, lines between": (
        "<tool_call>", f"<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{ADD}\n</tool_call>\n",
        "", [("add", {"a": 1}), ("add", {"a": 1})],
    ),
    "qwen3-coder": (
        "<tool_call><function=",
        "Hm.\n<tool_call>\n<function=look>\n<parameter=city>\nGhent\n</parameter>\n<parameter=zip>\n9000\n</parameter>\n"
        "<parameter=days>\n[1, 2]\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=add>\n"
        "<parameter=a>\n1\n</parameter>\n<parameter=b>\nNone\n</parameter>\n</function>\n</tool_call>",
        "Hm.\n", [("look", WEATHER), ("add", {"a": 1, "b": None})],
    ),
    "qwen3-coder without the outer mark": (
        "<tool_call><function=", "<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "", [("add", {"a": 1})],
    ),
    "glm": (
        "<tool_call><arg_key>",
        "<tool_call>look\n<arg_key>city</arg_key>\n<arg_value>Ghent</arg_value>\n<arg_key>zip</arg_key>\n"
        "<arg_value>9000</arg_value>\n<arg_key>days</arg_key>\n<arg_value>[1, 2]</arg_value>\n</tool_call>",
        "", [("look", WEATHER)],
    ),
    "llama 3 json": (
        "parameters", '{"name": "add", "parameters": {"a": 1}}; {"name": "look", "parameters": {"city": "Ghent"}}',
        "", [("add", {"a": 1}), ("look", {"city": "Ghent"})],
    ),
    "llama 3 built in": (
        "<|python_tag|>", '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1}}',
        "", [("add", {"a": 1})],
    ),
    "llama 3.2 pythonic": (
        "[func_name1(params_name1=params_value1)]", "[look(city='Gh\\'ent', days=[1, (2)]), add(a=-1, b=None)]",
        "", [("look", {"city": "Gh'ent", "days": [1, 2]}), ("add", {"a": -1, "b": None})],
    ),
    "llama 4": (
        "<|python_start|>", '<|python_start|>[look(city="Ghent, [BE]")]<|python_end|>',
        "", [("look", {"city": "Ghent, [BE]"})],
    ),
    "lfm2": ("<|tool_call_start|>", "<|tool_call_start|>[add(a=1)]<|tool_call_end|>ok", "ok", [("add", {"a": 1})]),
    "mistral": ("[TOOL_CALLS]", f"[TOOL_CALLS] [{ADD}, {ADD}]", "", [("add", {"a": 1}), ("add", {"a": 1})]),
    "mistral, later": (
        "[TOOL_CALLS]", 'Hm.[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]look[CALL_ID]abcdefghi[ARGS]{"city": "Ghent"}',
        "Hm.", [("add", {"a": 1}), ("look", {"city": "Ghent"})],
    ),
    "deepseek v3": (
        "<｜tool▁calls▁begin｜>",
        "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1}\n```"
        "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{\"city\": \"Ghent\"}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Hm.", [("add", {"a": 1}), ("look", {"city": "Ghent"})],
    ),
    "deepseek v3.1": (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>look<｜tool▁sep｜>{\"city\": \"Ghent\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "", [("add", {"a": 1}), ("look", {"city": "Ghent"})],
    ),
    "deepseek v3.2": (
        "<｜DSML｜function_calls>",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="look">\n<｜DSML｜parameter name="city" string="true">Ghent'
        '</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">[1, 2]</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "", [("look", {"city": "Ghent", "days": [1, 2]})],
    ),
    "kimi": (
        "<|tool_calls_section_begin|>",
        "Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{\"a\": 1}"
        "<|tool_call_end|><|tool_call_begin|>functions.look:1<|tool_call_argument_begin|>{\"city\": \"Ghent\"}"
        "<|tool_call_end|><|tool_calls_section_end|>",
        "Hm.", [("add", {"a": 1}), ("look", {"city": "Ghent"})],
    ),
    "minimax": (
        "<minimax:tool_call>",
        '<minimax:tool_call>\n<invoke name="look">\n<parameter name="city">Ghent</parameter>\n'
        '<parameter name="days">[1, 2]</parameter>\n</invoke>\n<invoke name="add">\n</invoke>\n</minimax:tool_call>',
        "", [("look", {"city": "Ghent", "days": [1, 2]}), ("add", {})],
    ),
    "minimax m1": ("<tool_calls>", f"<tool_calls>\n{ADD}\n{ADD}\n</tool_calls>", "", [("add", {"a": 1})] * 2),
    "command a": (
        "<|START_ACTION|>",
        '<|START_ACTION|>[\n {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}}\n]<|END_ACTION|>',
        "", [("add", {"a": 1})],
    ),
    "granite": ("<|tool_call|>", f"<|tool_call|>[{ADD}]", "", [("add", {"a": 1})]),
    "harmony": (
        "<|start|><|channel|><|message|>",
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary<|message|>Looking."
        "<|end|><|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
        '{"a": 1}<|call|>',
        "Looking.", [("add", {"a": 1})],
    ),
}  # fmt: skip
sizes = st.lists(st.integers(1, 7), max_size=60)


def heard(text: str, sizes: list[int], marks: Marks, tools: Any = TOOLS, thinking: bool = False) -> list[Heard]:
    """What is told in all, neighbours joined."""
    splitter, parts = ToolSplitter(tools, marks, thinking), list[Heard]()
    for size in sizes:
        parts += splitter.feed(text[:size])
        text = text[size:]
    parts += [*splitter.feed(text), *splitter.finish()]
    joined: list[Heard] = []
    for part in parts:
        if joined and part.kind == joined[-1].kind != "call":
            joined[-1] = Heard(part.kind, joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


def split(text: str, sizes: list[int], marks: Marks = Marks(), tools: Any = TOOLS) -> tuple[str, Calls]:  # noqa: B008
    said, calls = "", list[list[str]]()
    for part in heard(text, sizes, marks, tools):
        if part.kind == "text":
            said += part.text
        elif part.kind == "call":
            calls.append([part.text, ""])
        elif part.kind == "arguments":
            calls[-1][1] += part.text
    return said, [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize("family", FAMILIES)
@given(sizes)
@settings(max_examples=15, deadline=None)
def test_every_familys_calls_are_found_however_they_are_cut(family: str, sizes: list[int]) -> None:
    template, text, around, expected = FAMILIES[family]
    said, calls = split(text, sizes, Marks.of(template))
    assert said == around
    assert [(name, json.loads(arguments)) for name, arguments in calls] == expected


@pytest.mark.parametrize("family", FAMILIES)
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_answers_that_end_anywhere_or_are_garbled_are_told_alike(family: str, data: st.DataObject) -> None:
    """Any chunking gives the same parts, whatever the text."""
    template, text, _, _ = FAMILIES[family]
    end = data.draw(st.integers(0, len(text)))
    garbled = text[:end] + data.draw(
        st.sampled_from(["", "}", "<", '"', "]", "x", "</tool_call>", text[end // 2 : end]])
    )
    marks = Marks.of(template)
    assert heard(garbled, data.draw(sizes), marks) == heard(garbled, [], marks)


@pytest.mark.parametrize("family", FAMILIES)
def test_tools_that_are_not_on_offer_are_text(family: str) -> None:
    template, text, _, _ = FAMILIES[family]
    if family != "harmony":
        assert split(text, [], Marks.of(template), {"other": {}}) == (text, [])
        assert split(text, [], Marks.of(template), {}) == (text, [])


def test_arguments_are_told_while_they_are_written() -> None:
    splitter = ToolSplitter(TOOLS)
    assert splitter.feed('<tool_call>{"name": "add", "argu') == [Heard("call", "add")][:0]
    assert splitter.feed('ments": {"a"') == [Heard("call", "add"), Heard("arguments", '{"a"')]
    assert splitter.feed(": 1") == [Heard("arguments", ": 1")]
    assert not splitter.cut and splitter.finish() == [] and splitter.cut


def test_ids_are_the_models_own_where_it_has_any() -> None:
    parts = heard(FAMILIES["kimi"][1], [], Marks.of(FAMILIES["kimi"][0]))
    assert [part.id for part in parts if part.kind == "call"] == ["functions.add:0", "functions.look:1"]
    parts = heard(FAMILIES["mistral, later"][1], [], Marks())
    assert [part.id for part in parts if part.kind == "call"] == ["", "abcdefghi"]
    assert short_id("abcdefghi") == "abcdefghi" and short_id("call_1") == short_id("call_1") != short_id("call_2")
    assert Marks.of("{% if id | length != 9 %}").short_ids


@given(sizes)
def test_arguments_stay_as_they_were_written(sizes: list[int]) -> None:
    written = '{"a":1.10, "b" : "\\u00e9", "c":[1e2,{}],"a":2}'
    for text in (f'{{"arguments" : {written} , "name":"add"}}', f'[ {{"name": "add","parameters":{written}}} ]'):
        assert split(f"<tool_call>{text}</tool_call>", sizes) == ("", [("add", written)])
    assert split('{"name": "look"}', sizes) == ("", [("look", "{}")])
    assert split('{"name": "look", "arguments": "{\\"city\\": 1}"}', sizes) == ("", [("look", '{"city": 1}')])
    nested = f'{{"type": "function", "function": {{"name": "add", "arguments": {written}}}}}'
    assert split(nested, sizes) == ("", [("add", written)])


@given(st.dictionaries(st.text(max_size=5), st.recursive(st.none() | st.floats(allow_nan=False) | st.text(max_size=5),
       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))),
       st.sampled_from([None, 1]))  # fmt: skip
def test_any_arguments_are_told_letter_for_letter(arguments: dict[str, object], indent: int | None) -> None:
    written = json.dumps(arguments, indent=indent)
    text = json.dumps([{"name": "add", "arguments": 0}]).replace(": 0", f": {written}")
    assert split(f"<tool_call>{text}</tool_call>", []) == ("", [("add", written)])


def test_marks_that_are_special_tokens_are_known_by_id() -> None:
    mark, marks = Special(7, "[TOOL_CALLS]"), Marks.of("", ["[TOOL_CALLS]", "<|x|>"])
    splitter = ToolSplitter(TOOLS, marks)
    assert splitter.feed("Well", Special(8, "<|x|>"), " [TOOL_CALLS]", mark, "[") == [
        Heard("text", "Well [TOOL_CALLS]")
    ]
    assert splitter.feed(f"{ADD}]")[0] == Heard("call", "add")
    splitter = ToolSplitter(TOOLS, marks)
    assert [*splitter.feed(mark, "no call"), *splitter.finish()] == [Heard("text", "no call")]


@given(sizes)
def test_what_is_not_a_call_is_text(sizes: list[int]) -> None:
    for text in (
        '{"name": "format_disk", "arguments": {}}',
        '<tool_call>{"name": "format_disk"}</tool_call> ok',
        "<tool_call>not json</tool_call>",
        "a < b, [TOOL_C",
        '{"name": "add", ',
        "  ",
    ):
        assert split(text, sizes) == (text, [])


@given(st.text(alphabet=list('<>/tool_call[]{}" aTC\n'), max_size=80), sizes)
def test_text_is_never_lost(text: str, sizes: list[int]) -> None:
    out, calls = split(text, sizes)
    assert out == text and not calls


@given(st.text(max_size=40))
def test_without_tools_text_passes_at_once(text: str) -> None:
    assert ToolSplitter().feed(text) == ([Heard("text", text)] if text else [])


THINK = Marks.of("{{ '<think>' }}{{ '</think>' }}")


@given(sizes)
def test_thoughts_are_told_apart(sizes: list[int]) -> None:
    expected = [Heard("thought", "It is\n\nfine."), Heard("text", "Yes, a < b.")]
    assert heard("<think>\nIt is\n\nfine.\n</think>\n\nYes, a < b.", sizes, THINK) == expected
    assert heard("It is\n\nfine.\n</think>\n\nYes, a < b.", sizes, THINK, thinking=True) == expected
    assert heard("<think>\n\n</think>\n\nYes", sizes, THINK) == [Heard("text", "Yes")]
    assert heard("<think>It", sizes, THINK, {}) == [Heard("thought", "It")]
    assert heard("<think>It</think>", sizes, Marks()) == [Heard("text", "<think>It</think>")]
    both = heard(f"<think>Add.</think>\n<tool_call>{ADD}</tool_call>", sizes, THINK)
    assert both == [Heard("thought", "Add."), Heard("call", "add"), Heard("arguments", '{"a": 1}')]
    bare = heard(f"<think>Add.</think>\n{ADD}", sizes, THINK)
    assert bare == both


@given(sizes)
def test_harmony_channels_are_told_apart(sizes: list[int]) -> None:
    marks = Marks.of("<|channel|><|message|>")
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    assert heard(text, sizes, marks) == [Heard("thought", "Hm."), Heard("text", "Yes.")]
    assert heard("Yes.", sizes, marks) == [Heard("text", "Yes.")]
    call = ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>'
    assert heard(call, sizes, marks) == [Heard("call", "add"), Heard("arguments", '{"a": 1}')]
