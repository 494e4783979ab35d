"""Whose a session is at a stage: who pays for its memory, and who may go on with it."""

from __future__ import annotations

from dataclasses import dataclass

from receipts import opening_untrusted
from swarm.base.errors import PeerError
from swarm.ring.opening import OpenRun


@dataclass(frozen=True)
class Owner:
    """`node` as far as this stage can tell; `signed`: by its signature on the order."""

    node: bytes
    signed: bool


def owner_untrusted(opening: OpenRun, upstream: bytes) -> Owner:
    """Who answers for an opening that the authenticated peer `upstream` sent.

    The requester, where its signature on the order is there or where it sent the opening itself. Behind the head a run
    without receipt has only the word of the node before: then that one answers for it, and whomever it names pays
    nothing. Raises PeerError when the opening names another than the order's signer, ReceiptError for a forged order.
    """
    if opening.record is not None:
        signer = bytes.fromhex(opening_untrusted(opening.record).requester)
        if signer != opening.requester:
            raise PeerError("expected the order of the ring to be signed by its requester, found another's signature")
        return Owner(signer, signed=True)
    return Owner(opening.requester if opening.index == 0 else upstream, signed=False)
