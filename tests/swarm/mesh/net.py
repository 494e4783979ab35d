"""An in-memory network of pure membership states: queues, lost messages, splits, deaths."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable

from swarm.mesh.action import Accuse, Action, Dial, Expel, Leave, Refresh, SendDelta, SendDigest, SendHints, SendWant
from swarm.mesh.apply import apply
from swarm.mesh.event import (
    Accused,
    DeltaHeard,
    DialFailed,
    DigestHeard,
    Event,
    HintsHeard,
    Linked,
    Published,
    Tick,
    Unlinked,
    WantHeard,
)
from swarm.mesh.state import Bounds, State, Suspicion, round_s, ttl_s
from swarm.mesh.suspicion import standing
from tests.swarm.mesh.make import held

NAMES = [bytes([16 * n]) * 32 for n in range(16)]


class Net:
    """States joined by queues. `cut` says which pairs cannot talk; `lose` drops single messages."""

    def __init__(self, count: int, bounds: Bounds | None = None, seed: int = 0) -> None:
        self.bounds = bounds or Bounds()
        self.states = {name: State(name, bounds=self.bounds) for name in NAMES[:count]}
        self.now = 0.0
        self.queue: deque[tuple[bytes, Event]] = deque()
        self.versions = dict.fromkeys(self.states, 0)
        self.dead: set[bytes] = set()
        self.sides: dict[bytes, int] = dict.fromkeys(self.states, 0)
        self.lose: Callable[[], bool] = lambda: False
        self.draw = random.Random(seed)
        self.seen: list[tuple[bytes, Action]] = []
        self.layers = dict.fromkeys(self.states, (0, 0))
        for name in self.states:
            self.publish(name)

    def publish(self, name: bytes, above: int = 0, **changes: object) -> None:
        self.versions[name] = max(self.versions[name], above) + 1
        n = len(self.states)
        fields = {"ttl": ttl_s(n), "n_layers": 30, "layers": self.layers[name], **changes}
        self.happen(name, Published(held(name, self.versions[name], self.now, **fields)))

    def reachable(self, a: bytes, b: bytes) -> bool:
        return not {a, b} & self.dead and self.sides[a] == self.sides[b]

    def happen(self, name: bytes, event: Event) -> None:
        if name in self.dead:
            return
        self.states[name], actions = apply(self.states[name], event, self.now)
        for action in actions:
            self.seen.append((name, action))
            self.act(name, action)

    def act(self, me: bytes, action: Action) -> None:
        match action:
            case SendHints(peer, hints, blames):
                self.send(me, peer, HintsHeard(me, hints, blames))
            case SendWant(peer, keys, blames):
                self.send(me, peer, WantHeard(me, keys, blames))
            case SendDelta(peer, records, suspicions, revocations):
                self.send(me, peer, DeltaHeard(me, records, suspicions, revocations))
            case SendDigest(peer, digest):
                self.send(me, peer, DigestHeard(me, digest))
            case Dial(record):
                self.dial(me, record.node)
            case Leave(peer) | Expel(peer, _):
                polite = isinstance(action, Leave)
                self.queue.append((peer, Unlinked(me, polite)))
                if polite:
                    self.happen(me, Unlinked(peer, True))
            case Accuse(target, version):
                self.happen(me, Accused(Suspicion(target, version, me)))
            case Refresh(above):
                self.publish(me, above)

    def send(self, me: bytes, peer: bytes, event: Event) -> None:
        if self.reachable(me, peer) and me in self.states[peer].links and not self.lose():
            self.queue.append((peer, event))

    def dial(self, me: bytes, peer: bytes) -> None:
        if self.reachable(me, peer):
            self.queue.append((peer, Linked(me)))
            self.queue.append((me, Linked(peer)))
        else:
            self.queue.append((me, DialFailed(peer)))

    def flow(self) -> None:
        while self.queue:
            name, event = self.queue.popleft()
            self.happen(name, event)

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += round_s(len(self.states))
            for name in self.draw.sample(list(self.states), len(self.states)):
                self.happen(name, Tick())
            self.flow()

    def split(self, sides: dict[bytes, int]) -> None:
        """Cut the network; links across break at both ends."""
        self.sides = sides
        for name, state in self.states.items():
            for peer in list(state.links):
                if not self.reachable(name, peer):
                    self.happen(name, Unlinked(peer, polite=False))
        self.flow()

    def kill(self, name: bytes) -> None:
        self.dead.add(name)
        self.split(self.sides)

    def view(self, name: bytes) -> dict[int, tuple[int, str]]:
        state = self.states[name]
        return {h.key: (h.record.version, standing(state, h, self.now)) for h in state.table}

    def live(self) -> list[bytes]:
        return [name for name in self.states if name not in self.dead]

    def agreed(self, names: Iterable[bytes] | None = None) -> bool:
        """Whether all of `names` show the same nodes, at the same versions, with the same standings."""
        views = [self.view(name) for name in names or self.live()]
        return all(view == views[0] for view in views)


def joined(count: int, bounds: Bounds | None = None, seed: int = 0) -> Net:
    """A swarm in which everybody came by the first node."""
    net = Net(count, bounds, seed)
    for name in NAMES[1:count]:
        net.dial(name, NAMES[0])
    net.flow()
    net.pass_time(3)
    return net
