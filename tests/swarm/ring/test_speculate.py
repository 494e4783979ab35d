from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarm.errors import PeerError, UsageError
from swarm.model.rows import Layout
from swarm.ring.control import Controller, Costs, Setting
from swarm.ring.speculate import Ending, PlannedFrame, Speculation, Token
from tests.swarm.ring.slot_machine import VOCAB, Path, SlotMachine, TellTale, next_token, true_run

LAYOUT = Layout(16, 96)


class World:
    """A run against two slot machines in a row, every event in an order drawn at random."""

    def __init__(
        self,
        mode: str,
        rng: random.Random,
        *,
        prompt: list[int],
        ending: Ending,
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
        self.tokens: list[Token] = []
        self.finished: str | None = None
        self.most_in_flight = 0
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
            return
        self.pipes[0].append(frame)
        self.most_in_flight = max(self.most_in_flight, sum(map(len, self.pipes)) + len(self.answers))
        self.meant = getattr(self, "meant", {})
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
)
@example(mode="stream", seed=1, length=3, count=60, luck=0.95, fixed=True, restarts=2)
def test_any_order_of_events_gives_the_tokens_of_plain_decoding(
    mode: str, seed: int, length: int, count: int, luck: float, fixed: bool, restarts: int
) -> None:
    rng = random.Random(seed)
    prompt = [rng.randrange(VOCAB) for _ in range(length)]
    world = World(mode, rng, prompt=prompt, ending=Ending(count), luck=luck, fixed=fixed)
    assert world.run(restarts) == true_run(prompt, count)
    assert world.finished == "length"
    assert world.spec.tokens == prompt + true_run(prompt, count)


def test_stream_keeps_several_frames_in_flight_and_waiting_modes_one() -> None:
    most = {}
    for mode in ("plain", "chain", "tree", "stream"):
        world = World(mode, random.Random(5), prompt=[1], ending=Ending(80), luck=0.9)
        world.run()
        most[mode] = world.most_in_flight
    assert most["plain"] == most["chain"] == most["tree"] == 1
    assert most["stream"] > 2
