"""Who held which layers when: joins, losses and moves, as one process saw them. Bounded, and pure.

`observe` is told what the swarm looks like now and then; spans begin and end with what changed between two looks. Times
are Unix seconds. Over a restart it goes on from what was kept, and says when nobody watched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from receipts import ReceiptError
from receipts.format.codec import Hex, Many, Range, Text, decode_untrusted, encode
from swarm.base.errors import UsageError
from swarm.base.swarm_state import NodeState, Span, SwarmState

KEPT_S = 86_400
MOST_SPANS = 1024
"""As many as a swarm of hundreds makes in an hour of coming and going: some 200 kB as JSON."""
MOST_GAPS = 64

Millis = Annotated[int, Range(0, 2**53)]
How = Literal["held", "taking", "leaving"]
Why = Literal["", "lost", "left", "moved", "unseen"]
HOW: tuple[How, ...] = ("held", "taking", "leaving")
WHY: tuple[Why, ...] = ("", "lost", "left", "moved", "unseen")


@dataclass(frozen=True)
class HeldSpan:
    """A node and layers [first, last) from `begin_ms` to `end_ms` (None: still).

    how  it holds them, is taking them, or is leaving and works until it goes
    why  it ended: the node was lost, left, turned to other layers or another state, or went while nobody watched
    """

    node: Annotated[str, Text(80)]
    name: Annotated[str, Text(200)]
    first: Annotated[int, Range(0, 4096)]
    last: Annotated[int, Range(1, 4096)]
    how: Annotated[str, Text(8, HOW)]
    begin_ms: Millis
    end_ms: Millis | None
    why: Annotated[str, Text(8, WHY)]


@dataclass(frozen=True)
class Gap:
    """Nobody watched from `begin_ms` to `end_ms`."""

    begin_ms: Millis
    end_ms: Millis


@dataclass(frozen=True)
class KeptHistory:
    """What lies on disk. `digest`: of the model's manifest, whose layers these are."""

    version: Annotated[int, Range(1, 1)]
    digest: Annotated[str, Hex(32)]
    layers: Annotated[int, Range(0, 4096)]
    since_ms: Millis
    seen_ms: Millis
    spans: Annotated[tuple[HeldSpan, ...], Many(0, MOST_SPANS)]
    gaps: Annotated[tuple[Gap, ...], Many(0, MOST_GAPS)]


