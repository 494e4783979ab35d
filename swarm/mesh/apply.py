"""Membership: `apply(state, event, now) -> (state, actions)`, pure and exhaustive.

How news travels: a new record is announced to the neighbours by name (16 bytes); who lacks it asks one of them,
so a record crosses to each node about once. Every few seconds two neighbours compare digests and repair whatever
got lost. How a node ends: it says so (state "left"), or its record runs out, or two neighbours that lost it and
could not dial it again say so. Such a suspicion only marks a node as down: the node answers with a newer record,
which clears it, and strangers' suspicions do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from swarm.mesh import overlay
from swarm.mesh.action import (
    Accuse,
    Action,
    Changed,
    Clash,
    Dial,
    Expel,
    Refresh,
    SendDelta,
    SendDigest,
    SendHints,
    SendWant,
)
from swarm.mesh.event import (
    Accused,
    Aged,
    DeltaHeard,
    DialFailed,
    DigestHeard,
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
from swarm.mesh.state import Blame, Hint, Neighbour, State, Suspicion, round_s
from swarm.mesh.table import BUCKETS, Held
from swarm.net.nodeid import NodeId

Step = tuple[State, list[Action]]

MAX_HINTS = 4096
MAX_DELTA = 128
MAX_STRIKES = 3
MAX_ASKED = 3
PER_RECORD_S = 0.002
SWEEP = 16
ENOUGH = 2


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
            return _dial_failed(state, peer, now)
        case HintsHeard(peer, hints, blames):
            return _hints(state, peer, hints, blames, now)
        case WantHeard(peer, keys, blames):
            return _want(state, peer, keys, blames, now)
        case DeltaHeard():
            return _delta(state, event, now)
        case Accused(said):
            actions: list[Action] = []
            return _take_suspicion(state, said, state.node, now, actions), actions
        case DigestHeard(peer, digest):
            return _digest(state, peer, digest, now)
        case Moved(coordinate):
            return state.but(coordinate=coordinate), []
        case Revoked(revocation):
            revoked = {**state.revoked, revocation.id: revocation}
            return state.but(revoked=revoked), [SendDelta(p, (), (), (revocation,)) for p in state.links]
        case Aged(now_wall):
            return state.but(revoked={i: r for i, r in state.revoked.items() if r.expires > now_wall}), []
        case Tick():
            return _tick(state, now)
        case _:
            assert_never(event)


def standing(state: State, held: Held, now: float) -> str:
    """ "up", "suspect" (one member could not reach it), "down" (two, or we), "left" or "expired"."""
    if held.record.state == "left":
        return "left"
    if not held.alive(now):
        return "expired"
    blamed = state.blamed.get(held.key, ())
    if any(s.reporter == state.node for s in blamed) or len(blamed) >= ENOUGH:
        return "down"
    return "suspect" if blamed else "up"


def _published(state: State, held: Held) -> Step:
    state = state.but(own=held, table=state.table.put(held), blamed=_without(state.blamed, held.key))
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
    said = state.blamed.get(_key(peer), ())
    return state, [SendDelta(peer, own, said, tuple(state.revoked.values())), SendDigest(peer, state.table.digest())]


def _unlinked(state: State, peer: NodeId, polite: bool, now: float) -> Step:
    if peer not in state.links:
        return state, []
    state = state.but(links={p: link for p, link in state.links.items() if p != peer})
    held = state.table.get(_key(peer))
    if polite or held is None or not held.alive(now):
        return state, []
    return state.but(checking=state.checking | {peer}), [Dial(held.record, check=True)]


def _dial_failed(state: State, peer: NodeId, now: float) -> Step:
    checked = peer in state.checking and peer not in state.links
    shunned = {p: until for p, until in state.shunned.items() if until > now}
    state = state.but(shunned={**shunned, peer: now + state.bounds.redial}, checking=state.checking - {peer})
    held = state.table.get(_key(peer))
    if held is None or not held.alive(now) or not (checked or held.key in state.blamed):
        return state, []
    return state, [Accuse(held.key, held.record.version)]


def _hints(state: State, peer: NodeId, hints: tuple[Hint, ...], blames: tuple[Blame, ...], now: float) -> Step:
    if peer not in state.links:
        return state, []
    link = state.links[peer].later(state.bounds, now)
    until = now + state.bounds.wait + len(hints) * PER_RECORD_S
    room = min(int(link.asks), state.bounds.records - len(state.wanted))
    ask: dict[int, tuple[int, float, int]] = {}
    shared: dict[int, tuple[Held, frozenset[NodeId]]] = {}
    for key, version in hints[:MAX_HINTS]:
        held = state.table.get(key)
        wanted = state.wanted.get(key)
        if held is not None and held.record.version >= version:
            if key in state.news and held.record.version == version:
                shared[key] = held, state.news[key][1] | {peer}
            continue
        if wanted is not None and wanted[0] >= version and wanted[1] > now:
            continue
        if len(ask) < room:
            ask[key] = (version, until, 1)
    missing = tuple(name for name in blames[:MAX_HINTS] if _lacks(state, name))
    if shared:
        state = state.but(news={**state.news, **shared})
    if not ask and not missing:
        return state, []
    link = Neighbour(peer, link.news, link.asks - len(ask), link.at, link.due + len(ask), link.strikes)
    state = state.but(links={**state.links, peer: link}, wanted={**state.wanted, **ask})
    return state, [SendWant(peer, tuple(ask), missing)]


def _lacks(state: State, blame: Blame) -> bool:
    target, version, reporter = blame
    held = state.table.get(target)
    known = state.blamed.get(target, ())
    if held is None or held.record.version != version or len(known) >= ENOUGH:
        return False
    return all(s.name[2] != reporter for s in known)


def _want(state: State, peer: NodeId, keys: tuple[int, ...], blames: tuple[Blame, ...], now: float) -> Step:
    if peer not in state.links:
        return state, []
    found = [held for key in keys[:MAX_HINTS] if (held := state.table.get(key)) is not None and _worth(held, now)]
    said = tuple(s for name in blames[:MAX_HINTS] for s in state.blamed.get(name[0], ()) if s.name == name)
    parts = [tuple(found[i : i + MAX_DELTA]) for i in range(0, len(found), MAX_DELTA)] or [()]
    if not found and not said:
        return state, []
    return state, [SendDelta(peer, part, said if i == 0 else ()) for i, part in enumerate(parts)]


def _worth(held: Held, now: float) -> bool:
    """Whether to pass a record on: it lives, or it tells that its node left."""
    return held.record.state == "left" or held.alive(now)


def _digest(state: State, peer: NodeId, digest: bytes, now: float) -> Step:
    if peer not in state.links or state.own is None:
        return state, []
    differing = state.table.differing(digest)
    hints = [(h.key, h.record.version) for i in differing for h in state.table.buckets[i] if _worth(h, now)]
    return state, [SendHints(peer, tuple(hints[i : i + MAX_HINTS])) for i in range(0, len(hints), MAX_HINTS)]


def _delta(state: State, event: DeltaHeard, now: float) -> Step:
    if event.peer not in state.links:
        return state, []
    state, actions = _take_records(state, event.peer, event.records, now)
    if state.links[event.peer].strikes > MAX_STRIKES:
        return expel(state, event.peer, "it floods records", now, actions)
    for suspicion in event.suspicions[:MAX_HINTS]:
        state = _take_suspicion(state, suspicion, event.peer, now, actions)
    fresh = {r.id: r for r in event.revocations if r.id not in state.revoked}
    if fresh and len(state.revoked) + len(fresh) <= MAX_HINTS:
        state = state.but(revoked={**state.revoked, **fresh})
        actions += [SendDelta(p, (), (), tuple(fresh.values())) for p in state.links if p != event.peer]
    return state, actions


def expel(state: State, peer: NodeId, why: str, now: float, actions: list[Action]) -> Step:
    """Part with a neighbour that broke the rules and turn it away for a while."""
    links = {p: link for p, link in state.links.items() if p != peer}
    banned = {p: until for p, until in state.banned.items() if until > now}
    state = state.but(links=links, banned={**banned, peer: now + state.bounds.ban})
    return state, [*actions, Expel(peer, why)]


def _take_records(state: State, peer: NodeId, records: tuple[Held, ...], now: float) -> Step:
    link = state.links[peer].later(state.bounds, now)
    actions: list[Action] = []
    new: dict[int, Held] = {}
    size = state.table.size
    news, due, strikes = link.news, link.due, link.strikes
    for held in records:
        if due > 0:
            due -= 1
        elif news >= 1:
            news -= 1
        else:
            strikes += 1
            break
        if held.record.node == state.node:
            state, more = _about_self(state, held)
            actions += more
            continue
        old = new.get(held.key) or state.table.get(held.key)
        if old is None and (size >= state.bounds.records or not _worth(held, now)):
            continue
        if old is not None and old.record.version >= held.record.version:
            continue
        size += old is None
        new[held.key] = held
    link = Neighbour(peer, news, link.asks, link.at, due, strikes)
    state = state.but(links={**state.links, peer: link})
    if not new:
        return state, actions
    state = state.but(
        table=state.table.put_all(new.values()),
        wanted={key: want for key, want in state.wanted.items() if key not in new},
        news={**state.news, **{key: (held, frozenset((peer,))) for key, held in new.items()}},
        blamed=_without(state.blamed, *new),
    )
    return state, [*actions, *(Changed(key) for key in new)]


def _about_self(state: State, heard: Held) -> Step:
    """A record with our key: an old one of ours, or of another process that uses our key."""
    own = state.own
    if own is None or heard.record.version < own.record.version or heard.record == own.record:
        return state, []
    raise_it: list[Action] = [Refresh(heard.record.version)]
    if heard.record.instance == own.record.instance:
        return state, raise_it
    # Once may be the record of an earlier life, signed by a clock that was ahead. A second, newer one is alive.
    if state.raised >= 0 and heard.record.version > state.raised and heard.record.state != "left":
        raise_it.append(Clash(heard.record, yield_=heard.record.instance < own.record.instance))
    return state.but(raised=max(state.raised, heard.record.version)), raise_it


def _take_suspicion(state: State, said: Suspicion, peer: NodeId, now: float, actions: list[Action]) -> State:
    own = state.own
    if own is not None and said.target == own.key:
        if said.version >= own.record.version:
            actions.append(Refresh(own.record.version))
        return state
    reporter = state.table.get(said.name[2])
    if said.reporter != state.node and (reporter is None or not reporter.alive(now)):
        return state
    if not _lacks(state, said.name):
        return state
    count, since = state.uttered.get(said.reporter, (0, now))
    if now - since > 60:
        count, since = 0, now
    if count >= state.bounds.blames and said.reporter != state.node:
        return state
    actions.append(Changed(said.target))
    uttered = {node: told for node, told in state.uttered.items() if now - told[1] <= 60}
    held = state.table.get(said.target)
    few = state.table.size <= state.bounds.links + 1
    if held is not None and few and said.reporter != state.node and held.record.node not in state.links:
        # In a small swarm a lost node may have had one neighbour only: see for ourselves.
        actions.append(Dial(held.record, check=True))
        state = state.but(checking=state.checking | {held.record.node})
    return state.but(
        blamed={**state.blamed, said.target: (*state.blamed.get(said.target, ()), said)},
        rumours=(*state.rumours, (said, peer)),
        uttered={**uttered, said.reporter: (count + 1, since)},
    )


def _tick(state: State, now: float) -> Step:
    actions: list[Action] = []
    for peer in state.links if state.own is not None else ():
        hints = tuple((key, held.record.version) for key, (held, knows) in state.news.items() if peer not in knows)
        blames = tuple(said.name for said, source in state.rumours if source != peer)
        if hints or blames:
            actions.append(SendHints(peer, hints, blames))
    state = state.but(news={}, rumours=(), ticks=state.ticks + 1)
    if any(until <= now for _, until, _ in state.wanted.values()):
        state = _ask_again(state, now, actions)
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


def _ask_again(state: State, now: float, actions: list[Action]) -> State:
    """Records that a neighbour hinted at and did not bring: another one may have them by now. Twice, then no more."""
    late = {key: want for key, want in state.wanted.items() if want[1] <= now}
    wanted = {key: want for key, want in state.wanted.items() if key not in late}
    peers = sorted(state.links)
    if not peers:
        return state.but(wanted=wanted)
    link = state.links[peers[(state.ticks * 31 + 7) % len(peers)]].later(state.bounds, now)
    again = [key for key, want in late.items() if want[2] < MAX_ASKED][: min(MAX_HINTS, int(link.asks))]
    if not again:
        return state.but(wanted=wanted)
    until = now + state.bounds.wait + len(again) * PER_RECORD_S
    wanted.update({key: (late[key][0], until, late[key][2] + 1) for key in again})
    asked = Neighbour(link.node, link.news, link.asks - len(again), link.at, link.due + len(again), link.strikes)
    actions.append(SendWant(link.node, tuple(again)))
    return state.but(links={**state.links, link.node: asked}, wanted=wanted)


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
    blamed = _without(state.blamed, *(held.key for held in gone))
    return state.but(table=state.table.without(gone), blamed=blamed)


def _key(node: NodeId) -> int:
    return int.from_bytes(node[:8], "big")


def _without(blamed: Mapping[int, tuple[Suspicion, ...]], *keys: int) -> Mapping[int, tuple[Suspicion, ...]]:
    if not any(key in blamed for key in keys):
        return blamed
    return {key: said for key, said in blamed.items() if key not in keys}
