"""Whom to be connected to: a few near members, for speed, and a few far ones, so that no part falls off."""

from __future__ import annotations

import random

from swarm.mesh.action import Action, Dial, Leave
from swarm.mesh.latency import unpack_coordinate
from swarm.mesh.state import State
from swarm.mesh.table import Held

TRIES = 12
DIALS = 2


def steer(state: State, now: float) -> list[Action]:
    """What this round does about connections: dial up to DIALS members, or leave one of too many.

    In a swarm of at most `links` others everybody is connected to everybody.
    """
    have = len(state.links)
    lacking = min(state.bounds.links, state.table.size - 1) - have - len(state.checking)
    if lacking <= 0 and have <= state.bounds.most_links:
        return []
    draw = random.Random(int.from_bytes(state.node[:8], "big") + state.ticks)
    if have > state.bounds.most_links:
        return [Leave(draw.choice(sorted(state.links)))]
    actions: list[Action] = []
    chosen: set[bytes] = set()
    for turn in range(min(lacking, DIALS)):
        found = _candidate(state, draw, chosen, near=(have + turn) % 2 == 0, now=now)
        if found is not None:
            chosen.add(found.record.node)
            actions.append(Dial(found.record))
    return actions


def _candidate(state: State, draw: random.Random, chosen: set[bytes], near: bool, now: float) -> Held | None:
    """A random member that could be dialled; with `near` the nearest of several.

    Where none of those drawn is known to live, one that ended: a healed partition begins with such a call.
    """
    fit: list[Held] = []
    ended: Held | None = None
    for _ in range(TRIES):
        held = state.table.sample(draw)
        if held is None or not _dialable(state, held, now) or held.record.node in chosen:
            continue
        if not held.alive(now) or held.key in state.blamed:
            ended = held
        elif near:
            fit.append(held)
        else:
            return held
    return min(fit, key=lambda held: _distance(state, held), default=ended)


def _dialable(state: State, held: Held, now: float) -> bool:
    node = held.record.node
    return (
        node != state.node
        and node not in state.links
        and node not in state.checking
        and bool(held.record.addresses)
        and held.record.state != "left"
        and state.shunned.get(node, 0.0) <= now
        and state.banned.get(node, 0.0) <= now
    )


def _distance(state: State, held: Held) -> float:
    place = unpack_coordinate(held.record.coordinate)
    return float("inf") if place is None else state.coordinate.distance_ms(place)
