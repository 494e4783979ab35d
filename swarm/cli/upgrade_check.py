"""`swarm upgrade-check`: ask the package index for a newer version, because a person said so."""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from dataclasses import dataclass

from swarm.base.config import MemberConfig
from swarm.base.errors import SwarmError
from swarm.base.option import build, option
from swarm.cli.common import add_member_options, member_config, say
from swarm.cli.parser import Parser


def index_address(text: str) -> str:
    """The address of a package index. Raises UsageError."""
    from swarm.terminal.upgrade import read_index

    return read_index(text)


@dataclass(frozen=True)
class UpgradeOptions:
    """Whom to ask, and how to print it."""

    index: str = option(
        "https://pypi.org/pypi", "package index to ask (default: %(default)s)", "URL", read=index_address, everyday=True
    )
    offline: bool = option(False, "ask no index; say what runs here and in the swarm", everyday=True)
    json: bool = option(False, "print JSON", everyday=True)


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Ask PyPI whether there is a newer version, and say whether it talks to this one and how to install it the way "
        "this one was. With --swarm, or a swarm used before, also which versions its nodes run. Nothing else in this "
        "program asks for versions: no command looks by itself."
    )
    parser.declare(UpgradeOptions)
    add_member_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and tell. Raises SwarmError."""
    from swarm import __version__
    from swarm.net.channel.handshake import VERSION
    from swarm.terminal.upgrade import Newest, ask_index, upgrade_found

    options, member = build(UpgradeOptions, vars(arguments)), member_config(arguments)
    if options.offline:
        newest = Newest(__version__, __version__, VERSION)
    else:
        newest = ask_index(options.index, member.http_proxy, platform.python_version())
    found = upgrade_found(newest, VERSION, _versions(member))
    if options.json:
        print(json.dumps({**found.as_json(), "asked": None if options.offline else options.index}))
    else:
        for line in found.lines()[: -1 if options.offline else None]:
            print(line)
    return 0


def _versions(member: MemberConfig) -> dict[str, int] | None:
    """Which versions the nodes of the swarm at hand run; None where there is none, or it is not reached."""
    import asyncio
    from dataclasses import replace

    from swarm.discovery.state_dir import LAST_INVITE
    from swarm.mesh.saved import PEERS_FILE

    known = (member.state / LAST_INVITE, member.state / "requester" / PEERS_FILE)
    if member.invite is None and not any(file.is_file() for file in known):
        return None

    async def look() -> dict[str, int]:
        from swarm.terminal.observer import look_at

        async with look_at(replace(member, lan=False)) as snapshot:
            seen = await snapshot()
        return Counter(node.software or "an unknown version" for node in seen.nodes if node.standing == "up")

    try:
        return asyncio.run(look())
    except SwarmError as error:
        say(f"the swarm was not looked at: {error}")
        return None
