"""Who belongs to the swarm, as far as the network needs to know: strangers are served little and for seconds only."""

from __future__ import annotations

from typing import Protocol

from swarm.base.nodeid import NodeId


class Members(Protocol):
    """Knows which nodes are members now; `swarm.mesh.gossip.Gossip` does."""

    def admitted(self, node: NodeId) -> bool:
        """Whether `node` is a member, or showed that it may become one."""
