"""`swarm revoke`: end an invite."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

from swarm.base.config import read_invite
from swarm.base.errors import SwarmError, UsageError
from swarm.base.option import option
from swarm.cli.common import add_member_options, member_config, say, state_dir
from swarm.cli.loop import run_loop
from swarm.cli.parser import Parser


@dataclass(frozen=True)
class RevokeOptions:
    """Which invite."""

    invite: str = option("", "the invite to end, or a file that holds it", "INVITE", name="invite", read=read_invite)


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Make an invite open nothing any more, and end what came of it: nodes and guests that it let in, and the "
        "invites that those made."
    )
    parser.declare(RevokeOptions)
    add_member_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tell the swarm that an invite is void."""
    return run_loop(_revoke(arguments))


async def _revoke(arguments: argparse.Namespace) -> int:
    import asyncio

    from swarm.mesh.gossip import Gossip
    from swarm.mesh.invite import parse_invite_untrusted
    from swarm.mesh.membership import Membership
    from swarm.mesh.saved import load, save
    from swarm.net.identity import Identity
    from swarm.net.switchboard import Switchboard

    invite = parse_invite_untrusted(arguments.invite)
    if invite.token is None:
        raise UsageError("expected an invite with a token, found one to an open swarm; there is nothing to revoke")
    state = state_dir(arguments)
    identity = Identity.load_or_create(state)
    saved = load(state, identity)
    if saved is None or not saved.membership.is_member or saved.membership.swarm != invite.swarm:
        raise UsageError(f"expected the state of a member of that swarm in {state}; revoke on a machine that serves it")
    # A key of its own: the node of this state folder may be running under the folder's.
    guest = Identity.generate()
    member = Membership.accept_untrusted(
        saved.membership.swarm,
        guest,
        saved.membership.charter,
        saved.membership.open,
        saved.membership.prove(guest.id, "guest"),
    )
    notice = saved.membership.revoke(invite.token)
    told = 0
    async with Switchboard(guest, proxy=member_config(arguments).http_proxy) as board:
        async with Gossip(board, replace(saved, membership=member)) as gossip:
            gossip.spread(notice)
            for node, addresses in [*invite.members, *saved.peers]:
                try:
                    await board.peer(node, addresses, 3.0)
                    await gossip.link(node)
                    told += 1
                except SwarmError as error:
                    say(f"a member was not told: {error}")
            await asyncio.sleep(0.5)
    ledger = saved.ledger.revoking([notice], saved.membership, time.time())
    save(state, replace(saved, ledger=ledger))
    if told == 0:
        raise UsageError("nobody of the swarm could be told; start a node of it and revoke again")
    say(f"revoked; {told} member{'s' if told > 1 else ''} told, who pass it on")
    return 0
