"""The shell round `apply`: messages become events, actions become messages, and a few tasks keep the rhythm.

Nothing is decided here. One lock-free rule keeps it simple: the state changes only in `_happen`, which is
synchronous, so events are applied one at a time in the order in which they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from swarm.errors import PeerError
from swarm.mesh import hello, messages
from swarm.mesh.apply import apply, expel
from swarm.mesh.distances import Distances
from swarm.mesh.inbox import read_untrusted
from swarm.mesh.latency import Coordinate, RttTable, unpack_coordinate, updated
from swarm.mesh.membership import InviteError, Membership, Token
from swarm.mesh.own import OwnRecord
from swarm.mesh.record import NodeRecord
from swarm.mesh.saved import Saved
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
    Event,
    Expel,
    Leave,
    Linked,
    Moved,
    Published,
    Refresh,
    Revoked,
    SendDelta,
    SendDigest,
    SendHints,
    SendWant,
    State,
    Tick,
    Unlinked,
    round_s,
)
from swarm.mesh.view import MemberView, held_of, say_clash, view_of, worth_keeping
from swarm.net.address import Address
from swarm.net.message import Message
from swarm.net.nodeid import NodeId, short_id
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard

log = logging.getLogger(__name__)

DIAL_S = 5.0
CHECK_S = 2.0
DIALS_AT_ONCE = 8
KEEP_S = 20.0
BACKLOG_BYTES = 8 * 1024 * 1024
LONELY_S = 5.0
PUBLISH_S = 0.5


__all__ = ["Gossip", "MemberView"]


class Gossip:
    """This process's part in the membership of one swarm. Use as `async with`, inside the switchboard's.

    `about` describes this node (its node, swarm, version, times, instance and proof are filled in here), None for a
    guest, which listens and is no member. `changed` is told of every record or standing that changed, `clashed` once
    when another process with the same key was there first. Leaving the context tells the swarm that the node left.
    """

    def __init__(
        self,
        board: Switchboard,
        sign: Callable[[bytes], bytes],
        saved: Saved,
        about: NodeRecord | None = None,
        *,
        bounds: Bounds | None = None,
        changed: Callable[[NodeId], None] = lambda node: None,
        clashed: Callable[[str], None] = lambda text: None,
        kept: Callable[[Saved], None] = lambda saved: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.membership: Membership = saved.membership
        self.state = State(board.id, bounds=bounds or Bounds())
        self._board, self._sign, self._saved = board, sign, saved
        self._changed, self._clashed, self._kept = changed, clashed, kept
        self._clock, self._wall = clock, wall
        self._distances = Distances(board, clock, self._measured)
        self._own = OwnRecord(board.id, sign, saved.membership, about, saved.version, wall())
        self._ledger = saved.ledger
        self._seen: dict[NodeId, Peer] = {}
        self._dialling: set[NodeId] = set()
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stir = asyncio.Event()
        self._leaving = False

    # -- life

    async def __aenter__(self) -> Self:
        handlers: Mapping[str, Callable[[Peer, Message], Awaitable[Message | None]]] = {
            messages.HELLO: self._on_hello,
            messages.BYE: self._on_bye,
            messages.HINTS: self._on_news,
            messages.WANT: self._on_news,
            messages.DELTA: self._on_news,
            messages.DIGEST: self._on_news,
        }
        for kind, handler in handlers.items():
            self._board.handle(kind, handler)
        await self._group.__aenter__()
        self._refresh()
        self._spawn(self._tick_forever())
        self._spawn(self._distances.keep_measuring(self._seen.values, self._somebody))
        self._spawn(self._keep_forever())
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.leave()
        for task in list(self._tasks):
            task.cancel()
        await self._group.__aexit__(None, None, None)
        self._kept(self.saved())

    async def leave(self) -> None:
        """Tell the neighbours that this node left; they pass it on. Idempotent."""
        if self._leaving:
            return
        self._leaving = True
        self._own.change({"state": "left", "claim": None}, self._refresh)
        for node in list(self.state.links):
            self._post(node, Message(messages.BYE))
        peers = [peer for node in self.state.links if (peer := self._board.get(node)) is not None]
        with contextlib.suppress(PeerError, TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(peer.flush() for peer in peers), return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what the rest of the node asks

    def members(self) -> list[MemberView]:
        """Every member that this node knows, itself first; those that left or ran out only while remembered."""
        now = self._clock()
        views = [view_of(self.state, self.rtts, held, now) for held in self.state.table]
        return sorted(views, key=lambda view: (view.record.node != self._board.id, view.record.node))

    def member(self, node: NodeId) -> MemberView | None:
        """One member by its id."""
        held = held_of(self.state, node)
        return None if held is None else view_of(self.state, self.rtts, held, self._clock())

    def admitted(self, node: NodeId) -> bool:
        """Whether `node` said a valid hello on a connection that lives, or is a member by its record."""
        if node in self._seen or node == self._board.id:
            return True
        held = held_of(self.state, node)
        return held is not None and held.alive(self._clock())

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
        if not self._leaving:
            self._own.change(changes, self._refresh)

    async def wait_change(self) -> None:
        """Return after the next change of a record or of a standing."""
        self._stir.clear()
        await self._stir.wait()

    async def link(self, node: NodeId) -> None:
        """Say hello to a connected or known member, so that both may talk. Raises InviteError or PeerError."""
        held = held_of(self.state, node)
        await self._greet(node, held.record.addresses if held is not None else (), DIAL_S)

    async def measure(self, nodes: Sequence[NodeId]) -> None:
        """Measure the round trips to these members where none is fresh, and tell of them in this node's record.

        For the edges that a route is likely to use (`swarm.ring.plan_probe`). A member that is not reached is skipped.
        """
        found = [held.record for node in nodes if (held := held_of(self.state, node)) is not None]
        await self._distances.measure(found)

    def revoke(self, token: Token) -> None:
        """End an invite everywhere. Raises InviteError for a guest."""
        notice = self.membership.revoke(token)
        self._happen(Revoked(notice))
        self._ledger = self._ledger.revoking(notice, self._wall())
        self._kept(self.saved())

    def saved(self) -> Saved:
        """What to keep for a cold start."""
        peers = worth_keeping(self.state, self._saved.peers, self._clock())
        return replace(self._saved, peers=peers, ledger=self._ledger, version=self._own.version)

    # -- events and actions

    def _happen(self, event: Event) -> None:
        self.state, actions = apply(self.state, event, self._clock())
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case SendHints() | SendWant() | SendDelta() | SendDigest():
                self._post(action.peer, messages.message_of(action, self._clock()))
            case Dial(record, check):
                room = len(self._dialling) < DIALS_AT_ONCE + 64 * check
                if room and not self._leaving and record.node not in self._dialling:
                    self._dialling.add(record.node)
                    self._spawn(self._dial(record, CHECK_S if check else DIAL_S))
            case Leave(peer):
                self._post(peer, Message(messages.BYE))
                self._happen(Unlinked(peer, polite=True))
            case Expel(peer, why):
                log.warning("node %s is turned away: %s", short_id(peer), why)
                found = self._board.get(peer)
                if found is not None:
                    found.drop(why)
            case Accuse(target, version):
                said = messages.sign_suspicion(target, version, self._board.id, self.membership.swarm, self._sign)
                self._happen(Accused(said))
            case Refresh(above):
                self._refresh(above)
            case Changed(key):
                held = self.state.table.get(key)
                self._stir.set()
                if held is not None:
                    self._changed(held.record.node)
            case Clash(record, yield_):
                text = say_clash(record)
                log.warning("%s", text)
                if yield_:
                    self._clashed(text)

    def _refresh(self, above: int = 0) -> None:
        """A new record of this node."""
        place = self.state.coordinate if self.rtts.measured else None
        held = self._own.make(
            above, self._clock(), self._wall(), self.state.table.size, self._distances.for_record(), place
        )
        if held is not None:
            self._happen(Published(held))

    def _post(self, node: NodeId, message: Message) -> None:
        peer = self._board.get(node)
        if peer is None:
            return
        if peer.queued_bytes > BACKLOG_BYTES:
            log.info("node %s is slow; a %s was not sent, the next digest repairs it", short_id(node), message.kind)
            return
        with contextlib.suppress(PeerError):
            peer.post(message, priority=2, flow="mesh")

    # -- messages

    async def _on_hello(self, peer: Peer, message: Message) -> Message:
        try:
            if self._leaving or self.state.banned.get(peer.id, 0.0) > self._clock():
                why = "is leaving" if self._leaving else "turns this one away for a while: it broke the rules"
                raise InviteError(f"node {short_id(self._board.id)} {why}")
            asked = hello.parse_hello_untrusted(message.header)
            answer, self._ledger = hello.answer_hello(
                asked,
                peer.id,
                self._board.id,
                self.membership,
                self._ledger,
                self._saved.model,
                self._saved.ref,
                self._wall(),
            )
        except InviteError as error:
            return Message(messages.HELLO, {"refused": str(error)})
        if asked.token is not None and asked.token.once:
            self._kept(self.saved())
        # After the answer, so that the caller has its membership before the first delta arrives.
        asyncio.get_running_loop().call_soon(self._welcome, peer)
        return answer

    def _welcome(self, peer: Peer) -> None:
        """`peer` and this node may talk."""
        if self._leaving or peer.closed_reason is not None:
            return
        if self._seen.get(peer.id) is not peer:
            self._seen[peer.id] = peer
            self._spawn(self._watch(peer))
        if peer.id not in self.state.links:
            self._happen(Linked(peer.id))

    async def _watch(self, peer: Peer) -> None:
        with contextlib.suppress(PeerError):
            await self._distances.ping(peer)
        await peer.wait_closed()
        if self._seen.get(peer.id) is peer:
            del self._seen[peer.id]
            self._happen(Unlinked(peer.id, polite=False))

    async def _on_bye(self, peer: Peer, message: Message) -> None:
        self._happen(Unlinked(peer.id, polite=True))

    async def _on_news(self, peer: Peer, message: Message) -> None:
        """HINTS, WANT, DIGEST and DELTA of a neighbour; whoever sends what cannot be read is turned away."""
        if peer.id not in self.state.links:
            return
        try:
            event = await read_untrusted(peer.id, message, self.state, self.membership, self._clock(), self._wall())
        except PeerError as error:
            self.state, actions = expel(self.state, peer.id, str(error), self._clock(), [])
            for action in actions:
                self._act(action)
            return
        self._happen(event)
        for notice in event.revocations if isinstance(event, DeltaHeard) else ():
            self._ledger = self._ledger.revoking(notice, self._wall())

    # -- tasks

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(round_s(self.state.table.size))
            self._happen(Tick())

    def _somebody(self, draw: random.Random) -> NodeRecord | None:
        held = self.state.table.sample(draw)
        return held.record if held is not None and held.alive(self._clock()) else None

    def observe_rtt(self, node: NodeId, rtt_ms: float) -> None:
        """A round trip to `node` was measured by somebody else, a run for instance."""
        self._distances.observe(node, rtt_ms)

    def _measured(self, node: NodeId, rtt_ms: float) -> None:
        held = held_of(self.state, node)
        place = None if held is None else unpack_coordinate(held.record.coordinate)
        self._happen(Moved(updated(self.state.coordinate, place or Coordinate(), rtt_ms, self._board.id)))

    async def _keep_forever(self) -> None:
        """Keep on disk whom to knock at, and knock at all of them while nobody is linked (a cold start, a long cut)."""
        while True:
            for node, addresses in self.saved().peers:
                if self.state.links:
                    break
                with contextlib.suppress(PeerError):
                    await self._greet(node, addresses, DIAL_S)
            self._happen(Aged(self._wall()))
            self._kept(self.saved())
            await asyncio.sleep(KEEP_S if self.state.links else LONELY_S)

    async def _dial(self, record: NodeRecord, timeout: float) -> None:
        try:
            await self._greet(record.node, record.addresses, timeout)
        except PeerError as error:
            log.debug("node %s was not reached: %s", short_id(record.node), error)
            self._happen(DialFailed(record.node))
        finally:
            self._dialling.discard(record.node)

    async def _greet(self, node: NodeId, addresses: Sequence[Address], timeout: float) -> None:
        """Say hello to `node` unless it is a neighbour. Raises InviteError when refused, PeerError when not reached."""
        if node == self._board.id or node in self.state.links:
            return
        peer = await self._board.peer(node, addresses, timeout)
        role = "guest" if self._own.about is None else "node"
        asked = hello.Hello(self.membership.swarm, self._saved.model, role, self.membership.proof, None)
        answer = await peer.call(hello.hello_message(asked), timeout)
        hello.parse_welcome_untrusted(answer.header, self.membership.swarm, self._board.id, node)
        self._welcome(peer)
