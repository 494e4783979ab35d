"""Membership and planning of large swarms in simulated time: the real pure code under a discrete-event simulator.

What is real: `swarm.mesh.apply` with its tables, overlay and coordinates, block choice, route choice. What is
simulated: time, links (delay by a synthetic RTT matrix, in order, no loss, as TCP gives), connection set-up, and
death (half of the nodes that die close their sockets, half fall silent for 4 s). Signatures are not computed;
messages are counted in the bytes that the real encoding would take.

The RTT matrix: cities on a sphere weighted like the internet's users, light in fibre times a detour of 1.3 to 2.2
per pair of nodes (so that triangles are violated), plus a last mile of 1 to 20 ms per node. Deterministic for a seed.

    python -m tests.bench.sim_mesh                         # small tables, a minute
    python -m tests.bench.sim_mesh --nodes 10000 --seconds 60 --json OUT    # the large one: long, 4 GB
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from swarm.mesh.apply import apply, standing
from swarm.mesh.latency import Coordinate, unpack_coordinate, updated
from swarm.mesh.record import NodeRecord, Signed
from swarm.mesh.state import (
    Accuse,
    Accused,
    Action,
    Changed,
    DeltaHeard,
    Dial,
    DialFailed,
    DigestHeard,
    Event,
    Expel,
    HintsHeard,
    Leave,
    Linked,
    Moved,
    Neighbour,
    Published,
    Refresh,
    SendDelta,
    SendDigest,
    SendHints,
    SendWant,
    State,
    Suspicion,
    Tick,
    Unlinked,
    WantHeard,
    refresh_s,
    round_s,
    ttl_s,
)
from swarm.mesh.table import DIGEST_BYTES, Held, Table
from swarm.ring.fleet import Matrix, Member, ModelShape, Speed, holders
from swarm.ring.forecast import reprice
from swarm.ring.plan_block import Block, Room, choose_block, reconsider
from swarm.ring.plan_probe import PROBES, ends, next_hops
from swarm.ring.plan_route import Ask, plan_route

RECORD_BYTES = 420
"""A typical record as signed: see test_sim_mesh."""
ENVELOPE_BYTES = 60
SUSPICION_BYTES = 130
SILENCE_S = 4.0
PING_S = 20.0
SETTLE_S = 1.5
LOAD_S = 15.0
LOOK_S = 10.0
MODEL = ModelShape("sim", (10**9,) * 80, hidden_size=8192, kv_bytes=4096)

CITIES = (
    *((50, 9, 16), (51, 0, 12), (48, 2, 10), (52, 21, 6), (41, -4, 5), (59, 18, 3), (41, 29, 5)),
    *((40, -74, 14), (39, -77, 12), (41, -88, 8), (33, -97, 7), (37, -122, 12), (47, -122, 6), (34, -118, 8)),
    *((-23, -46, 9), (-34, -58, 3), (19, -99, 4), (35, 139, 10), (37, 127, 6), (22, 114, 6), (1, 104, 8)),
    *((19, 73, 9), (28, 77, 6), (-34, 151, 4), (-26, 28, 3), (6, 3, 3), (25, 55, 3)),
)
"""Latitude, longitude, weight."""


class Earth:
    """Round-trip milliseconds between numbered nodes, without keeping a matrix."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._xyz: list[tuple[float, float, float]] = []
        self._mile: list[float] = []
        self._salt = seed
        self._cache: dict[tuple[int, int], float] = {}

    def add(self) -> int:
        """One more node; its number."""
        north, east, _ = self._draw.choices(CITIES, [weight for _, _, weight in CITIES])[0]
        lat, lon = (math.radians(value + self._draw.gauss(0, 1.5)) for value in (north, east))
        self._xyz.append((math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)))
        self._mile.append(min(20.0, max(1.0, self._draw.lognormvariate(1.3, 0.7))))
        return len(self._mile) - 1

    def rtt_ms(self, a: int, b: int) -> float:
        """There and back between `a` and `b`."""
        if a == b:
            return 0.0
        found = self._cache.get((a, b))
        if found is None:
            if len(self._cache) > 2_000_000:
                self._cache.clear()
            found = self._cache[a, b] = self._cache[b, a] = self._compute(a, b)
        return found

    def _compute(self, a: int, b: int) -> float:
        cosine = sum(p * q for p, q in zip(self._xyz[a], self._xyz[b], strict=True))
        km = 6371 * math.acos(max(-1.0, min(1.0, cosine)))
        low, high = min(a, b), max(a, b)
        mixed = (low * 0x9E3779B1 ^ high * 0x85EBCA77 ^ self._salt * 0xC2B2AE3D) & 0xFFFFFFFF
        mixed = (mixed ^ mixed >> 15) * 0x2C1B3C6D & 0xFFFFFFFF
        detour = 1.3 + 0.9 * ((mixed ^ mixed >> 13) & 0xFFFF) / 0xFFFF
        return km / 100 * detour + self._mile[a] + self._mile[b]

    def matrix(self, numbers: Sequence[int]) -> Matrix:
        """All pairs."""
        return np.array([[self.rtt_ms(a, b) for b in numbers] for a in numbers])


