"""How a ring is opened and closed: the messages that walk from head to tail, each stage adding what it signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

from swarm.base.bounds import AtMost, Between, Exactly, Key, MayLack, OneOf, Spelled, by_name, by_position
from swarm.base.codec import Codec
from swarm.base.nodeid import NodeId
from swarm.model.rows import MAX_CONTEXT, Layout
from swarm.model.sampler import Sampling
from swarm.net.channel.message import Message
from swarm.ring.frame import DOWN, Epoch, RunId

UP = "ring.up"
"""Kind of every message that walks from the tail back towards the requester: opened, half, lost."""
TAIL = "ring.tail"
"""Kind of what the tail tells the requester directly: closed, collected."""
MAX_STAGES = 64
MAX_ADDRESSES = 16
MAX_REASON = 400
MAX_TAPS = 16
MAX_ENTRIES = 64
"""Of a map that another room reads: the receipt's part, and what a stage says of itself."""

ShortText: TypeAlias = Annotated[str, AtMost(256)]
TapLayer: TypeAlias = Annotated[int, Between(1, 10_000)]
"""A tap by the layers before it (`swarm.ring.taps`)."""
HostPort: TypeAlias = tuple[ShortText, Annotated[int, Between(1, 65535)]]
Record: TypeAlias = Annotated[Mapping[str, object], AtMost(MAX_ENTRIES)]
"""The receipt's part of a message: `receipts.record` reads it."""


def _seconds(ms: int) -> float:
    return ms / 1000


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


@by_position
@dataclass(frozen=True)
class StagePlan:
    """One stage of a route: who computes layers [first, last) and where it can be dialled."""

    node: NodeId
    addresses: Annotated[tuple[HostPort, ...], AtMost(MAX_ADDRESSES)]
    first: Annotated[int, Between(0, 10_000)]
    last: Annotated[int, Between(1, 10_000)]


@by_name(tag=("do", "open"))
@dataclass(frozen=True)
class OpenRun:
    """What every stage is told when a ring opens or re-forms.

    keep   committed positions [0, keep) whose keys and values survivors hold and newcomers are replayed
    base   another session of the same requester whose first `keep` positions are copied (prefix cache); b"": none
    index  which stage the receiver is
    drafts the tail is to follow the run with the model's MTP head, where it has it: then token ids reach it
    taps   layers whose rows the requester's drafter reads: the stages that hold them send them to it, in the
           format `taps_wire`, for the rows that each frame names
    record the receipt's part: the signed order, and what the stages before have accepted; None: no receipt
    """

    run: RunId
    epoch: Epoch
    requester: NodeId
    model: ShortText
    wire: ShortText
    layout: Layout
    sampling: Sampling
    stages: Annotated[tuple[StagePlan, ...], AtMost(MAX_STAGES, least=1)]
    keep: Annotated[int, Between(0, MAX_CONTEXT)] = 0
    base: Annotated[bytes, Exactly(0, 16)] = b""
    index: Annotated[int, Between(0, MAX_STAGES - 1)] = 0
    record: Record | None = None
    lease_s: Annotated[float, Key("lease_ms"), Spelled(_seconds, _ms, Annotated[int, Between(1000, 3_600_000)])] = 60.0
    drafts: Annotated[bool, MayLack(unsaid=True)] = False
    taps: Annotated[tuple[TapLayer, ...], AtMost(MAX_TAPS), MayLack(unsaid=True)] = ()
    taps_wire: Annotated[ShortText, MayLack(unsaid=True)] = ""

    def contradiction(self) -> str:
        """What its fields say against each other, "" for nothing."""
        if self.index >= len(self.stages) or self.keep > self.layout.context:
            return "an opening that points into its own plan and context, found one that points outside"
        layer = self.stages[0].first
        for stage in self.stages:
            if stage.first != layer or stage.first >= stage.last:
                return f"stages that follow each other without gap or overlap, found {stage.first}:{stage.last}"
            layer = stage.last
        return ""

    @property
    def me(self) -> StagePlan:
        return self.stages[self.index]

    def upstream(self) -> bytes:
        """Node that sends this stage its frames."""
        return self.stages[self.index - 1].node if self.index else self.requester

    def following(self) -> OpenRun:
        """The same, as the next stage is told it."""
        return replace(self, index=self.index + 1)


@by_name(tag=("do", "release"))
@dataclass(frozen=True)
class ReleaseRun:
    """To a stage that the run's next epoch leaves out: its session is free to go."""

    run: RunId
    epoch: Epoch


_OPEN, _RELEASE = Codec(OpenRun, "opening"), Codec(ReleaseRun, "release")


def encode_open(opening: OpenRun) -> Message:
    """The message that opens a stage."""
    return Message(DOWN, _OPEN.header(opening))


def encode_release(opening: OpenRun) -> Message:
    """The message to a stage that the run's next epoch leaves out."""
    return Message(DOWN, _RELEASE.header(ReleaseRun(opening.run, opening.epoch)))


WORDS = ("opened", "half", "lost", "leave")


@by_name()
@dataclass(frozen=True)
class RingSignal:
    """News that walks up the ring about a run.

    do      "opened": `said` has an entry for every stage from the sender on, or `refused` says who refused and why
            "half": what the next stage measured on the edge between
            "lost": stage number `stage` is gone or failing, for `reason`
            "leave": stage number `stage` goes soon; until then it works on
    record  the receipt's part of the news
    """

    do: Annotated[str, OneOf(WORDS)]
    run: RunId
    epoch: Epoch
    said: Annotated[tuple[Record, ...], AtMost(MAX_STAGES)] = ()
    refused: Annotated[bytes, Exactly(0, 32)] = b""
    busy: bool = False
    stage: Annotated[int, Between(-1, MAX_STAGES)] = -1
    reason: Annotated[str, AtMost(MAX_REASON)] = ""
    record: Record | None = None


_SIGNAL = Codec(RingSignal, "news of a ring")


def encode_word(word: RingSignal) -> Message:
    """The message that carries news up the ring."""
    return Message(UP, _SIGNAL.header(replace(word, reason=word.reason[:MAX_REASON])))


def parse_word_untrusted(header: Mapping[str, object]) -> RingSignal:
    """News from the next stage. Raises PeerError. What stages say of themselves is checked where it is used."""
    return _SIGNAL.read_untrusted(header)


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
