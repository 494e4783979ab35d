"""Which distances are worth measuring: those that a route is likely to use.

Coordinates rank thousands of pairs roughly; a planner that trusts them alone picks the pairs whose distance they
underestimate. Measuring the few most promising edges of each node removes that: a holder of layers [a, b) measures
the nearest holders of layer b, a requester the nearest heads and tails.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swarm.ring.fleet import Member, Rtts

PROBES = 16


def next_hops(me: Member, members: Sequence[Member], n_layers: int, rtts: Rtts, count: int = PROBES) -> list[str]:
    """Names of the members that `me` should measure: likely successors of its block, the nearest first."""
    if me.layers <= 0 or me.last >= n_layers:
        return []
    return _nearest(me.node, [m for m in members if m.first <= me.last < m.last], rtts, count)


def ends(requester: str, members: Sequence[Member], n_layers: int, rtts: Rtts, count: int = PROBES) -> list[str]:
    """Names of the members that a requester should measure: the nearest heads, then the nearest tails."""
    heads = _nearest(requester, [m for m in members if m.first == 0 and m.layers], rtts, count)
    tails = _nearest(requester, [m for m in members if m.last == n_layers and m.layers], rtts, count)
    return list(dict.fromkeys([*heads, *tails]))


def _nearest(me: str, found: Sequence[Member], rtts: Rtts, count: int) -> list[str]:
    usable = [m for m in found if m.node != me and m.state == "serving"]
    if not usable:
        return []
    distance = rtts([me, *(m.node for m in usable)])[0, 1:]
    return [usable[int(i)].node for i in np.argsort(distance, kind="stable")[:count]]
