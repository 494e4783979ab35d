"""Into a swarm by an invite whose members are gone, by what this machine knew of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from swarm.base.config import JoinConfig, MemberConfig
from swarm.base.errors import PeerError, UsageError
from swarm.base.events import Event
from swarm.base.owner import OwnerDesk
from swarm.discovery.bootstrap import enter_as_guest, enter_by_invite
from swarm.discovery.bootstrap_node import enter_as_node
from swarm.discovery.state_dir import LAST_INVITE
from swarm.mesh.invite import make_invite, parse_invite_untrusted
from swarm.mesh.lan import LanNode
from swarm.mesh.membership import InviteError, Membership
from swarm.mesh.saved import Saved, save
from swarm.model.files.store import ModelStore
from swarm.net.identity import Identity
from tests.swarm.mesh.field import MODEL, REF, Field, invite_of, kill
from tests.swarm.model.tiny import random_model, tiny_config


@pytest.fixture
async def field_() -> AsyncIterator[Field]:
    async with AsyncExitStack() as stack:
        yield Field(stack)


async def test_members_known_from_before_open_where_the_invites_are_gone(field_: Field) -> None:
    a = await field_.first()
    invite = parse_invite_untrusted(invite_of(a))
    b = await field_.join(invite_of(a))
    identity = Identity.generate()
    board, _ = await field_.board(identity)
    saved = await enter_by_invite(board, invite, "node")
    saved = replace(saved, peers=(*saved.peers, (b.board.id, (b.address,))), version=77)
    kill(a)
    for peer in board.peers():
        await peer.close("over")
    with pytest.raises(PeerError, match="no member of the swarm could be reached"):
        await enter_by_invite(board, invite, "node")
    again = await enter_by_invite(board, invite, "node", known=saved)
    assert again.peers[0][0] == b.board.id and {node for node, _ in again.peers} == {a.board.id, b.board.id}
    assert again.version == 77 and again.membership.swarm == invite.swarm


async def test_who_was_admitted_needs_no_fresh_invite_and_a_stranger_does(field_: Field) -> None:
    a = await field_.first()
    identity = Identity.generate()
    board, _ = await field_.board(identity)
    saved = await enter_by_invite(board, parse_invite_untrusted(invite_of(a)), "node")
    old = make_invite(a.gossip.membership, MODEL, REF, [(a.board.id, [a.address])], time.time() - 900, 600)
    assert (await enter_by_invite(board, old, "node", known=saved)).membership.swarm == saved.membership.swarm
    other = Saved(Membership.found(identity, False), MODEL, REF, saved.peers)
    for known in (None, other):
        with pytest.raises(InviteError, match="expired"):
            await enter_by_invite(board, old, "node", known=known)


async def test_a_swarm_that_is_heard_and_may_not_be_entered_stops_a_founder(
    field_: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await field_.first()
    closed = LanNode(a.gossip.membership.swarm, a.board.id, MODEL[:16], False, (a.address,))
    heard = [closed]

    async def hear(seconds: float) -> list[LanNode]:
        return heard

    monkeypatch.setattr("swarm.discovery.bootstrap.find", hear)
    identity = Identity.generate()
    board, _ = await field_.board(identity)
    store = ModelStore(tmp_path / "models")
    member = MemberConfig(tmp_path, tmp_path / "models")
    said: list[Event] = []
    with pytest.raises(UsageError, match=r"127\.0\.0\.1.* 1 by invite only; .*swarm invite.*swarm join --found"):
        await enter_as_node(JoinConfig(member), tmp_path, identity, board, store, said.append, OwnerDesk())
    with pytest.raises(UsageError, match="swarm invite --guest"):
        await enter_as_guest(board, member, tmp_path, identity, said.append)
    model = tmp_path / "tiny"
    random_model(tiny_config("llama")).save_pretrained(model)
    founder = JoinConfig(member, model=str(model), found=True)
    found, manifest = await enter_as_node(founder, tmp_path, identity, board, store, said.append, OwnerDesk())
    assert manifest is not None and found.membership.swarm != closed.swarm
    heard.append(replace(closed, open=True, model=bytes(16), swarm=bytes(32)))  # open, and for another model
    with pytest.raises(UsageError, match="1 by invite only, 1 for another model"):
        await enter_as_node(replace(founder, found=False), tmp_path, identity, board, store, said.append, OwnerDesk())


async def test_a_guest_of_a_swarm_that_ends_with_it_leaves_the_one_used_last_alone(
    field_: Field, tmp_path: Path
) -> None:
    invite = invite_of(await field_.first())
    (tmp_path / LAST_INVITE).write_text("the one used last")
    for remember, kept in ((False, "the one used last"), (True, invite)):
        identity = Identity.generate()
        board, _ = await field_.board(identity)
        member = MemberConfig(tmp_path, tmp_path / "models", invite, lan=False, remember=remember)
        await enter_as_guest(board, member, tmp_path / identity.id.hex(), identity, lambda event: None)
        assert (tmp_path / LAST_INVITE).read_text() == kept


async def test_a_member_that_reaches_nobody_waits_and_a_newcomer_is_told(field_: Field, tmp_path: Path) -> None:
    a = await field_.first()
    invite = invite_of(a)
    identity = Identity.generate()
    board, _ = await field_.board(identity)
    saved = await enter_by_invite(board, parse_invite_untrusted(invite), "node")
    kill(a)
    for peer in board.peers():
        await peer.close("over")
    member = MemberConfig(tmp_path, tmp_path / "models", invite, lan=False)
    config = JoinConfig(member, weights="peers")
    store = ModelStore(tmp_path / "models")
    said: list[Event] = []
    with pytest.raises(PeerError, match="ask for a newer invite"):
        await enter_as_node(config, tmp_path, identity, board, store, said.append, OwnerDesk())
    save(tmp_path, saved)
    found, manifest = await enter_as_node(config, tmp_path, identity, board, store, said.append, OwnerDesk())
    assert found.membership == saved.membership and manifest is None
    assert "waits for the others" in str(said[-1])
