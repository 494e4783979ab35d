"""Two clocks that differ by more than records can bear: said at the door, by how much and whose, to both sides."""

from __future__ import annotations

from swarm.base.nodeid import NodeId, short_id
from swarm.mesh.membership import InviteError
from swarm.mesh.record import MAX_SKEW_S


def check_clocks(theirs: float | None, caller: NodeId, here: NodeId, now_wall: float) -> None:
    """Raise InviteError when the caller's wall clock (`theirs`, seconds) is too far from `now_wall`; None: not told.

    Neither would believe the other's records, and each would find the swarm empty.
    """
    if theirs is None:
        return
    ahead = theirs - now_wall
    if abs(ahead) <= MAX_SKEW_S:
        return
    how = f"{abs(ahead) / 3600:.1f} hours {'ahead of' if ahead > 0 else 'behind'}"
    raise InviteError(
        f"clocks differ: that of node {short_id(caller)} is {how} that of node {short_id(here)}; "
        f"expected {MAX_SKEW_S // 3600} hours at most; set the wrong one (cause: clock)"
    )
