"""What a requester remembers of rings stays bounded however many routes there were."""

from __future__ import annotations

from swarm.ring.control import Controller, Costs
from swarm.ring.facts import MAX_CONTROLLERS, Memory

COSTS = Costs(pass_ms=200.0)


def test_the_rings_used_last_are_remembered() -> None:
    memory = Memory()
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