def node_id(number: int) -> bytes:
    """A 32-byte name for a number."""
    return hashlib.blake2b(b"node %d" % number, digest_size=32).digest()


def settle_coordinates(
    earth: Earth, numbers: Sequence[int], rounds: int, links: int, seed: int
) -> dict[int, Coordinate]:
    """Coordinates after every node measured `links` random others `rounds` times each."""
    draw = random.Random(seed)
    places = {n: Coordinate() for n in numbers}
    peers = {n: draw.sample(numbers, min(links, len(numbers) - 1)) for n in numbers}
    for _ in range(rounds):
        for n in numbers:
            for peer in peers[n]:
                if peer != n:
                    places[n] = updated(places[n], places[peer], earth.rtt_ms(n, peer), node_id(n))
    return places


@dataclass
class SimNode:
    """One node: its pure state, and what a shell would hold."""

    number: int
    state: State
    about: NodeRecord
    version: int = 0
    alive: bool = True
    dialling: set[bytes] = field(default_factory=set)
    sent: int = 0
    born: float = 0.0
    block: Block | None = None
    took_block: float = -1e9
    room: Room | None = None


@dataclass
class Tracked:
    """Who knew when of one join or death."""

    kind: str
    key: int
    at: float
    known: dict[int, float] = field(default_factory=dict)


