"""How a node ends that did not say so: whoever lost it and could not dial it again says so in a signed suspicion.

Suspicions only mark a node: it answers with a newer record, which clears them, and strangers' do not count.
"""

from __future__ import annotations

from collections.abc import Mapping

from swarm.base.nodeid import NodeId
from swarm.mesh.action import Accuse, Action, Changed, Dial, Refresh, Step
from swarm.mesh.record import key_of
from swarm.mesh.state import Blame, State, Suspicion
from swarm.mesh.table import Held

ENOUGH = 2
"""Nodes that have to lose one before the rest believes it."""
MINUTE_S = 60


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


def lacks(state: State, blame: Blame) -> bool:
    """Whether a suspicion that somebody names would be news here."""
    target, version, reporter = blame
    held = state.table.get(target)
    known = state.blamed.get(target, ())
    if held is None or held.record.version != version or len(known) >= ENOUGH:
        return False
    return all(s.name[2] != reporter for s in known)


def take_suspicion(state: State, said: Suspicion, peer: NodeId, now: float, actions: list[Action]) -> State:
    """Hear `said` from `peer`, this node itself included. What is to be done is added to `actions`."""
    own = state.own
    if own is not None and said.target == own.key:
        if said.version >= own.record.version:
            actions.append(Refresh(own.record.version))
        return state
    reporter = state.table.get(said.name[2])
    if said.reporter != state.node and (reporter is None or not reporter.alive(now)):
        return state
    if not lacks(state, said.name):
        return state
    count, since = state.uttered.get(said.reporter, (0, now))
    if now - since > MINUTE_S:
        count, since = 0, now
    if count >= state.bounds.blames and said.reporter != state.node:
        return state
    actions.append(Changed(said.target))
    uttered = {node: told for node, told in state.uttered.items() if now - told[1] <= MINUTE_S}
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


def dial_failed(state: State, peer: NodeId, now: float) -> Step:
    """Leave `peer` alone for a while; accuse it when it was lost before, or is suspected already."""
    checked = peer in state.checking and peer not in state.links
    shunned = {p: until for p, until in state.shunned.items() if until > now}
    state = state.but(shunned={**shunned, peer: now + state.bounds.redial}, checking=state.checking - {peer})
    held = state.table.get(key_of(peer))
    if held is None or not held.alive(now) or not (checked or held.key in state.blamed):
        return state, []
    return state, [Accuse(held.key, held.record.version)]


def cleared(blamed: Mapping[int, tuple[Suspicion, ...]], *keys: int) -> Mapping[int, tuple[Suspicion, ...]]:
    """Without what was said of the records with these keys."""
    if not any(key in blamed for key in keys):
        return blamed
    return {key: said for key, said in blamed.items() if key not in keys}
