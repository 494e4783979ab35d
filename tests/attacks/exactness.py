"""What the attacks on exact audits share: a verifier for whom rows that passed alone keep their bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swarm.model import fingerprint
from swarm.recheck import check, recompute
from tests.attacks.lies import NEVER_IN_COMPANY

HONEST = NEVER_IN_COMPANY
ALL = 4096
"""Frames to open: every one of the runs here."""


def verifying_rows_alone(patch: pytest.MonkeyPatch) -> None:
    """In this process as in the nodes' (`lies.never_in_company`): one frame, one pass, and bits that follow from it."""
    patch.setattr(fingerprint, "is_row_invariant", lambda block: True)
    patch.setattr(recompute, "_batches", lambda steps: ([step] for step in steps))


@contextmanager
def within_limits_only() -> Iterator[None]:
    """A verifier that has nobody's kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "fingerprints_of", lambda run: {})
        yield
