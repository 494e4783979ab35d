"""What the attacks on exact audits share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swarm.recheck import check

ALL = 4096
"""Frames to open: every one of the runs here."""


@contextmanager
def within_limits_only() -> Iterator[None]:
    """A verifier that has nobody's kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "fingerprints_of", lambda run: {})
        yield
