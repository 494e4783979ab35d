from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from draft.echo import CONTEXT, Echoes

TOKENS = st.integers(0, 5)
CONTEXTS = st.lists(TOKENS, min_size=1, max_size=CONTEXT)


def heard(*words: tuple[list[int], int, int]) -> Echoes:
    echoes = Echoes()
    for context, position, answer in words:
        echoes.heard(context, position, answer)
    return echoes


def belief(echoes: Echoes, context: list[int], position: int, others: dict[int, float], token: int) -> float:
    found = {child.token: child.confidence for child in echoes.children(context, position, others)}
    return found.get(token, 0.0)


@given(
    st.lists(st.tuples(CONTEXTS, st.integers(0, 40), TOKENS), max_size=80),
    CONTEXTS,
    st.integers(0, 40),
    st.dictionaries(TOKENS, st.floats(0, 1), max_size=4),
)
def test_guesses_are_answers_heard_after_the_last_token_best_first(
    words: list[tuple[list[int], int, int]], context: list[int], position: int, others: dict[int, float]
) -> None:
    echoes = heard(*words)
    children = echoes.children(context, position, others)
    after = {answer for known, _, answer in words if known[-1] == context[-1]}
    assert {child.token for child in children} <= after and len({child.token for child in children}) == len(children)
    assert echoes.knows(context[-1]) == bool(after) == bool(children)
    beliefs = [child.confidence for child in children]
    assert beliefs == sorted(beliefs, reverse=True) and all(0 < value < 1 for value in beliefs)


def test_more_equal_tokens_and_nearness_are_believed_more() -> None:
    one, two, three = heard(([9, 9, 3], 7, 5)), heard(([9, 2, 3], 7, 5)), heard(([1, 2, 3], 7, 5))
    for others in ({}, {5: 0.3, 6: 0.3}):
        near = [belief(echoes, [1, 2, 3], 7, others, 5) for echoes in (one, two, three)]
        far = [belief(echoes, [1, 2, 3], 70, others, 5) for echoes in (one, two, three)]
        assert near == sorted(near) and far == sorted(far) and len(set(near)) == 3
        assert all(a > b for a, b in zip(near[1:], far[1:], strict=True))


def test_what_others_say_of_the_token_counts() -> None:
    echoes = heard(([2, 3], 7, 5))
    agreed, doubted, denied = (
        belief(echoes, [2, 3], 8, others, 5) for others in ({5: 0.8}, {5: 0.1, 6: 0.8}, {6: 0.9})
    )
    assert agreed > doubted > denied


def test_an_answer_that_was_heard_twice_is_believed_more() -> None:
    once, twice = heard(([2, 3], 7, 5)), heard(([2, 3], 7, 5), ([8, 3], 9, 5))
    assert belief(twice, [2, 3], 7, {}, 5) > belief(once, [2, 3], 7, {}, 5)


def test_old_words_make_room() -> None:
    echoes = heard(*(([1], at, at) for at in range(500)))
    assert min(child.token for child in echoes.children([1], 0, {})) >= 400
