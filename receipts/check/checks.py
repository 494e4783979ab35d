"""What the statements of one run must agree on, each check a function: raises ReceiptError or gives its claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from receipts.check.run import Epoch, ReceiptRun
from receipts.check.verdict import Claim, Standing
from receipts.format.closing import Close, Edge, End, Own, RttSeries, Tail
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Accept, Order, PlannedStage, Replan
from receipts.format.statement import Body, Statement

MIXED = "mixed"
"""What an order says of types where those who may take part differ."""
MIXED_STORED = "mixed q8"
"""The same where some of them multiply weights as they are stored, which is coarser than any other type."""
RTT_SLACK_US = 10_000
"""Two ends that ping at different moments may find least times this far apart, plus a quarter."""


def short(key: str) -> str:
    """How a key is shown to people."""
    return key[:8]


def ms(micros: int) -> str:
    return f"{micros / 1000:.1f}"


def edge_label(epoch: Epoch, index: int) -> str:
    """Name of an edge in claims: "e1/2" is edge 2 of epoch 1, "edge 2" of a run with one epoch."""
    return f"edge {index}" if epoch.number == 0 else f"epoch {epoch.number} edge {index}"


def check_plan(plan: Sequence[PlannedStage], layers: int, label: str, own: int = 0) -> None:
    """Every layer once, in the order of the ring, no node twice; `own` at either end are the requester's."""
    if len({stage.node for stage in plan}) != len(plan):
        raise ReceiptError(Refusal.PLAN, f"{label}: one node holds two stages")
    reached, until = own, layers - own
    if own and reached >= until:
        raise ReceiptError(Refusal.LAYERS_OVERLAP, f"{label}: the requester keeps {own} at either end of {layers}")
    for stage in plan:
        span = f"[{stage.first}, {stage.last}) at {short(stage.node)}"
        if max(stage.first, stage.last) > layers:
            raise ReceiptError(Refusal.LAYERS_BEYOND, f"{label}: layers {span}, but the model has {layers}")
        if stage.first > reached or stage.last <= stage.first:
            raise ReceiptError(Refusal.LAYERS_MISSING, f"{label}: layers from {reached} on are missing before {span}")
        if stage.first < reached:
            raise ReceiptError(Refusal.LAYERS_OVERLAP, f"{label}: layers {span} overlap those before, up to {reached}")
        reached = stage.last
    if reached > until:
        raise ReceiptError(Refusal.LAYERS_OVERLAP, f"{label}: the requester keeps the layers from {until} on")
    if reached != until:
        raise ReceiptError(Refusal.LAYERS_MISSING, f"{label}: layers {reached} to {until - 1} are missing")


def check_layers(run: ReceiptRun) -> list[Claim]:
    """Plans cover the model once, and every stage of an epoch that ran accepted its part."""
    layers, own = run.order.model.layers, run.order.own_layers
    nonces: set[str] = set()
    for epoch in run.epochs:
        label = f"epoch {epoch.number}"
        check_plan(epoch.plan, layers, label, own)
        absent = [stage.node for stage in epoch.plan if stage.node not in epoch.accepts]
        # A ring that never opened has no accepts at all, so it can have drawn no token.
        if absent and (epoch.accepts or epoch.ends or epoch.edges or epoch.tail or _drew(run, epoch)):
            raise ReceiptError(Refusal.MISSING, f"{label}: accept of {short(absent[0])} is not there")
        for accept in epoch.accepts.values():
            if accept.nonce in nonces:
                raise ReceiptError(Refusal.DUPLICATED, f"{label}: two accepts share a nonce")
            nonces.add(accept.nonce)
    text = f"the plan covers layers {own}-{layers - own - 1} once"
    accepted = f"{len(run.last.accepts)}/{len(run.last.plan)} stages signed for their part"
    opened = bool(run.last.accepts)
    standing = Standing.PROVEN if opened else Standing.CLAIMED
    claims = [Claim(standing, "layers", f"{text}, {accepted if opened else 'none of its stages accepted'}")]
    if run.order.dtype in (MIXED, MIXED_STORED):
        text = f"stages may compute in different types ({run.order.dtype}): rows and tokens are held to the coarsest"
        claims.append(Claim(Standing.CLAIMED, "dtype", text))
    if own:
        text = f"{own_spans(run.order)} computed by the requester itself, who alone accounts for them"
        claims.append(Claim(Standing.CLAIMED, "own layers", text))
    if len(run.epochs) > 1:
        claims.append(Claim(Standing.CLAIMED, "recovery", "; ".join(_recovered(epoch) for epoch in run.epochs[1:])))
    return claims


def own_spans(order: Order) -> str:
    """The layers that the requester computes itself, in words."""
    own, layers = order.own_layers, order.model.layers
    head = f"0-{own - 1}" if own > 1 else "0"
    return f"layers {head} and {f'{layers - own}-' if own > 1 else ''}{layers - 1}"


def _drew(run: ReceiptRun, epoch: Epoch) -> bool:
    """Whether the receipt has tokens that this epoch's ring must have drawn."""
    until = run.close.first_position + run.close.new_tokens
    stop = run.epochs[epoch.number + 1].first_position if epoch is not run.last else until
    return epoch.first_position < min(stop, until) or (epoch is run.last and run.close.outcome == "complete")


