"""How a ring is opened and closed: the messages that walk from head to tail, each stage adding what it signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from swarm.base.errors import PeerError, UsageError
from swarm.model.constraint import Constraint
from swarm.model.rows import MAX_SCRATCH, Layout
from swarm.model.sampler import Sampling
from swarm.model.shaping import MAX_GIVEN, Shaping
from swarm.net.channel.message import Message
from swarm.ring.frame import DOWN

UP = "ring.up"
"""Kind of every message that walks from the tail back towards the requester: opened, half, lost."""
TAIL = "ring.tail"
"""Kind of what the tail tells the requester directly: closed, collected."""
MAX_STAGES = 64
MAX_ADDRESSES = 16
MAX_CONTEXT = 1 << 20
MAX_REASON = 400

Address = tuple[str, int]


@dataclass(frozen=True)
class StagePlan:
    """One stage of a route: who computes layers [first, last) and where it can be dialled."""

    node: bytes
    addresses: tuple[Address, ...]
    first: int
    last: int


@dataclass(frozen=True)
class OpenRun:
    """What every stage is told when a ring opens or re-forms.

    keep   committed positions [0, keep) whose keys and values survivors hold and newcomers are replayed
    base   another session of the same requester whose first `keep` positions are copied (prefix cache); b"": none
    index  which stage the receiver is
    drafts the tail is to follow the run with the model's MTP head, where it has it: then token ids reach it
    record the receipt's part: the signed order, and what the stages before have accepted; None: no receipt
    """

    run: bytes
    epoch: int
    requester: bytes
    model: str
    wire: str
    layout: Layout
    sampling: Sampling
    stages: tuple[StagePlan, ...]
    keep: int = 0
    base: bytes = b""
    index: int = 0
    record: Mapping[str, Any] | None = None
    lease_s: float = 60.0
    drafts: bool = False

    @property
    def me(self) -> StagePlan:
        return self.stages[self.index]

    def upstream(self) -> bytes:
        """Node that sends this stage its frames."""
        return self.stages[self.index - 1].node if self.index else self.requester

    def following(self) -> OpenRun:
        """The same, as the next stage is told it."""
        return replace(self, index=self.index + 1)


def encode_open(opening: OpenRun) -> Message:
    """The message that opens a stage."""
    header = {
        "do": "open",
        "run": opening.run,
        "epoch": opening.epoch,
        "requester": opening.requester,
        "model": opening.model,
        "wire": opening.wire,
        "layout": [opening.layout.scratch, opening.layout.context],
        "sampling": _sampling_header(opening.sampling),
        "stages": [[s.node, [list(a) for a in s.addresses], s.first, s.last] for s in opening.stages],
        "keep": opening.keep,
        "base": opening.base,
        "index": opening.index,
        "record": opening.record,
        "lease_ms": int(opening.lease_s * 1000),
    }
    if opening.drafts:
        header["drafts"] = True
    return Message(DOWN, header)


def encode_release(opening: OpenRun) -> Message:
    """The message to a stage that the run's next epoch leaves out: its session is free to go."""
    return Message(DOWN, {"do": "release", "run": opening.run, "epoch": opening.epoch})


def parse_open_untrusted(header: Mapping[str, Any]) -> OpenRun:
    """An opening from a peer, every field checked for type and range. Raises PeerError."""
    try:
        opening = OpenRun(
            run=_exactly(header["run"], 16),
            epoch=_within(header["epoch"], 0, 2**31),
            requester=_exactly(header["requester"], 32),
            model=_text(header["model"]),
            wire=_text(header["wire"]),
            layout=_layout(header["layout"]),
            sampling=_sampling(header["sampling"]),
            stages=_stages(header["stages"]),
            keep=_within(header["keep"], 0, MAX_CONTEXT),
            base=b"" if header["base"] == b"" else _exactly(header["base"], 16),
            index=_within(header["index"], 0, MAX_STAGES - 1),
            record=_record(header["record"]),
            lease_s=_within(header["lease_ms"], 1000, 3_600_000) / 1000,
            drafts=header.get("drafts") is True,
        )
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise PeerError(f"expected the opening of a ring, found a malformed one: {error}") from error
    if opening.index >= len(opening.stages) or opening.keep > opening.layout.context:
        raise PeerError("the opening of a ring points outside its own plan")
    return opening


@dataclass(frozen=True)
class RingSignal:
    """News that walks up the ring about a run.

    do      "opened": `said` has an entry for every stage from the sender on, or `refused` says who refused and why
            "half": what the next stage measured on the edge between
            "lost": stage number `stage` is gone or failing, for `reason`
            "leave": stage number `stage` goes soon; until then it works on
    record  the receipt's part of the news
    """

    do: str
    run: bytes
    epoch: int
    said: tuple[dict[str, Any], ...] = ()
    refused: bytes = b""
    busy: bool = False
    stage: int = -1
    reason: str = ""
    record: Mapping[str, Any] | None = None


