"""Membership of a large swarm in simulated time: the real pure code under a discrete-event simulator.

What is real: `swarm.mesh.apply` with its tables, overlay and coordinates, block choice. What is simulated: time, links
(delay by `sim_earth`, in order, no loss, as TCP gives), connection set-up, and death (half of the nodes that die close
their sockets, half fall silent for 4 s). Signatures are not computed; messages are counted in the bytes that the real
encoding would take.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from swarm.discovery.planner_view import FIRM_S
from swarm.mesh.action import (
    Accuse,
    Action,
    Changed,
    Dial,
    Expel,
    Leave,
    Refresh,
    SendDelta,
    SendDigest,
    SendHints,
    SendWant,
)
from swarm.mesh.apply import apply
from swarm.mesh.event import (
    Accused,
    DeltaHeard,
    DialFailed,
    DigestHeard,
    Event,
    HintsHeard,
    Linked,
    Moved,
    Published,
    Tick,
    Unlinked,
    WantHeard,
)
from swarm.mesh.latency import Coordinate, unpack_coordinate, updated
from swarm.mesh.record import NodeRecord, Signed, key_of
from swarm.mesh.state import State, Suspicion, round_s, ttl_s
from swarm.mesh.suspicion import standing
from swarm.mesh.table import DIGEST_BYTES, Held
from swarm.planner.block_choice import BlockChoice, Room, choose_block, reconsider
from swarm.planner.fleet import Member, ModelShape, Speed, holders
from tests.bench.sim_earth import Earth, node_id

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
    block: BlockChoice | None = None
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
        held = node.state.table.get(key_of(other.state.node))
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
                firm = r.claim is not None and self.now - held.born > FIRM_S
                layers, claim, state = (r.claim, None, "serving") if firm and r.claim else (r.layers, r.claim, r.state)
                shown.append(Member(r.node.hex(), *layers, speed, state=state, claim=claim))
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
            wish: BlockChoice | None = choose_block(MODEL, node.room, members)
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

    def _serve(self, node: SimNode, block: BlockChoice) -> None:
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
        key = key_of(node.state.node)
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
