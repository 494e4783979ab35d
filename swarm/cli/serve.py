"""`swarm serve`: the swarm behind an OpenAI-compatible API, with a dashboard."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
    member_config,
    number,
    route_rules,
    say,
)
from swarm.cli.early import check_http_port
from swarm.cli.logs import add_log_options, log_config, logging_to
from swarm.cli.loop import run_loop

if TYPE_CHECKING:
    from swarm.base.events import Report
    from swarm.client.client import RequesterConfig
    from swarm.serve.config import GatewayConfig


KEEP_S = 300.0
"""How long the stages are asked to hold a closed run, for the next turn of a conversation."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "serve",
        help="OpenAI-compatible API and dashboard",
        description="Serve the swarm to OpenAI clients and browsers until Ctrl-C. The dashboard is at /.",
    )
    parser.set_defaults(run=run)
    add_member_options(parser)
    add_route_options(parser)
    http = parser.add_argument_group("http")
    http.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address to listen on (default: %(default)s)")
    http.add_argument("--port", type=PORT, default=8080, metavar="PORT", help="(default: %(default)s)")
    http.add_argument("--api-key", type=Path, metavar="FILE", help="keys that clients must show, one a line")
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
        type=number(int, 1, 1024, "a number of runs"),
        default=8,
        metavar="N",
        help="runs on the ring at once; others wait their turn (default: %(default)s)",
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
    add_log(runs, "each receipt's close")
    add_log_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    member = member_config(arguments)
    arguments.host = arguments.host.removeprefix("[").removesuffix("]")
    check_http_port(arguments.host, arguments.port)
    from swarm.client.client import RequesterConfig
    from swarm.serve.config import GatewayConfig
    from swarm.serve.keys import load_keys

    config = GatewayConfig(
        api_keys=load_keys(arguments.api_key) if arguments.api_key else (),
        allow_origins=tuple(arguments.allow_origin),
        allow_hosts=tuple(arguments.allow_host),
        strict=arguments.strict,
        max_running=arguments.max_running,
        grace_s=arguments.grace,
        speculation=arguments.speculation,
        draft="none" if arguments.speculation == "plain" else arguments.draft,
        wire=arguments.wire,
        patience_s=arguments.patience,
        prefix_cache=arguments.prefix_cache,
    )
    asked = RequesterConfig(
        member,
        draft=config.draft,
        draft_model=arguments.draft_model,
        draft_gpu=arguments.draft_gpu,
        await_news=False,
        keep_s=0.0 if config.prefix_cache == "off" else KEEP_S,
        keep_receipts_s=keep_receipts_s(arguments),
        rules=route_rules(arguments),
        log=arguments.log,
    )
    if not config.api_keys and arguments.host not in ("127.0.0.1", "::1", "localhost"):
        say(f"whoever reaches {arguments.host} port {arguments.port} may use the swarm; --api-key FILE asks for a key")
    from swarm.terminal.progress import reporter

    with reporter(json_lines=False, out=sys.stderr) as report, logging_to(report, log_config(arguments)):
        run_loop(serve_until_stopped(asked, config, arguments.host, arguments.port, report))
    return 0


async def serve_until_stopped(
    asked: RequesterConfig, config: GatewayConfig, host: str, port: int, report: Report
) -> None:
    """Connect, serve, and stop at SIGTERM or Ctrl-C; a second one does not wait for answers. Raises SwarmError."""
    from receipts.check.verify import verify
    from swarm.base.signals import on_signals
    from swarm.client.client import Requester
    from swarm.serve.gateway import gateway
    from swarm.serve.listen import url_of
    from swarm.terminal.progress import EventLog, tee

    log = EventLog()
    connected = await Requester.connect(asked, tee(report, log.report))
    stop, hurry = asyncio.Event(), asyncio.Event()
    with on_signals(lambda: (hurry if stop.is_set() else stop).set()):
        async with (
            connected as requester,
            gateway(requester, config, lambda data: verify(data).as_json(), host, port, log.as_json, hurry) as at,
        ):
            say(f"serving {requester.manifest.model} at {url_of(*at)} (dashboard: /, API: /v1)")
            await stop.wait()
            say(f"stopping: answers under way may finish within {config.grace_s:g} s; Ctrl-C again ends them now")
