"""Keeping the distances fresh that routes will use: which ones is planned, measuring them is gossip's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from swarm.base.errors import CoverageError
from swarm.base.nodeid import NodeId, id_text, parse_id_untrusted
from swarm.discovery.planner_view import members_of, rtts_of
from swarm.mesh.gossip import Gossip
from swarm.planner.probe_targets import ends, next_hops

SCOUT_S = 60.0
FIRST_S = 5.0
HURRY_S = 1.5
MOST_ENDS = 8
REPLANS = 2
"""How often a plan's own ends are measured: a third time changed nothing in simulated swarms."""

Planned: TypeAlias = Callable[[], Sequence[NodeId]]
"""The nodes of the route that would be taken now, in order. Raises CoverageError."""


async def scout_hops(gossip: Gossip, own: NodeId, model: bytes, n_layers: int) -> None:
    """A serving node measures the likely successors of its block, once; its record tells of them from then on.

    `model`: manifest digest (32 bytes). Nodes that are not reached are skipped.
    """
    members = members_of(gossip, model)
    me = next((member for member in members if member.node == id_text(own)), None)
    if me is not None:
        names = next_hops(me, members, n_layers, rtts_of(gossip, own))
        await gossip.measure([parse_id_untrusted(name) for name in names])


async def scout_ends(gossip: Gossip, own: NodeId, model: bytes, n_layers: int, most: int = MOST_ENDS) -> None:
    """A requester measures its likely heads and tails, `most` of each."""
    names = ends(id_text(own), members_of(gossip, model), n_layers, rtts_of(gossip, own), most)
    await gossip.measure([parse_id_untrusted(name) for name in names])


async def scout_first(gossip: Gossip, own: NodeId, model: bytes, n_layers: int, planned: Planned) -> None:
    """Before the first route: `scout_ends`, then `scout_planned`. What is slow to answer is left to its coordinate."""
    if len(members_of(gossip, model)) <= 2:
        return  # nothing to choose between
    await _hurried(scout_ends(gossip, own, model, n_layers))
    await _hurried(scout_planned(gossip, planned))


async def _hurried(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HURRY_S):
            await work


async def scout_planned(gossip: Gossip, planned: Planned) -> None:
    """Measure the head and the tail that would be taken, and those that are taken instead when they were farther.

    A plan picks the edges whose distance coordinates underestimate most; the connections are those of the run anyway.
    """
    for _ in range(REPLANS):
        try:
            route = planned()
        except CoverageError:
            return
        views = [gossip.member(node) for node in dict.fromkeys((route[0], route[-1]))]
        guessed = [view.record.node for view in views if view is not None and view.rtt_ms is None]
        if not guessed:
            return
        await gossip.measure(guessed)


async def keep_scouting_ends(gossip: Gossip, own: NodeId, model: bytes, n_layers: int) -> None:
    """`scout_ends` for ever; a task of a requester that stays."""
    while True:
        await asyncio.sleep(SCOUT_S)
        await scout_ends(gossip, own, model, n_layers)


async def keep_scouting(gossip: Gossip, own: NodeId, model: bytes, n_layers: int) -> None:
    """`scout_hops` for ever; a task of a serving node."""
    await asyncio.sleep(FIRST_S)
    while True:
        await scout_hops(gossip, own, model, n_layers)
        await asyncio.sleep(SCOUT_S)
