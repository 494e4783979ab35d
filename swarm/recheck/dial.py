"""Reaching the nodes of a receipt in order to have rows opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from receipts.format.errors import ReceiptError
from receipts.record.row_opening import MAX_OPENING, CrossedFrame, OpeningRequest, with_known_untrusted
from swarm.base.address import Address
from swarm.base.config import MemberConfig
from swarm.base.errors import BusyError, PeerError, SwarmError
from swarm.base.events import Notice, Report, silent
from swarm.base.nodeid import parse_id_untrusted
from swarm.discovery.bootstrap import enter_as_guest
from swarm.discovery.state_dir import requester_folder
from swarm.mesh.gossip import Gossip
from swarm.mesh.saved import SavedFile
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.witness_service import AUDIT, AUDIT_ANSWER, AUDIT_REQUEST, PIECE_BYTES, AuditRequest

DIAL_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 120.0
OPENING_TIMEOUT_S = 1800.0
"""For one node's opening, all pieces together."""
HEADER_BYTES = 9 << 20
"""Within which the header of an opening ends: then its known frames were passed over, or never will be."""
BUSY_WAITS_S = (1.0, 4.0, 15.0)
NEWS_WAIT_S = 4.0


@asynccontextmanager
async def opener(
    nodes: Sequence[str],
    addresses: Mapping[str, Sequence[Address]],
    member: MemberConfig | None,
    report: Report = silent,
) -> AsyncIterator[DialledNodes]:
    """The nodes (hex names), dialled from another thread than the event loop's.

    addresses  where nodes can be dialled; the others are looked up in the swarm of `member`, None: in none
    """
    async with AsyncExitStack() as stack:
        unknown = [node for node in nodes if not addresses.get(node)]
        if member is None or not unknown:
            proxy = None if member is None else member.http_proxy
            board = await stack.enter_async_context(Switchboard(Identity.generate(), proxy=proxy))
            known = dict(addresses)
        else:
            board, found = await _look(stack, member, unknown, report)
            known = {**found, **addresses}
        yield DialledNodes(board, known, asyncio.get_running_loop(), report)


class DialledNodes:
    """Nodes that are asked over the network, by another thread than that of the loop."""

    def __init__(
        self,
        board: Switchboard,
        addresses: Mapping[str, Sequence[Address]],
        loop: asyncio.AbstractEventLoop,
        report: Report,
    ) -> None:
        self._board, self._addresses, self._loop, self._report = board, addresses, loop, report

    def fetch(self, node: str, request: OpeningRequest, known: Sequence[CrossedFrame] = ()) -> bytes | None:
        """The node's opening; None, with a notice that says why, when there is none."""
        asked = _ask(self._board, node, self._addresses.get(node, ()), request, known, self._report)
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()

    def call(self, node: str, message: Message) -> Message:
        """What a node answers, which is asked again while it is busy. Raises SwarmError."""

        async def asked() -> Message:
            if not (addresses := self._addresses.get(node, ())):
                raise PeerError(f"no address is known of it; give --via {node}=HOST:PORT")
            peer = await self._board.peer(parse_id_untrusted(node), list(addresses), DIAL_TIMEOUT_S)
            return await _patiently(peer, message)

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result()


async def _look(
    stack: AsyncExitStack, member: MemberConfig, nodes: Sequence[str], report: Report
) -> tuple[Switchboard, dict[str, Sequence[Address]]]:
    """Enter the swarm as a guest and wait a moment for news of these nodes. Raises SwarmError."""
    folder = stack.enter_context(requester_folder(member.state))
    identity = Identity.load_or_create(folder)
    board = await stack.enter_async_context(Switchboard(identity, proxy=member.http_proxy))
    saved = await enter_as_guest(board, member, folder, identity, report)
    gossip = await stack.enter_async_context(Gossip(board, saved, store=SavedFile(folder)))
    for node, _ in saved.peers[:1]:
        await gossip.link(node)
    wanted = [parse_id_untrusted(node) for node in nodes]
    try:
        async with asyncio.timeout(NEWS_WAIT_S):
            while not all(gossip.member(node) for node in wanted):
                await gossip.wait_change()
    except TimeoutError:
        pass
    views = {node.hex(): gossip.member(node) for node in wanted}
    return board, {name: view.record.addresses for name, view in views.items() if view is not None}


async def _ask(
    board: Switchboard,
    node: str,
    addresses: Sequence[Address],
    request: OpeningRequest,
    known: Sequence[CrossedFrame],
    report: Report,
) -> bytes | None:
    """The node's opening; None, with a notice that says why, when there is none."""
    if not addresses:
        report(Notice(f"no address is known of node {node[:16]}; give --address {node[:16]}=HOST:PORT", "warning"))
        return None
    try:
        async with asyncio.timeout(OPENING_TIMEOUT_S):
            peer = await board.peer(parse_id_untrusted(node), list(addresses), DIAL_TIMEOUT_S)
            return await opening_from_untrusted(peer, request.to_bytes(), known)
    except TimeoutError:
        why = f"it took longer than {OPENING_TIMEOUT_S:.0f} s"
    except SwarmError as error:
        why = str(error)
    report(Notice(f"node {node[:16]} opened nothing: {why}", "warning"))
    return None


async def opening_from_untrusted(peer: Peer, request: bytes, known: Sequence[CrossedFrame] = ()) -> bytes:
    """An opening, asked for piece by piece. Raises SwarmError; PeerError for pieces that do not make one.

    A node that does not know pieces answers with all of it; one that is busy is asked again, a few times. `known`:
    inbound frames of an earlier opening of the same part; what they fill is passed over, once the header is here.
    """
    found = bytearray()
    while True:
        answer = await _piece(peer, request, len(found))
        size = AUDIT_ANSWER.read_untrusted(answer.header).size or len(answer.body)
        if not 0 < size <= MAX_OPENING:
            raise PeerError(f"expected an opening of 1 to {MAX_OPENING} bytes, found one of {size}")
        found += answer.body
        if len(found) == size:
            return bytes(found)
        if len(found) > size or len(answer.body) < PIECE_BYTES:
            raise PeerError(f"expected pieces of {PIECE_BYTES} bytes up to {size}, found {len(answer.body)}")
        if known:
            found = _passed_over_untrusted(found, size, known)
            known = known if len(found) < HEADER_BYTES else ()


def _passed_over_untrusted(found: bytearray, size: int, known: Sequence[CrossedFrame]) -> bytearray:
    try:
        longer = with_known_untrusted(bytes(found), known)
    except ReceiptError as error:
        raise PeerError(f"expected the header of an opening: {error.claim}") from error
    return bytearray(longer) if len(longer) < size else found


async def _piece(peer: Peer, request: bytes, offset: int) -> Message:
    return await _patiently(peer, Message(AUDIT, AUDIT_REQUEST.header(AuditRequest(offset)), request))


async def _patiently(peer: Peer, asked: Message) -> Message:
    for wait_s in (*BUSY_WAITS_S, None):
        try:
            return await peer.call(asked, ANSWER_TIMEOUT_S)
        except BusyError:
            if wait_s is None:
                raise
            await asyncio.sleep(wait_s)
    raise AssertionError("the last try returns or raises")
