"""Who is left out when nobody knows who fails, and whom accusations fall back on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.model.rows import Layout
from swarm.model.sampler import Sampling
from swarm.ring.opening import OpenRun, RingSignal, StagePlan, behind
from swarm.run.suspects import FORGET_S, Trouble, accusers, next_suspect, without_progress_s

ROUTE = (b"a", b"b", b"c")


def tried(node: bytes, at: float = 0.0, route: tuple[bytes, ...] = ROUTE, progress: int = 5) -> Trouble:
    return Trouble(at, route, progress, tried=node)


def accused(node: bytes, route: tuple[bytes, ...], answered: bool = True, at: float = 0.0) -> Trouble:
    return Trouble(at, route, 0, node, answered)


@given(st.permutations(list(ROUTE)))
def test_everybody_is_suspected_once_before_anybody_twice(start: list[bytes]) -> None:
    history: list[Trouble] = []
    turns = []
    for turn in range(6):
        node = next_suspect(history, start, 5, lambda _: True, float(turn))
        assert node is not None
        turns.append(node)
        history.append(tried(node, turn, tuple(start)))
    assert turns[:3] == turns[3:] == start[::-1]  # the tail first: nobody is behind it to tell of it


def test_a_node_that_was_in_every_trouble_is_suspected_before_one_that_just_came() -> None:
    history = [tried(b"c"), tried(b"b", 1.0, (b"a", b"b", b"d"))]
    assert next_suspect(history, (b"a", b"e", b"d"), 5, lambda _: True, 2.0) == b"a"


def test_who_cannot_be_spared_is_passed_over_and_progress_begins_the_round_again() -> None:
    assert next_suspect([], ROUTE, 5, lambda node: node != b"c", 0.0) == b"b"
    assert next_suspect([], ROUTE, 5, lambda _: False, 0.0) is None
    assert next_suspect([tried(b"c")], ROUTE, 6, lambda _: True, 1.0) == b"c"
    assert next_suspect([tried(b"c")], ROUTE, 5, lambda _: True, FORGET_S + 1) == b"c"


def test_time_without_progress_counts_from_the_first_trouble_in_a_row() -> None:
    history = [tried(b"c", 10.0, progress=4), tried(b"c", 20.0), tried(b"b", 26.0)]
    assert without_progress_s(history, 5, 31.0) == 11.0
    assert without_progress_s(history, 6, 31.0) == 0.0
    assert without_progress_s([], 0, 31.0) == 0.0


def test_who_accuses_repeatedly_is_found_and_who_was_right_is_not() -> None:
    first, second = accused(b"c", ROUTE), accused(b"d", (b"a", b"e", b"d"))
    assert accusers([first], 1.0) == frozenset()
    assert accusers([first, second], 1.0) == {b"a"}
    assert accusers([first, first], 1.0) == frozenset()  # one broken link between two honest nodes
    gone = accused(b"d", (b"a", b"e", b"d"), answered=False)
    assert accusers([first, gone], 1.0) == frozenset()
    assert accusers([first, second], FORGET_S + 1) == frozenset()


STAGES = tuple(StagePlan(bytes([i]) * 32, (), i, i + 1) for i in range(4))


@given(
    st.sampled_from(["lost", "leave", "opened"]), st.integers(0, 2), st.integers(-1, 64),
    st.sampled_from([b"", *(s.node for s in STAGES), b"x" * 32]),
)  # fmt: skip
def test_a_hop_passes_on_accusations_only_of_those_behind_it(do: str, index: int, stage: int, refused: bytes) -> None:
    opening = OpenRun(bytes(16), 0, b"r" * 32, "m", "float32", Layout(8, 64), Sampling(), STAGES, index=index)
    word = behind(RingSignal(do, bytes(16), 0, refused=refused, stage=stage), opening)
    if do != "opened":
        assert index < word.stage < len(STAGES)
        assert word.stage == stage or not index < stage < len(STAGES)
    after = [s.node for s in STAGES[index + 1 :]]
    assert bool(word.refused) == bool(refused)
    assert not refused or word.refused == (refused if refused in after else after[0])
