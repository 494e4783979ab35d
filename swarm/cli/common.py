"""Options that many commands share, and turning them into configuration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.base.config import MemberConfig, parse_proxy
from swarm.base.errors import UsageError

if TYPE_CHECKING:
    from swarm.client.route_policy import RouteRules


def number(kind: Callable[[str], int | float], low: float, high: float, what: str) -> Callable[[str], int | float]:
    """An argparse type: a number in [low, high], refused in words."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {what}, found {text!r}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {what}, found {text!r}")
        return value

    return parse


GPU = number(int, 0, 64, "a GPU number")
THREADS = number(int, 1, 1024, "a number of threads")
PORT = number(int, 0, 65535, "a port")


def add_member_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--swarm, --no-lan, --state, --models: every process of a swarm has them. `several`: --swarm may come again."""
    group = parser.add_argument_group("the swarm")
    found = "invite text, or a file that holds it (default: the swarm on the LAN, then the one used last)"
    if several:
        more = "; given again, one more model: requests name theirs"
        group.add_argument("--swarm", action="append", metavar="INVITE", help=found + more)
    else:
        group.add_argument("--swarm", metavar="INVITE", help=found)
    group.add_argument("--no-lan", action="store_true", help="neither announce nor look on the local network")
    group.add_argument("--no-relay", action="store_true", help="never go through a relay")
    group.add_argument(
        "--no-punch",
        action="store_true",
        help="only dial advertised addresses: no dialling back, no hole punching, no relay",
    )
    group.add_argument(
        "--http-proxy",
        metavar="URL",
        help="HTTP proxy (http://HOST:PORT) to go through where TCP leads nowhere; without one HTTP is tried too",
    )
    add_folders(group)


def add_route_options(parser: argparse.ArgumentParser) -> None:
    """--exclude, --only, --owners: whom requests may pass through."""
    group = parser.add_argument_group("whom requests pass through")
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="NODE",
        help="never this node (the first 8 digits of its id suffice) or this owner's (may be given several times)",
    )
    group.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NODE",
        help="only these nodes: a full node id, or a file with one a line (may be given several times)",
    )
    group.add_argument(
        "--owners",
        type=number(int, 1, 64, "a number of owners"),
        default=1,
        metavar="K",
        help="nodes of at least K different owners share each request (default: %(default)s)",
    )
    group.add_argument(
        "--require-fingerprint",
        default="",
        metavar="WHICH",
        help="only nodes that compute alike to the last bit, by the kernel fingerprint that each measured: same (all "
        "of a request share one), own (one of this machine's, so that it can audit them bit for bit), or a fingerprint",
    )


def add_log(parser: argparse._ActionsContainer, what: str, more: str = "") -> None:
    """`--log DIR`. `more`: what else there is to say of it."""
    parser.add_argument(
        "--log",
        type=Path,
        metavar="DIR",
        help=f"append the digest of {what} to a transparency log in DIR (C2SP tlog-tiles), for any static file server; "
        f"swarm verify --log checks receipts against it{more}",
    )


def add_patience(group: argparse._ArgumentGroup) -> None:
    """--patience."""
    group.add_argument(
        "--patience",
        type=number(float, 0, 86_400, "seconds"),
        default=30.0,
        metavar="S",
        help="how long to wait for nodes while layers are missing, and for a replacement when a stage is lost "
        "(default: %(default)s)",
    )


def add_speculation(group: argparse._ArgumentGroup) -> None:
    """--speculation and --draft."""
    group.add_argument(
        "--speculation",
        choices=("plain", "chain", "tree", "stream"),
        default="stream",
        help="how drafts travel (default: %(default)s)",
    )
    group.add_argument(
        "--draft", choices=("none", "suffix", "lm", "auto"), default="auto", help="what drafts (default: %(default)s)"
    )


def add_draft_model(group: argparse.ArgumentParser | argparse._ArgumentGroup, model_help: str) -> None:
    """--draft-model and --draft-gpu."""
    group.add_argument("--draft-model", metavar="REF", help=model_help)
    group.add_argument("--draft-gpu", type=GPU, metavar="N", help="draft on CUDA device N")


def add_keep_receipts(group: argparse._ArgumentGroup) -> None:
    """How long receipts lie in the state folder."""
    group.add_argument(
        "--keep-receipts",
        type=number(float, 0, 36_500, "a number of days"),
        default=None,
        metavar="DAYS",
        help="remove receipts and their secrets from the state folder after so many days (default: keep all)",
    )


def keep_receipts_s(arguments: argparse.Namespace) -> float | None:
    """Days as seconds; None: for ever."""
    return None if arguments.keep_receipts is None else 86_400.0 * float(arguments.keep_receipts)


def add_wire(group: argparse._ArgumentGroup) -> None:
    """--wire."""
    group.add_argument(
        "--wire",
        choices=("model", "auto", "float32", "bfloat16", "int8", "fp8"),
        default="model",
        help="format of activations between nodes; auto takes a coarser one where bandwidth is short "
        "(default: the model's own)",
    )


def route_rules(arguments: argparse.Namespace) -> RouteRules:
    """The constraints that `add_route_options` reads. Raises UsageError."""
    from swarm.client.route_policy import read_rules

    return read_rules(arguments.exclude, arguments.only, arguments.owners, arguments.require_fingerprint)


def add_folders(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--state and --models."""
    add_state_option(parser)
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="model files, shared by all nodes of this machine (default: the user's cache folder)",
    )


