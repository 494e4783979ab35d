"""Which distances are worth measuring: those that a route is likely to use.

Coordinates rank thousands of pairs roughly; a planner that trusts them alone picks the pairs whose distance they
underestimate. Measuring the few most promising edges of each node removes that: a holder of layers [a, b) measures
the holders of layer b that promise most, a requester the heads and tails that do. Promise is the price per layer:
half a round trip, the hop, the queue and the compute, over the layers that the edge wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swarm.planner.fleet import Member, Rtts, usual_speed
from swarm.planner.route import HOP_MS

PROBES = 16
ROWS = 16


def next_hops(me: Member, members: Sequence[Member], n_layers: int, rtts: Rtts, count: int = PROBES) -> list[str]:
    """Names of the members that `me` should measure: likely successors of its block, the most promising first."""
    if me.layers <= 0 or me.last >= n_layers:
        return []
    after = [(m, m.last - me.last) for m in members if m.first <= me.last < m.last]
    return _promising(me.node, after, rtts, count)


def ends(requester: str, members: Sequence[Member], n_layers: int, rtts: Rtts, count: int = PROBES) -> list[str]:
    """Names of the members that a requester should measure: promising heads, then promising tails."""
    heads = _promising(requester, [(m, m.layers) for m in members if m.first == 0 < m.last], rtts, count)
    tails = _promising(requester, [(m, m.layers) for m in members if m.last == n_layers], rtts, count)
    return list(dict.fromkeys([*heads, *tails]))


def _promising(me: str, found: Sequence[tuple[Member, int]], rtts: Rtts, count: int) -> list[str]:
    usable = [(m, gain) for m, gain in found if m.node != me and m.state == "serving" and gain > 0]
    if not usable:
        return []
    usual = usual_speed([m for m, _ in usable])
    distance = rtts([me, *(m.node for m, _ in usable)])[0, 1:]
    price = [
        (ms / 2 + HOP_MS + m.queue_ms) / gain + (m.speed or usual).ms(ROWS)
        for (m, gain), ms in zip(usable, distance, strict=True)
    ]
    return [usable[int(i)][0].node for i in np.argsort(price, kind="stable")[:count]]