class World:
    """Nodes, their links and the clock."""

    def __init__(self, seed: int, plan: bool = False) -> None:
        self.draw = random.Random(seed)
        self.earth = Earth(seed)
        self.nodes: dict[int, SimNode] = {}
        self.number_of: dict[bytes, int] = {}
        self.now = 0.0
        self.tracked: dict[int, list[Tracked]] = {}
        self.plan = plan
        self.coverage: list[tuple[float, int, int]] = []
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    # -- time

    def at(self, delay: float, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), act, args))

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, act, args = heapq.heappop(self._heap)
            self.events += 1
            act(*args)
        self.now = until

    # -- nodes

    def create(self, capacity: int = 0, place: Coordinate | None = None) -> SimNode:
        """A node that knows nobody yet."""
        number = self.earth.add()
        name = node_id(number)
        self.number_of[name] = number
        about = NodeRecord(name, b"s" * 10, 0, 0, 60, state="serving", addresses=(("10.0.0.1", 1),), n_layers=80)
        node = SimNode(number, State(name, coordinate=place or Coordinate()), about, born=self.now)
        if capacity:
            ms = self.draw.uniform(1, 4)
            node.room = Room(name.hex(), capacity * 10**9, speed=Speed(ms, ms * 1.2, ms * 3))
            speed_us = round(ms * 1000), round(ms * 1200), round(ms * 3000)
            node.about = replace(about, state="joining", speed_us=speed_us)
        self.nodes[number] = node
        return node

    def record(self, node: SimNode, above: int, born: float) -> Held:
        node.version = max(node.version + 1, above + 1, 1)
        record = replace(
            node.about,
            version=node.version,
            ttl=ttl_s(node.state.table.size),
            coordinate=node.state.coordinate.packed(),
        )
        return Held.of(Signed(record, b""), born)

    def begin(self, node: SimNode) -> None:
        """Its tasks."""
        self.at(self.draw.random() * round_s(node.state.table.size), self._tick, node)
        self.at(self.draw.random() * PING_S, self._measure, node)
        if node.room is not None:
            self.at(SETTLE_S + self.draw.random(), self._look, node)

    def join(self, node: SimNode, contact: SimNode) -> None:
        """Publish, and say hello to one member."""
        self.happen(node, Published(self.record(node, 0, self.now)))
        self.begin(node)
        self._link(node, contact)

    def _link(self, node: SimNode, other: SimNode) -> None:
        rtt = self.earth.rtt_ms(node.number, other.number) / 1000
        self.at(1.5 * rtt, self._linked, other, node)
        self.at(2.0 * rtt, self._linked, node, other)

    def _linked(self, node: SimNode, other: SimNode) -> None:
        if node.alive and other.alive and other.state.node not in node.state.links:
            self.happen(node, Linked(other.state.node))
            self._observe(node, other)

    def leave(self, node: SimNode) -> None:
        """Say goodbye and end."""
        node.about = replace(node.about, state="left", claim=None)
        self.happen(node, Published(self.record(node, node.version, self.now)))
        self._end(node, polite=True)

    def die(self, node: SimNode) -> None:
        """End without a word: half of the dead close their sockets, half fall silent."""
        self._end(node, polite=False)

    def _end(self, node: SimNode, polite: bool) -> None:
        node.alive = False
        silent = not polite and self.draw.random() < 0.5
        for peer in node.state.links:
            other = self.nodes[self.number_of[peer]]
            delay = self.earth.rtt_ms(node.number, other.number) / 2000 + 1e-6
            self.at(SILENCE_S if silent else delay, self._unlinked, other, node.state.node, polite)

    def _unlinked(self, node: SimNode, peer: bytes, polite: bool) -> None:
        if node.alive:
            self.happen(node, Unlinked(peer, polite))

    def _tick(self, node: SimNode) -> None:
        if node.alive:
            self.happen(node, Tick())
            self.at(round_s(node.state.table.size), self._tick, node)

    def _measure(self, node: SimNode) -> None:
        if node.alive:
            for peer in list(node.state.links):
                self._observe(node, self.nodes[self.number_of[peer]])
            self.at(PING_S, self._measure, node)

    def _observe(self, node: SimNode, other: SimNode) -> None:
        held = node.state.table.get(int.from_bytes(other.state.node[:8], "big"))
        place = None if held is None else unpack_coordinate(held.record.coordinate)
        rtt = self.earth.rtt_ms(node.number, other.number)
        node.sent += 6 * 80
        self.happen(node, Moved(updated(node.state.coordinate, place or Coordinate(), rtt, node.state.node)))

    # -- the shell's part

    def happen(self, node: SimNode, event: Event) -> None:
        node.state, actions = apply(node.state, event, self.now)
        for action in actions:
            self._act(node, action)

    def _act(self, node: SimNode, action: Action) -> None:
        me = node.state.node
        match action:
            case SendHints(peer, hints, blames):
                self._send(node, peer, 16 * len(hints) + 24 * len(blames), HintsHeard(me, hints, blames))
            case SendWant(peer, keys, blames):
                self._send(node, peer, 8 * len(keys) + 24 * len(blames), WantHeard(me, keys, blames))
            case SendDelta(peer, records, suspicions, revocations):
                size = (RECORD_BYTES + 8) * len(records) + SUSPICION_BYTES * len(suspicions)
                self._send(node, peer, size, DeltaHeard(me, records, suspicions, revocations))
            case SendDigest(peer, digest):
                self._send(node, peer, DIGEST_BYTES, DigestHeard(me, digest))
            case Dial(record, check):
                if record.node not in node.dialling:
                    node.dialling.add(record.node)
                    self._dial(node, record.node, check)
            case Leave(peer):
                self._say_bye(node, peer)
            case Expel(peer, _):
                self.at(0.1, self._unlinked, self.nodes[self.number_of[peer]], me, False)
            case Accuse(target, version):
                self.happen(node, Accused(Suspicion(target, version, me)))
            case Refresh(above):
                self.happen(node, Published(self.record(node, above, self.now)))
            case Changed(key):
                if key in self.tracked:
                    self._note(node, key)

    def _send(self, node: SimNode, peer: bytes, size: int, event: Event) -> None:
        other = self.nodes[self.number_of[peer]]
        node.sent += size + ENVELOPE_BYTES
        self.at(self.earth.rtt_ms(node.number, other.number) / 2000, self._arrive, other, event)

    def _arrive(self, node: SimNode, event: Event) -> None:
        if node.alive:
            self.happen(node, event)

    def _say_bye(self, node: SimNode, peer: bytes) -> None:
        other = self.nodes[self.number_of[peer]]
        self.at(self.earth.rtt_ms(node.number, other.number) / 2000, self._unlinked, other, node.state.node, True)
        self.happen(node, Unlinked(peer, polite=True))

    def _dial(self, node: SimNode, target: bytes, check: bool) -> None:
        other = self.nodes[self.number_of[target]]
        rtt = self.earth.rtt_ms(node.number, other.number) / 1000
        if other.alive:
            self._link(node, other)
            self.at(2 * rtt, node.dialling.discard, target)
        else:
            refused = self.draw.random() < 0.5
            self.at(rtt if refused else (2.0 if check else 5.0), self._dial_failed, node, target)

    def _dial_failed(self, node: SimNode, target: bytes) -> None:
        node.dialling.discard(target)
        if node.alive:
            self.happen(node, DialFailed(target))

    # -- blocks

    def _members(self, node: SimNode) -> list[Member]:
        shown = []
        for held in node.state.table:
            r = held.record
            how = standing(node.state, held, self.now)
            if how in ("up", "suspect"):
                speed = Speed(*(us / 1000 for us in r.speed_us)) if any(r.speed_us) else None
                shown.append(Member(r.node.hex(), *r.layers, speed, state=r.state, claim=r.claim))
        return shown

    def _publish(self, node: SimNode, **changes: Any) -> None:
        node.about = replace(node.about, **changes)
        self.happen(node, Published(self.record(node, 0, self.now)))

    def _look(self, node: SimNode, claimed: tuple[int, int] | None = None) -> None:
        """Choose, claim, look again, load, serve; later reconsider: as a node does."""
        if not node.alive or node.room is None:
            return
        members = self._members(node)
        if node.block is None:
            wish: Block | None = choose_block(MODEL, node.room, members)
        else:
            since = self.now - node.took_block
            wish = reconsider(MODEL, node.room, node.block, members, idle=True, since_move_s=since)
        if wish is None:
            if claimed is not None:
                self._publish(node, claim=None)
            self.at(LOOK_S * self.draw.uniform(0.8, 1.2), self._look, node)
        elif claimed == (wish.first, wish.last):
            self.at(LOAD_S, self._serve, node, wish)
        else:
            self._publish(node, claim=(wish.first, wish.last))
            self.at(SETTLE_S, self._look, node, (wish.first, wish.last))

    def _serve(self, node: SimNode, block: Block) -> None:
        if node.alive:
            node.block, node.took_block = block, self.now
            self._publish(node, state="serving", layers=(block.first, block.last), claim=None)
            self.at(LOOK_S, self._look, node)

    def watch_coverage(self) -> None:
        """Every second: least holders of a layer among nodes that really live, and layers without any."""
        serving = [
            Member(str(n.number), n.block.first, n.block.last) for n in self.nodes.values() if n.alive and n.block
        ]
        held = holders(serving, MODEL.n_layers)
        self.coverage.append((self.now, int(held.min()), int((held == 0).sum())))
        self.at(1.0, self.watch_coverage)

    # -- what is measured

    def track(self, kind: str, node: SimNode) -> Tracked:
        """Note from now on who learns of this node's join or end."""
        key = int.from_bytes(node.state.node[:8], "big")
        watch = Tracked(kind, key, self.now)
        self.tracked.setdefault(key, []).append(watch)
        return watch

    def _note(self, node: SimNode, key: int) -> None:
        held = node.state.table.get(key)
        if held is None:
            return
        how = standing(node.state, held, self.now)
        for watch in self.tracked[key]:
            if (how in ("up", "suspect")) == (watch.kind == "join"):
                watch.known.setdefault(node.number, self.now - watch.at)


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
        judges = [n for n in judges if int.from_bytes(n.state.node[:8], "big") != watch.key]
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