WORDS = ("opened", "half", "lost", "leave")


def encode_word(word: RingSignal) -> Message:
    """The message that carries news up the ring."""
    return Message(UP, {**vars(word), "said": list(word.said), "reason": word.reason[:MAX_REASON]})


def parse_word_untrusted(header: Mapping[str, Any]) -> RingSignal:
    """News from the next stage. Raises PeerError. What stages say of themselves is checked where it is used."""
    try:
        said = header["said"]
        if not isinstance(said, list) or len(said) > MAX_STAGES or not all(isinstance(s, dict) for s in said):
            raise ValueError("expected a map for each stage")
        if header["do"] not in WORDS or type(header["busy"]) is not bool:
            raise ValueError("an unknown word")
        refused = header["refused"]
        return RingSignal(
            do=header["do"],
            run=_exactly(header["run"], 16),
            epoch=_within(header["epoch"], 0, 2**31),
            said=tuple(said),
            refused=b"" if refused == b"" else _exactly(refused, 32),
            busy=header["busy"],
            stage=_within(header["stage"], -1, MAX_STAGES),
            reason=_text(header["reason"], MAX_REASON),
            record=_record(header["record"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PeerError(f"expected news of a ring, found something malformed: {error}") from error


def behind(word: RingSignal, opening: OpenRun) -> RingSignal:
    """News as stage `opening.index` passes it on: of stages behind it alone.

    Whatever the next stage says of itself or of others before it, it has said that it cannot go on itself.
    """
    after = opening.stages[opening.index + 1 :]
    if word.do in ("lost", "leave") and not opening.index < word.stage < len(opening.stages):
        word = replace(word, stage=opening.index + 1)
    if word.refused and after and word.refused not in {stage.node for stage in after}:
        word = replace(word, refused=after[0].node)
    return word


def _stages(value: Any) -> tuple[StagePlan, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_STAGES:
        raise ValueError(f"a ring has 1 to {MAX_STAGES} stages")
    stages: list[StagePlan] = []
    for node, addresses, first, last in value:
        if not isinstance(addresses, list) or len(addresses) > MAX_ADDRESSES:
            raise ValueError(f"a stage has at most {MAX_ADDRESSES} addresses")
        dialled = tuple((_text(host), _within(port, 1, 65535)) for host, port in addresses)
        plan = StagePlan(_exactly(node, 32), dialled, _within(first, 0, 10_000), _within(last, 1, 10_000))
        if plan.first >= plan.last or (stages and stages[-1].last != plan.first):
            raise ValueError("stages must follow each other without gap or overlap")
        stages.append(plan)
    return tuple(stages)


def _sampling_header(sampling: Sampling) -> dict[str, Any]:
    """What later versions added stands there only where it is used: stages that do not know it refuse the opening."""
    found = asdict(sampling)
    return {name: value for name, value in found.items() if name not in ("constraint", "shaping") or value is not None}


def _sampling(value: Any) -> Sampling:
    if not isinstance(value, dict) or len(value) > 32:
        raise ValueError("sampling is a map")
    constraint, shaping = value.get("constraint"), value.get("shaping")
    if constraint is not None:
        if not isinstance(constraint, dict) or len(constraint) > 8:
            raise ValueError("a constraint is a map")
        value = {**value, "constraint": Constraint(**constraint)}
    return Sampling(**value) if shaping is None else Sampling(**{**value, "shaping": _shaping(shaping)})


def _shaping(value: Any) -> Shaping:
    if not isinstance(value, dict) or len(value) > 16:
        raise ValueError("a shaping is a map")
    lists = {name: value.get(name, ()) for name in ("bias", "ends", "given")}
    if not all(isinstance(items, list | tuple) and len(items) <= MAX_GIVEN for items in lists.values()):
        raise ValueError("expected short lists of tokens")
    bias = tuple((token, added) for token, added in lists["bias"])
    return Shaping(**{**value, "bias": bias, "ends": tuple(lists["ends"]), "given": tuple(lists["given"])})


def _layout(value: Any) -> Layout:
    scratch, context = value
    if _within(scratch, 0, MAX_SCRATCH) % 8:
        raise ValueError("scratch slots come in eights")
    return Layout(scratch, _within(context, 1, MAX_CONTEXT))


def _within(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected a number from {low} to {high}, found {value!r:.40}")
    return value


def _exactly(value: Any, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise ValueError(f"expected {size} bytes")
    return value


def _record(value: Any) -> Mapping[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise ValueError("the record is a map")
    return value


def _text(value: Any, limit: int = 256) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise ValueError("expected a short text")
    return value
