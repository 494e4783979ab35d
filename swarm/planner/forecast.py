"""What a route will give: times of passes of any size, and tokens per second with and without speculation.

Estimates before a run, from measured speeds and distances; a run measures for itself. Speculation is modelled as
waiting: send a chain or a tree, wait for the answer, send the next. A run that never waits does at least as well.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.planner.fleet import Member, ModelShape, Rtts, usual_speed
from swarm.planner.route import HOP_MS, Route, price_route

CHOICES = 8
REST = 0.6
HALVES = 0.5


@dataclass(frozen=True)
class Timing:
    """Times of one route in milliseconds.

    pass_ms    one pass of one row; row_ms: what each further row adds to a pass
    frame_ms   shortest time between frames of one row that the slowest stage or link sustains
    frame_row_ms  what each further row adds to that
    slowest    what sustains least, in words
    """

    pass_ms: float
    row_ms: float
    frame_ms: float
    frame_row_ms: float
    slowest: str


@dataclass(frozen=True)
class Forecast:
    """Tokens per second for a drafter whose first choice is right with chance `accept`.

    `chain`, `tree`: (drafted rows per pass, tokens per pass, tokens per second).
    """

    accept: float
    plain: float
    chain: tuple[int, float, float]
    tree: tuple[int, float, float]


def reprice(model: ModelShape, members: Sequence[Member], rtts: Rtts, requester: str, route: Route, rows: int) -> Route:
    """The same stages, priced for frames of another number of rows."""
    by_name = {member.node: member for member in members}
    chosen = [by_name[node] for node in route.nodes]
    cuts = [route.stages[0].first, *(stage.last for stage in route.stages)]
    return price_route(model, chosen, cuts, rtts([requester, *route.nodes]), rows, usual_speed(members))


def timing(model: ModelShape, members: Sequence[Member], rtts: Rtts, requester: str, route: Route) -> Timing:
    """Pass and frame times of a route from its prices at 1 and at 64 rows."""
    one = reprice(model, members, rtts, requester, route, 1)
    many = reprice(model, members, rtts, requester, route, 64)
    slow_one, _ = _slowest(one)
    slow_many, what = _slowest(many)
    return Timing(
        one.pass_ms,
        max(0.0, many.pass_ms - one.pass_ms) / 63,
        slow_one,
        max(0.0, slow_many - slow_one) / 63,
        what,
    )


def _slowest(route: Route) -> tuple[float, str]:
    spans = [(stage.compute_ms, f"computing on {stage.node}") for stage in route.stages]
    spans += [(stage.transfer_ms, f"the link into {stage.node}") for stage in route.stages]
    return max(spans)


def forecast(times: Timing, accept: float, draft_ms: float = 10.0) -> Forecast:
    """Tokens per second for chance `accept` in (0, 1) of the first choice and `draft_ms` per drafted token or level.

    The chances of the second to eighth choice share REST of what is left, halving from one to the next.
    """
    plain = 1000 / times.pass_ms
    chains = [(k, _chain_tokens(accept, k), times.pass_ms + k * (times.row_ms + draft_ms)) for k in (2, 4, 8, 16, 32)]
    trees = []
    for rows in (2, 4, 8, 16, 32, 64, 128):
        tokens, depth = tree_tokens(accept, rows)
        trees.append((rows, tokens, times.pass_ms + rows * times.row_ms + depth * draft_ms))
    return Forecast(accept, plain, _best(chains, plain), _best(trees, plain))


def _best(options: Sequence[tuple[int, float, float]], plain: float) -> tuple[int, float, float]:
    """The fastest of (rows, tokens per pass, milliseconds), or plain decoding where that is faster."""
    rows, tokens, ms = max(options, key=lambda option: option[1] / option[2])
    rate = 1000 * tokens / ms
    return (rows, tokens, rate) if rate > plain else (0, 1.0, plain)


def _chain_tokens(accept: float, length: int) -> float:
    return float((1 - accept ** (length + 1)) / (1 - accept))


def choice_chances(accept: float) -> list[float]:
    """Chances that the drafter's first, second, ... eighth choice is the right token."""
    weights = [HALVES**i for i in range(CHOICES - 1)]
    rest = (1 - accept) * REST / sum(weights)
    return [accept, *(rest * weight for weight in weights)]


def tree_tokens(accept: float, rows: int) -> tuple[float, int]:
    """(tokens per pass, levels) of the best tree of `rows` drafted rows: the most probable paths, best first."""
    chances = choice_chances(accept)
    heap = [(-chance, 1) for chance in chances]
    heapq.heapify(heap)
    expected, deepest = 1.0, 0
    for _ in range(rows):
        chance, depth = heapq.heappop(heap)
        expected -= chance
        deepest = max(deepest, depth)
        for choice in chances:
            heapq.heappush(heap, (chance * choice, depth + 1))
    return expected, deepest


def hop_share(route: Route) -> float:
    """The part of a pass that is spent on the way: latency, transfer and handling."""
    way = sum(stage.arrive_ms + stage.transfer_ms + HOP_MS for stage in route.stages) + route.return_ms + HOP_MS
    return way / route.pass_ms if route.pass_ms else 0.0
