"""What many commands share: the member that a command line asks for, and lines of status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.base.config import LAN, SWARM, MemberConfig, check_invite, user_models, user_state
from swarm.base.option import build
from swarm.cli.parser import Parser

if TYPE_CHECKING:
    from swarm.client.route_policy import RouteRules


def add_member_options(parser: Parser, without: Sequence[str] = ()) -> None:
    """Options of every process of a swarm."""
    parser.sections(SWARM, "folders")
    parser.declare(MemberConfig, without=without)


def member_config(arguments: argparse.Namespace) -> MemberConfig:
    """Configuration of a swarm member from its options."""
    member = build(MemberConfig, vars(arguments))
    require_whole(member.invite)
    return member


def require_whole(invite: str | None) -> None:
    """Raises UsageError for what is no invite or a damaged one: before anything is loaded, which takes seconds."""
    check_invite(invite)
    if invite is not None:
        from swarm.mesh.invite import parse_invite_untrusted

        parse_invite_untrusted(invite)


def member_configs(arguments: argparse.Namespace, swarms: Sequence[str | None]) -> tuple[MemberConfig, ...]:
    """The same for each of several swarms."""
    for swarm in swarms:
        if swarm != LAN:
            require_whole(swarm)
    member = build(MemberConfig, vars(arguments), invite=None)
    return tuple(replace(member, invite=swarm) for swarm in swarms)


def route_rules(arguments: argparse.Namespace) -> RouteRules:
    """Whom requests may pass through. Raises UsageError."""
    from swarm.client.route_policy import RouteRules

    return build(RouteRules, vars(arguments))


def state_dir(arguments: argparse.Namespace) -> Path:
    """Where this process keeps its state."""
    return arguments.state if arguments.state is not None else user_state()


def models_dir(arguments: argparse.Namespace) -> Path:
    """Where model files lie."""
    return arguments.models if arguments.models is not None else user_models()


def say(text: str) -> None:
    """A line of status, apart from output."""
    print(text, file=sys.stderr, flush=True)
