"""Membership without a socket: an in-memory network joins pure states, loses messages, splits and heals."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.mesh.action import Changed, SendDelta
from swarm.mesh.apply import apply
from swarm.mesh.event import Accused, DeltaHeard
from swarm.mesh.record import key_of
from swarm.mesh.state import Bounds, Suspicion, ttl_s
from swarm.mesh.suspicion import standing
from tests.swarm.mesh.make import held
from tests.swarm.mesh.net import NAMES, Net, joined


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
    sent = sum(h.key == key_of(NAMES[3]) for _, a in net.seen if isinstance(a, SendDelta) for h in a.records)
    assert all(view.table.get(key_of(NAMES[3])).record.version == version for view in net.states.values())
    assert sent <= 2 * len(net.states[NAMES[3]].links) + 16


def test_a_goodbye_is_heard_and_the_grave_keeps_old_records_out() -> None:
    net = joined(6)
    old = net.states[NAMES[0]].table.get(key_of(NAMES[2]))
    net.publish(NAMES[2], state="left")
    net.flow()
    net.dead.add(NAMES[2])
    net.pass_time(1)
    assert all(net.view(name)[key_of(NAMES[2])][1] == "left" for name in net.live())
    net.happen(NAMES[0], DeltaHeard(NAMES[1], (old,)))
    assert net.view(NAMES[0])[key_of(NAMES[2])][1] == "left"


def test_a_record_of_a_version_that_is_known_is_not_taken_again() -> None:
    """Else it would be news once more at every node that hears it, for ever; nor may another take its place."""
    net = joined(6)
    known = net.states[NAMES[0]].table.get(key_of(NAMES[2]))
    other = replace(known, record=replace(known.record, device="another"))
    for again in (known, other):
        before = net.states[NAMES[0]]
        state, actions = apply(before, DeltaHeard(NAMES[1], (again,)), net.now)
        assert state.table.get(known.key) == known and state.news.get(known.key) == before.news.get(known.key)
        assert not [action for action in actions if isinstance(action, Changed | SendDelta)]
    newer = replace(known, record=replace(known.record, version=known.record.version + 1))
    state, actions = apply(net.states[NAMES[0]], DeltaHeard(NAMES[1], (newer,)), net.now)
    assert state.table.get(known.key) == newer and Changed(known.key) in actions


def test_a_dead_node_is_down_for_all_and_forgotten_in_the_end() -> None:
    net = joined(8, Bounds(grave=60.0))
    net.kill(NAMES[4])
    net.pass_time(2)
    assert {net.view(name)[key_of(NAMES[4])][1] for name in net.live()} == {"down"}
    net.pass_time(ttl_s(8) + 60 + 10)
    assert all(key_of(NAMES[4]) not in net.view(name) for name in net.live())


def test_a_swarm_of_two_notices_too() -> None:
    net = joined(2)
    net.kill(NAMES[1])
    net.pass_time(1)
    assert net.view(NAMES[0])[key_of(NAMES[1])][1] == "down"


def test_a_living_node_refutes_what_is_said_of_it() -> None:
    net = joined(6)
    accused = net.states[NAMES[1]].table.get(key_of(NAMES[2]))
    for liar in (NAMES[3], NAMES[4]):
        said = Suspicion(accused.key, accused.record.version, liar)
        net.happen(liar, Accused(said))
        for name in net.states:
            net.happen(name, DeltaHeard(next(iter(net.states[name].links)), (), (said,)))
    net.pass_time(1)
    assert {net.view(name)[key_of(NAMES[2])][1] for name in net.states} == {"up"}
    assert net.versions[NAMES[2]] > accused.record.version


def test_strangers_and_repeats_count_for_nothing() -> None:
    net = joined(5)
    target = net.states[NAMES[0]].table.get(key_of(NAMES[1]))
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
            assert state.table.get(key_of(other)).record.layers == net.layers[other]
        assert not {h.record.node for h in state.table if standing(state, h, net.now) == "up"} & net.dead


def standings(net: Net) -> dict[bytes, str]:
    """How each living node stands with all the living; mixed views show as several words."""
    return {
        n: "/".join(sorted({net.view(v)[key_of(n)][1] for v in net.live() if key_of(n) in net.view(v)}))
        for n in net.live()
    }


def test_a_long_split_heals_without_a_new_invite() -> None:
    net = joined(8)
    net.split({name: i % 2 for i, name in enumerate(net.states)})
    net.pass_time(120)
    assert "up" not in {net.view(NAMES[0])[key_of(n)][1] for n in NAMES[1:8:2]}
    net.split(dict.fromkeys(net.states, 0))
    net.pass_time(20)
    assert {how for _, how in net.view(NAMES[0]).values()} == {"up"} and net.agreed()
