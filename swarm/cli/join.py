"""`swarm join`: hold layers and serve them."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from swarm.base.config import JoinConfig, parse_address, parse_layers
from swarm.base.errors import UsageError
from swarm.base.events import Report
from swarm.cli.common import GPU, THREADS, add_log, add_member_options, add_weights_as, member_config, number, say
from swarm.cli.early import check_node_port, check_state
from swarm.cli.logs import add_log_options, log_config, logging_to
from swarm.cli.loop import run_loop
from swarm.model.files.named import DEFAULT_MODEL

MOST_OVERFLOW_GB = 65_536.0


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "join",
        help="hold layers of a model and serve them",
        description="Take a block of layers and serve it until Ctrl-C. Without --swarm an open swarm of the "
        "local network is joined; with nobody there a new one starts here, and the invite for others is printed.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--model",
        metavar="REF",
        help=f"model: {DEFAULT_MODEL}, a folder, a .gguf file or a hub id (default: the swarm's, or {DEFAULT_MODEL})",
    )
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--gpu", type=GPU, metavar="N", help="compute on CUDA device N")
    device.add_argument("--cpu", action="store_true", help="compute on the CPU (default)")
    parser.add_argument(
        "--threads",
        type=THREADS,
        metavar="N",
        help="compute threads (default: physical cores)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 where the device computes it natively (default: %(default)s)",
    )
    add_weights_as(parser)
    block = parser.add_mutually_exclusive_group()
    block.add_argument("--layers", metavar="A:B", help="host layers A up to and without B")
    block.add_argument(
        "--capacity",
        type=number(int, 1, 10_000, "a number of layers"),
        metavar="LAYERS",
        help="host at most this many layers, chosen by need",
    )
    parser.add_argument(
        "--overflow",
        nargs="?",
        const=MOST_OVERFLOW_GB,
        type=number(float, 0.001, MOST_OVERFLOW_GB, "gigabytes"),
        metavar="GB",
        help="with --gpu: layers that it has no room for are computed by the CPU, from main memory (GB of it at most)",
    )
    parser.add_argument(
        "--listen",
        default="0.0.0.0:0",
        metavar="HOST:PORT",
        help="where to listen; port 0 takes a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--advertise", metavar="HOST:PORT", help="address that others dial (port forwarding, containers, proxies)"
    )
    parser.add_argument(
        "--kv-memory",
        type=number(float, 0.001, 4096, "gigabytes"),
        metavar="GB",
        help="memory for sessions (default: a share of what is free)",
    )
    parser.add_argument(
        "--probe", action="store_true", help="measure this machine's speed though it was measured before"
    )
    parser.add_argument(
        "--weights",
        choices=("auto", "hub", "peers"),
        default="auto",
        help="where the layers come from: the hub or this machine, members that hold them, or members only where the "
        "model is not to be had otherwise (default: %(default)s)",
    )
    parser.add_argument(
        "--relay", action="store_true", help="forward (encrypted) traffic of members that cannot reach each other"
    )
    parser.add_argument(
        "--relay-at",
        metavar="HOST:PORT",
        help="where else the relay is reached, and this node by those who can only speak HTTP: a proxy on its address; "
        "HTTPS is spoken to port 443",
    )
    parser.add_argument("--map-port", action="store_true", help="ask the router for a port (UPnP, NAT-PMP)")
    parser.add_argument(
        "--open", action="store_true", help="when starting a swarm: let anybody in who knows its address"
    )
    parser.add_argument(
        "--found", action="store_true", help="start a swarm of its own though others are heard on the local network"
    )
    parser.add_argument(
        "--owner", default="", metavar="NAME", help="who runs this node, for routes that want several owners"
    )
    parser.add_argument(
        "--grace",
        type=number(float, 0, 3600, "seconds"),
        default=10.0,
        metavar="S",
        help="how long runs may take to end when leaving, and those that do not to move (default: %(default)s)",
    )
    parser.add_argument(
        "--disclose",
        action="store_true",
        help="show GPU UUIDs and addresses in receipts, not only their salted digests",
    )
    add_log(parser, "what this node signs at the end of each run")
    add_log_options(parser)
    parser.add_argument("--json", action="store_true", help="print events as JSON lines on stdout")
    add_member_options(parser)


def join_config(arguments: argparse.Namespace) -> JoinConfig:
    """Configuration of a node from its options. Raises UsageError."""
    if arguments.overflow is not None and arguments.gpu is None:
        raise UsageError("expected --gpu N with --overflow, found none: on the CPU all layers are in main memory")
    if arguments.relay_at and not arguments.relay:
        raise UsageError("expected --relay with --relay-at, found no relay to put a proxy in front of")
    return JoinConfig(
        member=member_config(arguments),
        model=arguments.model,
        gpu=arguments.gpu,
        threads=arguments.threads,
        layers=parse_layers(arguments.layers) if arguments.layers else None,
        capacity=arguments.capacity,
        listen=parse_address(arguments.listen),
        advertise=parse_address(arguments.advertise) if arguments.advertise else None,
        dtype=arguments.dtype,
        weights_as=arguments.weights_as,
        kv_bytes=int(arguments.kv_memory * 1e9) if arguments.kv_memory else None,
        grace_s=arguments.grace,
        open_swarm=arguments.open,
        found=arguments.found,
        owner=arguments.owner,
        offer_relay=arguments.relay,
        relay_at=parse_address(arguments.relay_at) if arguments.relay_at else None,
        map_port=arguments.map_port,
        weights=arguments.weights,
        disclose=arguments.disclose,
        probe=arguments.probe,
        log=arguments.log,
        overflow_bytes=int(arguments.overflow * 1e9) if arguments.overflow else None,
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    config = join_config(arguments)
    check_state(config.member.state)
    check_node_port(config.listen)
    from swarm.base.signals import on_signals
    from swarm.node.node import Ready, serve_block
    from swarm.terminal.progress import reporter

    def ready(what: Ready) -> None:
        if arguments.json:
            print(json.dumps({"event": "ready", **what.as_json()}), flush=True)
            return
        first, last = what.layers
        say(f"serving layers {first}-{last - 1} of {what.model} on {what.device} at {what.advertise}")
        say("invite others with:\n")
        print(f"  swarm join --swarm {what.invite}", flush=True)
        print(f'  swarm generate --swarm {what.invite} "your prompt"\n', flush=True)

    async def serve(report: Report) -> int:
        stop = asyncio.Event()
        with on_signals(stop.set):
            return await serve_block(config, ready, report, stop)

    with reporter(json_lines=arguments.json, out=sys.stderr) as report, logging_to(report, log_config(arguments)):
        return run_loop(serve(report))
