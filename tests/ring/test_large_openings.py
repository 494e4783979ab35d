"""Openings larger than one message, over real sockets: a big model's run is audited like any other."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from receipts import Software
from receipts.format.merkle import leaf_hash
from receipts.format.merkle_tree import Tree
from receipts.record.edge import frame_leaf
from receipts.record.opening_answer import OpeningAnswer
from receipts.record.row_opening import OpeningRequest, opened_untrusted
from receipts.record.rows import RowStore
from swarm.base.errors import BusyError, PeerError
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.recheck.dial import opener, opening_from_untrusted
from swarm.ring import opening_limits, witness_service
from swarm.ring.signer import ReceiptSigner, open_log
from swarm.ring.witness_service import AUDIT, PIECE_BYTES, NotaryServer
from tests.members import Admits

ORDER = "ab" * 32
SALTS = (leaf_hash(b"in"), leaf_hash(b"out"))
ROWS, HIDDEN = 64, 8192
"""A prefill frame of a model of 70 thousand million parameters: 1 MiB in bfloat16."""


def keep(store: RowStore, frames: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """A run of realistic frames; roots and counts of its two edges."""
    rows, leaves = store.begin(ORDER, 0, SALTS, 1_790_000_000), ([SALTS[0]], [SALTS[1]])
    for seq in range(frames):
        head, body = bytes([seq % 251]) * 180, bytes([seq % 7]) * (ROWS * HIDDEN * 2)
        for which, take in enumerate((rows.inbound, rows.outbound)):
            leaf = frame_leaf(seq, head, body)
            leaves[which].append(leaf)
            take(seq, head, body, leaf)
    rows.close()
    came, went = (Tree(hashes).root().hex() for hashes in leaves)
    return (came, frames), (went, frames)


@asynccontextmanager
async def node(folder: Path, member: bool = False) -> AsyncIterator[tuple[Switchboard, tuple[str, int], NotaryServer]]:
    """A node that keeps rows and answers audits on a socket."""
    async with AsyncExitStack() as stack:
        identity = Identity.generate()
        log = open_log(folder / "log", identity.id)
        software = Software("wanswarm", "test", "00" * 32)
        notary = ReceiptSigner(
            log.author(identity.sign), log, software, "00" * 32, lambda a, b: "", rows=RowStore(folder / "rows")
        )
        stack.callback(notary.close)
        server = NotaryServer(notary, Admits(member))
        board = await stack.enter_async_context(Switchboard(identity))
        for kind, handler in server.handlers().items():
            board.handle(kind, handler)
        yield board, await board.listen("127.0.0.1", 0), server


@asynccontextmanager
async def asking(board: Switchboard, address: tuple[str, int]) -> AsyncIterator[Peer]:
    async with Switchboard(Identity.generate()) as own:
        yield await own.peer(board.id, [address], 5.0)


async def test_an_opening_beyond_one_message_is_audited_in_pieces(tmp_path: Path) -> None:
    async with node(tmp_path) as (board, address, server):
        store = server._notary.rows
        assert store is not None
        ends = keep(store, 80)
        request = OpeningRequest(ORDER, 0, (3, 80))
        pieces: list[int] = []
        kept_answer = store.answer

        def counted(asked: bytes) -> OpeningAnswer:
            pieces.append(len(asked))
            return kept_answer(asked)

        store.answer = counted  # type: ignore[method-assign]
        async with opener([board.id.hex()], {board.id.hex(): [address]}, None) as nodes:
            data = await asyncio.to_thread(nodes.fetch, board.id.hex(), request)
        assert data is not None and len(data) > ChannelLimits().message_bytes
        opened = opened_untrusted(data, [3, 80], *ends)
        assert len(opened.inbound) == 80 and [leaf for leaf, _ in opened.outbound] == [3, 80]
        before = len(pieces)
        async with opener([board.id.hex()], {board.id.hex(): [address]}, None) as nodes:
            again = await asyncio.to_thread(
                nodes.fetch, board.id.hex(), OpeningRequest(ORDER, 0, (70,)), opened.inbound
            )
        assert again is not None and len(opened_untrusted(again, [70], *ends).inbound) == 70
        assert len(pieces) - before <= 3 < before  # its 70 MiB of what came in are not sent again
        async with asking(board, address) as peer:
            with pytest.raises(PeerError, match="in pieces"):  # by name, where it would have been silence before
                await peer.call(Message(AUDIT, {}, request.to_bytes()), 20.0)


async def test_a_verifier_that_knows_no_pieces_has_small_openings_whole(tmp_path: Path) -> None:
    async with node(tmp_path) as (board, address, server), asking(board, address) as peer:
        assert server._notary.rows is not None
        ends = keep(server._notary.rows, 3)
        answer = await peer.call(Message(AUDIT, {}, OpeningRequest(ORDER, 0, (2,)).to_bytes()), 20.0)
        assert dict(answer.header) == {}
        assert len(opened_untrusted(bytes(answer.body), [2], *ends).inbound) == 2


async def test_a_piece_costs_a_piece_of_memory(tmp_path: Path) -> None:
    async with node(tmp_path) as (board, address, server):
        store = server._notary.rows
        assert store is not None
        keep(store, 40)
        tracemalloc.start()
        try:
            answer = await asyncio.to_thread(store.answer, OpeningRequest(ORDER, 0, (40,)).to_bytes())
            assert len(answer.read(answer.size // 2, PIECE_BYTES)) == PIECE_BYTES
            assert tracemalloc.get_traced_memory()[1] < 3 * PIECE_BYTES < answer.size // 3
        finally:
            tracemalloc.stop()


async def test_audits_are_read_one_at_a_time_within_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = most = 0
    real = witness_service._read

    def slow(*args: object) -> object:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.3)
        found = real(*args)  # type: ignore[arg-type]
        at_once -= 1
        return found

    monkeypatch.setattr(witness_service, "_read", slow)
    monkeypatch.setattr(witness_service, "MOST_ASKING", 4)
    async with node(tmp_path) as (board, address, server), AsyncExitStack() as stack:
        assert server._notary.rows is not None
        keep(server._notary.rows, 1)
        peers = [await stack.enter_async_context(asking(board, address)) for _ in range(8)]
        ask = Message(AUDIT, {"offset": 0}, OpeningRequest(ORDER, 0, (1,)).to_bytes())
        answers = await asyncio.gather(*(peer.call(ask, 20.0) for peer in peers), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert most == 1 and refused and all(isinstance(error, BusyError) for error in refused)
        assert len(answers) - len(refused) >= 4
        server._quota = opening_limits.OpeningQuota(burst=1)
        await peers[0].call(ask, 20.0)
        async with asking(board, address) as stranger:  # a new identity has no quota of its own
            with pytest.raises(BusyError, match="ask again in"):
                await stranger.call(ask, 20.0)


@pytest.mark.parametrize("leaf", [2, 2**53 - 1])
async def test_what_is_refused_is_charged_as_well(tmp_path: Path, leaf: int) -> None:
    """Else whoever holds a receipt keeps the reader busy for nothing with rows that are not there."""
    async with node(tmp_path) as (board, address, server), asking(board, address) as peer:
        assert server._notary.rows is not None
        keep(server._notary.rows, 1)
        server._quota = opening_limits.OpeningQuota(burst=1, strangers_rate=1)
        ask = Message(AUDIT, {"offset": 0}, OpeningRequest(ORDER, 0, (leaf,)).to_bytes())
        with pytest.raises(PeerError, match="frames went out"):
            await peer.call(ask, 20.0)
        with pytest.raises(BusyError, match="ask again in"):
            await peer.call(ask, 20.0)


@pytest.mark.parametrize("offset", [-1, "0", True, 1.5, 1 << 62])
async def test_offsets_of_strangers(tmp_path: Path, offset: object) -> None:
    async with node(tmp_path) as (board, address, server), asking(board, address) as peer:
        assert server._notary.rows is not None
        keep(server._notary.rows, 1)
        with pytest.raises(PeerError):
            await peer.call(Message(AUDIT, {"offset": offset}, OpeningRequest(ORDER, 0, (1,)).to_bytes()), 20.0)


@pytest.mark.parametrize(
    "answer",
    [
        Message(AUDIT, {"size": 10}, b"x" * 11),
        Message(AUDIT, {"size": 10}, b""),
        Message(AUDIT, {"size": 10}, b"x"),
        Message(AUDIT, {"size": 1 << 40}, b"x" * PIECE_BYTES),
        Message(AUDIT, {"size": "10"}, b"x"),
        Message(AUDIT, {"size": True}, b"x"),
        Message(AUDIT, {}, b""),
    ],
    ids=repr,
)
async def test_pieces_that_make_no_opening(answer: Message) -> None:
    """Each would hang or fill a verifier."""

    async def reply(peer: Peer, message: Message) -> Message:
        return answer

    async with Switchboard(Identity.generate()) as board:
        board.handle(AUDIT, reply)
        async with asking(board, await board.listen("127.0.0.1", 0)) as peer:
            with pytest.raises(PeerError, match="expected"):
                await opening_from_untrusted(peer, b"request")


def test_a_quota_fills_again_with_time_and_strangers_share_one() -> None:
    quota = opening_limits.OpeningQuota(burst=100, member_rate=10, strangers_rate=5)
    for member, rate in ((b"ann", 10), (b"", 5)):
        quota.charge(member, 150, 0.0)
        assert quota.wait_s(member, 0.0) == pytest.approx(50 / rate)
        assert quota.wait_s(member, 50 / rate) == pytest.approx(0.0)
    assert quota.wait_s(b"bob", 0.0) == 0.0
    for number in range(5000):
        quota.charge(b"%d" % number, 1, 1.0)
    assert len(quota._spent) <= opening_limits.MOST_KNOWN