def _recovered(epoch: Epoch) -> str:
    lost = ", ".join(short(key) for key in epoch.lost) or "no node"
    return f"new plan from position {epoch.first_position}: lost {lost} ({epoch.reason})"


def check_counters(run: ReceiptRun) -> None:
    """Per signer, sequence numbers rise and the hash chain links; per signer and part, one run number.

    A node that came back as a new process knows nothing of its part before: it counts another run. So the number of a
    stage may rise where it accepts a later epoch, and from there on it accounts for no earlier one.
    """
    last: dict[str, Statement] = {}
    runs: dict[tuple[str, bool], _Count] = {}
    for statement in run.statements:
        chain, who = statement.chain, f"{statement.body.kind} of {short(statement.signer)}"
        if (chain.sequence == 0) != (chain.previous is None):
            raise ReceiptError(Refusal.CHAIN, f"{who}: statement {chain.sequence} with previous {chain.previous}")
        before = last.get(statement.signer)
        if before is not None:
            if chain.sequence <= before.chain.sequence:
                raise ReceiptError(
                    Refusal.COUNTER, f"{who}: counter goes back from {before.chain.sequence} to {chain.sequence}"
                )
            if chain.sequence == before.chain.sequence + 1 and chain.previous != before.digest:
                raise ReceiptError(Refusal.CHAIN, f"{who}: does not continue its signer's statement before")
        last[statement.signer] = statement
        _count_run(runs, run, statement, who)


@dataclass(frozen=True)
class _Count:
    """A run number, and the first epoch that was accepted under it."""

    run: int
    since: int


def _count_run(runs: dict[tuple[str, bool], _Count], run: ReceiptRun, statement: Statement, who: str) -> None:
    body, number = statement.body, statement.chain.run
    part = (statement.signer, _as_requester(run, body))
    epoch = body.epoch if isinstance(body, Accept | Edge | End | Tail) else 0
    known = runs.setdefault(part, _Count(number, epoch))
    if isinstance(body, Accept) and number > known.run and epoch > known.since:
        runs[part] = _Count(number, epoch)
    elif number != known.run:
        raise ReceiptError(Refusal.COUNTER, f"{who}: run counter {number} differs within one run")
    elif epoch < known.since:
        raise ReceiptError(Refusal.COUNTER, f"{who}: epoch {epoch} was accepted under an earlier run counter")


def _as_requester(run: ReceiptRun, body: Body) -> bool:
    """Whether a statement is the requester's part; a node that requests and serves in one run counts two runs."""
    if isinstance(body, Edge):
        ends = {(0, "sender"), (len(run.epochs[body.epoch].plan), "receiver")}
        return (body.index, body.end) in ends
    return isinstance(body, Order | Replan | Own | Close)


def check_edges(run: ReceiptRun) -> list[Claim]:
    """Both ends of every edge of a closed epoch signed the same traffic and the same round-trip times."""
    claims: list[Claim] = []
    for epoch in run.epochs:
        for index in range(len(epoch.plan) + 1):
            claims += _check_edge(run, epoch, index)
        for stage_index, stage in enumerate(epoch.plan):
            end = epoch.ends.get(stage.node)
            inbound = epoch.edges.get((stage_index, "receiver"))
            outbound = epoch.edges.get((stage_index + 1, "sender"))
            if end is None:
                continue
            if inbound is not None and (end.inbound, end.came) != (inbound.root, inbound.frames):
                raise ReceiptError(Refusal.EDGE_ROOT, f"end of {short(stage.node)}: its inbound root is not its edge's")
            if outbound is not None and (end.outbound, end.sent) != (outbound.root, outbound.frames):
                raise ReceiptError(Refusal.EDGE_ROOT, f"end of {short(stage.node)}: outbound root is not its edge's")
        _check_own(run, epoch)
    edges = sum(len(epoch.plan) + 1 for epoch in run.epochs)
    closed = sum(len(epoch.plan) + 1 for epoch in run.epochs if epoch.closed)
    # Of a closed epoch every edge was signed at both ends, or it is refused above.
    text = f"both ends of {closed}/{edges} edges signed the same traffic" + (
        f", {edges - closed} of interrupted epochs were not closed" if closed < edges else ""
    )
    claims.append(Claim(Standing.PROVEN if closed else Standing.NOT_CHECKED, "edges", text))
    return claims


def _check_own(run: ReceiptRun, epoch: Epoch) -> None:
    """What the requester's own layers gave out and took in is what it signed of its edges."""
    if epoch.own is None:
        if epoch.closed and run.order.own_layers:
            raise ReceiptError(Refusal.MISSING, f"the requester's account of its own layers in epoch {epoch.number}")
        return
    outbound, inbound = epoch.edges.get((0, "sender")), epoch.edges.get((len(epoch.plan), "receiver"))
    for edge, root in ((outbound, epoch.own.outbound), (inbound, epoch.own.inbound)):
        if edge is not None and edge.root != root:
            raise ReceiptError(Refusal.EDGE_ROOT, f"own of epoch {epoch.number}: a root is not its edge's")


