from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from draft.base import ROOT, DraftNode, DraftStep
from draft.suffix import SuffixAutomaton, SuffixDrafter

texts = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def longest_match(text: list[int], context: list[int]) -> int:
    """Length of the longest suffix of `context` that occurs in `text`, by trying them all."""
    for length in range(min(len(context), len(text)), 0, -1):
        end = context[len(context) - length :]
        if any(text[i : i + length] == end for i in range(len(text) - length + 1)):
            return length
    return 0


@given(texts, texts)
def test_follow_finds_the_longest_suffix_that_occurs(text: list[int], walk: list[int]) -> None:
    automaton = SuffixAutomaton()
    for token in text:
        automaton.append(token)
    match = (0, 0)
    for i, token in enumerate(walk, 1):
        match = automaton.follow(*match, token)
        assert match[1] == longest_match(text, walk[:i])


@given(texts)
def test_the_longest_repeated_suffix_is_known_while_the_text_grows(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    assert automaton.repeated == (0, 0)
    for i, token in enumerate(text):
        automaton.append(token)
        assert automaton.repeated[1] == longest_match(text[:i], text[: i + 1])


@given(texts, texts, st.integers(1, 4))
def test_the_first_child_followed_a_longest_match_most_recently(prompt: list[int], path: list[int], gate: int) -> None:
    drafter = SuffixDrafter(gate)
    drafter.begin(prompt, None)
    nodes = tuple(DraftNode(i + 1, i, token, len(prompt) + i) for i, token in enumerate(path))
    (expansion,) = drafter.step(DraftStep(nodes=nodes, expand=(len(path),), depth=1))
    context = prompt + path
    length = longest_match(prompt if path else prompt[:-1], context)
    followed: list[int] = []
    while length >= gate and not followed:
        end = context[len(context) - length :]
        followed = [prompt[i + length] for i in range(len(prompt) - length) if prompt[i : i + length] == end]
        length -= 1
    if not followed:
        assert expansion.levels == ()
    else:
        assert expansion.levels[0][0].token == followed[-1]
        assert {child.token for child in expansion.levels[0]} == set(followed)


def test_a_copy_is_followed_to_its_end_and_over_it() -> None:
    drafter = SuffixDrafter()
    drafter.begin([*range(10), 99, 0, 1, 2, 3], None)
    (expansion,) = drafter.step(DraftStep(expand=(ROOT,), depth=12, width=1))
    tokens = [level[0].token for level in expansion.levels]
    assert tokens[:10] == [4, 5, 6, 7, 8, 9, 99, 0, 1, 2]
    beliefs = [level[0].confidence for level in expansion.levels]
    assert beliefs[:6] == sorted(beliefs[:6]), "a match that holds is trusted more and more"


def test_commits_extend_the_text_and_short_matches_say_nothing() -> None:
    drafter = SuffixDrafter(gate=3)
    drafter.begin([1, 2, 3, 4, 9], None)
    commits = tuple(DraftNode(i, i - 1, token, 4 + i) for i, token in enumerate([1, 2], 1))
    assert drafter.step(DraftStep(committed=commits, expand=(2,)))[0].levels == ()
    commit = DraftNode(3, 2, 3, 7)
    assert drafter.step(DraftStep(committed=(commit,), expand=(3,)))[0].levels[0][0].token == 4


def test_history_helps_only_when_given() -> None:
    earlier = list(range(50, 60))
    for history, expected in (((), ()), ((earlier,), (54,))):
        drafter = SuffixDrafter(history=history)
        drafter.begin([7, 51, 52, 53], None)
        (expansion,) = drafter.step(DraftStep(expand=(ROOT,)))
        assert tuple(level[0].token for level in expansion.levels) == expected
