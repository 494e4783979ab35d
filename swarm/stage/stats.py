"""What a stage has done since it started, for whoever watches the node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swarm.ring.frame import Answer
from swarm.stage.compute import Computed


@dataclass
class StageCounts:
    """Sums since the start; times in seconds.

    runs        openings taken, recoveries of them not counted
    recoveries  runs that came here again, in a ring that was formed anew
    forwards    of the block; passes over forwards is how many frames shared one
    passes      frames computed, and rows what they carried: prompt, drafts and all
    tokens      drawn here, as the tail of runs; of drafts all that were asked for, right or wrong
    queue_s     frames waited for the device; compute_s the device computed; network_s what was sent took on its way:
                half of the measured round trip to where it went
    """

    runs: int = 0
    recoveries: int = 0
    forwards: int = 0
    passes: int = 0
    rows: int = 0
    tokens: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    network_s: float = 0.0

    def opened(self, epoch: int) -> None:
        """A run came: for the first time in epoch 0."""
        if epoch:
            self.recoveries += 1
        else:
            self.runs += 1

    def forward(self, seconds: float) -> None:
        """One forward of the block was computed."""
        self.forwards += 1
        self.compute_s += seconds

    def computed(self, done: Computed) -> None:
        """One frame of a forward is done."""
        self.passes += 1
        self.rows += len(done.arrived.frame.rows)
        if isinstance(done.out, Answer):
            self.tokens += int(np.count_nonzero(done.out.token >= 0))
        if done.out is not None and done.out.timings:
            self.queue_s += done.out.timings[-1][0] / 1e6

    def sent(self, rtt_ms: float | None) -> None:
        """A frame or an answer went out on an edge of this round trip."""
        self.network_s += (rtt_ms or 0.0) / 2000.0
