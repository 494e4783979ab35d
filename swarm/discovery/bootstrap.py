"""Into a swarm: by invite, by what is remembered, by the local network. Loads no model: who only looks needs none."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swarm.base.config import MemberConfig
from swarm.base.errors import PeerError, UsageError
from swarm.base.events import Notice, Report
from swarm.discovery.obstacles import why_unreached
from swarm.discovery.state_dir import LAST_INVITE, REQUESTER, remember_invite
from swarm.mesh.hello import Hello, enter, invited
from swarm.mesh.invite import Invite, parse_invite_untrusted
from swarm.mesh.lan import LanNode, find
from swarm.mesh.membership import InviteError
from swarm.mesh.saved import PEERS_FILE, Saved, load
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard

LAN_SECONDS = 1.5


async def enter_by_invite(
    board: Switchboard, invite: Invite, role: str, model: bytes = b"", known: Saved | None = None
) -> Saved:
    """Knock at the invite's members, then at those that this machine knew: `known`, if it is of the same swarm.

    Who was admitted before needs no fresh invite. Raises InviteError when refused, PeerError that names the cause when
    nobody is reached.
    """
    before = known if known is not None and known.membership.swarm == invite.swarm else None
    named = {node for node, _ in invite.members}
    peers = [peer for peer in (before.peers if before is not None else ()) if peer[0] not in named]
    proof = before.membership.proof if before is not None else None
    everybody = [*invite.members, *peers]
    try:
        if before is None:
            invite.require_fresh(time.time())
        welcome, by = await enter(board, invited(invite, role, model, proof), everybody)
    except InviteError as error:
        raise await _by_whose_clock(board, invite, error) from error
    except PeerError as error:
        raise await why_unreached(board.identity, everybody, error) from error
    members = tuple(sorted([*invite.members, *peers], key=lambda member: member[0] != by))
    if before is not None:
        return replace(before, membership=welcome.membership, model=welcome.model, ref=welcome.ref, peers=members)
    return Saved(welcome.membership, welcome.model, welcome.ref, members)


async def _by_whose_clock(board: Switchboard, invite: Invite, error: InviteError) -> InviteError:
    """The same error; where this clock and a member's disagree about the invite, one that says so."""
    token, now = invite.token, time.time()
    if token is None:
        return error
    fresh_here = token.expires > now
    if fresh_here and "the invite expired" in str(error):
        return InviteError(
            f"a member says that {error}, and by this clock it has not: set the clocks (NTP) (cause: clock)"
        )
    if fresh_here:
        return error
    try:
        await enter(board, invited(invite, "guest"), invite.members[:1])
    except PeerError:  # refused or not reached
        return error
    return InviteError(
        f"by this clock {error}; by a member's it has not: set this machine's clock (NTP), it is ahead (cause: clock)"
    )


def remembered(folder: Path, identity: Identity) -> Saved | None:
    """What the folder knows of a swarm; beside an invite a damaged file is no reason to stop."""
    try:
        return load(folder, identity)
    except UsageError:
        return None


@dataclass(frozen=True)
class LanSearch:
    """What the local network holds: the swarm that was entered, if one let us in, and all nodes that were heard."""

    entered: Saved | None
    heard: tuple[LanNode, ...]


async def open_lan_swarms() -> tuple[bytes, ...]:
    """Ids of the swarms on the local network that need no invite, the one with most nodes first."""
    count = Counter(node.swarm for node in await find(LAN_SECONDS) if node.open)
    return tuple(swarm for swarm, _ in sorted(count.items(), key=lambda item: (-item[1], item[0])))


