"""Membership: `apply(state, event, now) -> (state, actions)`, pure and exhaustive.

How news travels: a new record is announced to the neighbours by name (16 bytes); who lacks it asks one of them,
so a record crosses to each node about once. Every few seconds two neighbours compare digests and repair whatever
got lost (`swarm.mesh.spread`). How a node ends: it says so (state "left"), or its record runs out, or two neighbours
that lost it and could not dial it again say so (`swarm.mesh.suspicion`). Here: links, rounds, and who handles what.
"""

from __future__ import annotations

from typing import assert_never

from swarm.base.nodeid import NodeId
from swarm.mesh import overlay
from swarm.mesh.action import Action, Changed, Dial, Expel, Refresh, SendDelta, SendDigest, SendHints, Step
from swarm.mesh.event import (
    Accused,
    Aged,
    DeltaHeard,
    DialFailed,
    DigestHeard,
    Ended,
    Event,
    HintsHeard,
    Linked,
    Moved,
    Published,
    Revoked,
    Tick,
    Unlinked,
    WantHeard,
)
from swarm.mesh.record import key_of
from swarm.mesh.spread import ask_again, delta_heard, digest_heard, hints_heard, want_heard
from swarm.mesh.state import Neighbour, State, round_s
from swarm.mesh.suspicion import cleared, dial_failed, take_suspicion
from swarm.mesh.table import BUCKETS, Held

SWEEP = 16
"""Buckets of the table that are swept in a round."""


def apply(state: State, event: Event, now: float) -> Step:
    """The next state and what to do. `now`: monotonic seconds. Never raises, whatever peers send."""
    match event:
        case Published(held):
            return _published(state, held)
        case Linked(peer):
            return _linked(state, peer, now)
        case Unlinked(peer, polite):
            return _unlinked(state, peer, polite, now)
        case DialFailed(peer):
            return dial_failed(state, peer, now)
        case HintsHeard(peer, hints, blames):
            return hints_heard(state, peer, hints, blames, now)
        case WantHeard(peer, keys, blames):
            return want_heard(state, peer, keys, blames, now)
        case DeltaHeard():
            return delta_heard(state, event, now)
        case Accused(said):
            actions: list[Action] = []
            return take_suspicion(state, said, state.node, now, actions), actions
        case DigestHeard(peer, digest):
            return digest_heard(state, peer, digest, now)
        case Moved(coordinate):
            return state.but(coordinate=coordinate), []
        case Revoked(revocation):
            revoked = {**state.revoked, revocation.id: revocation}
            return state.but(revoked=revoked), [SendDelta(p, (), (), (revocation,)) for p in state.links]
        case Aged(counting):
            return state.but(revoked=dict(counting)), []
        case Ended(keys):
            return _ended(state, keys)
        case Tick():
            return _tick(state, now)
        case _:
            assert_never(event)


def _published(state: State, held: Held) -> Step:
    state = state.but(own=held, table=state.table.put(held), blamed=cleared(state.blamed, held.key))
    return state, [*(SendDelta(peer, (held,)) for peer in state.links), Changed(held.key)]


def _linked(state: State, peer: NodeId, now: float) -> Step:
    if state.banned.get(peer, 0.0) > now:
        return state, [Expel(peer, "it broke the rules a short while ago")]
    bounds = state.bounds
    state = state.but(
        links={**state.links, peer: Neighbour(peer, bounds.news_burst, bounds.asks_burst, now)},
        checking=state.checking - {peer},
        shunned={p: t for p, t in state.shunned.items() if p != peer},
    )
    own = () if state.own is None else (state.own,)
    # What is said of the peer goes to it first: it answers with a newer record.
    said = state.blamed.get(key_of(peer), ())
    return state, [SendDelta(peer, own, said, tuple(state.revoked.values())), SendDigest(peer, state.table.digest())]


def _unlinked(state: State, peer: NodeId, polite: bool, now: float) -> Step:
    if peer not in state.links:
        return state, []
    state = state.but(links={p: link for p, link in state.links.items() if p != peer})
    held = state.table.get(key_of(peer))
    if polite or held is None or not held.alive(now):
        return state, []
    return state.but(checking=state.checking | {peer}), [Dial(held.record, check=True)]


def _ended(state: State, keys: frozenset[int]) -> Step:
    gone = [held for key in keys if (held := state.table.get(key)) is not None and held.record.node != state.node]
    links = {peer: link for peer, link in state.links.items() if key_of(peer) not in keys}
    news = {key: item for key, item in state.news.items() if key not in keys}
    blamed = cleared(state.blamed, *keys)
    checking = state.checking - {held.record.node for held in gone}
    table = state.table.without(gone)
    state = state.but(table=table, links=links, news=news, blamed=blamed, checking=checking)
    return state, [Changed(held.key) for held in gone]


def _tick(state: State, now: float) -> Step:
    actions: list[Action] = []
    for peer in state.links if state.own is not None else ():
        hints = tuple((key, held.record.version) for key, (held, knows) in state.news.items() if peer not in knows)
        blames = tuple(said.name for said, source in state.rumours if source != peer)
        if hints or blames:
            actions.append(SendHints(peer, hints, blames))
    state = state.but(news={}, rumours=(), ticks=state.ticks + 1)
    if any(until <= now for _, until, _ in state.wanted.values()):
        state = ask_again(state, now, actions)
    state = _sweep(state, now, actions)
    if now >= state.next_sync and state.links:
        peers = sorted(state.links)
        actions.append(SendDigest(peers[state.ticks * 7919 % len(peers)], state.table.digest()))
        state = state.but(next_sync=now + state.bounds.sync)
    own = state.own
    # By the life that the record has, not by the swarm's present size: a joiner knew of nobody when it signed.
    if own is not None and own.record.state != "left" and now - own.born >= own.record.ttl / 3:
        actions.append(Refresh(own.record.version))
    actions += overlay.steer(state, now)
    return state, actions


def _sweep(state: State, now: float, actions: list[Action]) -> State:
    """Forget what ended long ago, a few buckets a round; tell of records that ran out since the last look."""
    first = state.ticks * SWEEP % BUCKETS
    gone = []
    for bucket in state.table.buckets[first : first + SWEEP]:
        for held in bucket:
            over = now - held.born - held.record.ttl
            if over <= 0 or held.record.node == state.node:
                continue
            if over > state.bounds.grave:
                gone.append(held)
            elif over <= 2 * BUCKETS / SWEEP * round_s(state.table.size):
                actions.append(Changed(held.key))
    if not gone:
        return state
    blamed = cleared(state.blamed, *(held.key for held in gone))
    checking = state.checking - {held.record.node for held in gone}
    return state.but(table=state.table.without(gone), blamed=blamed, checking=checking)
