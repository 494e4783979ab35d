"""Canonical JSON against RFC 8785, and the strict parser against itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from receipts.format.canonical import MAX_INTEGER, emit, parse_untrusted
from receipts.format.errors import ReceiptError, Refusal

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5)
    ),
    max_leaves=20,
)


def test_keys_sort_as_in_the_rfc() -> None:
    """RFC 8785, section 3.2.3."""
    source = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    assert list(json.loads(emit(source))) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_strings_are_escaped_as_in_the_rfc() -> None:
    """RFC 8785, sections 3.2.2.2 and 3.2.4."""
    value = {"string": '\u20ac$\u000f\nA\'B"\\\\"/', "literals": [None, True, False], "numbers": [56, -1, 0]}
    wanted = '{"literals":[null,true,false],"numbers":[56,-1,0],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    assert emit(value) == wanted.encode()
    assert emit("\b\t\n\f\r\x00\x1f\x7f\u2028") == b'"\\b\\t\\n\\f\\r\\u0000\\u001f\x7f\xe2\x80\xa8"'


@given(VALUES)
def test_what_is_emitted_is_read_back_and_is_a_fixed_point(value: Any) -> None:
    data = emit(value)
    depth = 16 if len(data) < 100_000 else 64
    assert parse_untrusted(data, max_depth=depth) == value
    assert emit(parse_untrusted(data, max_depth=depth)) == data


@given(VALUES)
def test_another_implementation_emits_the_same_bytes(value: Any) -> None:
    assert emit(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1.0, Refusal.NUMBER),
        ([float("nan")], Refusal.NUMBER),
        (2**53, Refusal.NUMBER),
        (-(2**53), Refusal.NUMBER),
        ({1: 2}, Refusal.SHAPE),
        (b"bytes", Refusal.SHAPE),
        ({"a": {1, 2}}, Refusal.SHAPE),
        ("\ud800", Refusal.SHAPE),
    ],
)
def test_what_canonical_json_cannot_say(value: Any, wanted: Refusal) -> None:
    with pytest.raises(ReceiptError) as caught:
        emit(value)
    assert caught.value.refusal is wanted


@given(st.binary(max_size=400))
def test_the_parser_raises_one_error_only(data: bytes) -> None:
    try:
        parse_untrusted(data)
    except ReceiptError:
        pass


@given(VALUES, st.data())
def test_depth_is_counted_as_nesting(value: Any, data: Any) -> None:
    levels = data.draw(st.integers(0, 20))
    nested = value
    for _ in range(levels):
        nested = [nested]
    text = emit(nested)

    def depth(part: Any) -> int:
        if isinstance(part, dict):
            return 1 + max(map(depth, part.values()), default=0)
        return 1 + max(map(depth, part), default=0) if isinstance(part, list) else 0

    if depth(nested) <= 16:
        assert parse_untrusted(text) == nested
    elif depth(nested) > 2 * 16:
        with pytest.raises(ReceiptError):
            parse_untrusted(text)


def test_brackets_inside_strings_do_not_count() -> None:
    value = {"a": "[" * 500 + '"\\' + "{" * 500}
    assert parse_untrusted(emit(value)) == value


@pytest.mark.parametrize(
    "data",
    [b"\x7fELF" + b"[" * 99, b"\xf7" + b"{" * 99, b"#!/bin/sh\n" + b"[[ {{ " * 30, b"", b" \n", "\ufeff{}".encode()],
    ids=["program", "no-utf-8", "script", "nothing", "blank", "byte-order-mark"],
)
def test_what_is_no_json_is_said_to_be_none(data: bytes) -> None:
    """Whatever brackets it has."""
    with pytest.raises(ReceiptError) as caught:
        parse_untrusted(data)
    assert caught.value.refusal is Refusal.UNREADABLE
