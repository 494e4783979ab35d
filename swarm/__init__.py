"""wanswarm: one language model, many machines, one ring.

For programs: `Client` and `AsyncClient` ask a swarm, `Node` and `AsyncNode` serve one (docs/python.md). They are loaded
when they are first named, so that importing this package costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself takes long enough to be interrupted, where nothing could say so yet
if TYPE_CHECKING:
    from typing import Any

    from receipts.check.verdict import Verdict
    from swarm.base.errors import BusyError, CoverageError, ModelError, PeerError, RunError, SwarmError, UsageError
    from swarm.base.events import Notice, Progress
    from swarm.client.async_client import AnswerStream, AsyncClient, Unfinished
    from swarm.client.sync_client import AnswerPieces, Client
    from swarm.node.embedded import AsyncNode
    from swarm.node.embedded import BlockingNode as Node
    from swarm.run.api import RunResult

__version__ = "0.1.0"

__all__ = [
    "AnswerPieces",
    "AnswerStream",
    "AsyncClient",
    "AsyncNode",
    "BusyError",
    "Client",
    "CoverageError",
    "ModelError",
    "Node",
    "Notice",
    "PeerError",
    "Progress",
    "RunError",
    "RunResult",
    "SwarmError",
    "Unfinished",
    "UsageError",
    "Verdict",
]

_HOMES = {
    "receipts.check.verdict": ("Verdict",),
    "swarm.base.errors": (
        "BusyError",
        "CoverageError",
        "ModelError",
        "PeerError",
        "RunError",
        "SwarmError",
        "UsageError",
    ),
    "swarm.base.events": ("Notice", "Progress"),
    "swarm.client.async_client": ("AnswerStream", "AsyncClient", "Unfinished"),
    "swarm.client.sync_client": ("AnswerPieces", "Client"),
    "swarm.node.embedded": ("AsyncNode", "BlockingNode"),
    "swarm.run.api": ("RunResult",),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    inside = {"Node": "BlockingNode"}.get(name, name)  # drafts have a class of that name
    for home, names in _HOMES.items():
        if inside in names:
            return getattr(import_module(home), inside)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
