"""The shell round `apply`: messages become events, actions become messages, and a few tasks keep the rhythm.

Nothing is decided here. One lock-free rule keeps it simple: the state changes only in `_happen`, which is
synchronous, so events are applied one at a time in the order in which they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from swarm.errors import PeerError
from swarm.mesh import hello, messages
from swarm.mesh.apply import apply, expel, standing
from swarm.mesh.latency import Coordinate, RttTable, unpack_coordinate, updated
from swarm.mesh.membership import InviteError, Membership, Token
from swarm.mesh.record import (
    MIN_TTL_S,
    ClockError,
    NodeRecord,
    parse_record_untrusted,
    peek_record_untrusted,
    sign_record,
)
from swarm.mesh.saved import MAX_PEERS, Saved
from swarm.mesh.state import (
    Accuse,
    Accused,
    Action,
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
    WantHeard,
    round_s,
    ttl_s,
)
from swarm.mesh.table import Held
from swarm.net.address import Address
from swarm.net.message import Message
from swarm.net.nodeid import NodeId, short_id
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard

log = logging.getLogger(__name__)

DIAL_S = 5.0
CHECK_S = 2.0
DIALS_AT_ONCE = 8
PING_S = 20.0
PINGS = 3
SLICE = 16
BACKLOG_BYTES = 8 * 1024 * 1024
LONELY_S = 5.0
PUBLISH_S = 0.5


@dataclass(frozen=True)
class MemberView:
    """A member as this node sees it now.

    `standing`: "up", "suspect", "down", "left" or "expired". `rtt_ms`: measured here, None if not lately.
    `age_s`: since its record was issued. `linked`: a neighbour of this node.
    """

    record: NodeRecord
    standing: str
    rtt_ms: float | None
    age_s: float
    linked: bool


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
        self.rtts = RttTable()
        self._board, self._sign, self._saved = board, sign, saved
        self._about = about
        self._changed, self._clashed, self._kept = changed, clashed, kept
        self._clock, self._wall = clock, wall
        self._instance = int(wall() * 1000) << 16 | secrets.randbits(16)
        self._version = saved.version
        self._ledger = saved.ledger
        self._seen: dict[NodeId, Peer] = {}
        self._dialling: set[NodeId] = set()
        self._useful: frozenset[NodeId] = frozenset()
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stir = asyncio.Event()
        self._publish_due: asyncio.TimerHandle | None = None
        self._leaving = False

    # -- life

    async def __aenter__(self) -> Self:
        handlers: Mapping[str, Callable[[Peer, Message], Awaitable[Message | None]]] = {
            messages.HELLO: self._on_hello,
            messages.BYE: self._on_bye,
            messages.HINTS: self._on_hints,
            messages.WANT: self._on_want,
            messages.DELTA: self._on_delta,
            messages.DIGEST: self._on_digest,
        }
        for kind, handler in handlers.items():
            self._board.handle(kind, handler)
        await self._group.__aenter__()
        self._refresh(0)
        self._spawn(self._tick_forever())
        self._spawn(self._measure_forever())
        self._spawn(self._come_back_forever())
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
        if self._publish_due is not None:
            self._publish_due.cancel()
        if self._about is not None:
            self._about = replace(self._about, state="left", claim=None)
            self._refresh(self._version)
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
        views = [self._view(held, now) for held in self.state.table]
        return sorted(views, key=lambda view: (view.record.node != self._board.id, view.record.node))

    def member(self, node: NodeId) -> MemberView | None:
        """One member by its id."""
        held = self.state.table.get(int.from_bytes(node[:8], "big"))
        return None if held is None or held.record.node != node else self._view(held, self._clock())

    def admitted(self, node: NodeId) -> bool:
        """Whether `node` said a valid hello on a connection that lives, or is a member by its record."""
        if node in self._seen or node == self._board.id:
            return True
        held = self.state.table.get(int.from_bytes(node[:8], "big"))
        return held is not None and held.record.node == node and held.alive(self._clock())

    @property
    def coordinate(self) -> Coordinate:
        """Where this node is, in the swarm's network coordinates."""
        return self.state.coordinate

    def publish(self, **changes: Any) -> None:
        """Change fields of this node's record, for instance `publish(state="serving", layers=(0, 10))`.

        What changes within PUBLISH_S goes out as one record; a change of state, layers or claim goes out at once.
        """
        if self._about is None or self._leaving:
            return
        before, self._about = self._about, replace(self._about, **changes)
        if before == self._about:
            return
        urgent = any(name in changes for name in ("state", "layers", "claim", "addresses", "model"))
        if urgent:
            self._publish_now()
        elif self._publish_due is None:
            self._publish_due = asyncio.get_running_loop().call_later(PUBLISH_S, self._publish_now)

    def _publish_now(self) -> None:
        if self._publish_due is not None:
            self._publish_due.cancel()
            self._publish_due = None
        self._refresh(0)

    async def wait_change(self) -> None:
        """Return after the next change of a record or of a standing."""
        self._stir.clear()
        await self._stir.wait()

    async def link(self, node: NodeId) -> None:
        """Say hello to a connected or known member, so that both may talk. Raises InviteError or PeerError."""
        view = self.member(node)
        await self._greet(node, view.record.addresses if view is not None else (), DIAL_S)

    async def measure(self, nodes: Sequence[NodeId]) -> None:
        """Measure the round trips to these members where none is fresh, and tell of them in this node's record.

        For the edges that a route is likely to use (`swarm.ring.plan_probe`). A member that is not reached is skipped.
        """
        self._useful = frozenset(nodes)
        for node in nodes:
            view = self.member(node)
            if view is None or node == self._board.id or self.rtts.get(node, self._clock()) is not None:
                continue
            with contextlib.suppress(PeerError):
                await self._measure(await self._board.peer(node, view.record.addresses, DIAL_S))

    def revoke(self, token: Token) -> None:
        """End an invite everywhere. Raises InviteError for a guest."""
        notice = self.membership.revoke(token)
        self._happen(Revoked(notice))
        self._ledger = self._ledger.revoking(notice, self._wall())
        self._kept(self.saved())

    def saved(self) -> Saved:
        """What to keep for a cold start."""
        now = self._clock()
        known = [
            h.record
            for h in self.state.table
            if h.record.addresses and h.record.node != self._board.id and h.alive(now)
        ]
        near = sorted(known, key=lambda r: (r.node not in self.state.links, -r.issued))
        peers = {r.node: r.addresses for r in near[:MAX_PEERS]}
        for node, addresses in self._saved.peers:
            if len(peers) < MAX_PEERS:
                peers.setdefault(node, addresses)
        return replace(self._saved, peers=tuple(peers.items()), ledger=self._ledger, version=self._version)

    def _view(self, held: Held, now: float) -> MemberView:
        node = held.record.node
        rtt = 0.0 if node == self._board.id else self.rtts.get(node, now)
        return MemberView(held.record, standing(self.state, held, now), rtt, now - held.born, node in self.state.links)

    # -- events and actions

    def _happen(self, event: Event) -> None:
        self.state, actions = apply(self.state, event, self._clock())
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case SendHints(peer, hints, blames):
                self._post(peer, messages.names_message(messages.HINTS, hints, blames))
            case SendWant(peer, keys, blames):
                self._post(peer, messages.names_message(messages.WANT, keys, blames))
            case SendDelta(peer):
                self._post(peer, messages.delta_message(action, self._clock()))
            case SendDigest(peer, digest):
                self._post(peer, messages.digest_message(digest))
            case Dial(record, check):
                if (
                    not self._leaving
                    and record.node not in self._dialling
                    and len(self._dialling) < DIALS_AT_ONCE + check * 64
                ):
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
                where = ", ".join(f"{host}:{port}" for host, port in record.addresses) or "an unknown address"
                who = short_id(record.node)
                text = f"two nodes use the key of {who}; the other is at {where}; give one of them another --state"
                log.warning("%s", text)
                if yield_:
                    self._clashed(text)

    def _refresh(self, above: int) -> None:
        """A new record of this node."""
        if self._about is None:
            return
        now, wall = self._clock(), self._wall()
        self._version = max(self._version + 1, above + 1, int(wall * 1000))
        record = replace(
            self._about,
            node=self._board.id,
            swarm=self.membership.swarm,
            proof=self.membership.proof,
            version=self._version,
            issued=int(wall),
            ttl=max(MIN_TTL_S, ttl_s(self.state.table.size)),
            instance=self._instance,
            rtts=self.rtts.for_record(now, self._useful),
            coordinate=self.state.coordinate.packed() if self.rtts.measured else (),
        )
        self._happen(Published(Held.of(sign_record(record, self._sign), now)))

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
            await self._measure(peer)
        await peer.wait_closed()
        if self._seen.get(peer.id) is peer:
            del self._seen[peer.id]
            self._happen(Unlinked(peer.id, polite=False))

    async def _on_bye(self, peer: Peer, message: Message) -> None:
        self._happen(Unlinked(peer.id, polite=True))

    async def _on_hints(self, peer: Peer, message: Message) -> None:
        self._happen(HintsHeard(peer.id, *messages.parse_hints_untrusted(message)))

    async def _on_want(self, peer: Peer, message: Message) -> None:
        self._happen(WantHeard(peer.id, *messages.parse_want_untrusted(message)))

    async def _on_digest(self, peer: Peer, message: Message) -> None:
        self._happen(DigestHeard(peer.id, messages.parse_digest_untrusted(message)))

    async def _on_delta(self, peer: Peer, message: Message) -> None:
        if peer.id not in self.state.links:
            return
        try:
            parcel = messages.parse_delta_untrusted(message, self.membership)
            helds: list[Held] = []
            for i, (age, wire) in enumerate(parcel.records):
                held = self._check_untrusted(age, wire)
                if held is not None:
                    helds.append(held)
                if i % SLICE == SLICE - 1:
                    await asyncio.sleep(0)  # a signature takes 0.1 ms: let frames pass
        except PeerError as error:
            self.state, actions = expel(self.state, peer.id, str(error), self._clock(), [])
            for action in actions:
                self._act(action)
            return
        self._happen(DeltaHeard(peer.id, tuple(helds), parcel.suspicions, parcel.revocations))
        for notice in parcel.revocations:
            self._ledger = self._ledger.revoking(notice, self._wall())

    def _check_untrusted(self, age: float, wire: bytes) -> Held | None:
        """The record if it is new and genuine, None if it is old news. Raises PeerError."""
        record = peek_record_untrusted(wire)
        known = self.state.table.get(record.key)
        if known is not None and known.record.version >= record.version and record.node != self._board.id:
            return None
        try:
            signed = parse_record_untrusted(wire, self.membership.swarm, self._wall())
        except ClockError as error:
            log.info("%s", error)
            return None
        if not self.membership.proves(record.node, record.proof):
            raise PeerError(f"the record of node {short_id(record.node)} shows no admission to this swarm")
        return Held.of(signed, self._clock() - age)

    # -- tasks

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(round_s(self.state.table.size))
            self._happen(Tick())

    async def _measure_forever(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            for peer in list(self._seen.values()):
                with contextlib.suppress(PeerError):
                    await self._measure(peer)
            self._kept(self.saved())

    async def _measure(self, peer: Peer) -> None:
        series = await peer.ping(PINGS)
        self.observe_rtt(peer.id, series.median_us / 1000)

    def observe_rtt(self, node: NodeId, rtt_ms: float) -> None:
        """A round trip to `node` was measured, here or by a run."""
        self.rtts = self.rtts.add(node, rtt_ms, self._clock())
        view = self.member(node)
        place = None if view is None else unpack_coordinate(view.record.coordinate)
        self._happen(Moved(updated(self.state.coordinate, place or Coordinate(), rtt_ms, self._board.id)))

    async def _come_back_forever(self) -> None:
        """While nobody is linked, knock at everybody ever known: a cold start, or a long time cut off."""
        while True:
            if not self.state.links:
                for node, addresses in self.saved().peers:
                    with contextlib.suppress(PeerError):
                        await self._greet(node, addresses, DIAL_S)
                    if self.state.links:
                        break
            await asyncio.sleep(LONELY_S)

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
        role = "guest" if self._about is None else "node"
        asked = hello.Hello(self.membership.swarm, self._saved.model, role, self.membership.proof, None)
        answer = await peer.call(hello.hello_message(asked), timeout)
        hello.parse_welcome_untrusted(answer.header, self.membership.swarm, self._board.id, node)
        self._welcome(peer)
