"""How a dry run looks in a terminal: `swarm plan`."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swarm.planner.dry_run import BlockTaken, DryRun
from swarm.planner.forecast import hop_share
from swarm.planner.route import Route
from swarm.terminal.status import coverage_bar, draw_ring

MANY = 24


def render_plan(run: DryRun, width: int, explain: bool = False) -> RenderableType:
    """The dry run for a terminal of `width` columns; `explain` says why of everything."""
    head = Text.assemble(
        (run.title, "bold"), f"\n{run.model.name}, {run.model.n_layers} layers, {len(run.taken)} nodes"
    )
    parts: list[RenderableType] = [head, Text(), _blocks(run, explain)]
    bar = Text()
    for line in coverage_bar(run.held, max(16, width - 12)):
        bar.append("layers      ", "dim")
        bar.append(line + "\n", "green" if 0 not in run.held else "red")
    parts += [Text(), bar]
    if run.route is None:
        parts.append(Text(run.problem, "red"))
        return Group(*parts)
    parts += [_route(run, run.route, width), Text(), _rates(run)]
    if explain:
        parts += [Text(), _instead(run)]
    return Group(*parts)


def _blocks(run: DryRun, explain: bool) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("node", "region"):
        table.add_column(name, no_wrap=True)
    table.add_column("layers", justify="right", no_wrap=True)
    table.add_column("ms/layer", justify="right", no_wrap=True)
    if explain:
        table.add_column("why")
    used = set(run.route.nodes) if run.route else set()
    shown = [t for t in run.taken if len(run.taken) <= MANY or t.node.room.node in used]
    for taken in shown:
        label = Text(taken.node.room.node, "bold" if taken.node.room.node in used else "")
        speed = taken.node.room.speed
        cells: list[str | Text] = [
            label,
            taken.node.region,
            _layers(taken),
            "-" if speed is None else f"{speed.ms_1:.1f}",
        ]
        table.add_row(*cells, *([taken.why] if explain else []))
    if len(shown) < len(run.taken):
        idle = sum(t.block is None for t in run.taken)
        note = f"{len(run.taken) - len(shown)} more" + (f", {idle} hold nothing" if idle else "")
        table.add_row(Text(note, "dim"), "", "", "", *([""] if explain else []))
    return table


def _layers(taken: BlockTaken) -> str:
    if taken.block is None:
        return "none"
    spare = f" ({taken.block.overflow} in RAM)" if taken.block.overflow else ""
    return f"{taken.block.first}-{taken.block.last - 1}{spare}"


def _route(run: DryRun, route: Route, width: int) -> Text:
    steps = [(f"{s.node} [{s.first}-{s.last - 1}]", s.arrive_ms) for s in route.stages]
    text = Text("\n".join(draw_ring(steps, route.return_ms, width)))
    compute = sum(s.compute_ms for s in route.stages)
    moving = sum(s.transfer_ms for s in route.stages)
    text.append(
        f"\none pass of the planned frame {route.pass_ms:.0f} ms: computing {compute:.0f}, sending {moving:.0f}, "
        f"on the way {hop_share(route):.0%} in all"
    )
    return text


def _rates(run: DryRun) -> Text:
    times, guess = run.times, run.guess
    assert times is not None and guess is not None
    rows, per_pass, rate = guess.tree
    chain_rows, chain_per_pass, chain_rate = guess.chain
    return Text(
        f"one row {times.pass_ms:.0f} ms a pass, {times.row_ms:.1f} ms for each more; slowest: {times.slowest}\n"
        f"plain       {guess.plain:6.1f} tokens/s\n"
        f"chain of {chain_rows:<3}{chain_rate:6.1f} tokens/s, {chain_per_pass:.1f} a pass\n"
        f"tree of {rows:<4}{rate:6.1f} tokens/s, {per_pass:.1f} a pass\n"
        f"estimates for a drafter that is right {guess.accept:.0%} of the time and a requester that waits for each pass"
    )


def _instead(run: DryRun) -> Text:
    assert run.route is not None
    text = Text("without a node of the route", "dim")
    for other in run.instead:
        if other.route is None:
            text.append(f"\n{other.node}: no route is left", "red")
            continue
        extra = other.route.pass_ms - run.route.pass_ms
        new = [node for node in other.route.nodes if node not in run.route.nodes]
        text.append(f"\n{other.node}: {extra:+.0f} ms, by {', '.join(new) or 'the others alone'}")
    return text
