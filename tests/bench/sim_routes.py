"""How near planned routes come to the optimum when distances are known by coordinates and a few measurements."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from swarm.discovery.rtt_probing import MOST_ENDS, REPLANS
from swarm.mesh.latency import Coordinate, apart
from swarm.planner.block_choice import Room, choose_block
from swarm.planner.fleet import Matrix, Member, Speed, lay_known
from swarm.planner.forecast import reprice
from swarm.planner.probe_targets import PROBES, ends, next_hops
from swarm.planner.route import Ask, plan_route
from tests.bench.sim_earth import Earth, settle_coordinates
from tests.bench.sim_world import MODEL


def routes(
    nodes: int, serving: int, requests: int, seed: int = 1, probes: Sequence[int] = (0, PROBES)
) -> list[dict[str, Any]]:
    """Pass time of planned routes over the optimum that true distances give, and the time that planning takes.

    Nodes know coordinates (from 16 random peers: their neighbours, and whom they met before) and have measured what
    `plan_probe` names, so many each as `probes` says, 0 for coordinates alone. A requester measures what
    `swarm.discovery.rtt_probing` does before the first route; then it plans, opens its ring, which measures the ring's
    own edges, and plans again.
    """
    earth = Earth(seed)
    draw = random.Random(seed)
    numbers = [earth.add() for _ in range(nodes)]
    # Only those whose coordinates are looked at must settle; the others settle as well as they do.
    places = settle_coordinates(earth, numbers[: min(nodes, 2000)], 30, 16, seed)
    numbers = list(places)
    errors = []
    for _ in range(2000):
        a, b = draw.sample(numbers, 2)
        errors.append(abs(places[a].distance_ms(places[b]) - earth.rtt_ms(a, b)) / earth.rtt_ms(a, b))
    hosts = draw.sample(numbers, serving)
    members: list[Member] = []
    for n in hosts:
        ms = draw.uniform(0.4, 4)
        room = Room(str(n), draw.randint(4, 24) * 10**9, speed=Speed(ms, ms * 1.2, ms * 3))
        block = choose_block(MODEL, room, members)
        members.append(Member(str(n), block.first, block.last, room.speed, up_mbps=draw.uniform(50, 500)))
    everybody = members + [Member(str(n), state="joining") for n in range(nodes) if n not in set(hosts)]
    among = earth.matrix(hosts)
    askers = [draw.choice(numbers) for _ in range(requests)]
    results = []
    for count in probes:
        errand = _Errand(earth, places, members, everybody, hosts, among, count)
        ratios: list[list[float]] = [[], [], []]
        spent: list[float] = []
        for asker in askers:
            errand.ask(asker, ratios, spent)
        results.append(
            {
                "records": nodes,
                "serving": serving,
                "requests": requests,
                "probes": count,
                "coordinate_error_median": float(np.median(errors)),
                "ratio": [
                    {"openings": i, "mean": float(np.mean(r)), "p90": float(np.percentile(r, 90)), "worst": max(r)}
                    for i, r in enumerate(ratios)
                ],
                "plan_cpu_ms": {"median": float(np.median(spent)), "p95": float(np.percentile(spent, 95))},
            }
        )
    return results


class _Errand:
    """Requests against one swarm that has measured `probes` edges per node."""

    def __init__(
        self,
        earth: Earth,
        places: dict[int, Coordinate],
        members: list[Member],
        everybody: list[Member],
        hosts: list[int],
        among: Matrix,
        probes: int,
    ) -> None:
        self.earth, self.places, self.members, self.everybody = earth, places, members, everybody
        self.hosts, self.among, self.probes = hosts, among, probes
        self.known: dict[tuple[str, str], float] = {}
        for member in members:
            self._measure(member.node, next_hops(member, members, MODEL.n_layers, self._guessed, probes))
        self.lasting = dict(self.known)

    def _measure(self, a: str, others: Iterable[str]) -> None:
        self.known.update({(a, b): self.earth.rtt_ms(int(a), int(b)) for b in others})

    def _true(self, names: Sequence[str]) -> Matrix:
        return self.earth.matrix([int(name) for name in names])

    def _guessed(self, names: Sequence[str]) -> Matrix:
        at = np.array([self.places[int(name)].at for name in names])
        height = np.array([self.places[int(name)].height for name in names])
        return lay_known(apart(at) + height[:, None] + height[None, :], names, self.known)

    def ask(self, number: int, ratios: list[list[float]], spent: list[float]) -> None:
        """Plan, open, plan again; each plan's true price over the optimum."""
        asker = str(number)
        truth = np.zeros((len(self.hosts) + 1,) * 2)
        truth[1:, 1:] = self.among
        truth[0, 1:] = truth[1:, 0] = [self.earth.rtt_ms(number, n) for n in self.hosts]
        best = plan_route(MODEL, self.members, lambda names: truth, Ask(asker)).pass_ms
        self.known = dict(self.lasting)
        self._measure(asker, ends(asker, self.members, MODEL.n_layers, self._guessed, min(self.probes, MOST_ENDS)))
        for _ in range(REPLANS if self.probes else 0):
            route = plan_route(MODEL, self.everybody, self._guessed, Ask(asker))
            self._measure(asker, (route.nodes[0], route.nodes[-1]))
        for step in ratios:
            began = time.process_time()
            route = plan_route(MODEL, self.everybody, self._guessed, Ask(asker))
            spent.append(1000 * (time.process_time() - began))
            step.append(reprice(MODEL, self.members, self._true, asker, route, 16).pass_ms / best)
            for near, far in itertools.pairwise([asker, *route.nodes, asker]):
                self._measure(near, [far])
