"""Streaming text equals decoding at once, and never shows a stop string."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from swarm.run.api import Special
from swarm.run.detokenizer import TextStream
from tests.ring.routes import Decodes


def by_bytes(ids: Sequence[int]) -> str:
    """A tokenizer of single bytes: the hardest case for characters that span tokens."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=40))
def test_streamed_text_is_the_whole_text(text: str) -> None:
    stream = TextStream(Decodes(by_bytes))
    given_out = "".join(stream.feed(token) for token in text.encode()) + stream.finish()
    assert given_out == text == stream.text


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_shown(text: str, stops: list[str]) -> None:
    stream = TextStream(Decodes(by_bytes), stops)
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
    stream = TextStream(Decodes(by_bytes))
    euro = "€".encode()
    assert [stream.feed(b) for b in euro] == ["", "", "€"]


def by_words(ids: Sequence[int]) -> str:
    """Like sentencepiece: each token brings its space, which the first of a text loses."""
    return "".join(f" w{token}" for token in ids).removeprefix(" ")


SPECIAL = {100: "<|a|>", 101: "<|b|>"}
tokens = st.lists(st.integers(0, 9) | st.sampled_from(sorted(SPECIAL)), max_size=30)


@given(tokens, tokens)
def test_text_goes_on_where_the_prompt_ends(prompt: list[int], answer: list[int]) -> None:
    stream = TextStream(Decodes(by_words), before=prompt, special=SPECIAL)
    shown = "".join(stream.feed(token) for token in answer) + stream.finish()
    ordinary = [[token for token in part if token not in SPECIAL] for part in (prompt[-32:], answer)]
    assert by_words(ordinary[0]) + shown == by_words(ordinary[0] + ordinary[1])
    pieces = stream.take_pieces()
    assert [p.token for p in pieces if isinstance(p, Special)] == [token for token in answer if token in SPECIAL]
    assert not pieces or "".join(p for p in pieces if isinstance(p, str)) == shown


@given(tokens, st.sampled_from(["<|a|>", "w1<|b|>", "<|a|><|b|> w2", "|a|", "w3 w4"]), st.booleans())
def test_stops_name_special_tokens_whole(answer: list[int], stop: str, keep: bool) -> None:
    stream = TextStream(Decodes(by_words), [stop], special=SPECIAL, keep_stop=keep)
    said = ["".join(SPECIAL.get(t, f" w{t}") for t in answer[: n + 1]).removeprefix(" ") for n in range(len(answer))]
    plain = [by_words([t for t in answer[: n + 1] if t not in SPECIAL]) for n in range(len(answer))]
    named = stop != "|a|"
    first = next((n for n in range(len(answer)) if (named and stop in said[n]) or stop in plain[n]), None)
    shown = ""
    for place, token in enumerate(answer):
        shown += stream.feed(token)
        assert stream.stopped == (first is not None and place >= first)
    shown += stream.finish()
    assert (
        shown == stream.text
        and "<|" not in shown
        and (first is not None or shown == by_words([t for t in answer if t not in SPECIAL]))
    )


def test_a_character_that_the_prompt_began_is_finished() -> None:
    begun, rest = list("€".encode()[:2]), "€".encode()[2:]
    stream = TextStream(Decodes(by_bytes), before=[97, *begun])
    assert stream.feed(rest[0]) == "€" and stream.finish() == ""
