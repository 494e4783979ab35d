"""What early rows of middle stages and shorter draft steps are worth, in simulated time with synthetic drafters:

    python -m tests.bench.sim_early early    # rows that a middle stage sends home while the pass is under way
    python -m tests.bench.sim_early long     # drafting behind 5,500 tokens, all read and a window

How often early rows tell what the target will say is measured by `tests.bench.early_taps`; here they are right
independently of the drafter, which flatters them: both find the same tokens hard. "told": they say the target's own
answer. Bytes and the requester's compute are free. Cheap, and the same on any machine.
"""

from __future__ import annotations

import random
import sys
from statistics import mean

from draft.base import Child, Expansion
from swarm.run.controller import Setting
from swarm.run.planned_frame import PlannedFrame
from swarm.run.proposals import TAIL
from tests.bench.sim_drafters import Draft, SyntheticDrafter
from tests.bench.sim_speculation import Ring, Simulation, Times, mean_per_pass

TOKENS = 128
SEEDS = range(2)
STAGES = {"near": (25.0, 9.0), "far": (65.0, 12.0)}
TOLD = {"layer 10": (0, Draft(0.21, 0.55)), "layer 20": (1, Draft(0.34, 0.67)), "told": (1, None)}
"""The stage that sends, and how often its rows are right (None: always)."""


class EarlyRing(Simulation):
    """A ring of which one stage sends its rows home: `sends` is its number, `early` what they are worth."""

    sends: int
    early: Draft | None

    def answers(self, frame: PlannedFrame) -> list[int]:
        flight = next(flight for flight in self.spec._flights if flight.seq == frame.seq)
        self.rows = getattr(self, "rows", {})
        self.rows[frame.seq] = [(node.id, self.told(node)) for node in flight.wanted]
        return super().answers(frame)

    def told(self, node: object) -> tuple[Child, ...]:
        """Children that the early row of a node gives."""
        path = self.spec._tree.path(node)
        right, position = all(step.token == step.position for step in path), node.position + 1
        if self.early is None:
            return (Child(position if right else 999_999_999, 0.99),)
        rng = random.Random(hash((position, 7, 0 if right else node.id)))
        return SyntheticDrafter(self.early, 7).proposals(position, right, rng)

    def hop(self, index: int, frame: PlannedFrame, answers: list[int], times: Times) -> None:
        if index == self.sends + 1:
            rows = self.rows.pop(frame.seq)
            self.after(self.ring.hops_ms[-1] / 1000.0, lambda: self.came(rows))
        super().hop(index, frame, answers, times)

    def came(self, rows: list[tuple[int, tuple[Child, ...]]]) -> None:
        live = self.spec._tree.live
        found = [Expansion(id, (children,)) for id, children in rows if id in live and live[id].answer < 0]
        self.spec._proposals._adopt(found, TAIL)
        self.spec._supply()


def early(ring: Ring, draft: Draft, sends: int, told: Draft | None) -> float:
    """Tokens per plain pass of a stream."""
    found = []
    for seed in SEEDS:
        drafter, prompt = SyntheticDrafter(draft, seed), list(range(8))
        run = EarlyRing(ring, Setting("stream"), lambda p: p, prompt, TOKENS, drafter, draft)
        run.sends, run.early = sends, told
        found.append(run.run().per_pass)
    return mean(found)


def early_rows() -> None:
    for name, (hop, stage) in STAGES.items():
        ring = Ring((hop,) * 4, stage_ms=stage, row_ms=0.3)
        for draft in (Draft(0.55, 0.85, ms=7.0), Draft(0.68, 0.90, ms=7.0)):
            base = mean_per_pass(Setting("stream"), ring, draft, SEEDS, TOKENS)
            shown = (f"{label} {early(ring, draft, *how) / base:.2f}" for label, how in TOLD.items())
            print(f"{name:5} drafter {draft.alpha}; {draft.coverage}: stream {base:.2f}, times", *shown, flush=True)


def long_text() -> None:
    kinds = {
        "prose": (Draft(0.70, 0.89, ms=25.0, leaf_ms=3.0), Draft(0.73, 0.91, ms=16.5, leaf_ms=1.0)),
        "code": (Draft(0.35, 0.65, ms=25.0, leaf_ms=3.0), Draft(0.39, 0.68, ms=16.5, leaf_ms=1.0)),
        "never right": (Draft(0.0, 0.0, ms=25.0, honest=False), Draft(0.0, 0.0, ms=16.5, honest=False)),
    }
    for rtt in (0.4, 50.0):
        for cores in (2, 0):
            ring = Ring((rtt / 2,) * 4, stage_ms=9.75, row_ms=1.25, cores=cores)
            for name, drafts in kinds.items():
                streams = (mean_per_pass(Setting("stream"), ring, draft, SEEDS, TOKENS) for draft in drafts)
                shown = (f"{way} {value:.2f}" for way, value in zip(("all read", "window"), streams, strict=True))
                where = f"{cores} cores for all" if cores else "cores of their own"
                print(f"RTT {rtt:g}, {where}, {name}: stream over plain,", *shown, flush=True)


if __name__ == "__main__":
    {"early": early_rows, "long": long_text}[sys.argv[1]]()
