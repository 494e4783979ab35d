"""What a route's passes will cost, guessed before the first one: the start of a run's controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.planner.fleet import Speed
from swarm.planner.wire_choice import edge_ms


@dataclass(frozen=True)
class StageCost:
    """One stage of a route: what it measured of itself per layer, and how many layers it serves."""

    speed: Speed
    layers: int

    @property
    def one_ms(self) -> float:
        """A pass of one row."""
        return self.speed.ms_1 * self.layers

    @property
    def row_ms(self) -> float:
        """What each further row adds."""
        return max(0.0, self.speed.ms_64 - self.speed.ms_1) / 63.0 * self.layers


def expected_costs(
    stages: Sequence[StageCost],
    way_ms: float,
    draft_ms: float,
    wire: str | None = None,
    hidden: int = 0,
    rates_mbps: Sequence[float | None] = (),
) -> Costs:
    """Milliseconds of passes over `stages`.

    way_ms      all hops of the ring, one way each
    draft_ms    one draft step
    wire        format of hidden rows of `hidden` values; None leaves bytes out
    rates_mbps  of each edge that carries them; None: unmeasured, so wide enough
    """
    bytes_ms = [edge_ms(wire, rate, hidden, 1) for rate in rates_mbps] if wire is not None else []
    inside = sum(stage.one_ms for stage in stages)
    return Costs(
        pass_ms=way_ms + inside + sum(bytes_ms) + 1.0,
        row_ms=max(0.01, sum(stage.row_ms for stage in stages) + sum(bytes_ms)),
        frame_ms=max([0.5, *(stage.one_ms for stage in stages), *bytes_ms]),
        frame_row_ms=max([0.01, *(stage.row_ms for stage in stages), *bytes_ms]),
        draft_ms=draft_ms,
        inside_ms=max(0.5, inside),
    )


@dataclass(frozen=True)
class Costs:
    """First guesses, from probes and pings; measuring corrects them.

    pass_ms    one pass of one row through the empty ring
    row_ms     what each further row adds to a pass: compute of all stages and bytes over all links
    frame_ms   shortest time between frames of one row that the slowest stage or link sustains
    frame_row_ms  what each further row adds to that
    draft_ms   one draft step
    inside_ms  part of pass_ms that is spent in stages, not on the way; the default says nothing
    """

    pass_ms: float = 200.0
    row_ms: float = 1.0
    frame_ms: float = 15.0
    frame_row_ms: float = 0.4
    draft_ms: float = 15.0
    inside_ms: float = 1e9
