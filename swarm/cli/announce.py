"""What a `swarm serve` tells of itself to this user's `swarm generate`, which then asks it (`swarm/cli/locally.py`)."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from swarm.cli.common import say
from swarm.client.config import RequesterConfig
from swarm.client.local_gateway import LocalGateway, ServedSwarm, announced
from swarm.model.sampling import OWN
from swarm.serve.config import GatewayConfig
from swarm.serve.keys import ApiKey

if TYPE_CHECKING:
    from swarm.client.client import Requester

OWNER = "owner"


def with_owners_key(config: GatewayConfig) -> tuple[GatewayConfig, str | None]:
    """A gateway that asks for keys takes one more, made anew at each start, of the user who runs it.

    Returns its secret too; None: no key is asked for.
    """
    if not config.api_keys:
        return config, None
    taken, name = {key.name for key in config.api_keys}, OWNER
    while name in taken:
        name += "-"
    secret = secrets.token_urlsafe(24)
    key = ApiKey(name, hashlib.sha256(secret.encode()).digest())
    return replace(config, api_keys=(*config.api_keys, key)), secret


@contextmanager
def told_of(
    asked: Sequence[RequesterConfig], ready: Sequence[Requester], config: GatewayConfig, url: str, key: str | None
) -> Iterator[None]:
    """`swarm generate` finds the gateway for as long as this lasts; a full disk costs that and no more."""
    served = tuple(_served(one, requester) for one, requester in zip(asked, ready, strict=True))
    here = LocalGateway(url, served, key, bool(config.template_options))
    with ExitStack() as stack:
        try:
            stack.enter_context(announced(asked[0].member.state, here))
        except OSError as error:
            say(f"swarm generate will not find this gateway by itself: {error.strerror} ({error.filename})")
        yield


def _served(config: RequesterConfig, requester: Requester) -> ServedSwarm:
    manifest, member = requester.manifest, config.member
    searched = member.invite is None and member.lan_swarm is None
    sampling = {name: value for name, value in requester.generation_defaults.items() if name in OWN}
    return ServedSwarm(requester.swarm_id.hex(), manifest.model, manifest.digest, searched, sampling)