async def search_lan(board: Switchboard, role: str, model: bytes, swarm: bytes | None = None) -> LanSearch:
    """Enter an open swarm of the local network that serves `model` (16 bytes of its digest; b"": any).

    `swarm`: only the one of this id.
    """
    heard = tuple(node for node in await find(LAN_SECONDS) if node.node != board.id)
    for node in heard:
        if node.open and _serves(node, model) and swarm in (None, node.swarm):
            hello = Hello(node.swarm, model[:16], role, None, None)
            try:
                welcome, _ = await enter(board, hello, [(node.node, node.addresses)])
            except (InviteError, PeerError):
                continue
            saved = Saved(welcome.membership, welcome.model, welcome.ref, ((node.node, node.addresses),))
            return LanSearch(saved, heard)
    return LanSearch(None, heard)


def why_not_entered(heard: Sequence[LanNode], model: bytes) -> str:
    """In words: which swarms were heard and why none was entered. `heard` is not empty."""
    closed = {node.swarm for node in heard if not node.open}
    other = {node.swarm for node in heard if node.open and not _serves(node, model)}
    silent = {node.swarm for node in heard} - closed - other
    said = [
        f"{count} {why}"
        for count, why in (
            (len(closed), "by invite only"),
            (len(other), "for another model"),
            (len(silent), "that did not let this node in"),
        )
        if count
    ]
    hosts = list(dict.fromkeys(host for node in heard for host, _ in node.addresses))[:3]
    return f"on the local network ({', '.join(hosts) or 'no address given'}) there are swarms: {', '.join(said)}"


def _serves(node: LanNode, model: bytes) -> bool:
    return not model or not node.model or node.model == model


async def enter_as_guest(
    board: Switchboard, config: MemberConfig, folder: Path, identity: Identity, report: Report
) -> Saved:
    """The swarm that a requester asks: the invite's, else the LAN's, else the one used last.

    Raises UsageError when there is none.
    """
    if config.invite is not None:
        invite = parse_invite_untrusted(config.invite)
        saved = await enter_by_invite(board, invite, "guest", known=remembered(folder, identity))
        if config.remember:
            remember_invite(config.state, config.invite)
        return saved
    heard: Sequence[LanNode] = ()
    if config.lan:
        lan = await search_lan(board, "guest", b"", config.lan_swarm)
        if lan.entered is not None:
            return lan.entered
        heard = lan.heard
    if config.lan_swarm is not None:
        raise UsageError(
            f"the swarm {config.lan_swarm.hex()[:8]} of the local network let this requester in no more; try again"
        )
    saved_here = load(folder, identity)
    if saved_here is not None and saved_here.peers:
        hello = Hello(saved_here.membership.swarm, b"", "guest", saved_here.membership.proof, None)
        try:
            welcome, _ = await enter(board, hello, saved_here.peers)
            return replace(saved_here, membership=welcome.membership, model=welcome.model, ref=welcome.ref)
        except InviteError as error:
            report(Notice(f"the swarm used last does not know this key any more: {error}", "warning"))
    last = config.state / LAST_INVITE
    if last.is_file():
        return await enter_by_invite(board, parse_invite_untrusted(last.read_text("utf-8", errors="replace")), "guest")
    raise _nobody(config, heard)


def knows_of_a_swarm(config: MemberConfig) -> bool:
    """Whether this machine was told of a swarm or has used one. Opens nothing."""
    if config.invite is not None or config.lan_swarm is not None or (config.state / LAST_INVITE).is_file():
        return True
    return any(config.state.glob(f"{REQUESTER}*/{PEERS_FILE}"))


async def require_heard(config: MemberConfig) -> None:
    """For a requester that knows of no swarm, before it loads anything: raises UsageError where the local network has
    none that lets it in either."""
    heard = await find(LAN_SECONDS) if config.lan else []
    if not any(node.open for node in heard):
        raise _nobody(config, heard)


def _nobody(config: MemberConfig, heard: Sequence[LanNode]) -> UsageError:
    if heard:
        return UsageError(
            f"{why_not_entered(heard, b'')}; on one of its machines run: swarm invite --guest; then give --swarm INVITE"
        )
    where = "none on the local network and " if config.lan else ""
    return UsageError(
        f"expected a swarm to ask, found {where}none used before; give --swarm INVITE, or start one: swarm join"
    )
