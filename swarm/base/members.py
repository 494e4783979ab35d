"""Whose member a program becomes: the keywords that `Client` and `Node` share, made into a `MemberConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import platformdirs

from swarm.base.config import MemberConfig
from swarm.base.errors import UsageError


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
    """`swarm`: an invite, or the Path of a file that holds one. Raises UsageError for a file that cannot be read."""
    if isinstance(swarm, Path):
        try:
            swarm = swarm.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"expected a file that holds an invite, found {swarm}: {error}") from error
    state, models = options.get("state"), options.get("models")
    return MemberConfig(
        state=Path(state) if state is not None else platformdirs.user_state_path("wanswarm"),
        models=Path(models) if models is not None else platformdirs.user_cache_path("wanswarm") / "models",
        invite=swarm.strip() if swarm is not None else None,
        lan=options.get("lan", True),
        lan_swarm=options.get("lan_swarm"),
        relay=options.get("relay", True),
        punch=options.get("punch", True),
        http_proxy=options.get("http_proxy"),
    )