class LayerHistory:
    """`digest` and `n_layers` of the model that it is about."""

    def __init__(self, digest: str, n_layers: int) -> None:
        self.digest, self.n_layers = digest, n_layers
        self.since_ms = self.seen_ms = 0
        self.gaps: list[Gap] = []
        self._past: list[HeldSpan] = []
        self._now: dict[str, HeldSpan] = {}
        self._restored = False

    @property
    def spans(self) -> tuple[HeldSpan, ...]:
        """In the order in which they began."""
        return tuple(sorted([*self._past, *self._now.values()], key=lambda span: (span.begin_ms, span.node)))

    def observe(self, now: float, state: SwarmState) -> bool:
        """Take in a look at the swarm; whether anything changed. A clock that goes back is held still."""
        now_ms = max(self.seen_ms, round(now * 1000))
        if not self.since_ms:
            self.since_ms = now_ms
        if self._restored:
            self.gaps = [*self.gaps, Gap(self.seen_ms, now_ms)][-MOST_GAPS:]
        before = dict(self._now)
        here = {node.id: found for node in state.nodes if (found := _span(node, now_ms)) is not None}
        standing = {node.id: node.standing for node in state.nodes}
        for node, old in before.items():
            new = here.get(node)
            if new is not None and (new.first, new.last, new.how) == (old.first, old.last, old.how):
                continue
            why: Why = "moved" if new is not None else "lost" if standing.get(node) == "down" else "left"
            end, why = (self.seen_ms, "unseen") if self._restored else (now_ms, why)
            self._past.append(replace(self._now.pop(node), end_ms=end, why=why))
        for node, new in here.items():
            self._now.setdefault(node, new)
        self.seen_ms, self._restored = now_ms, False
        self._forget()
        return before != self._now

    def _forget(self) -> None:
        oldest = self.seen_ms - KEPT_S * 1000
        self.since_ms = max(self.since_ms, oldest)
        self._past = [span for span in self._past if (span.end_ms or 0) > oldest]
        self.gaps = [gap for gap in self.gaps if gap.end_ms > oldest]
        over = len(self._past) + len(self._now) - MOST_SPANS
        if over > 0:  # what is told begins where it is still whole
            self._past.sort(key=lambda span: span.end_ms or 0)
            gone, self._past = self._past[:over], self._past[over:]
            self.since_ms = max([self.since_ms, *(span.end_ms or 0 for span in gone)])
            for node in [*self._now][: over - len(gone)]:
                del self._now[node]

    def to_bytes(self) -> bytes:
        """What to keep over a restart."""
        kept = KeptHistory(1, self.digest, self.n_layers, self.since_ms, self.seen_ms, self.spans, tuple(self.gaps))
        return json.dumps(encode(kept), separators=(",", ":")).encode()

    def restore(self, data: bytes) -> None:
        """Go on from what was kept. Raises UsageError when it is no such file, or of another model."""
        try:
            kept = decode_untrusted(KeptHistory, json.loads(data), "layers")
        except (ValueError, RecursionError, ReceiptError) as error:
            raise UsageError(f"expected a history of layers, found something else ({error})") from error
        if (kept.digest, kept.layers) != (self.digest, self.n_layers):
            raise UsageError("expected a history of this model's layers, found another model's")
        self.since_ms, self.seen_ms, self.gaps = kept.since_ms, kept.seen_ms, list(kept.gaps)
        self._past = [span for span in kept.spans if span.end_ms is not None]
        self._now = {span.node: span for span in kept.spans if span.end_ms is None}
        self._restored = True

    def as_json(self) -> dict[str, object]:
        """What `/api/layers` tells: spans, what was missing when, and when nobody watched."""
        return {
            "layers": self.n_layers,
            "since_ms": self.since_ms,
            "now_ms": self.seen_ms,
            "spans": [encode(span) for span in self.spans],
            "gaps": [encode(gap) for gap in self.gaps],
            "coverage": [
                {"begin_ms": part.begin_ms, "end_ms": part.end_ms, "held": [list(run) for run in part.held],
                 "missing": [list(span) for span in part.missing]}
                for part in coverage(self.spans, self.n_layers, self.since_ms, self.seen_ms)
            ],
        }  # fmt: skip


def _span(node: NodeState, now_ms: int) -> HeldSpan | None:
    """What a node holds or is about to; None: nothing, or it is gone."""
    if node.standing == "down":
        return None
    layers: Span | None = node.layers
    how: How = "leaving" if node.says == "draining" else "held"
    if node.says == "joining":
        layers, how = node.claim or node.layers, "taking"
    if layers is None or layers[1] <= layers[0]:
        return None
    return HeldSpan(node.id[:80], node.name[:200], layers[0], layers[1], how, now_ms, None, "")


@dataclass(frozen=True)
class Coverage:
    """From `begin_ms` to `end_ms`, runs of layers by how many nodes held each: (first, last, nodes)."""

    begin_ms: int
    end_ms: int
    held: tuple[tuple[int, int, int], ...]

    @property
    def missing(self) -> tuple[Span, ...]:
        return tuple((first, last) for first, last, count in self.held if not count)


def coverage(spans: Iterable[HeldSpan], n_layers: int, begin_ms: int, end_ms: int) -> tuple[Coverage, ...]:
    """How many nodes held each layer, over time, in as few parts as say it all. Whoever is leaving still holds."""
    whole = [span for span in spans if span.how != "taking"]
    moments = {begin_ms, end_ms}
    for span in whole:
        moments |= {span.begin_ms, span.end_ms if span.end_ms is not None else end_ms}
    inside = sorted(moment for moment in moments if begin_ms <= moment <= end_ms)
    found: list[Coverage] = []
    for begin, end in zip(inside, inside[1:], strict=False):
        count = [0] * n_layers
        for span in whole:
            if span.begin_ms <= begin and (span.end_ms is None or span.end_ms >= end):
                for layer in range(min(span.first, n_layers), min(span.last, n_layers)):
                    count[layer] += 1
        held = _runs(count)
        if found and found[-1].held == held:
            found[-1] = replace(found[-1], end_ms=end)
        else:
            found.append(Coverage(begin, end, held))
    return tuple(found)


def _runs(count: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    runs: list[tuple[int, int, int]] = []
    for layer, nodes in enumerate(count):
        if runs and runs[-1][2] == nodes:
            runs[-1] = (runs[-1][0], layer + 1, nodes)
        else:
            runs.append((layer, layer + 1, nodes))
    return tuple(runs)
