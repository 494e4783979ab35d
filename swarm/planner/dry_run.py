"""`swarm plan`: what a described fleet would do, decided by the code that decides in a real swarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from swarm.base.errors import CoverageError, UsageError
from swarm.planner.block_choice import BlockChoice, choose_block, fit, reconsider
from swarm.planner.fleet import Member, ModelShape, holders
from swarm.planner.fleet_file import Fleet, FleetNode
from swarm.planner.forecast import Forecast, Timing, forecast, hop_share, timing
from swarm.planner.route import Ask, Route, plan_route

MOVE_ROUNDS = 4


@dataclass(frozen=True)
class BlockTaken:
    """What one node takes: its block, or why it takes none."""

    node: FleetNode
    block: BlockChoice | None
    why: str


@dataclass(frozen=True)
class Instead:
    """What the route would be without one of its nodes: None where there is none."""

    node: str
    route: Route | None


@dataclass(frozen=True)
class DryRun:
    """Everything that `swarm plan` shows. `route` None: `problem` says why."""

    title: str
    model: ModelShape
    taken: tuple[BlockTaken, ...]
    held: tuple[int, ...]
    requester: str
    route: Route | None
    problem: str
    times: Timing | None
    guess: Forecast | None
    instead: tuple[Instead, ...]


def dry_run(fleet: Fleet, model: ModelShape | None = None, explain: bool = False) -> DryRun:
    """Let the fleet's nodes join in order, let idle ones move, and plan a request.

    `model` overrides the file's. Raises UsageError when neither names one.
    """
    shape = model or fleet.model
    if shape is None:
        raise UsageError("expected a model; give --model REF, or a [model] table in the fleet file")
    taken = _join(fleet, shape)
    members = [_member(t, shape) for t in taken]
    held = tuple(int(count) for count in holders(members, shape.n_layers))
    ask = Ask(fleet.requester, rows=fleet.rows, context=fleet.context, min_owners=fleet.min_owners)
    try:
        route = plan_route(shape, members, fleet.rtts, ask)
    except CoverageError as error:
        problem = str(error)
        if 0 in held:
            problem += f"; {_lacking(shape, taken)}"
        return DryRun(fleet.title, shape, taken, held, fleet.requester, None, problem, None, None, ())
    times = timing(shape, members, fleet.rtts, fleet.requester, route)
    instead = _instead(shape, members, fleet, ask, route) if explain else ()
    guess = forecast(times, fleet.accept)
    return DryRun(fleet.title, shape, taken, held, fleet.requester, route, "", times, guess, instead)


def _join(fleet: Fleet, shape: ModelShape) -> tuple[BlockTaken, ...]:
    taken: list[BlockTaken] = []
    members: list[Member] = []
    for node in fleet.nodes:
        if node.layers is not None:
            first, last = node.layers
            if not 0 <= first < last <= shape.n_layers:
                raise UsageError(f"node {node.room.node}: layers {first}:{last} are not in a model of {shape.n_layers}")
            if bad := sorted(shape.forbidden & {first, last}):
                parts = shape.parts(0, shape.n_layers)
                whole = next((a, b) for a, b in parts if a < bad[0] < b)
                raise UsageError(
                    f"node {node.room.node}: {shape.name} cannot be cut before layer {bad[0]}; "
                    f"layers {whole[0]}:{whole[1]} stay together"
                )
            fitting, overflow = fit(shape, replace(node.room, max_layers=last - first), first)
            block = BlockChoice(first, last, overflow, "as given") if fitting == last - first else None
            why = "as given" if block else f"only {fitting} of the {last - first} given layers fit"
        else:
            try:
                block = choose_block(shape, node.room, members, fleet.rtts)
                why = block.reason
            except UsageError as error:
                block, why = None, str(error)
        taken.append(BlockTaken(node, block, why))
        members.append(_member(taken[-1], shape))
    for _ in range(MOVE_ROUNDS):
        if not _move(fleet, shape, taken, members):
            break
    return tuple(taken)


def _move(fleet: Fleet, shape: ModelShape, taken: list[BlockTaken], members: list[Member]) -> bool:
    moved = False
    for i, (node, block) in enumerate((t.node, t.block) for t in list(taken)):
        if block is None or node.layers is not None:
            continue
        better = reconsider(shape, node.room, block, members, idle=True, since_move_s=1e9, rtts=fleet.rtts)
        if better is not None:
            taken[i] = BlockTaken(node, better, f"{better.reason} (moved)")
            members[i] = _member(taken[i], shape)
            moved = True
    return moved


def _member(taken: BlockTaken, shape: ModelShape) -> Member:
    node, block = taken.node, taken.block
    room = node.room
    rates = {"up_mbps": node.up_mbps, "down_mbps": node.down_mbps, "owner": node.owner}
    if block is None:
        return Member(room.node, speed=room.speed, **rates)  # type: ignore[arg-type]
    kv = shape.session_bytes(block.first, block.first + block.layers, room.context_tokens)
    return Member(
        room.node,
        block.first,
        block.last,
        room.speed,
        block.overflow,
        room.overflow_speed,
        kv_free_bytes=kv,
        **rates,  # type: ignore[arg-type]
    )


def _lacking(shape: ModelShape, taken: Sequence[BlockTaken]) -> str:
    weights = sum(shape.layer_bytes) + shape.end_bytes(0, shape.n_layers)
    room = sum(sum(t.node.room.devices) for t in taken)
    return f"the model needs {weights / 1e9:.0f} GB and KV besides, the nodes have {room / 1e9:.0f} GB"


def _instead(shape: ModelShape, members: Sequence[Member], fleet: Fleet, ask: Ask, route: Route) -> tuple[Instead, ...]:
    found = []
    for node in route.nodes:
        try:
            other: Route | None = plan_route(shape, members, fleet.rtts, replace(ask, exclude=frozenset({node})))
        except CoverageError:
            other = None
        found.append(Instead(node, other))
    return tuple(found)


def dry_run_data(run: DryRun) -> dict[str, Any]:
    """The plain data of `swarm plan --json`."""
    route, times, guess = run.route, run.times, run.guess
    return {
        "title": run.title,
        "model": run.model.name,
        "layers": run.model.n_layers,
        "nodes": [
            {
                "node": t.node.room.node,
                "region": t.node.region,
                "layers": None if t.block is None else [t.block.first, t.block.last],
                "overflow": 0 if t.block is None else t.block.overflow,
                "why": t.why,
            }
            for t in run.taken
        ],
        "held": list(run.held),
        "problem": run.problem or None,
        "requester": run.requester,
        "route": None
        if route is None
        else [
            {
                "node": s.node,
                "layers": [s.first, s.last],
                "arrive_ms": round(s.arrive_ms, 3),
                "transfer_ms": round(s.transfer_ms, 3),
                "queue_ms": round(s.queue_ms, 3),
                "compute_ms": round(s.compute_ms, 3),
            }
            for s in route.stages
        ],
        "pass_ms": None if route is None else round(route.pass_ms, 3),
        "return_ms": None if route is None else round(route.return_ms, 3),
        "on_the_way": None if route is None else round(hop_share(route), 3),
        "one_row_ms": None if times is None else round(times.pass_ms, 3),
        "tokens_per_second": None
        if guess is None
        else {
            "accept": guess.accept,
            "plain": round(guess.plain, 2),
            "chain": {"rows": guess.chain[0], "per_pass": round(guess.chain[1], 2), "rate": round(guess.chain[2], 2)},
            "tree": {"rows": guess.tree[0], "per_pass": round(guess.tree[1], 2), "rate": round(guess.tree[2], 2)},
        },
    }
