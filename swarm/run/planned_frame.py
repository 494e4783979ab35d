"""What a run's core takes and gives, and how rows are laid into a frame."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np

from draft.node import Node
from swarm.base.errors import UsageError
from swarm.model.rows import Commits, Layout, Rows


@dataclass(frozen=True)
class StopRule:
    """When a run ends: after `max_tokens` new tokens exactly, or after a token of `stop` unless `ignore_stop`.

    The first `given` new tokens end nothing.
    """

    max_tokens: int
    stop: AbstractSet[int] = frozenset()
    ignore_stop: bool = False
    given: int = 0


@dataclass(frozen=True)
class PlannedFrame:
    """A frame to send now. Frames go to the head in order of `seq`; its answers come in order too. `drafts`: how many
    tokens ahead the tail is asked to draft. `nodes`: ids of its drafted rows, which are the last ones, and
    `parents` of the nodes before them."""

    seq: int
    commits: Commits
    rows: Rows
    drafts: int = 0
    nodes: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class SettledToken:
    """A token that became certain. `drafted`: it had been sent before it was known, so it cost no pass of its own.

    `answer` is the index of the tail's answer that named it, in the frame that was just answered.
    """

    token: int
    position: int
    drafted: bool
    answer: int


@dataclass(frozen=True)
class Settled:
    """What an answer settled. `finished` is "stop" or "length" when the run is over, else None; `right` are ids of the
    drafted rows that turned out right."""

    tokens: tuple[SettledToken, ...] = ()
    finished: str | None = None
    right: tuple[int, ...] = ()


@dataclass
class Counts:
    """Sums over the run. Depths: how far below the last known token a row was when it was sent."""

    frames: int = 0
    rows: int = 0
    prompt_rows: int = 0
    drafted_rows: int = 0
    accepted: int = 0
    depth_sent: dict[int, int] = field(default_factory=dict)
    depth_accepted: dict[int, int] = field(default_factory=dict)

    def add(self, prompt_rows: int, rows: int, depths: Sequence[int]) -> None:
        """A frame of `rows` rows was made; `depths` of its drafted ones below the root."""
        self.frames += 1
        self.rows += rows
        self.prompt_rows += prompt_rows
        self.drafted_rows += len(depths)
        for depth in depths:
            self.depth_sent[depth] = self.depth_sent.get(depth, 0) + 1

    def by_depth(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows sent and rows accepted, each for depths 1, 2, ..."""
        depths = range(1, max(self.depth_sent, default=0) + 1)
        sent, accepted = (tuple(of.get(d, 0) for d in depths) for of in (self.depth_sent, self.depth_accepted))
        return sent, accepted

    def accept(self, depth: int) -> None:
        """A row that was drafted `depth` below the root turned out right."""
        self.accepted += 1
        self.depth_accepted[depth] = self.depth_accepted.get(depth, 0) + 1


@dataclass(frozen=True)
class Flight:
    """A frame on its way.

    wanted  nodes that its answer is for, in order of rows
    placed  leading tokens that are in committed slots once it is through
    alone   nothing else was in flight when it was sent
    long    carries several certain rows: a prompt, or what a restart sends again
    timed   its latency says what passes cost
    """

    seq: int
    sent: float
    rows: int
    wanted: tuple[Node, ...]
    placed: int
    alone: bool
    long: bool
    timed: bool


def check_run(prompt: Sequence[int], layout: Layout, ending: StopRule) -> None:
    """Raises UsageError for an empty prompt, one that does not fit the context, or max_tokens under 1."""
    if not prompt:
        raise UsageError("a run needs at least one prompt token, found none; give a prompt")
    if len(prompt) > layout.context:
        raise UsageError(f"the prompt has {len(prompt)} tokens but the context holds {layout.context}; shorten it")
    if ending.max_tokens < 1:
        raise UsageError(f"max-tokens must be at least 1, found {ending.max_tokens}")


def lay_rows(
    layout: Layout, tokens: Sequence[int], certain: range, root: Node, nodes: Sequence[Node], wanted: int
) -> Rows:
    """Rows of a frame: the `certain` positions of `tokens` first, then drafted `nodes`; the last `wanted` are answered.

    Every node has a slot, and so has every node between it and `root`. All of `tokens` are placed once there are nodes.
    """
    scratch, n = layout.scratch, len(certain) + len(nodes)
    bits = np.zeros((n, scratch // 8), np.uint8)
    known = {root.id: 0}
    for i, node in enumerate(nodes, len(certain)):
        bits[i] = np.frombuffer(_sight(node, known).to_bytes(scratch // 8, "little"), np.uint8)
    return Rows(
        slot=np.array([scratch + p for p in certain] + [node.slot for node in nodes], np.uint32),
        position=np.array([*certain, *(node.position for node in nodes)], np.uint32),
        prefix=np.array([p + 1 for p in certain] + [len(tokens)] * len(nodes), np.uint32),
        ancestors=bits,
        token=np.array([*(tokens[p] for p in certain), *(node.token for node in nodes)], np.int32),
        want=np.array([False] * (n - wanted) + [True] * wanted, np.bool_),
    )


def _sight(node: Node, known: dict[int, int]) -> int:
    """Bitmap of the scratch slots on the path down to `node`, as an integer; `known` is filled on the way."""
    path = []
    walk = node
    while walk.id not in known:
        path.append(walk)
        assert walk.parent is not None
        walk = walk.parent
    seen = known[walk.id]
    for step in reversed(path):
        seen |= 1 << step.slot
        known[step.id] = seen
    return seen
