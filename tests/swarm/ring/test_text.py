"""Streaming text equals decoding at once, and never shows a stop string."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from swarm.ring.text import TextStream


def by_bytes(ids: Sequence[int]) -> str:
    """A tokenizer of single bytes: the hardest case for characters that span tokens."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=40))
def test_streamed_text_is_the_whole_text(text: str) -> None:
    stream = TextStream(by_bytes)
    given_out = "".join(stream.feed(token) for token in text.encode()) + stream.finish()
    assert given_out == text == stream.text


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_shown(text: str, stops: list[str]) -> None:
    stream = TextStream(by_bytes, stops)
    shown = ""
    for token in text.encode():
        shown += stream.feed(token)
        if stream.stopped:
            break
    shown += stream.finish()
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    if not ends:
        assert shown == text and not stream.stopped
        return
    first_end = min(end for end, _ in ends)
    assert stream.stopped
    assert shown == text[: min(start for end, start in ends if end == first_end)]


def test_half_a_character_waits_for_its_rest() -> None:
    stream = TextStream(by_bytes)
    euro = "€".encode()
    assert [stream.feed(b) for b in euro] == ["", "", "€"]
