"""Speculation in simulated time: the real core and controller against a simulated ring and drafter.

The ring is a discrete-event model: one link per hop (latency, and serialisation per row), one stage per machine that
serves one frame at a time, or several stages and the drafter that share the cores of one machine. The drafter is
synthetic (a given chance that its first choice is right, a given coverage of its first eight, beliefs as honest as
asked for) or replays recorded proposals. Deterministic, so tests assert on it.

    python -m tests.bench.sim_speculation                  # the tables
    python -m tests.bench.sim_speculation --trace FILE     # tokens per pass for recorded proposals

A trace is JSON: {"runs": [{"prompt": [ids], "tokens": [ids], "drafts": [[[id, confidence], ...], ...]}]}, where
drafts[i] are a drafter's proposals for tokens[i] after the true tokens before it, best first.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from draft.suffix import SuffixDrafter
from swarm.model.rows import Layout
from swarm.model.sampler import Sampling
from swarm.planner.costs import Costs
from swarm.run.controller import Controller, Setting
from swarm.run.proposals import Calibrations
from swarm.run.speculation import PlannedFrame, Speculation, StopRule
from tests.bench.sim_drafters import Draft, SyntheticDrafter, TraceDrafter

Times = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Ring:
    """What a frame of n rows meets on its way.

    hops_ms      one-way latency of each hop (stages + 1); jitter_ms: mean of what it adds at random, keeping order
    stage_ms     time of a stage: stage_ms + n * row_ms; link_row_ms: time of a link per row
    cores        stages and drafter share so many cores; 0: each has a machine of its own
    tells        stages report their times
    """

    hops_ms: tuple[float, ...] = (25.0,) * 4
    stage_ms: float = 9.0
    row_ms: float = 0.23
    link_row_ms: float = 0.0
    cores: int = 0
    jitter_ms: float = 0.0
    tells: bool = True

    @property
    def pass_ms(self) -> float:
        """One pass of one row through the empty ring."""
        stages = len(self.hops_ms) - 1
        return sum(self.hops_ms) + stages * (self.stage_ms + self.row_ms) + self.link_row_ms * len(self.hops_ms)

    def costs(self, draft_ms: float) -> Costs:
        """What a route plan would guess."""
        stages = len(self.hops_ms) - 1
        frame, row = (
            (self.stage_ms, self.row_ms)
            if not self.cores
            else (self.stage_ms * stages / self.cores, self.row_ms * stages / self.cores)
        )
        return Costs(
            pass_ms=self.pass_ms,
            row_ms=stages * self.row_ms + len(self.hops_ms) * self.link_row_ms,
            frame_ms=frame,
            frame_row_ms=max(row, self.link_row_ms),
            draft_ms=draft_ms,
            inside_ms=stages * (self.stage_ms + self.row_ms),
        )


@dataclass
class Outcome:
    """Result of one simulated run; `per_pass` is tokens per time of one plain pass."""

    tokens: int
    seconds: float
    pass_ms: float
    rows: int
    frames: int
    drafted: int
    accepted: int
    draft_steps: int

    @property
    def per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def per_pass(self) -> float:
        return self.per_second * self.pass_ms / 1000.0


@dataclass
class _Servers:
    """`count` servers with one queue."""

    world: _World
    count: int
    queue: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)

    def serve(self, seconds: float, done: Callable[[], None]) -> None:
        self.queue.append((seconds, done))
        self._start()

    def _start(self) -> None:
        if self.count and self.queue:
            seconds, done = self.queue.popleft()
            self.count -= 1
            self.world.after(seconds, lambda: self._end(done))

    def _end(self, done: Callable[[], None]) -> None:
        self.count += 1
        done()
        self._start()


class _World:
    """Simulated time and what happens in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + seconds, self.order, happen))


