"""How many prepared kernels torch and oneDNN keep."""

from __future__ import annotations

import os

KERNELS_KEPT = 128
"""One kernel for each matrix shape and number of rows. The libraries keep 1,024 each by themselves, about 0.6 MB a
piece, so that a node grows by a gigabyte as prompts of all lengths come by. 128 are more than the row counts of
decoding times the shapes of a layer; to prepare one again takes 0.6 ms, once for all layers."""


def bound_kernels() -> None:
    """Keep KERNELS_KEPT; has an effect before the first kernel is prepared in this process.

    This configures two libraries, not this program: both ask the environment, once, and have no other way to be told.
    Whoever set it before knows better.
    """
    for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(KERNELS_KEPT))
