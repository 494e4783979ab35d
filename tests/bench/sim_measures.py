"""What is measured of membership in simulated time: how news spreads, what it costs, how layers stay covered."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from swarm.mesh.event import Published
from swarm.mesh.record import Signed, key_of
from swarm.mesh.state import Neighbour, refresh_s, ttl_s
from swarm.mesh.suspicion import standing
from swarm.mesh.table import Held, Table
from tests.bench.sim_earth import node_id, settle_coordinates
from tests.bench.sim_world import LOAD_S, MODEL, SimNode, World


def grown(world: World, count: int, capacity: Callable[[], int] = lambda: 0, links: int = 8) -> list[SimNode]:
    """`count` nodes that know each other already, linked at random, records of every age."""
    nodes = [world.create(capacity()) for _ in range(count)]
    places = settle_coordinates(world.earth, [n.number for n in nodes], 4, links, 7)
    age = refresh_s(count)
    table = Table()
    helds = []
    for node in nodes:
        node.state = replace(node.state, coordinate=places[node.number])
        node.about = replace(node.about, ttl=ttl_s(count))
        node.version = 1
        record = replace(node.about, version=1, coordinate=places[node.number].packed())
        helds.append(Held.of(Signed(record, b""), -world.draw.random() * age))
    table = table.put_all(helds)
    peers: dict[int, set[int]] = {node.number: set() for node in nodes}
    numbers = [node.number for node in nodes]
    for n in numbers:
        while len(peers[n]) < min(links // 2 + 1, count - 1):
            other = world.draw.choice(numbers)
            if other != n:
                peers[n].add(other)
                peers[other].add(n)
    for node, held in zip(nodes, helds, strict=True):
        bounds = node.state.bounds
        links_of = {
            node_id(p): Neighbour(node_id(p), bounds.news_burst, bounds.asks_burst, 0.0) for p in peers[node.number]
        }
        node.born = -math.inf
        sync = world.draw.random() * bounds.sync
        node.state = replace(node.state, own=held, table=table, links=links_of, next_sync=sync)
        world.begin(node)
    return nodes


def churn(world: World, per_minute: float, capacity: Callable[[], int], tracked: int, every: float) -> None:
    """From now on: leave, die (half and half) and join at `per_minute` of the present size; track some of each."""
    left = {"join": tracked, "death": tracked}

    def step() -> None:
        alive = [n for n in world.nodes.values() if n.alive]
        rate = per_minute * len(alive) / 60
        victim, contact = world.draw.sample(alive, 2)
        if left["death"] and world.draw.random() < 1 / every:
            left["death"] -= 1
            world.track("death", victim)
        (world.die if world.draw.random() < 0.5 else world.leave)(victim)
        newcomer = world.create(capacity())
        if left["join"] and world.draw.random() < 1 / every:
            left["join"] -= 1
            world.track("join", newcomer)
        world.join(newcomer, contact)
        world.at(world.draw.expovariate(rate), step)

    world.at(0.0, step)


def spread(world: World, kind: str, settle: float) -> dict[str, float] | None:
    """Seconds until half, 99% and all of the nodes that lived throughout knew; over events at least `settle` s old."""
    halves, nearly, whole, known, possible = [], [], [], 0, 0
    for watch in itertools.chain.from_iterable(world.tracked.values()):
        if watch.kind != kind or world.now - watch.at < settle:
            continue
        judges = [n for n in world.nodes.values() if n.alive and n.born <= watch.at - 30]
        judges = [n for n in judges if key_of(n.state.node) != watch.key]
        times = sorted(watch.known[n.number] for n in judges if n.number in watch.known)
        known += len(times)
        possible += len(judges)
        if len(times) == len(judges) and times:
            halves.append(times[len(times) // 2])
            nearly.append(times[min(len(times) - 1, int(0.99 * len(times)))])
            whole.append(times[-1])
    if not possible:
        return None
    return {
        "events": len(whole),
        "known_share": known / possible,
        "half_s": float(np.median(halves)) if halves else math.nan,
        "p99_s": float(np.median(nearly)) if nearly else math.nan,
        "all_s": float(np.median(whole)) if whole else math.nan,
        "worst_all_s": max(whole, default=math.nan),
    }


@contextmanager
def uncollected() -> Iterator[None]:
    """States are immutable and hold no cycles: looking for some among millions of objects would be most of the work."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def membership(nodes: int, seconds: float, per_minute: float = 0.1, seed: int = 1, tracked: int = 30) -> dict[str, Any]:
    """Spread of joins and deaths, and traffic, in a swarm of `nodes` under churn for `seconds`."""
    began = time.process_time()
    world = World(seed)
    grown(world, nodes)
    with uncollected():
        warm = min(10.0, seconds / 4)
        every = max(1.0, nodes * per_minute * seconds / 60 / max(1, tracked) / 3)
        churn(world, per_minute, lambda: 0, tracked, every)
        world.run(warm)
        before = {n.number: n.sent for n in world.nodes.values() if n.alive}
        world.run(seconds)
    old = [n for n in world.nodes.values() if n.alive and n.number in before]
    rates = sorted((n.sent - before[n.number]) / (seconds - warm) for n in old)
    links = [len(n.state.links) for n in old]
    alive = {key_of(n.state.node) for n in world.nodes.values() if n.alive}
    views = world.draw.sample(old, min(50, len(old)))
    wrong = []
    for viewer in views:
        up = {h.key for h in viewer.state.table if standing(viewer.state, h, world.now) == "up"}
        wrong.append((len(up - alive) / len(alive), len(alive - up) / len(alive)))
    return {
        "nodes": nodes,
        "seconds": seconds,
        "churn_per_minute": per_minute,
        "join": spread(world, "join", min(10.0, seconds / 2)),
        "death": spread(world, "death", min(14.0, seconds * 0.6)),
        "bytes_per_node_per_s": {"mean": float(np.mean(rates)), "p99": rates[int(0.99 * len(rates))]},
        "links": {"mean": float(np.mean(links)), "least": min(links), "most": max(links)},
        "dead_shown_alive": float(np.mean([a for a, _ in wrong])),
        "alive_not_shown": float(np.mean([b for _, b in wrong])),
        "events": world.events,
        "cpu_s": round(time.process_time() - began, 1),
    }


