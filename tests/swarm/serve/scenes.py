"""Swarms to look at: what `view()` says in the states that the dashboard must show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swarm.run.api import StageInfo
from tests.swarm.serve.tiny import TinyManifest

MANIFEST = TinyManifest(model="smollm2-135m-instruct", n_layers=30, context=8192)
GATEWAY = "f0" * 32
IDS = ["3b7f" * 16, "a2c4" * 16, "91de" * 16, "c85a" * 16]


def node(place: int, first: int, last: int, **facts: Any) -> dict[str, Any]:
    devices = ["RTX 4090", "M3 Max", "EPYC 7443, 8 threads", "RTX 3060"]
    told = {
        "id": IDS[place],
        "name": ["ghent", "lisbon", "oslo", "turin"][place],
        "device": devices[place],
        "layers": [first, last],
        "state": "serving",
        "layer_ms": [0.21, 0.48, 1.34, 0.35][place],
        "kv_used": [210, 120, 40, 0][place] * 1_000_000,
        "kv_budget": 2_000_000_000,
        "sessions": [3, 3, 2, 0][place],
        "queue_ms": [0.4, 1.1, 3.8, 0.0][place],
    }
    return {**told, **facts}


def edges(*places: int) -> list[dict[str, Any]]:
    ring = [GATEWAY, *(IDS[place] for place in places), GATEWAY]
    times = [18.4, 41.2, 63.7, 29.9, 35.0]
    kinds = ["direct", "punched", "relay", "direct", "direct"]
    return [
        {"a": a, "b": b, "rtt_ms": times[i], "kind": kinds[i]}
        for i, (a, b) in enumerate(zip(ring, ring[1:], strict=False))
    ]


EMPTY: dict[str, Any] = {"node": GATEWAY, "nodes": [], "edges": []}
FORMING = {
    "node": GATEWAY,
    "nodes": [node(0, 0, 12), node(1, 12, 20), node(3, 20, 26, state="joining", sessions=0)],
    "edges": edges(0, 1)[:2],
}
SERVING = {
    "node": GATEWAY,
    "nodes": [node(0, 0, 12), node(1, 12, 22), node(2, 22, 30), node(3, 14, 30)],
    "edges": edges(0, 1, 2),
}
LOST = {**SERVING, "nodes": [node(0, 0, 12), node(1, 12, 22), node(2, 22, 30, state="lost"), node(3, 14, 30)]}

RING = (
    StageInfo(IDS[0], "RTX 4090", (0, 12), 2.6, "direct", 18.4),
    StageInfo(IDS[1], "M3 Max", (12, 22), 4.9, "direct", 33.0),
    StageInfo(IDS[2], "EPYC 7443, 8 threads", (22, 30), 10.8, "direct", 29.9),
)
RING_AFTER = (RING[0], replace(RING[1], layers=(12, 14)), StageInfo(IDS[3], "RTX 3060", (14, 30), 5.8, "direct", 35.0))


class FirstNode:
    """The first of the nodes that serve, as its own page shows it; its stage was not asked for."""

    stage = None

    def status(self) -> dict[str, Any]:
        return {**SERVING, "node": IDS[0]}