def _check_edge(run: ReceiptRun, epoch: Epoch, index: int) -> list[Claim]:
    label = edge_label(epoch, index)
    sender, receiver = epoch.name(index, run.requester)
    joins = f"{short(sender)}-{short(receiver)}"
    one, other = epoch.edges.get((index, "sender")), epoch.edges.get((index, "receiver"))
    if one is None or other is None:
        if epoch.closed:
            raise ReceiptError(Refusal.MISSING, f"{label} {joins}: not signed at both ends")
        return [Claim(Standing.NOT_CHECKED, "traffic", f"{joins} (interrupted)", label)]
    if (one.root, one.frames, one.bytes) != (other.root, other.frames, other.bytes):
        raise ReceiptError(
            Refusal.EDGE_ROOT,
            f"{label} {joins}: sender signed {one.frames} frames {one.bytes} B root {one.root[:12]}, "
            f"receiver {other.frames} frames {other.bytes} B root {other.root[:12]}",
        )
    if (one.sender_rtt, one.receiver_rtt) != (other.sender_rtt, other.receiver_rtt):
        raise ReceiptError(Refusal.EDGE_RTT, f"{label} {joins}: the two ends signed different round-trip times")
    check_series(one.sender_rtt, f"{label} sender")
    check_series(one.receiver_rtt, f"{label} receiver")
    traffic = f"{joins} {one.frames} frames {one.bytes} B"
    claims = [Claim(Standing.COSIGNED, "traffic", traffic, label)]
    claims.append(_rtt_claim(one, joins, label))
    if one.link != other.link:
        claims.append(Claim(Standing.CLAIMED, "link", f"{one.link} by the sender, {other.link} by the receiver", label))
    return claims


def _rtt_claim(edge: Edge, joins: str, label: str) -> Claim:
    """Each end measured with its own nonces, so neither can shorten the other's time: only what both found counts."""
    one, other = edge.sender_rtt, edge.receiver_rtt
    if not one.count or not other.count:
        return Claim(Standing.NOT_CHECKED, "rtt", f"{joins} not measured at both ends", label)
    text = f"{joins} {ms(one.min_us)}/{ms(other.min_us)} ms"
    if abs(one.min_us - other.min_us) > RTT_SLACK_US + max(one.min_us, other.min_us) // 4:
        return Claim(Standing.CLAIMED, "rtt", f"{text} (the ends differ)", label)
    return Claim(Standing.COSIGNED, "rtt", text, label)


def check_series(series: RttSeries, label: str) -> None:
    """A series cannot contradict itself."""
    samples = series.samples_us
    wrong = len(samples) > series.count or series.min_us > series.median_us
    if wrong or (samples and min(samples) < series.min_us) or (not series.count and series.median_us):
        raise ReceiptError(Refusal.EDGE_RTT, f"{label}: round-trip times contradict their own summary")


def check_served(run: ReceiptRun) -> list[Claim]:
    """The requester's account of who served what is the stages' own; nodes without an END stand as lost."""
    told = {(served.epoch, served.node): served for served in run.close.served}
    planned = [(epoch.number, stage.node) for epoch in run.epochs for stage in epoch.plan]
    if len(told) != len(run.close.served) or set(told) != set(planned):
        raise ReceiptError(Refusal.SERVED, "the close names other nodes or epochs than the plans do")
    claims = []
    for epoch in run.epochs:
        for stage in epoch.plan:
            served, end = told[epoch.number, stage.node], epoch.ends.get(stage.node)
            who = f"{short(stage.node)} in epoch {epoch.number}"
            if (served.first, served.last) != (stage.first, stage.last):
                raise ReceiptError(Refusal.SERVED, f"{who}: the close names other layers than the plan")
            if end is None:
                if served.outcome != "lost":
                    raise ReceiptError(Refusal.MISSING, f"end of {who} is not there, and the close does not say lost")
                claims.append(
                    Claim(Standing.CLAIMED, "lost", f"did not end its part in epoch {epoch.number}", stage.node)
                )
                continue
            if served.outcome != "ended" or served.positions != end.positions:
                raise ReceiptError(Refusal.SERVED, f"{who}: the close and the stage's end differ on what it served")
            text = f"{end.rows} rows in {end.frames} frames, {ms(end.compute_us)} ms computing{_when(run, epoch)}"
            claims.append(Claim(Standing.CLAIMED, "compute", text, stage.node))
        if epoch.own is not None:
            own = epoch.own
            text = f"{own.rows} rows in {own.frames} frames, {ms(own.compute_us)} ms computing{_when(run, epoch)}"
            claims.append(Claim(Standing.CLAIMED, "compute", text, run.requester))
        elif epoch.closed and epoch.tail is None:
            raise ReceiptError(Refusal.MISSING, f"tail of epoch {epoch.number} is not there")
    return claims


def _when(run: ReceiptRun, epoch: Epoch) -> str:
    return f" in epoch {epoch.number}" if len(run.epochs) > 1 else ""
