from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarm.base.errors import PeerError, UsageError
from swarm.model.rows import Layout
from swarm.planner.costs import Costs
from swarm.run.controller import Controller, Setting
from swarm.run.speculation import PlannedFrame, Settled, SettledToken, Speculation, StopRule
from tests.swarm.ring.slot_machine import VOCAB, Path, SlotMachine, TellTale, true_run

LAYOUT = Layout(16, 96)


class World:
    """A run against two slot machines in a row, every event in an order drawn at random."""

    def __init__(
        self,
        mode: str,
        rng: random.Random,
        *,
        prompt: list[int],
        ending: StopRule,
        luck: float = 0.7,
        layout: Layout = LAYOUT,
        fixed: bool = True,
        rows: int = 6,
        inline: bool = True,
        chunk: int = 4,
    ) -> None:
        self.rng, self.layout, self.prompt = rng, layout, prompt
        self.stages = [SlotMachine(layout), SlotMachine(layout)]
        self.pipes: list[deque[PlannedFrame]] = [deque(), deque()]
        self.answers: deque[tuple[int, list[int]]] = deque()
        self.lm = TellTale(prompt, luck, rng, refuse=0.1)
        self.quick = TellTale(prompt, luck, rng)
        setting = Setting(mode, rows=rows, fixed=fixed, in_flight=40)
        self.spec = Speculation(
            prompt,
            layout,
            ending,
            Controller(Costs(pass_ms=100.0), setting),
            inline=self.quick if inline else None,
            deferred=True,
            chunk=chunk,
        )
        self.work = None
        self.tokens: list[SettledToken] = []
        self.finished: str | None = None
        self.most_in_flight = 0
        self.meant: dict[tuple[int, int], Path] = {}
        self.now = 0.0

    def run(self, restarts: int = 0, steps: int = 20_000) -> list[int]:
        for _ in range(steps):
            if self.finished:
                return [token.token for token in self.tokens]
            self.now += self.rng.choice((0.0, 0.001, 0.05))
            if restarts and self.rng.random() < 0.02:
                restarts -= 1
                self.restart()
            else:
                self.rng.choice((self.send, self.pass_on, self.arrive, self.draft))()
        raise AssertionError("the run stands still")

    def send(self) -> None:
        frame = self.spec.next_frame(self.now)
        if frame is None:
            wakeup = self.spec.next_wakeup()
            assert wakeup is None or wakeup > self.now, "the shell would go in circles"
            return
        self.pipes[0].append(frame)
        self.most_in_flight = max(self.most_in_flight, sum(map(len, self.pipes)) + len(self.answers))
        tree = self.spec._tree
        by_slot = {node.slot: node for node in tree.live.values() if node.slot >= 0}
        drafted = [int(slot) for slot in frame.rows.slot if slot < self.layout.scratch]
        owners = [node.id for node in tree.live.values() if node.slot >= 0]
        assert len(by_slot) == len(owners), "two live nodes share a slot"
        assert tree.free_slots + len(owners) == self.layout.scratch, "a slot was lost"
        for slot in drafted:
            path = tuple(node.token for node in tree.path(by_slot[slot]))
            self.meant[frame.seq, slot] = (*self.spec.tokens, *path)

    def pass_on(self) -> None:
        stage = self.rng.randrange(2)
        if not self.pipes[stage]:
            return
        frame = self.pipes[stage].popleft()
        paths, answers = self.stages[stage].frame(frame)
        for slot, path in zip(frame.rows.slot, paths, strict=True):
            assert path == self.intended(frame, int(slot), path)
        if stage == 0:
            self.pipes[1].append(frame)
        else:
            self.answers.append((frame.seq, answers))

    def intended(self, frame: PlannedFrame, slot: int, path: Path) -> Path:
        if slot < self.layout.scratch:
            return self.meant[frame.seq, slot]
        return tuple(self.spec.tokens[: len(path)])

    def arrive(self) -> None:
        if not self.answers:
            return
        seq, answers = self.answers.popleft()
        if not answers and self.rng.random() < 0.5:
            return  # a tail may keep silent about frames that want nothing
        result = self.spec.on_answer(seq, answers, self.now)
        for token in result.tokens:
            assert answers[token.answer] == token.token
        self.tokens += result.tokens
        self.finished = result.finished

    def draft(self) -> None:
        if self.work is None:
            self.work = self.spec.draft_work(self.now)
        else:
            self.spec.drafted(self.lm.step(self.work), self.now)
            self.work = None

    def restart(self) -> None:
        """Frames in flight are lost; each stage forgets all that is not committed by an answered frame."""
        held = self.rng.choice((None, self.rng.randint(0, self.spec.held)))
        keep = self.spec.held if held is None else held
        for stage in self.stages:
            kept = range(self.layout.scratch, self.layout.scratch + keep)
            stage.slots = {slot: path for slot, path in stage.slots.items() if slot in kept}
        for pipe in self.pipes:
            pipe.clear()
        self.answers.clear()
        self.spec.restart(held)


