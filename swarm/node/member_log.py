"""A line for every member that comes, goes, or takes other layers, from two looks at the swarm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swarm.base.nodeid import NodeId, short_id
from swarm.mesh.gossip import Gossip
from swarm.mesh.view import MemberView

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_GONE = {"left": "has left", "down": "is lost", "suspect": "does not answer", "expired": "was not heard of for long"}


@dataclass(frozen=True)
class MemberStanding:
    """What is told of a member: how it stands, what it does, and its layers as [first, last)."""

    standing: str
    state: str
    layers: tuple[int, int]

    @property
    def here(self) -> bool:
        return self.standing == "up"


def standings(views: Iterable[MemberView]) -> dict[NodeId, MemberStanding]:
    """How each member stands, by node."""
    return {view.record.node: MemberStanding(view.standing, view.record.state, view.record.layers) for view in views}


def changes(before: Mapping[NodeId, MemberStanding], after: Mapping[NodeId, MemberStanding]) -> list[str]:
    """What happened between two looks, one line each."""
    lines = []
    for node, now in after.items():
        was = before.get(node)
        if was == now:
            continue
        name = short_id(node)
        if now.here and (was is None or not was.here):
            lines.append(f"node {name} {'joined' if was is None else 'is back'}: {_does(now)}")
        elif not now.here:
            if was is not None and was.standing != now.standing:
                lines.append(f"node {name} {_GONE.get(now.standing, now.standing)}")
        elif was is not None and (was.layers, was.state) != (now.layers, now.state):
            lines.append(f"node {name} now: {_does(now)}")
    lines += [f"node {short_id(node)} is gone" for node, was in before.items() if was.here and node not in after]
    return lines


def _does(member: MemberStanding) -> str:
    first, last = member.layers
    return f"{member.state} layers {first}-{last - 1}" if last > first else member.state


async def keep_log(gossip: Gossip, own: NodeId) -> None:
    """Log every change among the other members, until cancelled."""
    before: dict[NodeId, MemberStanding] = {}
    while True:
        after = standings(view for view in gossip.members() if view.record.node != own)
        for line in changes(before, after):
            log.info("%s", line)
        before = after
        await asyncio.sleep(LOOK_EVERY_S)
