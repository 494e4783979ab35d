"""`swarm serve`: the swarm behind an OpenAI-compatible API, with a dashboard."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.base.errors import UsageError
from swarm.cli.common import (
    PORT,
    add_draft_model,
    add_keep_receipts,
    add_log,
    add_member_options,
    add_patience,
    add_route_options,
    add_wire,
    keep_receipts_s,
    member_configs,
    number,
    route_rules,
    say,
)
from swarm.cli.early import check_http_port
from swarm.cli.logs import add_log_options, log_config, logging_to
from swarm.cli.loop import run_loop

if TYPE_CHECKING:
    from swarm.base.config import MemberConfig
    from swarm.base.events import Report
    from swarm.client.client import RequesterConfig
    from swarm.serve.config import GatewayConfig


LAN = "lan"
"""In the place of an invite: what the local network offers."""
KEEP_S = 300.0
"""How long the stages are asked to hold a closed run, for the next turn of a conversation."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "serve",
        help="OpenAI-compatible API and dashboard",
        description="Serve one swarm or several to clients and browsers until Ctrl-C. The dashboard is at /.",
    )
    parser.set_defaults(run=run)
    add_member_options(parser, several=True)
    add_route_options(parser)
    http = parser.add_argument_group("http")
    http.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address to listen on (default: %(default)s)")
    http.add_argument("--port", type=PORT, default=8080, metavar="PORT", help="(default: %(default)s)")
    http.add_argument(
        "--api-key",
        type=Path,
        metavar="FILE",
        help="keys that clients must show, one a line: NAME:SECRET, then limits if any: requests=60/min "
        "tokens=200000/day at-once=2",
    )
    http.add_argument(
        "--access-log", type=Path, metavar="FILE", help="a JSON line for every request: key, path, status, receipt"
    )
    http.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN", help="web origin that may call")
    http.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="DNS name of this gateway")
    http.add_argument(
        "--strict",
        action="store_true",
        help="refuse requests with fields that are not known, instead of naming them in x-ignored-fields",
    )
    http.add_argument(
        "--grace",
        type=number(float, 0, 3600, "seconds"),
        default=30.0,
        metavar="S",
        help="how long answers may take to end when stopping; what is not done by then ends with an error "
        "(default: %(default)s)",
    )
    http.add_argument(
        "--max-running",
        type=runs_at_once,
        action="append",
        default=[],
        metavar="[MODEL=]N",
        help="runs on a ring at once, of every model or of one; others wait their turn (default: 8)",
    )
    http.add_argument(
        "--alias",
        type=alias,
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="another name for a model, such as the one that a client insists on (may be given several times)",
    )
    http.add_argument(
        "--prefix-cache",
        choices=("off", "user", "shared"),
        default="user",
        help="whose earlier requests may save a request the part that they share: nobody's, those of the same API key "
        "(or address, without keys), or everybody's, which lets users guess what others asked (default: %(default)s)",
    )
    runs = parser.add_argument_group("runs")
    runs.add_argument("--speculation", choices=("plain", "chain", "tree", "stream"), default="stream")
    runs.add_argument("--draft", choices=("none", "suffix", "lm", "auto"), default="auto")
    add_draft_model(runs, "a small model, of any tokenizer")
    add_wire(runs)
    add_patience(runs)
    add_keep_receipts(runs)
    add_log(runs, "each receipt's close", "; with several --swarm in folders 1, 2, ... below it")
    add_log_options(parser)


def alias(text: str) -> tuple[str, str]:
    """NAME=MODEL."""
    name, _, model = text.partition("=")
    if not name or not model or len(name) > 200:
        raise argparse.ArgumentTypeError(f"expected NAME=MODEL, found {text!r}")
    return name, model


def runs_at_once(text: str) -> tuple[str, int]:
    """N, or MODEL=N; the model is "" where none is named."""
    model, _, count = text.rpartition("=")
    return model, int(number(int, 1, 1024, "a number of runs, or MODEL=N,")(count))


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    members = members_of(arguments)
    arguments.host = arguments.host.removeprefix("[").removesuffix("]")
    check_http_port(arguments.host, arguments.port)
    from swarm.client.client import RequesterConfig

    config = gateway_config(arguments)
    asked = [
        RequesterConfig(
            member,
            draft=config.draft,
            draft_model=arguments.draft_model,
            draft_gpu=arguments.draft_gpu,
            await_news=False,
            keep_s=0.0 if config.prefix_cache == "off" else KEEP_S,
            keep_receipts_s=keep_receipts_s(arguments),
            rules=route_rules(arguments),
            log=log_of(arguments.log, number if len(members) > 1 else None),
        )
        for number, member in enumerate(members, 1)
    ]
    if not config.api_keys and arguments.host not in ("127.0.0.1", "::1", "localhost"):
        say(f"whoever reaches {arguments.host} port {arguments.port} may use the swarm; --api-key FILE asks for a key")
    from swarm.terminal.progress import reporter

    with reporter(json_lines=False, out=sys.stderr) as report, logging_to(report, log_config(arguments)):
        run_loop(serve_until_stopped(asked, config, arguments.host, arguments.port, report))
    return 0


def log_of(folder: Path | None, number: int | None) -> Path | None:
    """Where one swarm's receipts are entered: a log has one writer and one key, so several swarms have folders of their
    own below, 1, 2 and so on."""
    return folder if folder is None or number is None else folder / str(number)


def gateway_config(arguments: argparse.Namespace) -> GatewayConfig:
    """The gateway's settings from the options. Raises UsageError for keys that cannot be read."""
    from swarm.serve.config import GatewayConfig
    from swarm.serve.keys import load_keys

    return GatewayConfig(
        api_keys=load_keys(arguments.api_key) if arguments.api_key else (),
        access_log=arguments.access_log,
        allow_origins=tuple(arguments.allow_origin),
        allow_hosts=tuple(arguments.allow_host),
        strict=arguments.strict,
        max_running=next((count for model, count in reversed(arguments.max_running) if not model), 8),
        max_running_of=tuple((model, count) for model, count in arguments.max_running if model),
        aliases=tuple(arguments.alias),
        grace_s=arguments.grace,
        speculation=arguments.speculation,
        draft="none" if arguments.speculation == "plain" else arguments.draft,
        wire=arguments.wire,
        patience_s=arguments.patience,
        prefix_cache=arguments.prefix_cache,
    )


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
    from receipts.check.verify import verify
    from swarm.base.signals import on_signals
    from swarm.client.client import Requester
    from swarm.serve.gateway import gateway
    from swarm.serve.listen import url_of
    from swarm.terminal.progress import EventLog, tee

    log = EventLog()
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
            models = ", ".join(dict.fromkeys(requester.manifest.model for requester in ready))
            say(f"serving {models} at {url_of(host, port)} (dashboard: /, API: /v1)")
            await stop.wait()
            say(f"stopping: answers under way may finish within {config.grace_s:g} s; Ctrl-C again ends them now")
