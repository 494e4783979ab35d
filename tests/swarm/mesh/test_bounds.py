"""What one node bears: floods, invented hints, strangers, old versions, a second process with its key."""

from __future__ import annotations

from swarm.mesh.action import Action, Changed, Clash, Expel, Refresh, SendDelta, SendDigest, SendHints, SendWant
from swarm.mesh.apply import apply
from swarm.mesh.event import (
    Aged,
    DeltaHeard,
    DigestHeard,
    HintsHeard,
    Linked,
    Published,
    Revoked,
    Tick,
    Unlinked,
    WantHeard,
)
from swarm.mesh.membership import Revocation
from swarm.mesh.record import key_of
from swarm.mesh.spread import MAX_DELTA, expel
from swarm.mesh.state import Bounds, State, refresh_s, round_s, ttl_s
from swarm.mesh.suspicion import standing
from swarm.mesh.table import Held
from tests.swarm.mesh.make import held
from tests.swarm.mesh.net import NAMES, joined


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
        WantHeard(stranger, (key_of(NAMES[0]),)),
        DeltaHeard(stranger, (record,)),
        DigestHeard(stranger, bytes(2048)),
        Unlinked(stranger, polite=False),
    ):
        assert apply(state, event, 0.0) == (state, [])


def test_versions_never_go_back() -> None:
    state = fresh()
    for version, expected in ((3, 3), (2, 3), (3, 3), (7, 7), (1, 7)):
        state, _ = apply(state, DeltaHeard(NAMES[1], (held(NAMES[5], version),)), 0.0)
        assert state.table.get(key_of(NAMES[5])).record.version == expected


def test_expired_records_are_neither_taken_nor_passed_on() -> None:
    state = fresh()
    state, _ = apply(state, DeltaHeard(NAMES[1], (held(NAMES[5], born=-100.0),)), 0.0)
    assert state.table.get(key_of(NAMES[5])) is None
    state, _ = apply(state, DeltaHeard(NAMES[1], (held(NAMES[5], born=-50.0),)), 0.0)
    assert apply(state, WantHeard(NAMES[1], (key_of(NAMES[5]),)), 1.0)[1] != []
    assert apply(state, WantHeard(NAMES[1], (key_of(NAMES[5]),)), 20.0)[1] == []
    assert standing(state, state.table.get(key_of(NAMES[5])), 20.0) == "expired"


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
    notice = Revocation(b"token id", 2**31, bytes(32), b"", b"")
    net.seen.clear()
    net.happen(NAMES[4], Revoked(notice))
    net.flow()
    assert all(state.revoked == {notice.id: notice} for state in net.states.values())
    told = sum(1 for _, a in net.seen if isinstance(a, SendDelta) and a.revocations)
    assert told <= 9 * 9


def test_revocations_are_forgotten_with_the_invites_they_end() -> None:
    state = fresh()
    for expires in (100, 200):
        notice = Revocation(expires.to_bytes(8, "big"), expires, bytes(32), b"", b"")
        state, _ = apply(state, DeltaHeard(NAMES[1], (), (), (notice,)), 0.0)
    state, actions = apply(state, Aged({k: r for k, r in state.revoked.items() if r.expires > 150}), 0.0)
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
    assert actions == [Changed(key_of(NAMES[5]))]
    state, _ = apply(state, Linked(NAMES[2]), 0.0)
    _, actions = apply(state, Tick(), 0.0)
    assert not any(isinstance(a, SendHints) for a in actions)


def test_rhythms_slow_down_with_size() -> None:
    assert (refresh_s(3), refresh_s(10_000), ttl_s(3)) == (10.0, 300.0, 30)
    assert (round_s(3), round_s(10_000)) == (0.1, 1.0)