def membership(nodes: int, seconds: float, per_minute: float = 0.1, seed: int = 1, tracked: int = 30) -> dict[str, Any]:
    """Spread of joins and deaths, and traffic, in a swarm of `nodes` under churn for `seconds`."""
    began = time.process_time()
    world = World(seed)
    grown(world, nodes)
    warm = min(10.0, seconds / 4)
    every = max(1.0, nodes * per_minute * seconds / 60 / max(1, tracked) / 3)
    churn(world, per_minute, lambda: 0, tracked, every)
    world.run(warm)
    before = {n.number: n.sent for n in world.nodes.values() if n.alive}
    world.run(seconds)
    old = [n for n in world.nodes.values() if n.alive and n.number in before]
    rates = sorted((n.sent - before[n.number]) / (seconds - warm) for n in old)
    links = [len(n.state.links) for n in old]
    alive = {int.from_bytes(n.state.node[:8], "big") for n in world.nodes.values() if n.alive}
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


def routes(
    nodes: int, serving: int, requests: int, seed: int = 1, probes: Sequence[int] = (0, PROBES)
) -> list[dict[str, Any]]:
    """Pass time of planned routes over the optimum that true distances give, and the time that planning takes.

    Nodes know coordinates (from 16 random peers: their neighbours, and whom they met before) and have measured what
    `plan_probe` names, so many each as `probes` says, 0 for coordinates alone. A request plans, opens its ring, which
    measures the ring's own edges, and plans again.
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
        length = (at**2).sum(axis=1)
        matrix: Matrix = np.sqrt(np.maximum(0.0, length[:, None] + length[None, :] - 2 * at @ at.T))
        matrix = matrix + height[:, None] + height[None, :]
        here = {name: i for i, name in enumerate(names)}
        for (a, b), ms in self.known.items():
            if a in here and b in here:
                matrix[here[a], here[b]] = matrix[here[b], here[a]] = ms
        np.fill_diagonal(matrix, 0.0)
        return matrix

    def ask(self, number: int, ratios: list[list[float]], spent: list[float]) -> None:
        """Plan, open, plan again; each plan's true price over the optimum."""
        asker = str(number)
        truth = np.zeros((len(self.hosts) + 1,) * 2)
        truth[1:, 1:] = self.among
        truth[0, 1:] = truth[1:, 0] = [self.earth.rtt_ms(number, n) for n in self.hosts]
        best = plan_route(MODEL, self.members, lambda names: truth, Ask(asker)).pass_ms
        self.known = dict(self.lasting)
        self._measure(asker, ends(asker, self.members, MODEL.n_layers, self._guessed, self.probes))
        for step in ratios:
            began = time.process_time()
            route = plan_route(MODEL, self.everybody, self._guessed, Ask(asker))
            spent.append(1000 * (time.process_time() - began))
            step.append(reprice(MODEL, self.members, self._true, asker, route, 16).pass_ms / best)
            for near, far in itertools.pairwise([asker, *route.nodes, asker]):
                self._measure(near, [far])


def main() -> None:
    parser = argparse.ArgumentParser(description="Membership and planning of large swarms in simulated time.")
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--churn", type=float, default=0.1, help="share of the nodes that end, and that join, per minute"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("membership", "coverage", "routes"))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    results: dict[str, Any] = {}
    if chosen.only in (None, "membership"):
        results["membership"] = membership(chosen.nodes, chosen.seconds, chosen.churn, chosen.seed)
        print(json.dumps(results["membership"], indent=1), flush=True)
    if chosen.only in (None, "coverage"):
        results["coverage"] = [
            coverage(n, 300, c, chosen.churn, chosen.seed) for n, c in ((24, (8, 12)), (60, (8, 12)))
        ]
        print(json.dumps(results["coverage"], indent=1), flush=True)
    if chosen.only in (None, "routes"):
        serving = min(500, chosen.nodes // 2)
        results["routes"] = routes(chosen.nodes, serving, 25, chosen.seed)
        print(json.dumps(results["routes"], indent=1), flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
