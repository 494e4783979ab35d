"""What one way of recomputing a run showed."""

from __future__ import annotations

from dataclasses import dataclass

from receipts.check.verdict import Claim


@dataclass(frozen=True)
class Outcome:
    """What recomputation showed. `conclusive` is False when it could not decide; then `why` says what was missing.

    `decoded`: the tokens were decoded here, and the disclosed text is all that they say. `exact`: every row or token
    that was recomputed is equal bit for bit to what kernels of the fingerprint give that its stage signed; None where
    nothing was recomputed.
    """

    claims: tuple[Claim, ...]
    conclusive: bool
    why: str = ""
    decoded: bool = False
    exact: bool | None = None
