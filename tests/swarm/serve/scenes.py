"""Swarms to look at: what `view()` says in the states that the dashboard must show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swarm.base.swarm_state import EdgeState, NodeState, SwarmState
from swarm.run.api import StageInfo
from tests.swarm.serve.tiny import TinyManifest

MANIFEST = TinyManifest(model="smollm2-135m-instruct", n_layers=30, context=8192)
GATEWAY = "f0" * 32
IDS = ["3b7f" * 16, "a2c4" * 16, "91de" * 16, "c85a" * 16]


def node(place: int, first: int, last: int, **facts: Any) -> NodeState:
    told = NodeState(
        IDS[place],
        layers=(first, last),
        name=["ghent", "lisbon", "oslo", "turin"][place],
        device=["RTX 4090", "M3 Max", "EPYC 7443, 8 threads", "RTX 3060"][place],
        speed_ms=([0.21, 0.48, 1.34, 0.35][place], 1.0, 4.0),
        kv_free=2_000_000_000 - [210, 120, 40, 0][place] * 1_000_000,
        kv_capacity=2_000_000_000,
        sessions=[3, 3, 2, 0][place],
        queue_ms=[0.4, 1.1, 3.8, 0.0][place],
    )
    return replace(told, **facts)


def edges(*places: int) -> tuple[EdgeState, ...]:
    ring = [GATEWAY, *(IDS[place] for place in places), GATEWAY]
    times = [18.4, 41.2, 63.7, 29.9, 35.0]
    kinds = ["direct", "punched", "relay", "direct", "direct"]
    return tuple(EdgeState(a, b, times[i], kinds[i]) for i, (a, b) in enumerate(zip(ring, ring[1:], strict=False)))


def swarm(*nodes: NodeState, paths: tuple[EdgeState, ...] = ()) -> SwarmState:
    return SwarmState(GATEWAY, nodes=nodes, edges=paths)


EMPTY = swarm()
FORMING = swarm(
    node(0, 0, 12),
    node(1, 12, 20),
    node(3, 0, 0, layers=None, says="joining", claim=(20, 26), sessions=0),
    paths=edges(0, 1)[:2],
)
WHOLE = (node(0, 0, 12), node(1, 12, 22), node(2, 22, 30), node(3, 14, 30))
SERVING = swarm(*WHOLE, paths=edges(0, 1, 2))
LOST = replace(SERVING, nodes=(*WHOLE[:2], replace(WHOLE[2], standing="down"), WHOLE[3]))

RING = (
    StageInfo(IDS[0], "RTX 4090", (0, 12), 2.6, "direct", 18.4),
    StageInfo(IDS[1], "M3 Max", (12, 22), 4.9, "direct", 33.0),
    StageInfo(IDS[2], "EPYC 7443, 8 threads", (22, 30), 10.8, "direct", 29.9),
)
RING_AFTER = (RING[0], replace(RING[1], layers=(12, 14)), StageInfo(IDS[3], "RTX 3060", (14, 30), 5.8, "direct", 35.0))


class FirstNode:
    """The first of the nodes that serve, as its own page shows it; its stage was not asked for."""

    stage = None

    def status(self) -> SwarmState:
        return replace(SERVING, here=IDS[0])
