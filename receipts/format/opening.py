"""Statements made when a ring opens: the requester's order, each stage's accept, and a new plan after a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from receipts.format.codec import LATER, Count, Digest, Hex, Key, Many, Micros, Name, Range, Text

Ppm = Annotated[int, Range(0, 1_000_000_000_000)]
SignedPpm = Annotated[int, Range(-1_000_000_000, 1_000_000_000)]
Position = Annotated[int, Range(0, 2**32 - 1)]
Epoch = Annotated[int, Range(0, 255)]
Layer = Annotated[int, Range(0, 4096)]


@dataclass(frozen=True)
class Model:
    """What is to be run. `manifest` is the digest of the model's manifest, `layers` how many it has."""

    name: Name
    manifest: Digest
    layers: Annotated[int, Range(1, 4096)]


@dataclass(frozen=True)
class Sampler:
    """How tokens are drawn; ratios in parts per million, the seed as 16 hex digits (it may exceed 2^53)."""

    temperature_ppm: Ppm = 0
    top_p_ppm: Ppm = 1_000_000
    top_k: Count = 0
    min_p_ppm: Ppm = 0
    repetition_penalty_ppm: Ppm = 1_000_000
    seed: Annotated[str, Hex(8)] = "0" * 16


@dataclass(frozen=True)
class HeldTo:
    """What every token of the answer is held to: tokens that it does not allow have no probability."""

    kind: Annotated[str, Text(16, ("json_schema", "regex", "lark"))]
    text: Annotated[str, Text(32_768)]
    engine: Name
    """The program, with its version, whose reading of the text decides what is allowed."""
    vocabulary: Digest
    """SHA-256 over the tokens that spell the answer."""


@dataclass(frozen=True)
class Bias:
    """What is added to the logit of a token, in parts per million."""

    token: Count
    ppm: SignedPpm


@dataclass(frozen=True)
class LimitedThought:
    """What the answer may spend on thoughts. After so many tokens inside them the next ones are the closing mark's."""

    most: Count
    """Of all the answer's thoughts together, their marks not counted."""
    closes: Annotated[tuple[Count, ...], Many(1, 8)]
    opens: Annotated[tuple[Count, ...], Many(0, 8)]
    """None: the answer opens none itself."""
    opened: bool
    """The prompt ends within a thought."""


@dataclass(frozen=True)
class Shaped:
    """What is done to the logits of the answer's tokens before they are drawn, beside the sampler."""

    presence_ppm: SignedPpm
    """Subtracted from logits of tokens that the answer has already."""
    frequency_ppm: SignedPpm
    """Subtracted so many times as the answer has the token."""
    bias: Annotated[tuple[Bias, ...], Many(0, 1024)]
    """Tokens rising."""
    min_tokens: Count
    """The answer has so many tokens before any of `ends` is drawn."""
    ends: Annotated[tuple[Count, ...], Many(0, 1024)]
    given: Annotated[tuple[Count, ...], Many(0, 65_536)]
    """The answer's first tokens, which are the requester's own: the tail says how likely each was."""
    thought: LimitedThought | None = field(default=None, metadata=LATER)
    """None: as much as it likes."""


@dataclass(frozen=True)
class PlannedStage:
    """Layers [first, last) at one node."""

    node: Key
    first: Layer
    last: Layer


Plan = Annotated[tuple[PlannedStage, ...], Many(1, 128)]


@dataclass(frozen=True)
class Order:
    """The requester asks for one run. Signed before anything is computed."""

    kind: ClassVar[str] = "order"
    nonce: Digest
    time_us: Micros
    """Unix time in microseconds, by the requester's clock."""
    model: Model
    dtype: Name
    """What the stages compute in."""
    wire: Name
    """What hidden rows are sent as."""
    sampler: Sampler
    prompt: Digest
    """Salted digest of the list of prompt token ids."""
    prompt_tokens: Count
    max_tokens: Count
    own_layers: Layer
    """Layers that the requester computes itself at either end of the model; 0: none, the plan covers all."""
    plan: Plan
    previous_receipt: Digest | None
    """SHA-256 of the requester's previous receipt file."""
    held_to: HeldTo | None = field(default=None, metadata=LATER)
    """None: any text."""
    shaped: Shaped | None = field(default=None, metadata=LATER)
    """None: logits as the model has them, but for the sampler."""


@dataclass(frozen=True)
class Replan:
    """After a failure the requester sets a new plan: epoch `epoch` draws its first token at `position`."""

    kind: ClassVar[str] = "replan"
    epoch: Epoch
    time_us: Micros
    position: Position
    lost: Annotated[tuple[Key, ...], Many(0, 128)]
    """Nodes of the epoch before that no longer answer."""
    reason: Name
    plan: Plan


@dataclass(frozen=True)
class Software:
    """The program that a node says it runs; `digest` is over its files."""

    name: Name
    version: Name
    digest: Digest


@dataclass(frozen=True)
class Hardware:
    """The device that a node says it has: a claim, nothing more."""

    device: Name
    """As the driver names it: "NVIDIA GeForce RTX 4090", "AMD EPYC 7B13"."""
    type: Annotated[str, Text(16, ("cpu", "cuda", "rocm", "mps", "xpu", "other"))]
    memory_bytes: Count
    driver: Name
    cpu: Name
    cores: Annotated[int, Range(0, 65536)]
    uuid: Digest | None
    """Salted digest of the device's UUID."""
    us_per_layer: Annotated[Mapping[str, Count], Many(0, 16)]
    """Measured microseconds per layer, by number of rows: {"1": 900, "8": 1200, "64": 5200}."""


@dataclass(frozen=True)
class Accept:
    """A stage takes its part of the plan. Signed while the ring opens, before any row."""

    kind: ClassVar[str] = "accept"
    epoch: Epoch
    plan: Digest
    """Digest of the order (epoch 0) or of the replan that holds the plan."""
    first: Layer
    last: Layer
    nonce: Digest
    time_us: Micros
    weights: Digest
    """Digest over the manifest's entries of these layers: a claim until rows are audited."""
    software: Software
    hardware: Hardware
    fingerprint: Digest | None = field(default=None, metadata=LATER)
    """Digest of what its kernels make of fixed rows and weights of the model's shapes; None: it measured none. A claim
    until rows are audited bit for bit."""
