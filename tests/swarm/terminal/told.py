"""A small swarm as a guest sees it, without any socket: members in every standing, measured and unmeasured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from swarm.mesh.latency import Coordinate, RttTable
from swarm.mesh.record import NodeRecord
from swarm.mesh.view import MemberView

A, B, C, D, ME = (bytes([n]) * 32 for n in (1, 2, 3, 4, 9))
MODEL = b"m" * 32


def view(node: bytes, layers: tuple[int, int], state: str, heard: str, rtt: float | None, **facts: Any) -> MemberView:
    record = NodeRecord(node, b"s" * 10, 1, 0, 60, state=state, layers=layers, model=MODEL, n_layers=10, **facts)
    return MemberView(record, heard, rtt, 1.26, True)


def members() -> list[MemberView]:
    whole = {"device": "a GPU", "dtype": "bfloat16", "fingerprint": b"\x1f" * 32, "owner": "ann", "software": "0.1.0"}
    return [
        view(A, (0, 6), "serving", "up", 12.344, speed_us=(500, 900, 4000), kv_capacity=100, kv_free=30, sessions=2,
             queue_us=1500, addresses=(("203.0.113.7", 4242),), rtts=((B[:8], 40_000), (b"unknown!", 1)),
             edges=("relay", "direct"), overflow=1, overflow_us=(5000, 6000, 7000), **whole),
        view(B, (4, 10), "serving", "up", None, rtts=((A[:8], 42_000),), relay=True),
        view(C, (0, 0), "joining", "suspect", 3.0, claim=(6, 10)),
        view(D, (6, 10), "draining", "down", None),
        view(b"\x05" * 32, (0, 10), "left", "left", None),
    ]  # fmt: skip


class Told:
    """What `Gossip` says of it."""

    membership = SimpleNamespace(swarm=b"s" * 10, open=False)

    def __init__(self, shown: list[MemberView]) -> None:
        self._shown = shown
        self.rtts, self.coordinate = RttTable(), Coordinate()

    def members(self) -> list[MemberView]:
        return self._shown


def edge_of(node: bytes) -> str | None:
    return {A: "punched", B: "direct"}.get(node)
