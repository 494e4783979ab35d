"""A receipt's statements put in their places: order, epochs with their stages and edges, close, witnesses.

`assemble` answers who said what in which part; whether what they said agrees is for `receipts.check.checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from receipts.format.closing import Close, Edge, End, Own, Tail, Witness
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Accept, Order, PlannedStage, Replan
from receipts.format.statement import Body, Statement

B = TypeVar("B")


@dataclass
class Epoch:
    """One plan and what its nodes signed. Filled while assembling, read only afterwards.

    `closed`: every stage ended it undisturbed, so every edge must be signed at both ends.
    """

    number: int
    plan: tuple[PlannedStage, ...]
    digest: str
    first_position: int
    lost: tuple[str, ...] = ()
    reason: str = ""
    accepts: dict[str, Accept] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)
    edges: dict[tuple[int, str], Edge] = field(default_factory=dict)
    tail: Tail | None = None
    own: Own | None = None

    @property
    def closed(self) -> bool:
        return len(self.ends) == len(self.plan) and not any(end.interrupted for end in self.ends.values())

    def name(self, index: int, requester: str) -> tuple[str, str]:
        """Keys of sender and receiver of edge `index`."""
        keys = [requester, *(stage.node for stage in self.plan), requester]
        return keys[index], keys[index + 1]


@dataclass(frozen=True)
class Witnessed:
    """What one witness signed; `closed` is None when it only saw the order."""

    key: str
    order: Witness
    closed: Witness | None


@dataclass(frozen=True)
class ReceiptRun:
    """One run. `close_digest` and `order_digest` are hex; `statements` are all of them in the order of the file."""

    order: Order
    order_digest: str
    requester: str
    epochs: tuple[Epoch, ...]
    close: Close
    close_digest: str
    witnesses: tuple[Witnessed, ...]
    statements: tuple[Statement, ...]

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    def nodes(self) -> tuple[str, ...]:
        """Keys of every node that was planned into the ring, in order of appearance."""
        return tuple(dict.fromkeys(stage.node for epoch in self.epochs for stage in epoch.plan))


def assemble(statements: Sequence[Statement]) -> ReceiptRun:
    """Give each statement its place. Raises ReceiptError naming the first that has none, or that is missing."""
    first = statements[0]
    if not isinstance(first.body, Order):
        raise ReceiptError(Refusal.MISSING, f"a receipt begins with its order, found {first.body.kind}")
    if first.about["model"] != first.body.model.manifest:
        raise ReceiptError(Refusal.MANIFEST, "the order's subject is another manifest than it names")
    _of_one_run(statements, first)
    closing = [statement for statement in statements if isinstance(statement.body, Close)]
    if not closing:
        raise ReceiptError(Refusal.MISSING, "the requester's close is not there")
    if len(closing) > 1:
        raise ReceiptError(Refusal.DUPLICATED, "two closes of one run")
    close = closing[0]
    _as_closed(statements, close)
    epochs = [Epoch(0, first.body.plan, first.digest, first.body.prompt_tokens)]
    for statement in statements[1:]:
        if isinstance(statement.body, Replan | Close):
            _signed_by(statement, first.signer, "the requester")
        if isinstance(statement.body, Replan):
            epochs.append(_replanned(epochs[-1], statement, statement.body))
        elif isinstance(statement.body, Accept | Edge | End | Tail | Own):
            _place(epochs, statement, statement.body, first.body, first.signer)
    return ReceiptRun(
        order=first.body,
        order_digest=first.digest,
        requester=first.signer,
        epochs=tuple(epochs),
        close=_body(close, Close),
        close_digest=close.digest,
        witnesses=_witnesses(statements, close, {first.signer, *(s.node for e in epochs for s in e.plan)}),
        statements=tuple(statements),
    )


def _body(statement: Statement, cls: type[B]) -> B:
    assert isinstance(statement.body, cls)
    return statement.body


def _of_one_run(statements: Sequence[Statement], order: Statement) -> None:
    seen: set[str] = set()
    for statement in statements:
        label = f"{statement.body.kind} of {statement.signer[:16]}"
        if statement.digest in seen:
            raise ReceiptError(Refusal.DUPLICATED, f"{label} appears twice")
        seen.add(statement.digest)
        if statement is order:
            continue
        if isinstance(statement.body, Order) or statement.about["order"] != order.digest:
            raise ReceiptError(Refusal.FOREIGN, f"{label} is of another run than this order")


def _as_closed(statements: Sequence[Statement], close: Statement) -> None:
    """The statements before the close are those it lists, in that order; after it come only its witnesses."""
    listed = list(_body(close, Close).statements)
    place = statements.index(close)
    found = [statement.digest for statement in statements[:place]]
    present = {statement.digest for statement in statements}
    if found != listed:
        known = set(listed)
        for statement in statements[:place]:
            late = isinstance(statement.body, Witness) and statement.body.phase == "close"
            if statement.digest not in known and not late:
                label = f"{statement.body.kind} of {statement.signer[:16]}"
                raise ReceiptError(Refusal.FOREIGN, f"{label} is not among the statements the requester closed over")
        absent = [digest for digest in listed if digest not in present]
        if absent:
            raise ReceiptError(
                Refusal.MISSING, f"{len(absent)} statements that the close lists, first {absent[0][:16]}"
            )
        raise ReceiptError(Refusal.SEQUENCE, "statements stand in another order than the close lists them")
    for statement in statements[place + 1 :]:
        if not isinstance(statement.body, Witness) or statement.body.phase != "close":
            label = f"{statement.body.kind} of {statement.signer[:16]}"
            raise ReceiptError(Refusal.SEQUENCE, f"{label} stands after the close, which does not list it")


def _signed_by(statement: Statement, key: str, who: str) -> None:
    if statement.signer != key:
        raise ReceiptError(
            Refusal.SIGNER, f"{statement.body.kind} is signed by {statement.signer[:16]}, which is not {who}"
        )


def _replanned(before: Epoch, statement: Statement, body: Replan) -> Epoch:
    if body.epoch != before.number + 1:
        raise ReceiptError(Refusal.SEQUENCE, f"replan of epoch {body.epoch} after epoch {before.number}")
    if body.position < before.first_position:
        raise ReceiptError(Refusal.PLAN, f"epoch {body.epoch} begins at {body.position}, before the epoch it replaces")
    strangers = set(body.lost) - {stage.node for stage in before.plan}
    if strangers:
        raise ReceiptError(Refusal.PLAN, f"epoch {body.epoch} lost {min(strangers)[:16]}, which was not in the ring")
    return Epoch(body.epoch, body.plan, statement.digest, body.position, body.lost, body.reason)


def _place(
    epochs: list[Epoch], statement: Statement, body: Accept | Edge | End | Tail | Own, order: Order, requester: str
) -> None:
    label = f"{body.kind} of {statement.signer[:16]} in epoch {body.epoch}"
    if body.epoch >= len(epochs):
        raise ReceiptError(Refusal.SEQUENCE, f"{label}: no plan of that epoch stands before it")
    epoch = epochs[body.epoch]
    if body.plan != epoch.digest:
        raise ReceiptError(Refusal.PLAN, f"{label} is about another plan")
    if isinstance(body, Edge):
        _place_edge(epoch, statement, body, requester)
        return
    if isinstance(body, Own):
        _place_own(epoch, statement, body, order, requester)
        return
    part = next((stage for stage in epoch.plan if stage.node == statement.signer), None)
    if part is None or (isinstance(body, Tail) and (part is not epoch.plan[-1] or order.own_layers)):
        raise ReceiptError(Refusal.SIGNER, f"{label}: its signer has no such part in the plan")
    if isinstance(body, Tail):
        if epoch.tail is not None:
            raise ReceiptError(Refusal.DUPLICATED, f"{label}: a second tail statement")
        epoch.tail = body
        return
    if (body.first, body.last) != (part.first, part.last):
        raise ReceiptError(
            Refusal.PLAN, f"{label}: layers [{body.first}, {body.last}) instead of [{part.first}, {part.last})"
        )
    kept: dict[str, Accept] | dict[str, End] = epoch.accepts if isinstance(body, Accept) else epoch.ends
    _put(kept, statement.signer, body, label)


def _place_own(epoch: Epoch, statement: Statement, body: Own, order: Order, requester: str) -> None:
    label = f"own of epoch {body.epoch}"
    _signed_by(statement, requester, "the requester")
    count, layers = order.own_layers, order.model.layers
    if not count or (body.head, body.tail) != (count, layers - count):
        raise ReceiptError(
            Refusal.PLAN, f"{label}: layers [0, {body.head}) and [{body.tail}, {layers}); the order keeps {count}"
        )
    if epoch.own is not None:
        raise ReceiptError(Refusal.DUPLICATED, f"{label}: a second one")
    epoch.own = body


def _place_edge(epoch: Epoch, statement: Statement, body: Edge, requester: str) -> None:
    label = f"edge {body.index} by its {body.end} in epoch {body.epoch}"
    if body.index > len(epoch.plan) or (body.sender, body.receiver) != epoch.name(body.index, requester):
        raise ReceiptError(Refusal.EDGE_ENDS, f"{label} joins other nodes than the plan does")
    _signed_by(
        statement, body.sender if body.end == "sender" else body.receiver, f"the {body.end} of edge {body.index}"
    )
    _put(epoch.edges, (body.index, body.end), body, label)


def _put(places: dict, key: object, body: Body, label: str) -> None:  # type: ignore[type-arg]
    if key in places:
        raise ReceiptError(Refusal.DUPLICATED, f"{label}: a second one")
    places[key] = body


def _witnesses(statements: Sequence[Statement], close: Statement, ring: set[str]) -> tuple[Witnessed, ...]:
    by_phase: dict[str, dict[str, Witness]] = {"order": {}, "close": {}}
    for statement in statements:
        body = statement.body
        if not isinstance(body, Witness):
            continue
        label = f"witness {statement.signer[:16]}"
        if statement.signer in ring:
            raise ReceiptError(Refusal.WITNESS, f"{label} is a party of the run")
        if body.phase == "close" and statement.about["close"] != close.digest:
            raise ReceiptError(Refusal.WITNESS, f"{label} signed another close")
        if body.phase == "order" and body.close_seen_us:
            raise ReceiptError(Refusal.WITNESS, f"{label} saw a close when it signed the order")
        _put(by_phase[body.phase], statement.signer, body, f"{label}, phase {body.phase}")
    promised = _body(close, Close).witnesses
    for key in promised:
        if key not in by_phase["close"]:
            raise ReceiptError(Refusal.MISSING, f"witness {key[:16]} was to countersign the close")
    if set(by_phase["close"]) - set(promised):
        raise ReceiptError(Refusal.WITNESS, "a witness of the close that the requester did not name")
    for key, closed in by_phase["close"].items():
        order = by_phase["order"].get(key, closed)
        if order.order_seen_us != closed.order_seen_us:
            raise ReceiptError(Refusal.WITNESS, f"witness {key[:16]} says two times at which it saw the order")
    keys = dict.fromkeys([*by_phase["order"], *promised])
    return tuple(
        Witnessed(key, by_phase["order"].get(key) or by_phase["close"][key], by_phase["close"].get(key)) for key in keys
    )
