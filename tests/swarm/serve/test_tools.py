from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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
