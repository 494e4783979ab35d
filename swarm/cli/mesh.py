"""`swarm invite` and `swarm revoke`: who may come in."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from dataclasses import replace

from swarm.base.config import parse_address
from swarm.base.errors import SwarmError, UsageError
from swarm.cli.common import add_folders, add_member_options, member_config, say, state_dir
from swarm.cli.loop import run_loop

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parsers of the commands."""
    invite = commands.add_parser(
        "invite",
        help="let others in",
        description="Print an invite to the swarm of this machine's node. Works while the node runs and while it does "
        "not: members share what it takes to invite.",
    )
    invite.set_defaults(run=run_invite)
    invite.add_argument("--expires", default="7d", metavar="TIME", help="e.g. 30m, 1h, 7d (default: %(default)s)")
    invite.add_argument(
        "--once", action="store_true", help="opens the door once; only this machine's node can honour it"
    )
    invite.add_argument(
        "--guest",
        action="store_true",
        help="lets its holder use the swarm until it expires, and neither serve layers nor let in others",
    )
    invite.add_argument("--address", metavar="HOST:PORT", help="address to put into it (default: the node's own)")
    invite.add_argument("--qr", action="store_true", help="also draw it as a QR code")
    invite.add_argument("--json", action="store_true", help="print JSON")
    add_folders(invite)
    revoke = commands.add_parser(
        "revoke",
        help="end an invite",
        description="Make an invite open nothing any more, and end what came of "
        "it: nodes and guests that it let in, and the invites that those made.",
    )
    revoke.set_defaults(run=run_revoke)
    revoke.add_argument("invite", metavar="INVITE", help="the invite to end")
    add_member_options(revoke)


def seconds(text: str) -> int:
    """A span of time such as 90, 30m, 1h or 7d. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if found is None or int(found[1]) == 0:
        raise UsageError(f"expected a time such as 30m, 1h or 7d, found {text!r}")
    return int(found[1]) * UNITS[found[2] or "s"]


def run_invite(arguments: argparse.Namespace) -> int:
    """Print an invite."""
    from swarm.discovery.state_dir import LAST_INVITE
    from swarm.mesh.invite import make_invite, parse_invite_untrusted, qr_text
    from swarm.mesh.saved import load
    from swarm.net.identity import Identity

    state = state_dir(arguments)
    last = state / LAST_INVITE
    if not (state / "identity.key").is_file() or not last.is_file():
        raise UsageError(f"expected the state of a node in {state}, found none; start one first: swarm join")
    identity = Identity.load_or_create(state)
    saved = load(state, identity)
    if saved is None or not saved.membership.is_member:
        raise UsageError(f"expected a member's state in {state}, found a guest's; ask a member for an invite")
    known = dict(parse_invite_untrusted(last.read_text("utf-8")).members)
    if arguments.address:
        known = {identity.id: (parse_address(arguments.address),)}
    own = known.pop(identity.id, ())
    members = [(identity.id, own), *known.items(), *((n, a) for n, a in saved.peers if n not in known)]
    span = seconds(arguments.expires)
    role = "guest" if arguments.guest else "node"
    made = make_invite(saved.membership, saved.model, saved.ref, members[:4], time.time(), span, arguments.once, role)
    text = made.text()
    if arguments.json:
        print(json.dumps({"invite": text, "model": saved.ref, "expires_s": span, "once": arguments.once, "role": role}))
        return 0
    print(text)
    if arguments.qr:
        print(qr_text(text))
    return 0


def run_revoke(arguments: argparse.Namespace) -> int:
    """Tell the swarm that an invite is void."""
    return run_loop(_revoke(arguments))


async def _revoke(arguments: argparse.Namespace) -> int:
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
    ledger = saved.ledger.revoking(notice, saved.membership, time.time())
    save(state, replace(saved, ledger=ledger))
    if told == 0:
        raise UsageError("nobody of the swarm could be told; start a node of it and revoke again")
    say(f"revoked; {told} member{'s' if told > 1 else ''} told, who pass it on")
    return 0
