"""What a member keeps on disk, so that it finds its swarm again after a cold start: peers.json in its state folder.

The file tells whom this machine knows, so it is private (mode 0600), and it is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from swarm.base.address import Address, format_address, parse_address_untrusted
from swarm.base.errors import PeerError, UsageError
from swarm.base.files import write_whole
from swarm.base.nodeid import NodeId, Signer, check_id_untrusted, id_text, parse_id_untrusted
from swarm.mesh.membership import Ledger, Membership
from swarm.mesh.messages import read_revocation_untrusted, revocation_parts
from swarm.mesh.record import SWARM_ID_BYTES

PEERS_FILE = "peers.json"
FORMAT = 2
MAX_BYTES = 32 * 1024 * 1024
"""Room for as many revocations as are remembered, with the longest of proofs."""
MAX_PEERS = 64


@dataclass(frozen=True)
class Saved:
    """A swarm as this machine last knew it.

    `model`: manifest digest (32 bytes), `ref`: how the model was named. `version`: of this node's last record.
    `peers`: (node id, addresses) of members, the best known first.
    """

    membership: Membership
    model: bytes
    ref: str
    peers: tuple[tuple[NodeId, tuple[Address, ...]], ...] = ()
    ledger: Ledger = Ledger()
    version: int = 0


class SavedStore(Protocol):
    """Where a process keeps what it knows of its swarm."""

    def keep(self, saved: Saved) -> None:
        """Keep this in the place of what was kept before."""


@dataclass(frozen=True)
class SavedFile:
    """In this state folder. Raises UsageError when it cannot be written."""

    folder: Path

    def keep(self, saved: Saved) -> None:
        """Write it."""
        save(self.folder, saved)


def save(state_dir: Path, saved: Saved) -> None:
    """Write `saved` atomically. Raises UsageError when the folder cannot be written."""
    m = saved.membership
    data = {
        "format": FORMAT,
        "swarm": m.swarm.hex(),
        "charter": m.charter.hex(),
        "open": m.open,
        "proof": m.proof.hex(),
        "model": saved.model.hex(),
        "ref": saved.ref,
        "version": saved.version,
        "peers": [
            [id_text(node), [format_address(a) for a in addresses]] for node, addresses in saved.peers[:MAX_PEERS]
        ],
        "revoked": [
            [p.hex() if isinstance(p, bytes) else p for p in revocation_parts(r)] for r in saved.ledger.revoked.values()
        ],
        "used": {token.hex(): [expires, id_text(node)] for token, (expires, node) in saved.ledger.used.items()},
    }
    try:
        write_whole(state_dir / PEERS_FILE, json.dumps(data, indent=1).encode())
    except OSError as exc:
        raise UsageError(
            f"cannot write {state_dir / PEERS_FILE}: {exc.strerror or exc}; free space or choose another --state"
        ) from exc


def load(state_dir: Path, signer: Signer) -> Saved | None:
    """What `save` wrote for this node, None when there is nothing. Raises UsageError for a damaged file."""
    path = state_dir / PEERS_FILE
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror or exc}") from exc
    try:
        return _read(json.loads(text), signer)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, PeerError) as exc:
        raise UsageError(
            f"expected the swarm used last in {path}, found ({exc}); move the file away and join by invite"
        ) from exc


def _read(data: Mapping[str, Any], signer: Signer) -> Saved:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']}, expected {FORMAT}")
    swarm = bytes.fromhex(data["swarm"])
    proof = bytes.fromhex(data["proof"])
    if len(swarm) != SWARM_ID_BYTES:
        raise ValueError("swarm id of the wrong length")
    peers = tuple(
        (parse_id_untrusted(peer), tuple(parse_address_untrusted(a) for a in addresses))
        for peer, addresses in data["peers"][:MAX_PEERS]
    )
    membership = Membership.accept_untrusted(swarm, signer, bytes.fromhex(data["charter"]), data["open"], proof)
    notices = [
        read_revocation_untrusted([bytes.fromhex(p) if isinstance(p, str) else p for p in item], membership)
        for item in data["revoked"]
    ]
    revoked = {notice.id: notice for notice in notices}
    used = {
        bytes.fromhex(token): (int(expires), check_id_untrusted(parse_id_untrusted(user)))
        for token, (expires, user) in data["used"].items()
    }
    return Saved(
        membership, bytes.fromhex(data["model"]), str(data["ref"]), peers, Ledger(revoked, used), int(data["version"])
    )
