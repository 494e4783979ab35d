from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from swarm.run.api import Special
from swarm.serve.tools import ToolCall, ToolSplitter

NAMES = frozenset({"add", "look"})
ADD = '{"name": "add", "arguments": {"a": 1}}'
CALL = ToolCall("add", '{"a": 1}')


def split(text: str, sizes: list[int], names: frozenset[str] = NAMES) -> tuple[str, list[ToolCall]]:
    splitter, out, calls = ToolSplitter(names), "", []
    for size in sizes:
        said, found = splitter.feed(text[:size])
        text, out, calls = text[size:], out + said, calls + found
    for said, found in (splitter.feed(text), splitter.finish()):
        out, calls = out + said, calls + found
    return out, calls


sizes = st.lists(st.integers(1, 7), max_size=60)


@given(sizes)
def test_calls_between_marks_are_found_however_the_text_is_cut(sizes: list[int]) -> None:
    text = f"Well. <tool_call>\n{ADD}\n</tool_call> and <tool_call>{ADD}</tool_call>."
    assert split(text, sizes) == ("Well.  and .", [CALL, CALL])


@given(sizes)
def test_other_ways_of_writing_calls(sizes: list[int]) -> None:
    assert split(f"[TOOL_CALLS][{ADD}, {ADD}]", sizes) == ("", [CALL, CALL])
    assert split(ADD.replace("arguments", "parameters"), sizes) == ("", [CALL])
    assert split(f"<tool_call>[{ADD}]</tool_call>", sizes) == ("", [CALL])
    assert split(f"Sure <tool_call>{ADD}", sizes) == ("Sure ", [CALL])  # the answer ended before the mark did


@given(sizes)
def test_arguments_stay_as_they_were_written(sizes: list[int]) -> None:
    written = '{"a":1.10, "b" : "\\u00e9", "c":[1e2,{}],"a":2}'
    for text in (f'{{"arguments" : {written} , "name":"add"}}', f'[ {{"name": "add","parameters":{written}}} ]'):
        assert split(f"<tool_call>{text}</tool_call>", sizes) == ("", [ToolCall("add", written)])
    assert split('{"name": "look"}', sizes) == ("", [ToolCall("look", "{}")])
    assert split('[{"name": "look", "arguments": "x"}, 3]', sizes)[1] == []


@given(st.dictionaries(st.text(max_size=5), st.recursive(st.none() | st.floats(allow_nan=False) | st.text(max_size=5),
       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))),
       st.sampled_from([None, 1]))  # fmt: skip
def test_any_arguments_are_told_letter_for_letter(arguments: dict[str, object], indent: int | None) -> None:
    written = json.dumps(arguments, indent=indent)
    text = json.dumps([{"name": "add", "arguments": 0}]).replace(": 0", f": {written}")
    assert split(f"<tool_call>{text}</tool_call>", []) == ("", [ToolCall("add", written)])


def test_marks_that_are_special_tokens_are_known_by_id() -> None:
    mark = Special(7, "[TOOL_CALLS]")
    splitter = ToolSplitter(NAMES, frozenset({"[TOOL_CALLS]", "<|x|>"}))
    assert splitter.feed("Well", Special(8, "<|x|>"), " [TOOL_CALLS]", mark, f"[{ADD}]") == ("Well [TOOL_CALLS]", [])
    assert splitter.finish() == ("", [CALL])
    splitter = ToolSplitter(NAMES, frozenset({"[TOOL_CALLS]"}))
    assert splitter.feed(mark, "no call") == ("", []) and splitter.finish() == ("no call", [])


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
    assert ToolSplitter(frozenset()).feed(text) == (text, [])
