"""Membership without a socket: an in-memory network joins pure states, loses messages, splits and heals."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.mesh.apply import MAX_DELTA, apply, expel, standing
from swarm.mesh.membership import Revocation
from swarm.mesh.state import (
    Accuse,
    Accused,
    Action,
    Aged,
    Bounds,
    Changed,
    Clash,
    DeltaHeard,
    Dial,
    DialFailed,
    DigestHeard,
    Event,
    Expel,
    HintsHeard,
    Leave,
    Linked,
    Published,
    Refresh,
    Revoked,
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
from swarm.mesh.table import Held
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


def key(name: bytes) -> int:
    return int.from_bytes(name[:8], "big")


def joined(count: int, bounds: Bounds | None = None, seed: int = 0) -> Net:
    """A swarm in which everybody came by the first node."""
    net = Net(count, bounds, seed)
    for name in NAMES[1:count]:
        net.dial(name, NAMES[0])
    net.flow()
    net.pass_time(3)
    return net


def test_everybody_learns_of_everybody() -> None:
    net = joined(12)
    assert net.agreed() and len(net.view(NAMES[5])) == 12
    assert {how for _, how in net.view(NAMES[5]).values()} == {"up"}
    assert all(len(state.links) >= 8 for state in net.states.values())


def test_news_crosses_the_swarm_once_per_node_or_little_more() -> None:
    net = joined(16)
    net.seen.clear()
    net.layers[NAMES[3]] = (0, 10)
    net.publish(NAMES[3])
    version = net.versions[NAMES[3]]
    net.flow()
    net.pass_time(1)
    sent = sum(h.key == key(NAMES[3]) for _, a in net.seen if isinstance(a, SendDelta) for h in a.records)
    assert all(view.table.get(key(NAMES[3])).record.version == version for view in net.states.values())
    assert sent <= 2 * len(net.states[NAMES[3]].links) + 16


def test_a_goodbye_is_heard_and_the_grave_keeps_old_records_out() -> None:
    net = joined(6)
    old = net.states[NAMES[0]].table.get(key(NAMES[2]))
    net.publish(NAMES[2], state="left")
    net.flow()
    net.dead.add(NAMES[2])
    net.pass_time(1)
    assert all(net.view(name)[key(NAMES[2])][1] == "left" for name in net.live())
    net.happen(NAMES[0], DeltaHeard(NAMES[1], (old,)))
    assert net.view(NAMES[0])[key(NAMES[2])][1] == "left"


def test_a_dead_node_is_down_for_all_and_forgotten_in_the_end() -> None:
    net = joined(8, Bounds(grave=60.0))
    net.kill(NAMES[4])
    net.pass_time(2)
    assert {net.view(name)[key(NAMES[4])][1] for name in net.live()} == {"down"}
    net.pass_time(ttl_s(8) + 60 + 10)
    assert all(key(NAMES[4]) not in net.view(name) for name in net.live())


def test_a_swarm_of_two_notices_too() -> None:
    net = joined(2)
    net.kill(NAMES[1])
    net.pass_time(1)
    assert net.view(NAMES[0])[key(NAMES[1])][1] == "down"


def test_a_living_node_refutes_what_is_said_of_it() -> None:
    net = joined(6)
    accused = net.states[NAMES[1]].table.get(key(NAMES[2]))
    for liar in (NAMES[3], NAMES[4]):
        said = Suspicion(accused.key, accused.record.version, liar)
        net.happen(liar, Accused(said))
        for name in net.states:
            net.happen(name, DeltaHeard(next(iter(net.states[name].links)), (), (said,)))
    net.pass_time(1)
    assert {net.view(name)[key(NAMES[2])][1] for name in net.states} == {"up"}
    assert net.versions[NAMES[2]] > accused.record.version


def test_strangers_and_repeats_count_for_nothing() -> None:
    net = joined(5)
    target = net.states[NAMES[0]].table.get(key(NAMES[1]))
    stranger = Suspicion(target.key, target.record.version, b"\xee" * 32)
    older = Suspicion(target.key, target.record.version - 1, NAMES[3])
    once = Suspicion(target.key, target.record.version, NAMES[3])
    for said in (stranger, older, once, once):
        net.happen(NAMES[0], DeltaHeard(NAMES[2], (), (said,)))
    assert [s.reporter for s in net.states[NAMES[0]].blamed[target.key]] == [NAMES[3]]
    assert net.view(NAMES[0])[target.key][1] == "suspect"


def test_who_accuses_everybody_is_soon_ignored() -> None:
    net = joined(4, Bounds(blames=3))
    state = net.states[NAMES[0]]
    others = [held(bytes([200, n]) * 16, 1, net.now) for n in range(10)]
    state = replace(state, table=state.table.put_all(others))
    for other in others:
        said = Suspicion(other.key, 1, NAMES[1])
        state, _ = apply(state, DeltaHeard(NAMES[2], (), (said,)), net.now)
    assert len(state.blamed) == 3


@settings(max_examples=25)
@given(
    st.integers(3, 12),
    st.lists(st.tuples(st.sampled_from(["publish", "split", "heal", "wait", "kill"]), st.integers(0, 99)), max_size=12),
    st.integers(0, 9),
    st.integers(0, 2**16),
)
def test_a_swarm_that_loses_messages_and_splits_agrees_when_it_heals(
    count: int, story: list[tuple[str, int]], loss: int, seed: int
) -> None:
    net = joined(count, Bounds(redial=2.0, sync=3.0), seed)
    net.lose = lambda: net.draw.random() < loss / 10
    for what, number in story:
        name = NAMES[number % count]
        if what == "publish" and name not in net.dead:
            net.layers[name] = (number % 30, 30)
            net.publish(name)
        elif what == "split":
            net.split({n: (i * number // 7) % 2 for i, n in enumerate(net.states)})
        elif what == "heal":
            net.split(dict.fromkeys(net.states, 0))
        elif what == "kill" and len(net.live()) > 2:
            net.kill(name)
        net.pass_time(1.0)
    net.lose = lambda: False
    net.split(dict.fromkeys(net.states, 0))
    for _ in range(40):
        net.pass_time(1.0)
        if net.agreed() and standings(net) == {name: "up" for name in net.live()}:
            break
    assert standings(net) == {name: "up" for name in net.live()}
    for name in net.live():
        state = net.states[name]
        for other in net.live():
            assert state.table.get(key(other)).record.layers == net.layers[other]
        assert not {h.record.node for h in state.table if standing(state, h, net.now) == "up"} & net.dead


def standings(net: Net) -> dict[bytes, str]:
    """How each living node stands with all the living; mixed views show as several words."""
    return {
        n: "/".join(sorted({net.view(v)[key(n)][1] for v in net.live() if key(n) in net.view(v)})) for n in net.live()
    }


def test_a_long_split_heals_without_a_new_invite() -> None:
    net = joined(8)
    net.split({name: i % 2 for i, name in enumerate(net.states)})
    net.pass_time(120)
    assert "up" not in {net.view(NAMES[0])[key(n)][1] for n in NAMES[1:8:2]}
    net.split(dict.fromkeys(net.states, 0))
    net.pass_time(20)
    assert {how for _, how in net.view(NAMES[0]).values()} == {"up"} and net.agreed()


def fresh(me: bytes = NAMES[0], bounds: Bounds | None = None) -> State:
    state, _ = apply(State(me, bounds=bounds or Bounds()), Published(held(me, 5)), 0.0)
    return apply(state, Linked(NAMES[1]), 0.0)[0]


def test_unasked_records_are_bounded_and_a_flood_ends_the_link() -> None:
    state = fresh(bounds=Bounds(news_burst=10, news_per_s=1))
    flood = [held(bytes([n // 256, n % 256]) * 16) for n in range(1, 301)]
    actions: list[Action] = []
    for i in range(0, 300, 20):
        state, more = apply(state, DeltaHeard(NAMES[1], tuple(flood[i : i + 20])), 0.1)
        actions += more
    assert state.table.size == 11 and NAMES[1] not in state.links
    assert actions[-1] == Expel(NAMES[1], "it floods records")
    state, actions = apply(state, Linked(NAMES[1]), 10.0)
    assert NAMES[1] not in state.links and isinstance(actions[0], Expel)
    assert NAMES[1] in apply(state, Linked(NAMES[1]), 1000.0)[0].links


def test_a_full_table_keeps_what_it_has() -> None:
    state = fresh(bounds=Bounds(records=50, news_burst=1000))
    many = tuple(held(bytes([n]) * 32) for n in range(1, 200))
    state, _ = apply(state, DeltaHeard(NAMES[1], many), 0.0)
    assert state.table.size == 50
    known = next(h for h in state.table if h.record.node != NAMES[0])
    state, _ = apply(state, DeltaHeard(NAMES[1], (held(known.record.node, 9),)), 0.0)
    assert state.table.get(known.key).record.version == 9


def test_invented_hints_are_asked_for_within_bounds() -> None:
    state = fresh(bounds=Bounds(asks_burst=100, asks_per_s=10))
    hints = tuple((n << 32, 1) for n in range(1, 4000))
    state, actions = apply(state, HintsHeard(NAMES[1], hints), 0.0)
    assert isinstance(actions[0], SendWant) and len(actions[0].keys) == 100 == len(state.wanted)
    assert apply(state, HintsHeard(NAMES[1], hints), 0.0)[1] == []
    for _ in range(4):  # asked for twice more, then forgotten
        state, _ = apply(state, Tick(), state.next_sync + 60.0)
    assert state.wanted == {}


def test_messages_of_strangers_change_nothing() -> None:
    state = fresh()
    stranger = NAMES[9]
    record = held(NAMES[5])
    for event in (
        HintsHeard(stranger, ((1, 1),)),
        WantHeard(stranger, (key(NAMES[0]),)),
        DeltaHeard(stranger, (record,)),
        DigestHeard(stranger, bytes(2048)),
        Unlinked(stranger, polite=False),
    ):
        assert apply(state, event, 0.0) == (state, [])


def test_versions_never_go_back() -> None:
    state = fresh()
    for version, expected in ((3, 3), (2, 3), (3, 3), (7, 7), (1, 7)):
        state, _ = apply(state, DeltaHeard(NAMES[1], (held(NAMES[5], version),)), 0.0)
        assert state.table.get(key(NAMES[5])).record.version == expected


def test_expired_records_are_neither_taken_nor_passed_on() -> None:
    state = fresh()
    state, _ = apply(state, DeltaHeard(NAMES[1], (held(NAMES[5], born=-100.0),)), 0.0)
    assert state.table.get(key(NAMES[5])) is None
    state, _ = apply(state, DeltaHeard(NAMES[1], (held(NAMES[5], born=-50.0),)), 0.0)
    assert apply(state, WantHeard(NAMES[1], (key(NAMES[5]),)), 1.0)[1] != []
    assert apply(state, WantHeard(NAMES[1], (key(NAMES[5]),)), 20.0)[1] == []
    assert standing(state, state.table.get(key(NAMES[5])), 20.0) == "expired"


def test_large_answers_are_cut_into_pieces() -> None:
    state = fresh(bounds=Bounds(news_burst=1000))
    many = tuple(held(bytes([n]) * 32) for n in range(1, 256))
    state, _ = apply(state, DeltaHeard(NAMES[1], many), 0.0)
    _, actions = apply(state, WantHeard(NAMES[1], tuple(h.key for h in many)), 0.0)
    assert [len(a.records) for a in actions if isinstance(a, SendDelta)] == [MAX_DELTA, 255 - MAX_DELTA]


def test_a_second_process_with_our_key_is_found_and_the_younger_yields() -> None:
    def other(version: int, instance: int) -> Held:
        return held(NAMES[0], version, instance=instance)

    def hear(state: State, record: Held) -> tuple[State, list[Action]]:
        return apply(state, DeltaHeard(NAMES[1], (record,)), 0.0)

    elder = fresh()  # instance 0
    state, actions = hear(elder, other(9, 1))
    assert actions == [Refresh(9)]  # once may be an earlier life with a clock ahead
    state, _ = apply(state, Published(held(NAMES[0], 10)), 0.0)
    state, actions = hear(state, other(11, 1))
    assert actions == [Refresh(11), Clash(other(11, 1).record, yield_=False)]
    young, _ = apply(fresh(), Published(held(NAMES[0], 6, instance=5)), 0.0)
    young, _ = hear(young, other(9, 1))
    young, _ = apply(young, Published(held(NAMES[0], 10, instance=5)), 0.0)
    assert hear(young, other(12, 1))[1][-1] == Clash(other(12, 1).record, yield_=True)
    assert hear(young, other(4, 1))[1] == []


def test_a_revocation_reaches_everybody_once() -> None:
    net = joined(9)
    notice = Revocation(b"token id", 2**31, bytes(16))
    net.seen.clear()
    net.happen(NAMES[4], Revoked(notice))
    net.flow()
    assert all(state.revoked == {notice.id: notice} for state in net.states.values())
    told = sum(1 for _, a in net.seen if isinstance(a, SendDelta) and a.revocations)
    assert told <= 9 * 9


def test_revocations_are_forgotten_with_the_invites_they_end() -> None:
    state = fresh()
    for expires in (100, 200):
        notice = Revocation(expires.to_bytes(8, "big"), expires, bytes(16))
        state, _ = apply(state, DeltaHeard(NAMES[1], (), (), (notice,)), 0.0)
    state, actions = apply(state, Aged(150.0), 0.0)
    assert [notice.expires for notice in state.revoked.values()] == [200] and actions == []


def test_too_many_links_are_left_politely() -> None:
    net = joined(16, Bounds(links=4, most_links=6))
    for name in NAMES[1:]:
        net.dial(name, NAMES[0])
    net.flow()
    assert len(net.states[NAMES[0]].links) > 6
    net.pass_time(3)
    assert len(net.states[NAMES[0]].links) <= 6
    assert {how for view in map(net.view, net.states) for _, how in view.values()} == {"up"}


def test_an_expelled_neighbour_is_shunned() -> None:
    state, actions = expel(fresh(), NAMES[1], "why", 0.0, [])
    assert actions == [Expel(NAMES[1], "why")] and state.banned[NAMES[1]] > 0


def test_a_record_is_renewed_by_its_own_life_however_the_swarm_has_grown() -> None:
    many = [held(bytes([n // 200, n % 200, 7, 7]) * 8) for n in range(1000)]
    state = fresh(bounds=Bounds(news_burst=5000))
    state, _ = apply(state, Published(held(NAMES[0], 6, ttl=30)), 0.0)
    state, _ = apply(state, DeltaHeard(NAMES[1], tuple(many)), 0.0)
    assert refresh_s(state.table.size) > 100
    assert Refresh(6) not in apply(state, Tick(), 9.0)[1] and Refresh(6) in apply(state, Tick(), 10.0)[1]


def test_a_guest_listens_and_passes_nothing_on() -> None:
    state = State(NAMES[0])
    state, actions = apply(state, Linked(NAMES[1]), 0.0)
    assert [type(a) for a in actions] == [SendDelta, SendDigest]
    state, actions = apply(state, DeltaHeard(NAMES[1], (held(NAMES[5]),)), 0.0)
    assert actions == [Changed(key(NAMES[5]))]
    state, _ = apply(state, Linked(NAMES[2]), 0.0)
    _, actions = apply(state, Tick(), 0.0)
    assert not any(isinstance(a, SendHints) for a in actions)


def test_rhythms_slow_down_with_size() -> None:
    assert (refresh_s(3), refresh_s(10_000), ttl_s(3)) == (10.0, 300.0, 30)
    assert (round_s(3), round_s(10_000)) == (0.1, 1.0)
