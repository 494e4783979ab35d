"""How records travel: named to neighbours, asked for by whoever lacks them, brought, and repaired by comparing digests.

Every neighbour has an allowance; who goes beyond it again and again is turned away.
"""

from __future__ import annotations

from swarm.base.nodeid import NodeId
from swarm.mesh.action import Action, Changed, Clash, Expel, Refresh, SendDelta, SendHints, SendWant, Step
from swarm.mesh.event import DeltaHeard
from swarm.mesh.state import Blame, Hint, Neighbour, State
from swarm.mesh.suspicion import cleared, lacks, take_suspicion
from swarm.mesh.table import Held

MAX_HINTS = 4096
MAX_DELTA = 128
MAX_STRIKES = 3
MAX_ASKED = 3
PER_RECORD_S = 0.002


def hints_heard(state: State, peer: NodeId, hints: tuple[Hint, ...], blames: tuple[Blame, ...], now: float) -> Step:
    """A neighbour names what it has: ask for what is news, note what it has in common with this node."""
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
    missing = tuple(name for name in blames[:MAX_HINTS] if lacks(state, name))
    if shared:
        state = state.but(news={**state.news, **shared})
    if not ask and not missing:
        return state, []
    link = Neighbour(peer, link.news, link.asks - len(ask), link.at, link.due + len(ask), link.strikes)
    state = state.but(links={**state.links, peer: link}, wanted={**state.wanted, **ask})
    return state, [SendWant(peer, tuple(ask), missing)]


def want_heard(state: State, peer: NodeId, keys: tuple[int, ...], blames: tuple[Blame, ...], now: float) -> Step:
    """A neighbour asks: bring it what is worth having."""
    if peer not in state.links:
        return state, []
    found = [held for key in keys[:MAX_HINTS] if (held := state.table.get(key)) is not None and _worth(held, now)]
    said = tuple(s for name in blames[:MAX_HINTS] for s in state.blamed.get(name[0], ()) if s.name == name)
    parts = [tuple(found[i : i + MAX_DELTA]) for i in range(0, len(found), MAX_DELTA)] or [()]
    if not found and not said:
        return state, []
    return state, [SendDelta(peer, part, said if i == 0 else ()) for i, part in enumerate(parts)]


def digest_heard(state: State, peer: NodeId, digest: bytes, now: float) -> Step:
    """A neighbour shows how its table looks: name the records of the buckets that differ."""
    if peer not in state.links or state.own is None:
        return state, []
    differing = state.table.differing(digest)
    hints = [(h.key, h.record.version) for i in differing for h in state.table.buckets[i] if _worth(h, now)]
    return state, [SendHints(peer, tuple(hints[i : i + MAX_HINTS])) for i in range(0, len(hints), MAX_HINTS)]


def delta_heard(state: State, event: DeltaHeard, now: float) -> Step:
    """A neighbour brings records, suspicions and revocations; whoever floods is turned away."""
    if event.peer not in state.links:
        return state, []
    state, actions = _take_records(state, event.peer, event.records, now)
    if state.links[event.peer].strikes > MAX_STRIKES:
        return expel(state, event.peer, "it floods records", now, actions)
    for suspicion in event.suspicions[:MAX_HINTS]:
        state = take_suspicion(state, suspicion, event.peer, now, actions)
    fresh = {r.id: r for r in event.revocations if r.outlasts(state.revoked.get(r.id))}
    if fresh:
        state = state.but(revoked={**state.revoked, **fresh})
        actions += [SendDelta(p, (), (), tuple(fresh.values())) for p in state.links if p != event.peer]
    return state, actions


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
        blamed=cleared(state.blamed, *new),
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


def ask_again(state: State, now: float, actions: list[Action]) -> State:
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


def _worth(held: Held, now: float) -> bool:
    """Whether to pass a record on: it lives, or it tells that its node left."""
    return held.record.state == "left" or held.alive(now)


def expel(state: State, peer: NodeId, why: str, now: float, actions: list[Action]) -> Step:
    """Part with a neighbour that broke the rules and turn it away for a while."""
    links = {p: link for p, link in state.links.items() if p != peer}
    banned = {p: until for p, until in state.banned.items() if until > now}
    state = state.but(links=links, banned={**banned, peer: now + state.bounds.ban})
    return state, [*actions, Expel(peer, why)]
