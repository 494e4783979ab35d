"""One session's share of a forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from swarm.model.kvcache import SessionKV
from swarm.model.rows import Commits, Rows


@dataclass(frozen=True)
class Job:
    """One session's share of a forward.

    kv      the session's slots; open over exactly the block's layers or more
    commits applied before the rows
    rows    checked by `rows.check_untrusted`
    hidden  [n, hidden_size] from the stage before; None at the head, where rows.token counts
    """

    kv: SessionKV
    commits: Commits
    rows: Rows
    hidden: torch.Tensor | None
