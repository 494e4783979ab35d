"""Machines that the owner of this one let in by a code: what is kept so that it can be ended again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from swarm.base.events import Notice, Report
from swarm.base.files import write_whole
from swarm.base.nodeid import NodeId, short_id
from swarm.mesh.invite import MODEL_BYTES, Invite
from swarm.mesh.membership import InviteToken
from swarm.mesh.saved import Saved

FOLDER = "admitted"


@dataclass(frozen=True)
class LetIn:
    """Writes each token into the state folder as an invite, which `swarm revoke` takes. `here`: names this node."""

    state: Path
    saved: Saved
    here: Invite
    report: Report

    def admitted(self, node: NodeId, token: InviteToken) -> None:
        """`node` was let in by this token. A full disk costs the way back and no more."""
        path = self.state / FOLDER / f"{short_id(node)}.invite"
        made = Invite(
            self.saved.membership.swarm, self.saved.model[:MODEL_BYTES], self.saved.ref, self.here.members[:1], token
        )
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(path, made.text().encode())
        except OSError as error:
            said = f"node {short_id(node)} is let in; how to end that could not be written down: {error.strerror}"
            self.report(Notice(said, "warning"))
        else:
            self.report(Notice(f"node {short_id(node)} is let in; to end that: swarm revoke {path}"))
