"""What a route's passes will cost, guessed before the first one: the start of a run's controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.ring.control import Costs
from swarm.ring.fleet import Speed
from swarm.ring.plan_wire import edge_ms


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
