"""Who is a member, for services that ask."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.net.members import Members


@dataclass
class Admits(Members):
    """Everybody is a member, or nobody."""

    everybody: bool = True

    def admitted(self, node: bytes) -> bool:
        return self.everybody
