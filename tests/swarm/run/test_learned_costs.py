"""What a requester remembers of rings stays bounded however many routes there were."""

from __future__ import annotations

from swarm.planner.costs import Costs
from swarm.run.controller import Controller
from swarm.run.learned_costs import MAX_CONTROLLERS, LearnedCosts

COSTS = Costs(pass_ms=200.0)


def test_the_rings_used_last_are_remembered() -> None:
    memory = LearnedCosts()
    made: list[Controller] = []

    def make() -> Controller:
        made.append(Controller(COSTS))
        return made[-1]

    favourite = memory.controller(("favourite",), make)
    for route in range(10 * MAX_CONTROLLERS):
        memory.controller((route,), make)
        assert memory.controller(("favourite",), make) is favourite
    assert len(memory.controllers) == MAX_CONTROLLERS
    assert len(made) == 10 * MAX_CONTROLLERS + 1