def coverage(
    nodes: int, seconds: float, capacity: tuple[int, int], per_minute: float = 0.1, seed: int = 1
) -> dict[str, Any]:
    """How well 80 layers stay covered when nodes of `capacity` layers come and go and choose for themselves."""
    world = World(seed, plan=True)

    def draw_capacity() -> int:
        return world.draw.randint(*capacity)

    first = world.create(draw_capacity())
    world.happen(first, Published(world.record(first, 0, 0.0)))
    world.begin(first)
    for i in range(nodes - 1):
        world.at(0.2 * i, lambda: world.join(world.create(draw_capacity()), first))
    ready = 0.2 * nodes + LOAD_S + 15
    world.at(ready - 1, world.watch_coverage)
    world.run(ready)
    churn(world, per_minute, draw_capacity, 0, 1.0)
    world.run(ready + seconds)
    least = [low for at, low, _ in world.coverage if at >= ready]
    holes = [missing for at, _, missing in world.coverage if at >= ready]
    return {
        "nodes": nodes,
        "seconds": seconds,
        "capacity": list(capacity),
        "redundancy": nodes * sum(capacity) / 2 / MODEL.n_layers,
        "covered_at_start": world.coverage[0][2] == 0,
        "covered_share_of_time": float(np.mean([h == 0 for h in holes])),
        "least_holders_mean": float(np.mean(least)),
        "longest_hole_s": max(
            (len(list(run)) for hole, run in itertools.groupby(h > 0 for h in holes) if hole), default=0
        ),
    }
