"""The planner's door: block choice, route choice and prediction. All pure; nothing here reads a clock or a socket."""

from swarm.ring.fleet import KnownRtts, Member, ModelShape, Rtts, Speed, gaps, holders, say_layers, usual_speed
from swarm.ring.plan_block import Block, Room, choose_block, fit, reconsider, settled
from swarm.ring.plan_route import Ask, Route, StagePlan, plan_route

__all__ = [
    "Ask",
    "Block",
    "KnownRtts",
    "Member",
    "ModelShape",
    "Room",
    "Route",
    "Rtts",
    "Speed",
    "StagePlan",
    "choose_block",
    "fit",
    "gaps",
    "holders",
    "plan_route",
    "reconsider",
    "say_layers",
    "settled",
    "usual_speed",
]
