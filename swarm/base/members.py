"""Whose member a program becomes: the keywords that `Client` and `Node` share, made into a `MemberConfig`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TypedDict

from swarm.base.config import MemberConfig
from swarm.base.errors import UsageError

_FIELDS = frozenset(each.name for each in fields(MemberConfig)) - {"invite", "remember"}
"""`remember` is for a command that ends the swarm it made: `swarm demo`."""


class MemberOptions(TypedDict, total=False):
    """Keywords of everybody who enters a swarm; all may be left away.

    state, models   folders (default: the user's, as for the command line)
    lan             look for swarms on the local network
    lan_swarm       id of the one to enter there; default: the first that lets us in
    relay, punch    as --no-relay and --no-punch, turned round
    http_proxy      "http://host:port" to go through where TCP leads nowhere
    """

    state: Path | str
    models: Path | str
    lan: bool
    lan_swarm: bytes
    relay: bool
    punch: bool
    http_proxy: str


def member_of(swarm: str | Path | None, options: MemberOptions) -> MemberConfig:
    """`swarm`: an invite, or the Path of a file that holds one. Raises UsageError for what is neither, and for a file
    that cannot be read."""
    if swarm is not None and not isinstance(swarm, str | Path):
        raise UsageError(f"expected an invite as text, or the Path of a file that holds one, found {swarm!r}")
    if isinstance(swarm, Path):
        try:
            swarm = swarm.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"expected a file that holds an invite, found {swarm}: {error}") from error
    given = {name: value for name, value in options.items() if name in _FIELDS and value is not None}
    folders = {name: Path(value) for name in ("state", "models") if isinstance(value := given.get(name), str | Path)}
    return MemberConfig(invite=swarm.strip() if swarm is not None else None, **{**given, **folders})  # type: ignore[arg-type]
