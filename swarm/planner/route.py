"""Which nodes a run goes through, and which layers each computes: a shortest path.

A place on the way is (node, number of layers done). From there the row either stays for one more layer, which
costs that node's measured milliseconds, or hops to another node that holds the next layer, which costs half a
round trip, the bytes over the narrower of two bandwidths, the queue there and a fixed price per hop. The edge
back from the tail to the requester is priced too. Fewer hops win by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swarm.base.errors import CoverageError
from swarm.planner.coverage_need import need
from swarm.planner.fleet import Matrix, Member, ModelShape, Rtts, Speed, gaps, holders, say_layers, usual_speed
from swarm.planner.search import CostArrays, cost_to_go, search

HOP_MS = 1.0
"""Encode, seal, send, open and decode of one frame: the price of a hop besides the wire."""
SUSPECT_MS = 10_000.0
OTHER_KERNELS_MS = 50.0
"""What it is worth in a pass, where kernels are preferred, not to go on with others, which may change the text."""
SPREAD = 0.01


@dataclass(frozen=True)
class Ask:
    """What a requester wants of a route.

    `rows`: rows per frame that the route is priced for. `context`: tokens of KV that each stage must have room for.
    `first`, `last`: the layers that the ring computes, when the requester keeps the outer ones to itself (then the
    tail returns hidden rows). `trust`: names of nodes or owners that may be used, None for all.
    `spread`: a number of this requester's own; near-equal nodes are ordered by it so that requesters differ; None
    for the exact optimum. `kernels`: fingerprints to prefer; empty: none is.
    """

    requester: str
    rows: int = 16
    context: int = 2048
    first: int = 0
    last: int | None = None
    exclude: frozenset[str] = frozenset()
    trust: frozenset[str] | None = None
    min_owners: int = 1
    spread: int | None = None
    kernels: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TimedStage:
    """One stage: `node` computes layers [first, last). All times in milliseconds for one pass.

    `arrive_ms`: one-way latency of the edge into this stage; `transfer_ms`: the frame's bytes on that edge.
    """

    node: str
    first: int
    last: int
    arrive_ms: float
    transfer_ms: float
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True)
class Route:
    """Stages in order, `return_ms` of the edge from the tail back, and the predicted milliseconds of one pass."""

    stages: tuple[TimedStage, ...]
    return_ms: float
    pass_ms: float

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(stage.node for stage in self.stages)


def plan_route(model: ModelShape, members: Sequence[Member], rtts: Rtts, ask: Ask) -> Route:
    """The route with the smallest predicted pass time. Raises CoverageError naming the layers that are missing."""
    last = model.n_layers if ask.last is None else ask.last
    usable = [m for m in members if _usable(m, model, ask)]
    _check_coverage(model, members, usable, ask, last)
    names = [ask.requester, *(m.node for m in usable)]
    rtt = rtts(names)
    costs = _price(model, usable, rtt, ask, last)
    min_owners = max(1, ask.min_owners)
    tables = cost_to_go(costs, min_owners - 1)
    # Exact first. Where constraints bind so hard that the budget ends, lean on the estimate and take what comes.
    path = search(costs, tables, min_owners, 1.0) or search(costs, tables, min_owners, 2.0)
    if path is None:
        raise CoverageError(_why_none(model, usable, ask))
    # Priced again without the spreading tilt, so that the prediction is the plain one.
    at = [0, *(i + 1 for i, _, _ in path)]
    cuts = [ask.first + path[0][1], *(ask.first + end for _, _, end in path)]
    chosen = [usable[i] for i, _, _ in path]
    return price_route(model, chosen, cuts, rtt[np.ix_(at, at)], ask.rows, usual_speed(usable))


def _usable(member: Member, model: ModelShape, ask: Ask) -> bool:
    if member.state not in ("serving", "suspect") or not 0 <= member.first < member.last <= model.n_layers:
        return False
    if member.node in ask.exclude or (member.kv_free_bytes is not None and _fits(member, model, ask) < 1):
        return False
    return ask.trust is None or member.node in ask.trust or (member.owner != "" and member.owner in ask.trust)


def _fits(member: Member, model: ModelShape, ask: Ask) -> int:
    # Of layers of several kinds any may be asked for, so they count alike.
    per_layer = -(-model.session_bytes(0, model.n_layers, ask.context) // model.n_layers)
    if member.kv_free_bytes is None or per_layer == 0:
        return member.layers
    return min(member.layers, member.kv_free_bytes // per_layer)


def _check_coverage(
    model: ModelShape, members: Sequence[Member], usable: Sequence[Member], ask: Ask, last: int
) -> None:
    if not gaps(_held(usable, model.n_layers)[ask.first : last]):
        _check_parts(model, usable, ask, last)
        return
    present = sum(m.state in ("serving", "suspect", "joining", "draining") for m in members)
    count = f"{present} node{'' if present == 1 else 's'} present"
    holes = gaps(_held(members, model.n_layers)[ask.first : last])
    if holes:
        shifted = [(a + ask.first, b + ask.first) for a, b in holes]
        raise CoverageError(f"{_are(shifted)} held by nobody; {count}", need(model, shifted))
    holes = gaps(_held(usable, model.n_layers)[ask.first : last])
    shifted = [(a + ask.first, b + ask.first) for a, b in holes]
    raise CoverageError(
        f"{_are(shifted)} held only by nodes that this request excludes or that have no free memory "
        f"for {ask.context} tokens; {count}"
    )


def _check_parts(model: ModelShape, usable: Sequence[Member], ask: Ask, last: int) -> None:
    if not model.forbidden.isdisjoint((ask.first, last)):
        raise CoverageError(
            f"{model.name} cannot be cut before layer {ask.first} and layer {last}; keep others yourself"
        )
    for begin, end in model.parts(ask.first, last):
        if not any(member.first <= begin and end <= member.last for member in usable):
            raise CoverageError(
                f"{say_layers([(begin, end)])} of {model.name} stay together, since later ones read what earlier ones "
                f"keep, and no usable node holds them all",
                need(model, [(begin, end)]),
            )


def _are(ranges: Sequence[tuple[int, int]]) -> str:
    single = len(ranges) == 1 and ranges[0][1] - ranges[0][0] == 1
    return f"{say_layers(ranges)} {'is' if single else 'are'}"


def _held(members: Sequence[Member], n_layers: int) -> NDArray[np.int64]:
    shown = [Member(m.node, m.first, m.last) for m in members if m.state in ("serving", "suspect")]
    return holders(shown, n_layers)


def _price(model: ModelShape, usable: Sequence[Member], rtt: Matrix, ask: Ask, last: int) -> CostArrays:
    n = len(usable)
    usual = usual_speed(usable)
    compute = np.full((model.n_layers, n), np.inf)
    for i, member in enumerate(usable):
        compute[member.first : member.last, i] = member.layer_ms(ask.rows, usual)
    queue = np.array([m.queue_ms + (SUSPECT_MS if m.state == "suspect" else 0.0) for m in usable])
    up = _rate([m.up_mbps for m in usable])
    down = _rate([m.down_mbps for m in usable])
    bits = ask.rows * model.row_bytes * 8 / 1000
    hop = rtt[1:, 1:] / 2 + bits / np.minimum(up[:, None], down[None, :]) + queue[None, :] + HOP_MS
    private = ask.first > 0 or last < model.n_layers
    start = rtt[0, 1:] / 2 + (bits / down if private else 0.0) + queue + HOP_MS
    back = rtt[1:, 0] / 2 + (bits / up if private else 0.0) + HOP_MS
    if ask.kernels:
        other = np.array([0.0 if m.kernels in ask.kernels else OTHER_KERNELS_MS for m in usable])
        hop, start = hop + other[None, :], start + other
    if ask.spread is not None:
        # Up to 1% per stage, by load first and then by a draw of this requester: equal nodes share the work.
        draw = np.array([_draw(ask.spread, m.node) for m in usable])
        busy = np.array([m.sessions for m in usable], float)
        tilt = 1 + SPREAD * (0.8 * busy / max(1.0, float(busy.max())) + 0.2 * draw)
        compute, hop, start = compute * tilt, hop * tilt, start * tilt
    np.fill_diagonal(hop, np.inf)
    owners = {name: i for i, name in enumerate(sorted({m.owner or f"node:{m.node}" for m in usable}))}
    return CostArrays(
        compute[ask.first : last],
        hop,
        start,
        back,
        np.array([_fits(m, model, ask) for m in usable], np.int64),
        np.array([owners[m.owner or f"node:{m.node}"] for m in usable], np.int64),
        np.array([layer not in model.forbidden for layer in range(ask.first, last)]),
    )


def _rate(values: Sequence[float | None]) -> Matrix:
    return np.array([np.inf if value is None else max(value, 1e-3) for value in values])


def _draw(seed: int, node: str) -> float:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{node}".encode(), digest_size=4).digest(), "big") / 2**32


def price_route(
    model: ModelShape,
    chosen: Sequence[Member],
    cuts: Sequence[int],
    rtt: Matrix,
    rows: int,
    usual: Speed,
) -> Route:
    """Predict one pass of `rows` rows through members `chosen`, stage i computing layers [cuts[i], cuts[i + 1]).

    `rtt` [n + 1, n + 1] in milliseconds, place 0 the requester, place i + 1 stage i. `usual`: for members that
    measured no speed.
    """
    private = cuts[0] > 0 or cuts[-1] < model.n_layers
    megabits = rows * model.row_bytes * 8 / 1e6
    stages: list[TimedStage] = []
    total = 0.0
    rate_before: float | None = None
    for i, member in enumerate(chosen):
        first, last = cuts[i], cuts[i + 1]
        narrow = min(_or_inf(rate_before), _or_inf(member.down_mbps))
        # Token ids alone go to the head, unless the requester computes the first layers itself.
        transfer = 0.0 if i == 0 and not private else 1000 * megabits / max(narrow, 1e-3)
        compute = float(member.layer_ms(rows, usual)[first - member.first : last - member.first].sum())
        stage = TimedStage(member.node, first, last, float(rtt[i, i + 1]) / 2, transfer, member.queue_ms, compute)
        total += stage.arrive_ms + transfer + stage.queue_ms + compute + HOP_MS
        total += SUSPECT_MS if member.state == "suspect" else 0.0
        stages.append(stage)
        rate_before = member.up_mbps
    back = 1000 * megabits / max(_or_inf(rate_before), 1e-3) if private else 0.0
    home = float(rtt[len(chosen), 0]) / 2
    return Route(tuple(stages), home, total + home + back + HOP_MS)


def _or_inf(rate: float | None) -> float:
    return float("inf") if rate is None else rate


def _why_none(model: ModelShape, usable: Sequence[Member], ask: Ask) -> str:
    owners = len({m.owner or m.node for m in usable})
    if ask.min_owners > 1:
        return (
            f"no route passes through {ask.min_owners} different owners; the {len(usable)} usable nodes belong to "
            f"{owners}; ask for fewer owners or wait for more nodes"
        )
    return (
        f"no route fits: {len(usable)} nodes hold all {model.n_layers} layers, but not with free memory for "
        f"{ask.context} tokens each; ask for a shorter context or wait"
    )
