"""`swarm invite`: let others in."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from dataclasses import dataclass

from swarm.base.config import MemberConfig, parse_dialled
from swarm.base.errors import RunError, UsageError
from swarm.base.option import build, option, or_none
from swarm.cli.common import say, state_dir
from swarm.cli.parser import Parser

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """A span of time such as 90, 30m, 1h or 7d. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if found is None or int(found[1]) == 0:
        raise UsageError(f"expected a time such as 30m, 1h or 7d, found {text!r}")
    return int(found[1]) * UNITS[found[2] or "s"]


@dataclass(frozen=True)
class InviteOptions:
    """Whom to let in, for how long, and how to print it."""

    expires_s: int = option(
        7 * UNITS["d"], "e.g. 30m, 1h, 7d (default: %(default)s)", "TIME", name="--expires", read=seconds, shown="7d"
    )
    once: bool = option(False, "opens the door once; only this machine's node can honour it")
    guest: bool = option(
        False, "lets its holder use the swarm until it expires, and neither serve layers nor let in others"
    )
    address: tuple[str, int] | None = option(
        None, "address to put into it (default: the node's own)", "HOST:PORT", read=or_none(parse_dialled)
    )
    copy: bool = option(False, "also put it into the clipboard: by the desktop's program, else by the terminal")
    qr: bool = option(False, "also draw it as a QR code")
    json: bool = option(False, "print JSON")


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Print an invite to the swarm of this machine's node. Works while the node runs and while it does not: "
        "members share what it takes to invite."
    )
    parser.declare(InviteOptions)
    parser.declare(MemberConfig, "state", "models")
    parser.set_defaults(run=run)


def too_large(drawn: str, columns: int, lines: int) -> str | None:
    """What to say where a terminal cannot show a drawing whole, which no camera reads then."""
    rows = drawn.strip("\n").splitlines()
    width = max(map(len, rows))
    if width <= columns and len(rows) < lines:
        return None
    return (
        f"this QR code takes {width} columns and {len(rows)} lines, the terminal has {columns} and {lines}: enlarge it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print an invite."""
    from swarm.discovery.state_dir import LAST_INVITE
    from swarm.mesh.invite import make_invite, parse_invite_untrusted, qr_text
    from swarm.mesh.saved import load
    from swarm.net.identity import Identity

    options, state = build(InviteOptions, vars(arguments)), state_dir(arguments)
    last = state / LAST_INVITE
    if not (state / "identity.key").is_file() or not last.is_file():
        raise UsageError(f"expected the state of a node in {state}, found none; start one first: swarm join")
    identity = Identity.load_or_create(state)
    saved = load(state, identity)
    if saved is None or not saved.membership.is_member:
        raise UsageError(f"expected a member's state in {state}, found a guest's; ask a member for an invite")
    known = dict(parse_invite_untrusted(last.read_text("utf-8")).members)
    if options.address:
        known = {identity.id: (options.address,)}
    own = known.pop(identity.id, ())
    members = [(identity.id, own), *known.items(), *((n, a) for n, a in saved.peers if n not in known)]
    span, role = options.expires_s, "guest" if options.guest else "node"
    made = make_invite(saved.membership, saved.model, saved.ref, members[:4], time.time(), span, options.once, role)
    text = made.text()
    if options.json:
        print(json.dumps({"invite": text, "model": saved.ref, "expires_s": span, "once": options.once, "role": role}))
        return 0
    print(text)
    if options.copy:
        from swarm.terminal.clipboard import copy

        by = copy(text, sys.stderr)
        if by is None:
            raise RunError("no clipboard was found here; copy the line above, or swarm invite --qr")
        say(f"copied by {by}")
    if options.qr:
        drawn = qr_text(text)
        print(drawn)
        if sys.stdout.isatty() and (said := too_large(drawn, *shutil.get_terminal_size())):
            say(said)
    return 0
