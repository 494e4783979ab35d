"""The shell round `apply`: messages become events, actions become messages, and a few tasks keep the rhythm.

Nothing is decided here. One lock-free rule keeps it simple: the state changes only in `happen`, which is
synchronous, so events are applied one at a time in the order in which they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from swarm.base.clock import SystemTime, TimeSource
from swarm.base.errors import PeerError
from swarm.base.life import Life
from swarm.base.nodeid import NodeId
from swarm.base.tasks import OwnedTasks
from swarm.mesh import messages
from swarm.mesh.action import Accuse, Action, Changed, Clash, Dial, Expel, Leave, Refresh
from swarm.mesh.admission import Admission
from swarm.mesh.apply import apply
from swarm.mesh.distances import Distances
from swarm.mesh.event import Accused, Aged, DeltaHeard, Ended, Event, Moved, Published, Revoked, Tick, Unlinked
from swarm.mesh.inbox import Known, read_untrusted
from swarm.mesh.latency import Coordinate, RttTable, unpack_coordinate, updated
from swarm.mesh.membership import InviteToken, Membership, Revocation
from swarm.mesh.neighbours import Neighbours
from swarm.mesh.own import OwnRecord
from swarm.mesh.record import NodeRecord, key_of
from swarm.mesh.saved import Saved, SavedStore
from swarm.mesh.spread import expel
from swarm.mesh.state import Bounds, State, round_s
from swarm.mesh.view import MemberView, held_of, say_clash, view_of, worth_keeping
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard

log = logging.getLogger(__name__)

LONELY_S = 5.0
"""Whoever is linked to nobody knocks so often; with neighbours, what is kept is written every KEEP_TIMES-th time."""
KEEP_TIMES = 4


class Gossip:
    """This process's part in the membership of one swarm. Use as `async with`, inside the switchboard's.

    `about` describes this node (its node, swarm, version, times, instance and proof are filled in here), None for a
    guest, which listens and is no member. `store` gets what to find the swarm by after a cold start; None: nothing is
    kept. `life` ends when another process with the same key was there first, or the invite that led here was revoked.
    Leaving the context tells the swarm that the node left.
    """

    def __init__(
        self,
        board: Switchboard,
        saved: Saved,
        about: NodeRecord | None = None,
        *,
        bounds: Bounds | None = None,
        store: SavedStore | None = None,
        life: Life | None = None,
        time: TimeSource | None = None,
    ) -> None:
        self.membership: Membership = saved.membership
        self.state = State(board.id, revoked=dict(saved.ledger.revoked), bounds=bounds or Bounds())
        self._board, self._saved, self._store, self._life = board, saved, store, life
        self._time = time or SystemTime()
        self._distances = Distances(board, self._time, self)
        self._own = OwnRecord(board.identity, saved.membership, about, saved.version, self._time.wall())
        self._tasks = OwnedTasks()
        role = "guest" if about is None else "node"
        self._neighbours = Neighbours(board, saved, role, self, self._distances, self._tasks, self._time)
        self._stir = asyncio.Event()

    # -- life

    async def __aenter__(self) -> Self:
        self._board.members = self
        self._board.handle(messages.HELLO, self._on_hello)
        self._board.handle(messages.BYE, self._on_bye)
        for kind in (messages.HINTS, messages.WANT, messages.DELTA, messages.DIGEST):
            self._board.handle(kind, self._on_news)
        await self._tasks.__aenter__()
        self._refresh()
        self._tasks.spawn(self._tick_forever())
        self._tasks.spawn(self._distances.keep_measuring(self._neighbours.connected, self._somebody))
        self._tasks.spawn(self._keep_forever())
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.leave()
        await self._tasks.__aexit__()
        self._keep()

    async def leave(self) -> None:
        """Tell the neighbours that this node left; they pass it on. Idempotent."""
        if self._neighbours.leaving:
            return
        self._neighbours.leaving = True
        self._own.change({"state": "left", "claim": None}, self._refresh)
        await self._neighbours.farewell(list(self.state.links))

    # -- what the rest of the node asks

    def members(self) -> list[MemberView]:
        """Every member that this node knows, itself first; those that left or ran out only while remembered."""
        now = self._time.now()
        views = [view_of(self.state, self.rtts, held, now) for held in self.state.table]
        return sorted(views, key=lambda view: (view.record.node != self._board.id, view.record.node))

    def member(self, node: NodeId) -> MemberView | None:
        """One member by its id."""
        held = held_of(self.state, node)
        return None if held is None else view_of(self.state, self.rtts, held, self._time.now())

    def admitted(self, node: NodeId) -> bool:
        """Whether `node` said a valid hello on a connection that lives, or is a member by its record."""
        return self._neighbours.knows(node) or node == self._board.id or self.recorded(node) is not None

    def recorded(self, node: NodeId) -> Admission | None:
        """What the record of `node` shows, while it lives."""
        held = held_of(self.state, node)
        alive = held is not None and held.alive(self._time.now())
        return self.membership.admission_untrusted(held.record.proof) if held is not None and alive else None

    @property
    def rtts(self) -> RttTable:
        """What this node measured."""
        return self._distances.table

    @property
    def coordinate(self) -> Coordinate:
        """Where this node is, in the swarm's network coordinates."""
        return self.state.coordinate

    def publish(self, **changes: Any) -> None:
        """Change fields of this node's record, for instance `publish(state="serving", layers=(0, 10))`.

        What changes within half a second goes out as one record; state, layers, claim and addresses go out at once.
        """
        if not self._neighbours.leaving:
            self._own.change(changes, self._refresh)

    async def wait_change(self) -> None:
        """Return after the next change of a record or of a standing."""
        self._stir.clear()
        await self._stir.wait()

    async def link(self, node: NodeId) -> None:
        """Say hello to a connected or known member, so that both may talk. Raises InviteError or PeerError."""
        held = held_of(self.state, node)
        await self._neighbours.greet(node, held.record.addresses if held is not None else ())

    async def measure(self, nodes: Sequence[NodeId]) -> None:
        """Measure the round trips to these members where none is fresh, and tell of them in this node's record.

        For the edges that a route is likely to use (`swarm.planner.probe_targets`). A member that is not reached is
        skipped.
        """
        found = [held.record for node in nodes if (held := held_of(self.state, node)) is not None]
        await self._distances.measure(found)

    def revoke(self, token: InviteToken) -> None:
        """End an invite and what came of it, everywhere. Raises InviteError for a guest."""
        self.spread(self.membership.revoke(token))

    def spread(self, notice: Revocation) -> None:
        """Heed a notice and tell it to everybody."""
        self.happen(Revoked(notice))
        if self._neighbours.revoked([notice]):
            self._heed()

    def _heed(self) -> None:
        """What came of revoked invites is a part of the swarm no more: connections, records, this node itself."""
        self._neighbours.look_over()
        self._neighbours.end_void()
        revoked, now, read = self._neighbours.ledger.revoked, self._time.wall(), self.membership.admission_untrusted
        void = frozenset(held.key for held in self.state.table if read(held.record.proof).void(revoked, now))
        if void:
            for peer in self._board.peers():
                if key_of(peer.id) in void:
                    self._neighbours.turn_away(peer.id, "the invite that it came of was revoked")
            self.happen(Ended(void))
        self._keep()
        if self.membership.own.void(revoked, now):
            self._end("the invite that let this node in was revoked; ask a member for a new one: swarm invite")

    def _end(self, why: str) -> None:
        if self._life is not None:
            self._life.end(why)

    def _keep(self) -> None:
        if self._store is not None:
            self._store.keep(self.saved())

    def saved(self) -> Saved:
        """What to keep for a cold start."""
        peers = worth_keeping(self.state, self._saved.peers, self._time.now())
        return replace(self._saved, peers=peers, ledger=self._neighbours.ledger, version=self._own.version)

    # -- events and actions

    def linked(self, node: NodeId) -> bool:
        """Whether `node` is a neighbour, which hears all news from here."""
        return node in self.state.links

    def banned(self, node: NodeId) -> bool:
        """Whether `node` broke the rules and is turned away for a while."""
        return self.state.banned.get(node, 0.0) > self._time.now()

    def happen(self, event: Event) -> None:
        """Apply one event, and do what comes of it."""
        self.state, actions = apply(self.state, event, self._time.now())
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Dial(record, check):
                self._neighbours.dial(record, check)
            case Leave(peer):
                self._neighbours.post(peer, Message(messages.BYE))
                self.happen(Unlinked(peer, polite=True))
            case Expel(peer, why):
                self._neighbours.turn_away(peer, why)
            case Accuse(target, version):
                me = self._board.identity
                said = messages.sign_suspicion(target, version, me.id, self.membership.swarm, me.sign)
                self.happen(Accused(said))
            case Refresh(above):
                self._refresh(above)
            case Changed(key):
                held = self.state.table.get(key)
                self._stir.set()
                if held is not None:
                    connected = self._board.get(held.record.node)
                    if connected is not None and held.alive(self._time.now()):
                        connected.admit()
            case Clash(record, yield_):
                text = say_clash(record)
                log.warning("%s", text)
                if yield_:
                    self._end(text)
            case _:  # the rest are messages
                self._neighbours.post(action.peer, messages.message_of(action, self._time.now()))

    def _refresh(self, above: int = 0) -> None:
        """A new record of this node."""
        place = self.state.coordinate if self.rtts.measured else None
        held = self._own.make(
            above, self._time.now(), self._time.wall(), self.state.table.size, self._distances.for_record(), place
        )
        if held is not None:
            self.happen(Published(held))

    # -- messages

    async def _on_hello(self, peer: Peer, message: Message) -> Message:
        before = self._neighbours.ledger
        answer = self._neighbours.answer_untrusted(peer, message)
        if self._neighbours.ledger is not before:
            self._keep()
        return answer

    async def _on_bye(self, peer: Peer, message: Message) -> None:
        self.happen(Unlinked(peer.id, polite=True))

    async def _on_news(self, peer: Peer, message: Message) -> None:
        """HINTS, WANT, DIGEST and DELTA of a neighbour; whoever sends what cannot be read is turned away."""
        if peer.id not in self.state.links:
            return
        try:
            revoked = self._neighbours.ledger.revoked
            known = Known(self.state, self.membership, revoked, self._time.now(), self._time.wall())
            event = await read_untrusted(peer.id, message, known)
        except PeerError as error:
            self.state, actions = expel(self.state, peer.id, str(error), self._time.now(), [])
            for action in actions:
                self._act(action)
            return
        if isinstance(event, DeltaHeard):
            event = self._counting(event)
        self.happen(event)
        if isinstance(event, DeltaHeard) and event.revocations:
            self._heed()

    def _counting(self, event: DeltaHeard) -> DeltaHeard:
        """What counts of it now: a revocation may have come while it was read."""
        revoked, now, read = self._neighbours.ledger.revoked, self._time.wall(), self.membership.admission_untrusted
        records = tuple(held for held in event.records if not read(held.record.proof).void(revoked, now))
        return replace(event, records=records, revocations=self._neighbours.revoked(event.revocations))

    # -- tasks

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(round_s(self.state.table.size))
            self.happen(Tick())
            self._neighbours.look_over()
            self._neighbours.end_void()

    def _somebody(self, draw: random.Random) -> NodeRecord | None:
        held = self.state.table.sample(draw)
        return held.record if held is not None and held.alive(self._time.now()) else None

    def measured(self, node: NodeId, rtt_ms: float) -> None:
        """A round trip was measured: this node's place in the network coordinates moves a little."""
        held = held_of(self.state, node)
        place = None if held is None else unpack_coordinate(held.record.coordinate)
        self.happen(Moved(updated(self.state.coordinate, place or Coordinate(), rtt_ms, self._board.id)))

    async def _keep_forever(self) -> None:
        """Keep on disk whom to knock at, and knock at all of them while nobody is linked (a cold start, a long cut)."""
        while True:
            for node, addresses in self.saved().peers:
                if self.state.links:
                    break
                with contextlib.suppress(PeerError):
                    await self._neighbours.greet(node, addresses)
            self._neighbours.ledger = self._neighbours.ledger.at(self._time.wall())
            self.happen(Aged(self._neighbours.ledger.revoked))
            self._keep()
            for _ in range(KEEP_TIMES):
                await asyncio.sleep(LONELY_S)
                if not self.state.links:
                    break
