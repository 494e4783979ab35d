"""Real switchboards on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from swarm.base.errors import PeerError
from swarm.base.nodeid import short_id
from swarm.mesh import gossip
from swarm.mesh.action import SendDelta
from swarm.mesh.hello import Hello, enter, invited
from swarm.mesh.invite import parse_invite_untrusted
from swarm.mesh.membership import InviteError
from swarm.mesh.messages import delta_message
from swarm.mesh.record import NodeRecord, sign_record
from swarm.mesh.saved import Saved
from swarm.mesh.table import Held, Table
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from tests.swarm.mesh.field import MODEL, REF, Ahead, Field, invite_of, kill, kill_tasks, until


@pytest.fixture
async def field_() -> AsyncIterator[Field]:
    async with AsyncExitStack() as stack:
        yield Field(stack)


async def test_joiners_learn_of_each_other_and_of_changes(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    c = await field_.join(invite_of(a))
    everybody = {a.board.id, b.board.id, c.board.id}
    await until(lambda: all(n.up() == everybody for n in (a, b, c)), a, b, c)
    b.gossip.publish(layers=(10, 20), device="test device")
    await until(lambda: all(n.gossip.member(b.board.id).record.layers == (10, 20) for n in (a, c)), a, c)


async def test_a_node_that_leaves_is_gone_at_once_and_its_swarm_stays(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    c = await field_.join(invite_of(a))
    await until(lambda: all(len(n.up()) == 3 for n in (a, b, c)), a, b, c)
    await a.gossip.leave()
    await a.board.aclose()
    await until(lambda: all(n.gossip.member(a.board.id).standing == "left" for n in (b, c)), b, c)
    d = await field_.join(invite_of(c))
    await until(lambda: d.up() == {b.board.id, c.board.id, d.board.id} == b.up(), b, c, d)


async def test_a_node_that_dies_is_found_down_by_the_others(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    c = await field_.join(invite_of(a))
    await until(lambda: all(len(n.up()) == 3 for n in (a, b, c)), a, b, c)
    kill(c)
    await until(lambda: all(n.gossip.member(c.board.id).standing == "down" for n in (a, b)), a, b)


async def test_a_guest_sees_the_swarm_and_is_no_member_of_it(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    guest = await field_.join(invite_of(a), role="guest")
    await until(lambda: guest.up() == {a.board.id, b.board.id}, guest)
    assert guest.board.id not in a.up() and a.gossip.admitted(guest.board.id)
    assert not b.gossip.admitted(guest.board.id)
    await guest.gossip.link(b.board.id)
    assert b.gossip.admitted(guest.board.id)
    with pytest.raises(InviteError, match="only a member can revoke"):
        guest.gossip.revoke(parse_invite_untrusted(invite_of(a)).token)


async def test_expired_revoked_and_used_invites_are_refused_in_words(field_: Field) -> None:
    late = Ahead()
    a = await field_.first(time=late)
    b = await field_.join(invite_of(a))
    await until(lambda: len(b.up()) == 2, b)
    revoked = invite_of(a)
    b.gossip.revoke(parse_invite_untrusted(revoked).token)
    await until(lambda: a.gossip.state.revoked != {}, a, b)
    with pytest.raises(InviteError, match="was revoked"):
        await field_.join(revoked)
    once = invite_of(a, once=True)
    await field_.join(once)
    with pytest.raises(PeerError, match="for one use and is used"):
        await field_.join(once)
    old = invite_of(a, expires_s=1)
    late.seconds = 3600
    with pytest.raises(InviteError, match="expired 59 minutes ago"):
        await field_.join(old)


async def test_without_an_invite_the_door_is_shut_unless_the_swarm_is_open(field_: Field) -> None:
    closed, open_ = await field_.first(), await field_.first(open_swarm=True)
    for node, opens in ((closed, False), (open_, True)):
        identity = Identity.generate()
        board, _ = await field_.board(identity)
        hello = Hello(node.gossip.membership.swarm, b"", "node", None, None)
        knocking = enter(board, hello, [(node.board.id, [node.address])])
        if opens:
            welcome, by = await knocking
            assert welcome.model == MODEL and by == node.board.id
        else:
            with pytest.raises(InviteError, match="admits by invite"):
                await knocking


async def test_a_member_comes_back_after_everybody_was_gone(field_: Field) -> None:
    """Cold restart: no invite, only what each kept."""
    a = await field_.first()
    b = await field_.join(invite_of(a))
    await until(lambda: len(a.up()) == len(b.up()) == 2, a, b)
    kept = [(n, n.gossip.saved()) for n in (a, b)]
    for node, _ in kept:
        await node.gossip.leave()
        await node.board.aclose()
    again = []
    for node, saved in kept:
        board = await field_.stack.enter_async_context(Switchboard(node.identity))
        address = await board.listen(*node.address)
        again.append(await field_.start(board, address, node.identity, saved))
    await until(lambda: all(len(n.up()) == 2 for n in again), *again)
    assert all(n.gossip.saved().version > saved.version for n, (_, saved) in zip(again, kept, strict=True))


async def test_who_floods_or_forges_is_turned_away_and_harms_nobody(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    await until(lambda: len(a.up()) == len(b.up()) == 2, a, b)
    membership = a.gossip.membership
    strangers = [Identity.generate() for _ in range(400)]

    def sealed(identity: Identity, sign: Identity | None = None, proof: bytes | None = None) -> Held:
        plain = NodeRecord(identity.id, membership.swarm, time.time_ns() // 1000, int(time.time()), 60)
        full = replace(plain, proof=membership.prove(identity.id) if proof is None else proof)
        return Held.of(sign_record(full, (sign or identity).sign), time.monotonic())

    bad: list[list[Message]] = [
        [
            delta_message(SendDelta(b"", tuple(sealed(s) for s in strangers[i : i + 50])), time.monotonic())
            for i in range(0, 400, 50)
        ],
        [delta_message(SendDelta(b"", (sealed(strangers[0], sign=strangers[1]),)), time.monotonic())],
        [delta_message(SendDelta(b"", (sealed(strangers[0], proof=bytes(16)),)), time.monotonic())],
        [Message("mesh.delta", {}, b"\xc1garbage")],
        [Message("mesh.hints", {"n": 9}, b"short")],
        [Message("mesh.digest", {}, b"short")],
    ]
    for messages in bad:
        c = await field_.join(invite_of(a))
        await until(lambda c=c: c.board.id in a.gossip.state.links and len(c.up()) >= 3, a, c)
        peer = c.board.get(a.board.id)
        kill_tasks(c)
        for message in messages:
            peer.post(message, flow="mesh")
        await asyncio.wait_for(peer.wait_closed(), 10)
        assert c.board.id not in a.gossip.state.links
        with pytest.raises(InviteError, match="turns this one away for a while"):
            again = Hello(membership.swarm, b"", "node", c.gossip.membership.proof, None)
            await enter(c.board, again, [(a.board.id, [a.address])])
    known = {view.record.node for view in a.gossip.members()}
    assert strangers[399].id not in known and len(known) < 80
    assert b.board.id in a.up()


async def test_two_processes_with_one_key_are_told_and_the_younger_yields(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    await until(lambda: len(a.up()) == len(b.up()) == 2, a, b)
    board, address = await field_.board(b.identity)
    copy = await field_.start(board, address, b.identity, b.gossip.saved())
    await until(lambda: bool(copy.clashes), a, copy)
    assert "two nodes use the key of" in copy.clashes[0] and "another --state" in copy.clashes[0]
    assert not b.clashes


async def test_clocks_that_differ_by_an_hour_do_no_harm(field_: Field, caplog: pytest.LogCaptureFixture) -> None:
    a = await field_.first()
    identity = Identity.generate()
    board, address = await field_.board(identity)
    invite = parse_invite_untrusted(invite_of(a))
    welcome, _ = await enter(board, invited(invite, "node"), invite.members)
    saved = Saved(welcome.membership, MODEL, REF, invite.members)
    late = await field_.start(board, address, identity, saved, time=Ahead(-3600))
    await until(lambda: len(a.up()) == len(late.up()) == 2, a, late)
    early_identity = Identity.generate()
    board, address = await field_.board(early_identity)
    early = await field_.start(
        board, address, early_identity, await saved_for(field_, invite_of(a), board), time=Ahead(86400)
    )
    said = f"clocks differ: that of node {short_id(early.board.id)} is 24.0 hours ahead of that of node"
    await until(lambda: said in caplog.text, a, early)
    await until(lambda: len(a.up()) == 2, a)
    assert a.gossip.member(early.board.id) is None  # a day ahead: turned away, and nothing breaks


@pytest.mark.parametrize(("hours", "how"), [(24, "24.0 hours ahead of"), (-30, "30.0 hours behind")])
async def test_who_comes_with_a_clock_a_day_off_is_told_so_by_how_much_and_whose(
    field_: Field, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hours: int, how: str
) -> None:
    a = await field_.first()
    identity = Identity.generate()
    board, _ = await field_.board(identity)
    invite = parse_invite_untrusted(invite_of(a))
    off = time.time() + 3600 * hours
    monkeypatch.setattr("swarm.mesh.hello.time.time", lambda: off)
    told = f"clocks differ: that of node {short_id(identity.id)} is {how} that of node {short_id(a.board.id)}; "
    a.gossip._neighbours._time = Ahead(-3600 * hours)
    with pytest.raises(PeerError, match=told):
        await enter(board, invited(invite, "guest"), invite.members)
    assert told in caplog.text  # whoever runs the node reads the same


async def saved_for(field: Field, text: str, board: Switchboard) -> Saved:
    invite = parse_invite_untrusted(text)
    welcome, _ = await enter(board, invited(invite, "node"), invite.members)
    return Saved(welcome.membership, MODEL, REF, invite.members)


async def test_who_is_gone_before_it_is_welcomed_leaves_nothing(field_: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """A valid hello on a connection that ends with it, under key after key: an invite makes as many as it likes."""
    a = await field_.first()
    admit = Peer.admit

    def admitted(peer: Peer) -> None:
        admit(peer)
        if not peer.dialled:
            peer.drop("gone")

    monkeypatch.setattr(Peer, "admit", admitted)
    async with Switchboard(Identity.generate()) as board:
        with pytest.raises(PeerError):
            await saved_for(field_, invite_of(a), board)
    await until(lambda: not a.board.peers(), a)
    assert not a.gossip._neighbours._shown


async def test_round_trips_are_measured_and_told(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    await until(lambda: len(a.up()) == len(b.up()) == 2, a, b)
    await b.gossip.measure([a.board.id, b.board.id, bytes(32)])
    view = b.gossip.member(a.board.id)
    assert view.rtt_ms is not None and view.rtt_ms < 1000 and b.gossip.rtts.for_record(time.monotonic())
    b.gossip.publish(state="serving", layers=(0, 5))
    await until(lambda: bool(a.gossip.member(b.board.id).record.rtts), a)
    assert a.gossip.member(b.board.id).record.coordinate


async def test_an_unreachable_swarm_is_one_clear_line(field_: Field) -> None:
    a = await field_.first()
    text = invite_of(a)
    await a.gossip.leave()
    await a.board.aclose()
    with pytest.raises(PeerError, match="no member of the swarm could be reached: .*; ask for a newer invite"):
        await field_.join(text)
    board, _ = await field_.board(a.identity)
    with pytest.raises(PeerError, match="none but this node itself"):
        await enter(board, invited(parse_invite_untrusted(text), "node"), parse_invite_untrusted(text).members)


async def test_who_lost_its_only_neighbour_knocks_again_soon(field_: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest, whom nobody dials, and that has not heard of any member yet when the connection breaks."""
    monkeypatch.setattr(gossip, "LONELY_S", 0.1)
    a = await field_.first()
    guest = await field_.join(invite_of(a), role="guest")
    await until(lambda: len(guest.up()) == 1, guest)
    guest.gossip.state = guest.gossip.state.but(table=Table())
    cut = guest.board.get(a.board.id)
    assert cut is not None
    cut.drop("cut")

    def linked() -> bool:
        return a.board.id in guest.gossip.state.links and guest.board.get(a.board.id) not in (None, cut)

    await until(linked, guest, timeout=5.0)


async def test_who_was_dialled_and_shows_no_admission_is_no_member_for_long(
    field_: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that this one made the connection to is served at once, since this one says the hello."""
    monkeypatch.setattr("swarm.mesh.neighbours.BARE_S", 0.1)
    a = await field_.first()
    b = await field_.join(invite_of(a))
    async with Switchboard(Identity.generate()) as silent:
        address = await silent.listen("127.0.0.1", 0)
        peer = await a.board.peer(silent.id, [address])
        assert not peer.stranger
        await until(lambda: a.board.get(silent.id) is None, a)
    assert peer.closed_reason is not None and "showed no proof" in peer.closed_reason
    await until(lambda: silent.id not in a.gossip._neighbours._bare, a)
    assert a.board.get(b.board.id) is not None
