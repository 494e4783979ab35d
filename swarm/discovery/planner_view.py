"""From what the mesh knows to what the planner reads: the one place where both are named."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from swarm.base.clock import SystemTime, TimeSource
from swarm.base.nodeid import NodeId, id_text
from swarm.mesh.gossip import Gossip
from swarm.mesh.latency import DEFAULT_MS, Coordinate, RttTable, rtt_matrix
from swarm.mesh.record import NodeRecord
from swarm.mesh.view import MemberView
from swarm.planner.fleet import Matrix, Member, Speed

FIRM_S = 2.0
"""A claim that stood this long has been decided on and is being loaded. Over what any chooser waits between two looks:
before that it may still give way to ours, and both would give way to each other."""


def speed_of(us: tuple[int, int, int]) -> Speed | None:
    """Microseconds of a record as the planner's milliseconds; None when unmeasured."""
    return None if us == (0, 0, 0) else Speed(*(value / 1000 for value in us))


def speed_us(speed: Speed | None) -> tuple[int, int, int]:
    """The reverse of `speed_of`."""
    return (
        (0, 0, 0) if speed is None else (round(speed.ms_1 * 1000), round(speed.ms_8 * 1000), round(speed.ms_64 * 1000))
    )


def member_of(view: MemberView) -> Member:
    """A member for the planner, named by the text form of its id.

    Unmeasured speed, bandwidth and KV stay unknown; a member that is down counts as left.
    """
    r = view.record
    state: str = r.state if view.standing in ("up", "suspect") else "left"
    if view.standing == "suspect" and state == "serving":
        state = "suspect"
    return Member(
        id_text(r.node),
        *r.layers,
        speed=speed_of(r.speed_us),
        overflow=r.overflow,
        overflow_speed=speed_of(r.overflow_us),
        kv_free_bytes=r.kv_free if r.kv_capacity else None,
        up_mbps=r.up_kbps / 1000 or None,
        down_mbps=r.down_kbps / 1000 or None,
        queue_ms=r.queue_us / 1000,
        sessions=r.sessions,
        owner=r.owner,
        state=state,
        claim=r.claim,
        kernels=r.fingerprint.hex(),
    )


def members_of(gossip: Gossip, model: bytes = b"") -> list[Member]:
    """Members for `plan_route` and `choose_block`: those with this manifest digest, or all when it is empty."""
    return [
        member_of(view)
        for view in gossip.members()
        if view.standing in ("up", "suspect") and (not model or view.record.model == model)
    ]


class Outlook:
    """Members for `choose_block` and `reconsider`: as they are, but where one is loading its claim, as it will be.

    Made once per choice that takes several looks: a record that is signed anew does not make its claim a new one.
    """

    def __init__(self, gossip: Gossip, model: bytes, clock: TimeSource | None = None) -> None:
        self._gossip, self._model, self._clock = gossip, model, clock or SystemTime()
        self._claims: dict[NodeId, tuple[tuple[int, int], float]] = {}

    def members(self) -> list[Member]:
        """As known now."""
        now = self._clock.now()
        claims: dict[NodeId, tuple[tuple[int, int], float]] = {}
        found = []
        for view in self._gossip.members():
            record = view.record
            if view.standing not in ("up", "suspect") or record.model != self._model:
                continue
            member = member_of(view)
            if record.claim is not None and member.state in ("joining", "serving", "suspect"):
                before = self._claims.get(record.node)
                since = before[1] if before is not None and before[0] == record.claim else now - view.age_s
                claims[record.node] = record.claim, since
                if now - since > FIRM_S:
                    first, last = record.claim
                    member = replace(member, first=first, last=last, claim=None, state="serving", overflow=0)
            found.append(member)
        self._claims = claims
        return found


@dataclass(frozen=True)
class MeshRtts:
    """`Rtts` for the planner from network coordinates and measurements. `own`: the text id of this process."""

    records: Mapping[str, NodeRecord]
    own: str
    coordinate: Coordinate
    table: RttTable
    now: float
    default_ms: float = DEFAULT_MS

    def __call__(self, names: Sequence[str]) -> Matrix:
        records = [self.records.get(name) for name in names]
        own = names.index(self.own) if self.own in names else None
        return rtt_matrix(records, own, self.coordinate, self.table, self.now, self.default_ms)


def rtts_of(gossip: Gossip, own: NodeId, views: Iterable[MemberView] | None = None) -> MeshRtts:
    """Distances as this node knows them now."""
    shown = gossip.members() if views is None else views
    records = {id_text(view.record.node): view.record for view in shown}
    return MeshRtts(records, id_text(own), gossip.coordinate, gossip.rtts, time.monotonic())
