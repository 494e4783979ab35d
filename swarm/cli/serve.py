"""`swarm serve`: the swarm behind an OpenAI-compatible API, with a dashboard."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.base.config import FOUND_BY_ITSELF, LAN, PORT, SWARM, MemberConfig, read_invite
from swarm.base.errors import UsageError
from swarm.base.option import Number, build, option
from swarm.cli.announce import told_of, with_owners_key
from swarm.cli.common import add_member_options, member_configs, route_rules, say
from swarm.cli.early import check_draft, check_http_port, check_swarm
from swarm.cli.logs import LogConfig, logging_to
from swarm.cli.loop import load, run_loop
from swarm.cli.parser import Parser
from swarm.client.config import RequesterConfig
from swarm.client.route_policy import RouteRules
from swarm.serve.config import GatewayConfig

if TYPE_CHECKING:
    from swarm.base.events import Report

KEEP_S = 300.0
"""How long the stages are asked to hold a closed run, for the next turn of a conversation."""
RUNS = Number(int, 1, 1024, "a number of runs, or MODEL=N")


def runs_at_once(text: str) -> tuple[str, int]:
    """N, or MODEL=N; the model is "" where none is named. Raises UsageError."""
    model, equals, count = text.rpartition("=")
    if equals and not model:
        raise UsageError(f"expected N or MODEL=N, found {text!r}, which names no model")
    return model, int(RUNS(count))


@dataclass(frozen=True)
class ServeOptions:
    """Which swarms, and where the gateway listens."""

    swarms: tuple[str, ...] = option(
        (),
        f"invite text, or a file that holds it {FOUND_BY_ITSELF}; given again, one more model: requests name theirs",
        "INVITE",
        name="--swarm",
        read=read_invite,
        repeat=True,
        group=SWARM,
        everyday=True,
    )
    host: str = option(
        "localhost",
        "address to listen on; localhost and :: are IPv6 and IPv4 (default: %(default)s)",
        "HOST",
        group="http",
        everyday=True,
    )
    port: int = option(8080, "(default: %(default)s)", "PORT", read=PORT, group="http", everyday=True)
    limits: tuple[tuple[str, int], ...] = option(
        (),
        "runs on a ring at once, of every model or of one; others wait their turn (default: 8)",
        "[MODEL=]N",
        name="--max-running",
        read=runs_at_once,
        repeat=True,
        group="http",
    )


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = "Serve one swarm or several to clients and browsers until Ctrl-C. The dashboard is at /."
    parser.declare(ServeOptions)
    parser.declare(GatewayConfig)
    parser.declare(RequesterConfig, without=("draft",))
    parser.declare(RouteRules)
    parser.declare(LogConfig)
    add_member_options(parser, without=("invite",))
    parser.set_defaults(run=run, grace=30.0)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    given, members = vars(arguments), members_of(arguments)
    options, config, rules = build(ServeOptions, given), gateway_config(arguments), route_rules(arguments)
    host = options.host.removeprefix("[").removesuffix("]")
    check_http_port(host, options.port)
    check_draft(config.draft, arguments.draft_model, arguments.draft_gpu)
    keep_s = 0.0 if config.prefix_cache == "off" else KEEP_S
    common = build(
        RequesterConfig, given, member=members[0], draft=config.draft, await_news=False, keep_s=keep_s, rules=rules
    )
    asked = [
        replace(common, member=member, log=log_of(common.log, number if len(members) > 1 else None))
        for number, member in enumerate(members, 1)
    ]
    if not config.api_keys and host not in ("127.0.0.1", "::1", "localhost"):
        say(f"whoever reaches {host} port {options.port} may use the swarm; --api-key FILE asks for a key")
    for member in members:
        check_swarm(member)
    from swarm.terminal.progress import reporter

    load("swarm.client.client")
    load("swarm.serve.gateway")
    with reporter(json_lines=False, out=sys.stderr) as report, logging_to(report, build(LogConfig, given)):
        run_loop(serve_until_stopped(asked, config, host, options.port, report))
    return 0


def log_of(folder: Path | None, number: int | None) -> Path | None:
    """Where one swarm's receipts are entered: a log has one writer and one key, so several swarms have folders of their
    own below, 1, 2 and so on."""
    return folder if folder is None or number is None else folder / str(number)


def gateway_config(arguments: argparse.Namespace) -> GatewayConfig:
    """The gateway's settings from the options."""
    limits = build(ServeOptions, vars(arguments)).limits
    config = build(
        GatewayConfig,
        vars(arguments),
        max_running=next((count for model, count in reversed(limits) if not model), 8),
        max_running_of=tuple((model, count) for model, count in limits if model),
    )
    return replace(config, draft="none") if config.speculation == "plain" else config


def members_of(arguments: argparse.Namespace) -> tuple[MemberConfig, ...]:
    """One for each swarm that is asked for; `--swarm lan` stands for all open ones of the local network."""
    swarms = arguments.swarm or [None]
    if arguments.no_lan and LAN in swarms:
        raise UsageError("expected either --swarm lan or --no-lan, found both; leave one out")
    members: list[MemberConfig] = []
    for member in member_configs(arguments, swarms):
        if member.invite != LAN:
            members.append(member)
            continue
        import asyncio

        from swarm.discovery.bootstrap import open_lan_swarms

        heard = asyncio.run(open_lan_swarms())
        if not heard:
            raise UsageError(
                "expected an open swarm on the local network, heard none; start one with swarm join --open, or "
                "give --swarm INVITE"
            )
        members += [replace(member, invite=None, lan_swarm=swarm) for swarm in heard]
    return tuple(members)


async def serve_until_stopped(
    asked: Sequence[RequesterConfig], config: GatewayConfig, host: str, port: int, report: Report
) -> None:
    """Connect, serve, and stop at SIGTERM or Ctrl-C; a second one does not wait for answers. Raises SwarmError."""
    import asyncio

    from receipts.check.verify import verify
    from swarm.base.settled import settle
    from swarm.base.signals import on_signals
    from swarm.client.client import Requester
    from swarm.serve.gateway import gateway
    from swarm.serve.listen import url_of
    from swarm.terminal.progress import EventLog, tee

    log = EventLog()
    config, key = with_owners_key(config)
    stop, hurry = asyncio.Event(), asyncio.Event()
    with on_signals(lambda: (hurry if stop.is_set() else stop).set()):
        async with AsyncExitStack() as stack:
            ready = [
                await stack.enter_async_context(await Requester.connect(one, tee(report, log.report))) for one in asked
            ]
            serving = gateway(
                ready[0], config, lambda data: verify(data).as_json(), host, port, log.as_json, hurry, ready[1:]
            )
            host, port = await stack.enter_async_context(serving)
            settle()
            models = ", ".join(dict.fromkeys(requester.manifest.model for requester in ready))
            say(f"serving {models} at {url_of(host, port)} (dashboard: /, API: /v1)")
            stack.enter_context(told_of(asked, ready, config, url_of(host, port), key))
            await stop.wait()
            say(f"stopping: answers under way may finish within {config.grace_s:g} s; Ctrl-C again ends them now")
