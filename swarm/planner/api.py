"""The planner's door: block choice, route choice and prediction. All pure; nothing here reads a clock or a socket."""

from swarm.planner.block_choice import BlockChoice, Room, choose_block, fit, reconsider, settled
from swarm.planner.fleet import KnownRtts, Member, ModelShape, Rtts, Speed, gaps, holders, say_layers, usual_speed
from swarm.planner.route import Ask, Route, TimedStage, plan_route

__all__ = [
    "Ask",
    "BlockChoice",
    "KnownRtts",
    "Member",
    "ModelShape",
    "Room",
    "Route",
    "Rtts",
    "Speed",
    "TimedStage",
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
