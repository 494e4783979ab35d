from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.serve.body import parse_json_untrusted
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError
from swarm.serve.parse import parse_chat_untrusted, parse_completion_untrusted, parse_generate_untrusted

CONFIG = GatewayConfig()
HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> Any:
    return parse_chat_untrusted({"messages": HELLO, **fields}, CONFIG)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "\ud800"}, "max_tokens"),
        ({"messages": [{"role": "\udfff", "content": "x"}]}, "messages[0].role"),
        ({"tool_choice": {"\ud800": 1}}, "tool_choice"),
        ({"\ud800": 1}, ""),
        ({"grammar": ""}, "grammar"),
        ({"grammar": "expr ::= [0-9]"}, "grammar"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e999}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"n": 99}, "n"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": [[5]]}, "logit_bias"),
        ({"logit_bias": [["five", 1]]}, "logit_bias"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"speculation": "magic"}, "speculation"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert caught.value.status == 400 and caught.value.param == param and param in caught.value.message


def test_content_parts_and_roles_are_made_plain_with_a_line_between() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = parse_chat_untrusted({"messages": [{"role": "developer", "content": parts}]}, CONFIG).messages
    assert messages == ({"role": "system", "content": "a\n\nb"},)


def test_tool_arguments_become_values_for_the_template() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    (message,) = parse_chat_untrusted({"messages": [{"role": "assistant", "tool_calls": [call]}]}, CONFIG).messages
    assert message["tool_calls"][0]["function"]["arguments"] == {"x": [1]} and message["content"] == ""


def test_tool_choice_none_hides_the_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert len(chat(tools=tools).tools) == 1 and chat(tools=tools, tool_choice="none").tools == ()


def test_null_is_absent() -> None:
    names = ["temperature", "max_tokens", "stop", "seed", "n", "stream", "logprobs", "tools", "response_format"]
    assert chat(**dict.fromkeys(names)) == chat()


def test_max_completion_tokens_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).wanted.max_tokens == 7


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_prompts_come_in_four_ways(prompt: Any, expected: Any) -> None:
    assert parse_completion_untrusted({"prompt": prompt}, CONFIG).prompts == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": ["a"] * 3, "n": 4}, "prompt"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "echo": True, "logprobs": 1, "presence_penalty": 1}, "presence_penalty"),
        ({"prompt": [1], "suffix": "b"}, "suffix"),
        ({"prompt": "a", "suffix": "b", "echo": True, "logprobs": 1}, "suffix"),
    ],
)
def test_a_wrong_text_request_is_named(body: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion_untrusted(body, CONFIG)
    assert caught.value.param == param


def test_generate_is_greedy_by_default() -> None:
    assert parse_generate_untrusted({"prompt": "a"}, CONFIG).wanted.temperature == 0
    assert parse_completion_untrusted({"prompt": "a"}, CONFIG).wanted.temperature == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
known = st.sampled_from(
    ["messages", "prompt", "model", "temperature", "stop", "n", "stream", "stream_options", "tools", "tool_choice"]
    + ["response_format", "logprobs", "top_logprobs", "seed", "max_tokens", "modalities", "logit_bias", "echo"]
)


@given(st.dictionaries(known, json_values, max_size=6) | json_values)
def test_any_json_is_read_or_refused_with_a_4xx(body: Any) -> None:
    for parse in (parse_chat_untrusted, parse_completion_untrusted, parse_generate_untrusted):
        try:
            parse(body, CONFIG)
        except ApiError as error:
            assert 400 <= error.status < 500
            json.dumps(error.body()).encode()


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    try:
        parse_json_untrusted(data)
    except ApiError as error:
        assert error.code == "invalid_json"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"NaN", b"[1e5, Infinity]", b"[-1e999]", b"[" * 10**6, b"\xff", b"9" * 5000]
)
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_json_untrusted(data)
    assert caught.value.status == 400


def test_unknown_fields_are_told_or_refused() -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "temprature": 1}
    assert parse_chat_untrusted(body, GatewayConfig()).wanted.ignored == ("temprature",)
    with pytest.raises(ApiError) as caught:
        parse_chat_untrusted(body, GatewayConfig(strict=True))
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "temprature")