@given(
    mode=st.sampled_from(["plain", "chain", "tree", "stream"]),
    seed=st.integers(0, 2**32),
    length=st.integers(1, 20),
    count=st.integers(1, 60),
    luck=st.sampled_from([0.0, 0.4, 0.7, 0.95, 1.0]),
    fixed=st.booleans(),
    restarts=st.integers(0, 3),
    stop=st.sets(st.integers(0, VOCAB - 1), max_size=1),
)
@example(mode="stream", seed=1, length=3, count=60, luck=0.95, fixed=True, restarts=2, stop=set())
def test_any_order_of_events_gives_the_tokens_of_plain_decoding(
    mode: str, seed: int, length: int, count: int, luck: float, fixed: bool, restarts: int, stop: set[int]
) -> None:
    rng = random.Random(seed)
    prompt = [rng.randrange(VOCAB) for _ in range(length)]
    truth = true_run(prompt, count)
    stops = [i for i, token in enumerate(truth) if token in stop]
    expected = truth[: stops[0] + 1] if stops else truth
    world = World(mode, rng, prompt=prompt, ending=StopRule(count, frozenset(stop)), luck=luck, fixed=fixed)
    assert world.run(restarts) == expected
    assert world.finished == ("stop" if stops else "length")
    assert world.spec.tokens == prompt + expected


def test_stream_keeps_several_frames_in_flight_and_waiting_modes_one() -> None:
    most = {}
    for mode in ("plain", "chain", "tree", "stream"):
        world = World(mode, random.Random(5), prompt=[1], ending=StopRule(80), luck=0.9)
        world.run()
        most[mode] = world.most_in_flight
    assert most["plain"] == most["chain"] == most["tree"] == 1
    assert most["stream"] > 2


def world(
    mode: str = "stream", *, prompt: list[int] | None = None, ending: StopRule | None = None, **how: Any
) -> World:
    return World(mode, random.Random(7), prompt=prompt or [1, 2, 3], ending=ending or StopRule(40), **how)


def drive(spec: Speculation, machine: SlotMachine) -> list[int]:
    """Frames go and are answered one by one; no drafter."""
    tokens: list[int] = []
    while not spec.finished:
        frame = spec.next_frame(0.0)
        assert frame is not None
        _, answers = machine.frame(frame)
        tokens += [token.token for token in spec.on_answer(frame.seq, answers, 0.1).tokens]
    return tokens


def plain(prompt: list[int], ending: StopRule, layout: Layout = LAYOUT, **how: Any) -> Speculation:
    return Speculation(prompt, layout, ending, Controller(Costs(), Setting("plain")), **how)


def test_a_prompt_goes_in_overlapping_chunks_straight_to_committed_slots() -> None:
    prompt = [n % VOCAB for n in range(10)]
    spec = plain(prompt, StopRule(1), chunk=4)
    frames = []
    while frame := spec.next_frame(0.0):
        frames.append(frame)
    assert [len(frame.rows) for frame in frames] == [4, 4, 2]
    assert [int(slot) for frame in frames for slot in frame.rows.slot] == [LAYOUT.scratch + p for p in range(10)]
    assert [bool(want) for frame in frames for want in frame.rows.want] == [False] * 9 + [True]
    assert not any(frame.rows.ancestors.any() or len(frame.commits) for frame in frames)
    assert spec.on_answer(2, [5], 1.0).finished == "length"


def test_drafted_rows_ride_with_the_end_of_the_prompt_and_not_before() -> None:
    it = world(luck=1.0, prompt=[1] * 10)
    first, second, third = (it.spec.next_frame(0.0) for _ in range(3))
    assert first and second and third
    assert (first.rows.slot >= LAYOUT.scratch).all() and (second.rows.slot >= LAYOUT.scratch).all()
    assert (third.rows.slot < LAYOUT.scratch).any()


def test_a_stop_token_ends_the_run_and_nothing_after_it_is_given() -> None:
    prompt = [3, 1]
    truth = true_run(prompt, 40)
    stop = truth[12]
    expected = truth[: truth.index(stop) + 1]
    for mode in ("plain", "chain", "tree", "stream"):
        it = World(mode, random.Random(3), prompt=prompt, ending=StopRule(40, frozenset({stop})), luck=1.0)
        assert it.run() == expected and it.finished == "stop"
        ignoring = StopRule(40, frozenset({stop}), ignore_stop=True)
        it = World(mode, random.Random(3), prompt=prompt, ending=ignoring, luck=1.0)
        assert it.run() == truth and it.finished == "length"
        assert it.spec.next_frame(1e9) is None and it.spec.draft_work(1e9) is None


def test_a_full_context_ends_the_run_with_the_token_after_the_last_row() -> None:
    layout = Layout(8, 12)
    prompt = [1, 2, 3]
    for mode in ("plain", "stream"):
        it = World(mode, random.Random(2), prompt=prompt, ending=StopRule(100), luck=1.0, layout=layout)
        assert it.run() == true_run(prompt, 10)
    assert drive(plain([1] * 12, StopRule(5), layout), SlotMachine(layout)) == true_run([1] * 12, 1)


