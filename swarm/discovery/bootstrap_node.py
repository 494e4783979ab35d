"""The swarm that a node belongs to, and its model: as invited, as remembered, as found on the network, or founded."""

from __future__ import annotations

import asyncio
from pathlib import Path

from swarm.base.config import JoinConfig
from swarm.base.errors import ModelError, PeerError, UsageError
from swarm.base.events import Notice, Report
from swarm.base.owner import MachineOwner
from swarm.discovery.bootstrap import enter_by_invite, remembered, search_lan, why_not_entered
from swarm.discovery.lan_admission import ask_owner_there
from swarm.mesh.invite import parse_invite_untrusted
from swarm.mesh.membership import Membership
from swarm.mesh.saved import Saved, load
from swarm.model.files.checkpoint import open_model
from swarm.model.files.manifest import Manifest
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard


async def enter_as_node(
    config: JoinConfig,
    state: Path,
    identity: Identity,
    board: Switchboard,
    store: ModelStore,
    report: Report,
    owner: MachineOwner,
) -> tuple[Saved, Manifest | None]:
    """The swarm that this node belongs to, and its model's manifest; None where only members have the model.

    `owner` is asked where a swarm of the local network lets in by the word of its owner and this one's.
    """
    member = config.member
    if member.invite is not None:
        invite = parse_invite_untrusted(member.invite)
        manifest = await _if_here(config, invite.ref, store, report)
        if manifest is not None:
            invite.require_model(bytes.fromhex(manifest.digest), config.model or invite.ref)
        digest = bytes.fromhex(manifest.digest) if manifest is not None else b""
        before = remembered(state, identity)
        try:
            return await enter_by_invite(board, invite, "node", digest, before), manifest
        except PeerError as error:
            if before is None or before.membership.swarm != invite.swarm or not before.peers:
                raise
            report(Notice(f"{error}; this node is a member already and waits for the others", "warning"))
            return before, manifest
    known = load(state, identity)
    if known is not None:
        manifest = await _if_here(config, known.ref, store, report)
        if manifest is None or bytes.fromhex(manifest.digest) == known.model:
            return known, manifest
        report(Notice(f"this state folder belonged to a swarm for {known.ref}; starting anew for {config.model}"))
    if member.lan and known is None:
        wanted = b""
        if config.model is not None:
            wanted = bytes.fromhex((await _manifest(config, config.model, store, report)).digest)
        lan = await search_lan(board, "node", wanted)
        if lan.entered is not None:
            return lan.entered, await _if_here(config, lan.entered.ref, store, report)
        if lan.heard and not config.found:
            let_in = await ask_owner_there(board, lan.heard, wanted, owner, report)
            if let_in is not None:
                return let_in, await _if_here(config, let_in.ref, store, report)
            raise UsageError(
                f"{why_not_entered(lan.heard, wanted)}; to enter one, run there: swarm invite; and here: "
                "swarm join --swarm INVITE; to start a swarm of its own beside it: swarm join --found"
            )
    manifest = await _manifest(config, config.model or DEFAULT_MODEL, store, report)
    founded = Membership.found(identity, config.open_swarm)
    return Saved(founded, bytes.fromhex(manifest.digest), config.model or DEFAULT_MODEL), manifest


async def _if_here(config: JoinConfig, ref: str, store: ModelStore, report: Report) -> Manifest | None:
    """The manifest of a model that this machine has or can fetch, unless weights are to come from members."""
    if config.weights == "peers":
        return None
    try:
        return await _manifest(config, config.model or ref, store, report)
    except ModelError as error:
        if config.weights == "hub" or config.model is not None:
            raise
        report(Notice(f"{error}; asking the swarm's members for it"))
        return None


async def _manifest(config: JoinConfig, ref: str, store: ModelStore, report: Report) -> Manifest:
    """The model's manifest; of a hub model only what the asked layers need is fetched for it."""
    manifest = (await asyncio.to_thread(open_model, ref, store, config.layers or (0, 1), report)).manifest
    check_layers(config, manifest)
    return manifest


def check_layers(config: JoinConfig, manifest: Manifest) -> None:
    """Raises UsageError when --layers lie outside the model, or it cannot be cut there."""
    n, asked = manifest.n_layers, config.layers
    if asked is not None and asked[1] > n:
        found = f"{asked[0]}:{asked[1]}"
        raise UsageError(f"expected --layers within 0:{n}, found {found}; {manifest.model} has {n} layers")
    if asked is not None and not manifest.ties.forbidden.isdisjoint(asked):
        try:
            manifest.check_cut(*asked)
        except ModelError as error:
            raise UsageError(f"expected other --layers than {asked[0]}:{asked[1]}: {error}") from error
