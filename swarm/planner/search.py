"""The shortest path through a swarm under constraints, over plain arrays.

Backwards, dynamic programming over layers gives the exact cost to go from every place (member, layers done),
vectorised over members. Forwards, best-first search (A*) with that as its estimate builds the route under what a
cost to go cannot know: a member is used once, a stage's KV must fit, at least K owners. Where no constraint binds
the search walks straight to the end.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from swarm.planner.fleet import Matrix

MAX_POPS = 5_000


@dataclass(frozen=True)
class CostArrays:
    """Arrays over the n usable members; layers counted from the first that the ring computes.

    compute [layers, n] ms, inf where not hosted; hop [n, n] and start [n] ms of an edge with its transfer and the
    queue at its end; back [n]; longest [n] layers that fit a stage's free KV; owner [n] numbers; begins [layers]: may a
    stage begin with the layer.
    """

    compute: Matrix
    hop: Matrix
    start: Matrix
    back: Matrix
    longest: NDArray[np.int64]
    owner: NDArray[np.int64]
    begins: NDArray[np.bool_]


def cost_to_go(costs: CostArrays, changes: int) -> list[Matrix]:
    """For k = 0..changes: [layers + 1, n] least cost from (node, layers done) to the end with k more owner changes.

    Changes of owner along the way are a lower bound on different owners, and exact for two.
    """
    n_layers, n = costs.compute.shape
    tables = [np.full((n_layers + 1, n), np.inf) for _ in range(changes + 1)]
    tables[0][n_layers] = costs.back
    hosts = [np.flatnonzero(np.isfinite(row)) for row in costs.compute]
    cached: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    hop = same = np.zeros((0, 0))
    for layer in range(n_layers - 1, 0, -1):
        here, there = hosts[layer - 1], hosts[layer]
        if cached is None or not (np.array_equal(cached[0], here) and np.array_equal(cached[1], there)):
            cached = here, there
            hop = costs.hop[np.ix_(here, there)]
            same = costs.owner[here][:, None] == costs.owner[there][None, :]
        for k in range(changes + 1):
            if not costs.begins[layer]:
                tables[k][layer, here] = (costs.compute[layer] + tables[k][layer + 1])[here]
                continue
            stay = costs.compute[layer] + tables[k][layer + 1]
            onward = stay[there]
            if k == 0:
                hopped = (hop + onward).min(axis=1)
            else:
                fewer = (costs.compute[layer] + tables[k - 1][layer + 1])[there]
                hopped = np.where(same, hop + onward, hop + fewer).min(axis=1)
            tables[k][layer, here] = np.minimum(stay[here], hopped)
    return tables


@dataclass(frozen=True)
class _Label:
    """A partial route: `cost` so far, at `node` with `done` layers, its stage begun at `begun`."""

    cost: float
    node: int
    done: int
    begun: int
    used: frozenset[int]
    owners: frozenset[int]
    previous: _Label | None


_Children: TypeAlias = Iterator[tuple[float, _Label]]
"""Labels one layer further, with the least cost of a whole route over each."""


def search(
    costs: CostArrays, tables: Sequence[Matrix], min_owners: int, weight: float
) -> list[tuple[int, int, int]] | None:
    """Stages as (member, first, last), cheapest under the constraints for `weight` 1, or None within MAX_POPS."""
    growing = _Growing(costs, tables, min_owners, weight)
    order = itertools.count()
    heap: list[tuple[float, int, int, _Label, _Children]] = []
    seen: set[tuple[object, ...]] = set()

    def push(children: _Children) -> None:
        step = next(children, None)
        if step is not None:
            heapq.heappush(heap, (step[0], -step[1].done, next(order), step[1], children))

    push(growing.entered(0.0, costs.start, None))
    for _ in range(MAX_POPS):
        if not heap:
            return None
        _, _, _, label, siblings = heapq.heappop(heap)
        push(siblings)
        if label.done == len(costs.compute):
            return _stages(label)
        if (key := growing.key(label)) in seen:
            continue
        seen.add(key)
        push(growing.stayed(label))
        if costs.begins[label.done]:
            push(growing.entered(label.cost, costs.hop[label.node], label))
    return None


class _Growing:
    """How partial routes grow by a layer."""

    def __init__(self, costs: CostArrays, tables: Sequence[Matrix], min_owners: int, weight: float) -> None:
        self._costs, self._tables, self._min_owners, self._weight = costs, tables, min_owners, weight
        hosted = np.isfinite(costs.compute)
        self._last_hosted = len(hosted) - np.argmax(hosted[::-1], axis=0)
        self._binding = costs.longest < hosted.sum(axis=0)

    def entered(self, base: float, edge: Matrix, label: _Label | None) -> _Children:
        """Children that begin a new stage, cheapest first."""
        costs = self._costs
        layer = 0 if label is None else label.done
        owners: frozenset[int] = frozenset() if label is None else label.owners
        used: frozenset[int] = frozenset() if label is None else label.used
        reach = base + edge + costs.compute[layer]
        known = np.isin(costs.owner, list(owners))
        ahead = np.where(known, self._togo(len(owners), layer + 1), self._togo(len(owners) + 1, layer + 1))
        total = reach + self._weight * ahead
        for j in map(int, np.argsort(total, kind="stable")):
            if not np.isfinite(total[j]):
                return
            if j not in used:
                owner = owners | {int(costs.owner[j])}
                yield float(total[j]), _Label(float(reach[j]), j, layer + 1, layer, used | {j}, owner, label)

    def stayed(self, label: _Label) -> _Children:
        """The child whose stage computes the next layer too, if it may."""
        costs, done = self._costs, label.done + 1
        cost = label.cost + float(costs.compute[label.done, label.node])
        if np.isfinite(cost) and done - label.begun <= costs.longest[label.node]:
            total = cost + self._weight * float(self._togo(len(label.owners), done)[label.node])
            if np.isfinite(total):
                yield total, replace(label, cost=cost, done=done)

    def key(self, label: _Label) -> tuple[object, ...]:
        """The same for labels that go on alike, of which the first one is the cheapest."""
        again = frozenset(i for i in label.used if self._last_hosted[i] > label.done)
        begun = label.begun if self._binding[label.node] else -1
        return label.node, label.done, begun, again, label.owners if self._min_owners > 1 else None

    def _togo(self, owners: int, done: int) -> Matrix:
        found: Matrix = self._tables[min(max(0, self._min_owners - owners), len(self._tables) - 1)][done]
        return found


def _stages(label: _Label) -> list[tuple[int, int, int]]:
    stages: list[tuple[int, int, int]] = []
    at: _Label | None = label
    while at is not None:
        stages.append((at.node, at.begun, at.done))
        at = at.previous
    return stages[::-1]
