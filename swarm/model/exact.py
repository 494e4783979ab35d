"""Whether a block's rows are functions of bits: what may be compared bit for bit, and what may not.

A block is row-invariant when the hidden row after each of its layers at position p depends on nothing but the weights,
the kernels of this machine and the tokens of the row's own path up to p: not on other rows of the forward, on other
sessions, on where a prompt was cut into parts, on slots, on whether a row was drafted or committed, on where the model
was cut, or on the number of threads. Two such blocks with the same kernel fingerprint give the same bits, whatever
company each of them had.
"""

from __future__ import annotations

from typing import Protocol


class MayBeExact(Protocol):
    """What is asked about: a block, or one on two devices."""

    @property
    def why_not_exact(self) -> str | None:
        """None when its rows are invariant; else the part that is not, in words."""
        ...


def is_row_invariant(block: object) -> bool:
    """Are this block's rows invariant, as above? False wherever that was not established; never raises."""
    return why_not(block) is None


def why_not(block: object) -> str | None:
    """None for a row-invariant block, else what stands against it, in words for a user ("experts are grouped by
    row count", "no compiled kernels")."""
    return getattr(block, "why_not_exact", "this block does not say that its rows are invariant")