def add_state_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--state, for commands that need no model."""
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="identity, peers, receipts (default: the user's state folder)"
    )


def state_dir(arguments: argparse.Namespace) -> Path:
    """Where this process keeps its state."""
    import platformdirs

    given: Path | None = arguments.state
    return given if given is not None else platformdirs.user_state_path("wanswarm")


def models_dir(arguments: argparse.Namespace) -> Path:
    """Where model files lie."""
    import platformdirs

    given: Path | None = arguments.models
    return given if given is not None else platformdirs.user_cache_path("wanswarm") / "models"


def member_config(arguments: argparse.Namespace) -> MemberConfig:
    """Configuration of a swarm member from its options."""
    return member_configs(arguments, [arguments.swarm])[0]


def member_configs(arguments: argparse.Namespace, swarms: Sequence[str | None]) -> tuple[MemberConfig, ...]:
    """The same for each of several swarms."""
    member = MemberConfig(
        state=state_dir(arguments),
        models=models_dir(arguments),
        lan=not arguments.no_lan,
        relay=not arguments.no_relay,
        punch=not arguments.no_punch,
        http_proxy=parse_proxy(arguments.http_proxy) if arguments.http_proxy else None,
    )
    return tuple(replace(member, invite=read_invite(swarm)) for swarm in swarms)


def read_invite(value: str | None) -> str | None:
    """An invite is given as text or as the name of a file that holds it."""
    if value is None:
        return None
    if len(value) < 256 and "/" in value or value.endswith((".invite", ".txt")):
        try:
            return Path(value).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"expected an invite or a file that holds one, found {value!r}: {error}") from error
    return value.strip()


def say(text: str) -> None:
    """A line of status, apart from output."""
    print(text, file=sys.stderr, flush=True)


def add_weights_as(parser: argparse.ArgumentParser) -> None:
    """--weights-as: how a node holds matrices."""
    parser.add_argument(
        "--weights-as",
        choices=("auto", "stored", "expanded"),
        default="auto",
        help="stored: hold and multiply weights as the file has them, 4-bit files in 4 bits and a quarter of the "
        "memory (CPU); expanded: as --dtype; auto: stored where there is a fast kernel, unless memory allows the other "
        "and it was faster when one layer was measured; expanded with --dtype float32 and on GPUs "
        "(default: %(default)s)",
    )
