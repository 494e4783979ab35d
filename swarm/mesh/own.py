"""This node's own record: what it says, how often, under which version."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from swarm.base.nodeid import Signer
from swarm.mesh.latency import Coordinate
from swarm.mesh.membership import Membership
from swarm.mesh.record import MIN_TTL_S, NodeRecord, sign_record
from swarm.mesh.state import ttl_s
from swarm.mesh.table import Held

BATCH_S = 0.5
URGENT = ("state", "layers", "claim", "addresses", "model")


class OwnRecord:
    """Describes this node and signs it anew when asked. `about` None: a guest, which has no record.

    `version` is that of the last record; it only grows, over restarts too, because it is saved and follows the clock.
    """

    def __init__(
        self,
        identity: Signer,
        membership: Membership,
        about: NodeRecord | None,
        version: int,
        now_wall: float,
    ) -> None:
        self.about = about
        self.version = version
        self._identity, self._membership = identity, membership
        self._instance = int(now_wall * 1000) << 16 | secrets.randbits(16)
        self._due: asyncio.TimerHandle | None = None

    def change(self, changes: dict[str, Any], publish: Callable[[], None]) -> None:
        """Note `changes` and call `publish` soon: at once when routes depend on them, else for a batch of them."""
        if self.about is None:
            return
        before, self.about = self.about, replace(self.about, **changes)
        if before == self.about:
            return
        if any(name in changes for name in URGENT):
            self.settle()
            publish()
        elif self._due is None:
            self._due = asyncio.get_running_loop().call_later(BATCH_S, self._publish_batch, publish)

    def _publish_batch(self, publish: Callable[[], None]) -> None:
        self._due = None
        publish()

    def settle(self) -> None:
        """Drop a batch that waits: what comes next carries it anyway."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def make(
        self,
        above: int,
        now: float,
        now_wall: float,
        members: int,
        measured: Mapping[str, Any],
        coordinate: Coordinate | None,
    ) -> Held | None:
        """A new signed record with a version over `above`; None for a guest. `measured`: `Distances.for_record`."""
        if self.about is None:
            return None
        self.version = max(self.version + 1, above + 1, int(now_wall * 1000))
        record = replace(
            self.about,
            node=self._identity.id,
            swarm=self._membership.swarm,
            proof=self._membership.proof,
            version=self.version,
            issued=int(now_wall),
            ttl=max(MIN_TTL_S, ttl_s(members)),
            instance=self._instance,
            **measured,
            coordinate=() if coordinate is None else coordinate.packed(),
        )
        return Held.of(sign_record(record, self._identity.sign), now)