def test_no_row_is_sent_that_max_tokens_makes_useless() -> None:
    it = world(luck=1.0, ending=StopRule(5))
    it.run()
    assert max(int(node.position) for node in it.spec._tree.live.values()) <= 3 + 5 - 1
    assert it.spec.counts.rows <= 3 + 4 * VOCAB


def test_speculation_goes_on_in_few_slots() -> None:
    it = world(layout=Layout(8, 96), luck=0.9, ending=StopRule(60), rows=64)
    assert it.run() == true_run([1, 2, 3], 60)
    counts = it.spec.counts
    assert counts.accepted > 10
    assert sum(counts.depth_accepted.values()) == counts.accepted <= counts.drafted_rows
    assert all(counts.depth_accepted[depth] <= counts.depth_sent[depth] for depth in counts.depth_accepted)
    assert counts.accepted == sum(token.drafted for token in it.tokens)


def test_tokens_that_all_stages_hold_are_not_sent_again() -> None:
    prompt = [4, 5, 6, 7, 8]
    machine = SlotMachine(LAYOUT)
    drive(plain(prompt[:4], StopRule(1)), machine)
    spec = plain(prompt, StopRule(3), held=4)
    frame = spec.next_frame(0.0)
    assert frame is not None and [int(p) for p in frame.rows.position] == [4]
    _, answers = machine.frame(frame)
    spec.on_answer(frame.seq, answers, 0.1)
    assert spec.tokens[5] == true_run(prompt, 1)[0]


def test_a_restart_sends_again_what_no_answered_frame_placed() -> None:
    it = world(luck=1.0, prompt=[1, 2], ending=StopRule(60), inline=False)
    while len(it.tokens) < 20:
        for act in (it.draft, it.draft, it.send, it.pass_on, it.arrive):
            it.now += 0.01
            act()
    spec, held = it.spec, it.spec.held
    assert held < len(spec.tokens), "the newest tokens were committed here and nowhere else"
    old = spec._seq - 1
    spec.restart()
    assert spec.on_answer(old, [1], 1.0) == Settled()
    frame = spec.next_frame(it.now)
    assert frame is not None and frame.seq > old and len(frame.commits) == 0
    certain = frame.rows.slot >= LAYOUT.scratch
    assert [int(p) for p in frame.rows.position[certain]] == list(range(held, len(spec.tokens)))[:4]


def test_answers_that_break_the_protocol_are_refused() -> None:
    spec = plain([1, 2], StopRule(9), chunk=1)
    first, second = spec.next_frame(0.0), spec.next_frame(0.0)
    assert first is not None and second is not None and spec.next_frame(0.0) is None
    with pytest.raises(PeerError, match="wants 1 tokens, found 2"):
        spec.on_answer(second.seq, [1, 2], 0.1)
    with pytest.raises(PeerError, match="expected the answer to frame 1"):
        spec.on_answer(7, [1], 0.1)
    with pytest.raises(PeerError):
        spec.on_answer(second.seq, [-3], 0.1)
    assert spec.on_answer(second.seq, [4], 0.1).tokens[0].token == 4
    assert spec.on_answer(second.seq, [4], 0.1) == Settled(), "a second answer to one frame is nothing"


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [([], 1, "at least one prompt token"), ([1] * 97, 1, "97 tokens"), ([1], 0, "max-tokens")],
)
def test_what_cannot_be_run_is_said(prompt: list[int], count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plain(prompt, StopRule(count))


def test_a_run_goes_on_without_a_drafter_that_failed() -> None:
    it = world("tree", luck=1.0, ending=StopRule(30))
    while it.work is None:
        it.draft()
    it.spec.drafter_failed()
    it.draft()  # what it still says is ignored
    it.lm.step = None  # type: ignore[assignment, method-assign]
    assert it.run() == true_run([1, 2, 3], 30)
    assert it.spec.draft_work(it.now) is None


def test_a_run_that_the_shell_ends_sends_nothing_more() -> None:
    it = world(luck=1.0)
    it.spec.finish("stop")
    assert it.spec.finished == "stop" and it.spec.next_frame(1.0) is None and it.spec.next_wakeup() is None


def test_the_stream_says_when_it_wants_to_send_again() -> None:
    it = world(luck=1.0, fixed=False)
    while it.spec.next_frame(0.0):
        pass
    while it.spec.next_wakeup() is None:
        it.draft()
    due = it.spec.next_wakeup()
    assert due is not None and due > 0.0
    assert it.spec.next_frame(due - 1e-6) is None
    assert it.spec.next_frame(due) is not None


def test_what_the_drafter_did_not_serve_is_asked_for_again_after_an_answer() -> None:
    it = world(inline=False)
    while it.spec._placed < 3:
        it.send()
        it.pass_on()
        it.pass_on()
    first = it.spec.draft_work(0.0)
    assert first is not None and it.spec.draft_work(0.0) is None, "one step at a time"
    it.spec.drafted([], 0.1)
    assert it.spec.draft_work(0.1) is None, "not at once: a full drafter would be asked in circles"
    it.lm.refuse = 0.0
    while not it.tokens:
        it.send()
        it.pass_on()
        it.arrive()
    again = it.spec.draft_work(0.2)
    assert again is not None
    assert it.run() == true_run([1, 2, 3], 40)
