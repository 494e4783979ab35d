"""What a run is asked for, what it tells while it goes, and what it leaves: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from swarm.base.errors import UsageError
from swarm.base.option import Number, check, option
from swarm.model.sampling import Sampling

Speculation = Literal["plain", "chain", "tree", "stream"]
Draft = Literal["none", "suffix", "lm", "auto"]
FinishReason = Literal["stop", "length", "cancelled", "swarm_incomplete"]

SPECULATIONS: tuple[Speculation, ...] = ("plain", "chain", "tree", "stream")
DRAFTS: tuple[Draft, ...] = ("none", "suffix", "lm", "auto")
WIRES = ("model", "auto", "float32", "bfloat16", "int8", "fp8")


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
    public        so many of the prompt's first tokens are nobody's own: runs of other names share them with this one
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int = option(
        256,
        "exact, unless a stop or end token comes first (default: %(default)s)",
        "N",
        read=Number(int, 1, 1_000_000, "a number of tokens"),
        group="text",
        everyday=True,
    )
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = option(
        (), "end where this text appears (may be given several times)", "S", repeat=True, group="text", everyday=True
    )
    stop_token_ids: tuple[int, ...] = ()
    keep_stop: bool = False
    ignore_eos: bool = option(False, "go on past end tokens (for benchmarks)", group="text")
    speculation: Speculation = option(
        "stream", "how drafts travel (default: %(default)s)", choices=SPECULATIONS, group="speculation", everyday=True
    )
    draft: Draft = option(
        "auto", "what drafts (default: %(default)s)", choices=DRAFTS, group="speculation", everyday=True
    )
    wire: str = option(
        "model",
        "format of activations between nodes; auto takes a coarser one where bandwidth is short "
        "(default: the model's own)",
        choices=WIRES,
        group="the run",
    )
    patience_s: float = option(
        30.0,
        "how long to wait for nodes while layers are missing, and for a replacement when a stage is lost "
        "(default: %(default)s)",
        "S",
        name="--patience",
        read=Number(float, 0, 86_400, "seconds"),
        group="the run",
    )
    private: int = option(
        0,
        "run the first and the last K layers here: no node sees token ids",
        "K",
        read=Number(int, 0, 1000, "a number of layers"),
        group="the run",
        everyday=True,
    )
    private_text: bool = option(
        False, "put a salted digest of the tokens into the receipt, not the tokens", group="receipt"
    )
    receipt: bool = option(True, "leave no receipt", name="--no-receipt", off=True, group="receipt")
    witnesses: int | None = option(
        None,
        "nodes outside the ring that co-sign (default: 1 when there is one)",
        "N",
        name="--witness",
        read=Number(int, 0, 16, "a number of nodes"),
        group="receipt",
    )
    prefix: str | None = ""
    public: int = 0

    @property
    def given(self) -> tuple[int, ...]:
        """First tokens of the answer that are the requester's own: counted in `max_tokens`, and no part of the text."""
        return self.sampling.shaping.given if self.sampling.shaping is not None else ()

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise UsageError("expected a prompt of at least one token, found an empty one; give some text")
        check(self)
        if self.speculation == "plain":  # nothing would take what drafters propose
            object.__setattr__(self, "draft", "none")
        if self.max_tokens < len(self.given):
            raise UsageError(f"expected room for {len(self.given)} given tokens, found --max-tokens {self.max_tokens}")


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
class PromptRead:
    """How much of the prompt all stages hold: told when the ring stands, after each piece, and once it is read.

    tokens   so far, those that earlier runs had left included
    cached   how many these are
    total    of the prompt
    seconds  since the run began
    """

    tokens: int
    cached: int
    total: int
    seconds: float


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

    receipt_unwritten: str | None = None
    """Why there is no receipt though one was asked for, as on a full disk; the answer is whole all the same."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Finished:
    """The last event of every run."""

    result: RunResult


RunEvent = WaitingForCoverage | RingOpened | PromptRead | CommittedTokens | Recovering | Finished