class Simulation(_World):
    """One run: the shell of a requester, as `swarm.run.speculation` describes it, around a simulated ring."""

    def __init__(
        self,
        ring: Ring,
        setting: Setting,
        truth: Callable[[int], int],
        prompt: Sequence[int],
        count: int,
        drafter: object = None,
        draft: Draft | None = None,
        suffix: bool = False,
        scratch: int = 256,
        calibrations: Calibrations | None = None,
        control: Controller | None = None,
    ) -> None:
        super().__init__()
        self.ring, self.truth, self.draft, self.drafter = ring, truth, draft or Draft(), drafter
        stages = len(ring.hops_ms) - 1
        self.cores = _Servers(self, ring.cores or 64)
        self.stages = [_Servers(self, 1) for _ in range(stages)]
        self.links = [_Servers(self, 1) for _ in range(stages + 1)]
        self.control = control or Controller(ring.costs(self.draft.ms), setting)
        inline = SuffixDrafter() if suffix else None
        if inline:
            inline.begin(prompt, None)
        if drafter:
            drafter.begin(prompt, Sampling())
        self.layout = Layout(scratch, len(prompt) + count + 8)
        self.spec = Speculation(
            prompt,
            self.layout,
            StopRule(count),
            self.control,
            inline=inline,
            deferred=drafter is not None,
            calibrations=calibrations,
        )
        self.arrivals = [0.0] * (stages + 1)
        self.rng = random.Random(len(prompt) + count)
        self.wake = -1.0

    def run(self) -> Outcome:
        self.shell()
        while self.events and not self.spec.finished:
            self.now, _, happen = heapq.heappop(self.events)
            happen()
            self.shell()
        assert self.spec.finished, "the run stands still"
        counts = self.spec.counts
        tokens = len(self.spec.tokens) - self.spec._prompt
        return Outcome(
            tokens,
            self.now,
            self.ring.pass_ms,
            counts.rows,
            counts.frames,
            counts.drafted_rows,
            counts.accepted,
            self.spec._proposals.steps,
        )

    def shell(self) -> None:
        while frame := self.spec.next_frame(self.now):
            self.hop(0, frame, self.answers(frame), ())
        if self.drafter and (work := self.spec.draft_work(self.now)):
            seconds = (self.draft.ms + self.draft.leaf_ms * (len(work.expand) - 1)) / 1000.0
            self.cores.serve(seconds, lambda: self.spec.drafted(self.drafter.step(work), self.now))
        wake = self.spec.next_wakeup()
        assert wake is None or wake > self.now, "the shell would go in circles"
        if wake is not None and wake != self.wake:
            self.wake = wake
            self.after(wake - self.now, lambda: None)

    def answers(self, frame: PlannedFrame) -> list[int]:
        """The tail's answers, told at sending: for a row of the true path its true successor, else anything."""
        tree, found = self.spec._tree, []
        by_slot = {node.slot: node for node in tree.live.values() if node.slot >= 0}
        for slot, position, want in zip(frame.rows.slot, frame.rows.position, frame.rows.want, strict=True):
            if want:
                node = by_slot.get(int(slot))
                path = tree.path(node) if node else []
                right = all(step.token == self.truth(step.position) for step in path)
                found.append(self.truth(int(position) + 1) if right else self.lost(int(position)))
        return found

    def lost(self, position: int) -> int:
        """The answer to a row of a branch that is wrong already: here nothing that is of use elsewhere."""
        return 999_999_999

    def hop(self, index: int, frame: PlannedFrame, answers: list[int], times: Times) -> None:
        rows, ring = len(frame.rows), self.ring

        def sent() -> None:
            late = self.rng.expovariate(1.0 / ring.jitter_ms) if ring.jitter_ms else 0.0
            due = max(self.arrivals[index], self.now + (ring.hops_ms[index] + late) / 1000.0)
            self.arrivals[index] = due
            self.after(due - self.now, arrived)

        def arrived() -> None:
            if index == len(self.stages):
                self.spec.on_answer(frame.seq, answers, self.now, times if self.ring.tells else None)
            else:
                self.stage(index, frame, answers, times)

        self.links[index].serve(rows * ring.link_row_ms / 1000.0, sent)

    def stage(self, index: int, frame: PlannedFrame, answers: list[int], times: Times) -> None:
        seconds = (self.ring.stage_ms + len(frame.rows) * self.ring.row_ms) / 1000.0
        stage, arrived = self.stages[index], self.now

        # A stage takes the next frame only when the one before is through, and then needs a core.
        def taken() -> None:
            stage.count -= 1
            began = self.now

            def computed() -> None:
                stage.count += 1
                spent = ((began - arrived) * 1000.0, (self.now - began) * 1000.0)
                self.hop(index + 1, frame, answers, (*times, spent))
                stage._start()

            self.cores.serve(seconds, computed)

        stage.serve(0.0, taken)


