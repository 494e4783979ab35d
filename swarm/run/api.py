"""What a run is asked for, what it tells while it goes, and what it leaves: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from swarm.base.errors import UsageError
from swarm.model.sampler import Sampling

Speculation = Literal["plain", "chain", "tree", "stream"]
Draft = Literal["none", "suffix", "lm", "auto"]
FinishReason = Literal["stop", "length", "cancelled", "swarm_incomplete"]

SPECULATIONS: tuple[Speculation, ...] = ("plain", "chain", "tree", "stream")
DRAFTS: tuple[Draft, ...] = ("none", "suffix", "lm", "auto")


@dataclass(frozen=True)
class RunRequest:
    """One generation, as the ring needs it.

    prompt_ids    token ids of the whole prompt (chat template already applied)
    max_tokens    exact, unless a stop or end token comes first
    stop          strings that end the text; not part of it unless `keep_stop`
    stop_token_ids  ids that end the answer, and do so with `ignore_eos` too; shown only with `keep_stop`
    ignore_eos    keep going past end tokens (benchmarks)
    patience_s    how long to wait for nodes: while layers are missing, and for a replacement when a stage is lost
    wire          a format of hidden rows; "model": the model's own; "auto": by bandwidth, perhaps coarser
    private       layers run by the requester itself at either end; 0: none
    witnesses     nodes outside the ring asked to co-sign; None: one when there is one
    prefix        runs of the same name may begin from what stages hold of each other, where that is kept at all;
                  None: this one neither begins so nor is held
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    keep_stop: bool = False
    ignore_eos: bool = False
    speculation: Speculation = "stream"
    draft: Draft = "auto"
    wire: str = "model"
    patience_s: float = 30.0
    private: int = 0
    private_text: bool = False
    receipt: bool = True
    witnesses: int | None = None
    prefix: str | None = ""

    @property
    def given(self) -> tuple[int, ...]:
        """First tokens of the answer that are the requester's own: counted in `max_tokens`, and no part of the text."""
        return self.sampling.shaping.given if self.sampling.shaping is not None else ()

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise UsageError("expected a prompt of at least one token, found an empty one; give some text")
        if self.max_tokens < 1:
            raise UsageError(f"expected --max-tokens of at least 1, found {self.max_tokens}")
        if self.max_tokens < len(self.given):
            raise UsageError(f"expected room for {len(self.given)} given tokens, found --max-tokens {self.max_tokens}")
        if self.speculation not in SPECULATIONS:
            raise UsageError(f"expected --speculation {'|'.join(SPECULATIONS)}, found {self.speculation!r}")
        if self.draft not in DRAFTS:
            raise UsageError(f"expected --draft {'|'.join(DRAFTS)}, found {self.draft!r}")


@dataclass(frozen=True)
class StageInfo:
    """One stage of a run's ring. `layers` is [first, last); `compute_ms` the median per pass so far."""

    node: str
    device: str
    layers: tuple[int, int]
    compute_ms: float
    edge: str = "direct"
    rtt_ms: float | None = None


@dataclass(frozen=True)
class WaitingForCoverage:
    """No route yet: the run waits for other nodes, `patience_s` in all. Told again when `reason` changes."""

    reason: str
    patience_s: float


@dataclass(frozen=True)
class RingOpened:
    """The ring stands."""

    run_id: str
    ring: tuple[StageInfo, ...]


@dataclass(frozen=True)
class Special:
    """A token that is for programs, such as the mark of a tool call. `text`: its name, which is not shown."""

    token: int
    text: str


Piece = str | Special


@dataclass(frozen=True)
class CommittedTokens:
    """New tokens of the answer, in order.

    text      what they add to the text (may be empty while a character is incomplete)
    pieces    the same text with special tokens in their places; empty when there are none
    drafted   per token: True when a draft foresaw it
    logprobs  per token, when asked for: (own logprob, ((token, logprob), ...)); else empty
    """

    tokens: tuple[int, ...]
    text: str
    drafted: tuple[bool, ...]
    logprobs: tuple[tuple[float, tuple[tuple[int, float], ...]], ...] = ()
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Recovering:
    """A stage is lost, or is leaving and works until it goes; the run looks for another route."""

    lost: str
    reason: str
    leaving: bool = False


@dataclass(frozen=True)
class RunResult:
    """The contract of `swarm generate --json`, plus what the status line needs."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    new_tokens: int
    seconds: float
    ttft_seconds: float
    tokens_per_second: float
    passes: int
    tokens_per_pass: float
    rows_sent: int
    acceptance: float
    drafter: str
    speculation: str
    ring: tuple[StageInfo, ...]
    finish_reason: FinishReason
    receipt: str | None
    run_id: str = ""
    pass_ms: float = 0.0
    plain_estimate_tokens_per_second: float = 0.0
    cached_prompt_tokens: int = 0
    recoveries: int = 0
    drafted_rows: int = 0
    depth_sent: tuple[int, ...] = ()
    """Drafted rows by how far below the last known token they were when they were sent: one below comes first."""
    depth_accepted: tuple[int, ...] = ()
    held_to: str | None = None
    """Of which kind the constraint was: json_schema, regex or lark. Log-probabilities are then of what it allows."""
    parts_ms: Mapping[str, float] = field(default_factory=dict)
    """Mean ms of a pass that it queued at stages, was computed by them, and was on its way: queue, compute, network."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Finished:
    """The last event of every run."""

    result: RunResult


RunEvent = WaitingForCoverage | RingOpened | CommittedTokens | Recovering | Finished