def simulate(
    mode: str | Setting, ring: Ring, draft: Draft | None = None, count: int = 256, seed: int = 1, scratch: int = 256
) -> Outcome:
    """A run of `count` tokens with a synthetic drafter (None: no drafter)."""
    setting = Setting(mode) if isinstance(mode, str) else mode
    prompt = list(range(8))
    drafter = SyntheticDrafter(draft, seed) if draft else None
    return Simulation(ring, setting, lambda p: p, prompt, count, drafter, draft, scratch=scratch).run()


def replay(run: dict[str, list], mode: str | Setting, ring: Ring, ms: float, suffix: bool = True) -> Outcome:
    """One run of a trace."""
    setting = Setting(mode) if isinstance(mode, str) else mode
    prompt, tokens = run["prompt"], run["tokens"]

    def truth(position: int) -> int:
        i = position - len(prompt)
        return tokens[i] if 0 <= i < len(tokens) else 0

    drafter = TraceDrafter(tokens, run["drafts"]) if run.get("drafts") else None
    return Simulation(ring, setting, truth, prompt, len(tokens), drafter, Draft(ms=ms), suffix).run()


WIDE = Ring(hops_ms=(65.0,) * 4, stage_ms=12.0, row_ms=0.1)
NEAR = Ring(hops_ms=(25.0,) * 4, stage_ms=9.0, row_ms=0.23)
SHARED = replace(NEAR, cores=2)
THIN = replace(WIDE, link_row_ms=1.3)
RINGS = {"wide": WIDE, "near": NEAR, "shared": SHARED, "thin": THIN}
DRAFTS = {
    "none right": Draft(0.0, 0.0, honest=False),
    "0.42; 0.72": Draft(0.42, 0.72),
    "0.54; 0.84": Draft(0.54, 0.84),
    "0.65; 0.90": Draft(0.65, 0.90),
    "0.76; 0.95": Draft(0.76, 0.95),
    "0.85; 0.97": Draft(0.85, 0.97),
}
MODES = {
    "plain": Setting("plain"),
    "chain-4": Setting("chain", rows=4, fixed=True),
    "chain-8": Setting("chain", rows=8, fixed=True),
    "chain": Setting("chain"),
    "tree-16": Setting("tree", rows=16, fixed=True),
    "tree-32": Setting("tree", rows=32, fixed=True),
    "tree-64": Setting("tree", rows=64, fixed=True),
    "tree": Setting("tree"),
    "stream": Setting("stream"),
}


def mean_per_pass(
    setting: Setting, ring: Ring, draft: Draft, seeds: Sequence[int] = range(4), count: int = 256
) -> float:
    """Mean of tokens per plain pass over seeds."""
    return sum(simulate(setting, ring, draft, count, seed).per_pass for seed in seeds) / len(seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--draft-ms", type=float, default=12.0)
    parser.add_argument("--ring", choices=sorted(RINGS), nargs="*", default=sorted(RINGS))
    args = parser.parse_args()
    for name in args.ring:
        ring = RINGS[name]
        print(f"\n{name}: pass {ring.pass_ms:.0f} ms; tokens per plain pass")
        print(f"{'':12}" + "".join(f"{mode:>9}" for mode in MODES))
        if args.trace:
            runs = json.loads(args.trace.read_text())["runs"]
            values = [
                sum(replay(run, s, ring, args.draft_ms).per_pass for run in runs) / len(runs) for s in MODES.values()
            ]
            print(f"{'trace':12}" + "".join(f"{value:9.2f}" for value in values))
            continue
        for label, draft in DRAFTS.items():
            values = [mean_per_pass(setting, ring, draft) for setting in MODES.values()]
            print(f"{label:12}" + "".join(f"{value:9.2f}" for value in values))


if __name__ == "__main__":
    main()
