"""Measuring how far honest stages of a model err, so that audits can tell them from cheaper ones.

Stages of several sizes compute the same rows as a ring would: in each type, with each wire format, in frames of other
sizes and with other numbers of threads than the verifier uses. What they send is held against float32.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from receipts.check.recompute import LEAST_GRAINS, ErrorLimits, Limit, calibrate, coarse_error, delta_error, limit_name
from receipts.format.errors import ReceiptError
from swarm.base.events import Progress, Report, silent
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.packing import PACKED
from swarm.model.rows import Layout, no_commits
from swarm.recheck.quantization_grid import compared, grains, is_coarse, on_wire
from swarm.recheck.recompute import CPU, Step, run_block
from swarm.ring.certain_rows import certain_rows

TEXT = """The sky is blue because molecules of air scatter short waves of light more than long ones. At sunset the \
light has come a long way, and what is left of it is red.
def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)
1. Boil two eggs for six minutes. 2. Peel them under cold water. Der Zug nach Bern fährt um 7.42 Uhr von Gleis 3."""
MOST_TOKENS = 96
PROMPT_ROWS = 32
SETTINGS = (
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("float32", "int8"),
    ("float32", "fp8"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "int8"),
    ("bfloat16", "fp8"),
    (PACKED, "bfloat16"),
    (PACKED, "int8"),
    (PACKED, "fp8"),
)
VARIANTS = ((1, 1), (1, 5), (2, 1), (2, 5))
"""(threads, rows of a frame) of honest stages."""
LEAST = 1e-9
"""Noise of float32 that a coarse format never shows."""


@dataclass(frozen=True)
class MeasuredLimit:
    """One limit, and how it was found: medians of the honest error and of the honest gap to float32."""

    name: str
    limit: Limit
    honest_median: float
    spans: int


def spans_of(layers: int, forbidden: frozenset[int] = frozenset()) -> list[tuple[int, int]]:
    """Stages as rings have them: halves, thirds, and short ones in the beginning, the middle and the end; of a model
    that cannot be cut everywhere, those between the cuts that it allows."""
    if forbidden:
        allowed = [cut for cut in range(layers) if cut not in forbidden]
        return sorted({(a, b) for a, b in zip(allowed, allowed[1:], strict=False)} | {(0, cut) for cut in allowed[1:]})
    cuts = {(0, layers // 2), (layers // 2, layers - 1), (0, layers // 3), (layers // 3, 2 * layers // 3)}
    cuts |= {(2 * layers // 3, layers - 1), (0, 2), (layers // 2, layers // 2 + 2), (layers - 3, layers - 1)}
    return sorted((first, last) for first, last in cuts if 0 <= first < last < layers)


def measure_limits(
    checkpoint: Checkpoint,
    tokens: Sequence[int],
    settings: Sequence[tuple[str, str]] = SETTINGS,
    report: Report = silent,
) -> tuple[ErrorLimits, list[MeasuredLimit]]:
    """Limits of a model from the rows of these tokens (at most 96 are used). Raises ModelError."""
    tokens = list(tokens)[:MOST_TOKENS]
    work = _Bench(checkpoint, tokens)
    found: list[MeasuredLimit] = []
    for done, (dtype, wire) in enumerate(settings):
        if dtype == PACKED and not work.packs:
            continue
        report(Progress("calibrate", checkpoint.manifest.model, done, len(settings), "limits", f"{dtype} over {wire}"))
        try:
            found.append(work.measure(dtype, wire))
        except ReceiptError:
            continue  # too few rows: the built-in limit stays
    report(Progress("calibrate", checkpoint.manifest.model, len(settings), len(settings), "limits"))
    manifest = checkpoint.manifest
    limits = ErrorLimits(manifest.digest, manifest.model[:100], {item.name: item.limit for item in found})
    return limits, found


class _Bench:
    """The model in every type, and the rows."""

    def __init__(self, checkpoint: Checkpoint, tokens: Sequence[int]) -> None:
        self._checkpoint, self._tokens = checkpoint, tokens
        self._layers = checkpoint.manifest.n_layers
        self._layout = Layout(0, len(tokens))
        self._blocks: dict[str, Block] = {}
        exact = self._block("float32")
        self._embedded = exact.embedded(tokens)

    @property
    def packs(self) -> bool:
        """Whether anything of the model is multiplied as it is stored here."""
        return self._block(PACKED).computes_in == PACKED

    def measure(self, dtype: str, wire: str) -> MeasuredLimit:
        """Honest rows of every stage, at the noise of each row; ties of the whole model. Raises ReceiptError."""
        rows: list[float] = []
        medians: list[float] = []
        exact, own = self._block("float32"), self._block(dtype)
        spans = spans_of(self._layers, self._checkpoint.manifest.ties.forbidden)
        for first, last in spans:
            inputs = self._inputs(exact, first, wire)
            expected = self._through(exact, first, last, inputs, 1)
            honest = on_wire(self._through(own, first, last, inputs, 1), wire)
            noise = _errors(inputs, honest, expected, wire)
            usual = max(statistics.median(noise), LEAST)
            grain = grains(inputs, expected, wire).tolist() if is_coarse(wire) else [0.0] * len(noise)
            for threads, size in VARIANTS:
                with _threads(threads):
                    sent = on_wire(self._through(own, first, last, inputs, size), wire)
                errors = _errors(inputs, sent, expected, wire)
                medians.append(statistics.median(errors))
                if (dtype, wire) == ("float32", "float32"):
                    rows += errors
                else:
                    floors = (max(row, usual, LEAST_GRAINS * one) for row, one in zip(noise, grain, strict=True))
                    rows += [error / floor for error, floor in zip(errors, floors, strict=True)]
        typical = max(medians)
        if (dtype, wire) != ("float32", "float32"):
            rows = [typical * ratio for ratio in rows]
        limit = calibrate(rows, self._ties(dtype, wire))
        return MeasuredLimit(limit_name(dtype, wire), _at_least(limit, dtype, wire), typical, len(spans))

    def _ties(self, dtype: str, wire: str) -> list[float]:
        """The gap between likely tokens that rounding makes at one position in twenty, over stages of a third each."""
        exact, own = self._block("float32"), self._block(dtype)
        wanted = self._through(exact, 0, self._layers, self._embedded, 1)
        forbidden = self._checkpoint.manifest.ties.forbidden
        cuts = [cut for cut in (0, self._layers // 3, 2 * self._layers // 3, self._layers) if cut not in forbidden]
        hidden = self._embedded
        for first, last in zip(cuts, cuts[1:], strict=False):
            hidden = self._through(own, first, last, hidden, 1)
            hidden = hidden if last == self._layers else on_wire(hidden, wire)
        likely = wanted.topk(min(5, wanted.shape[-1]), dim=-1).indices
        off = (hidden - wanted).gather(1, likely)
        # `calibrate` doubles it; half as much again is enough for what is no pair of tokens but the extremes of five.
        return [0.75 * float(torch.quantile(off.amax(1) - off.amin(1), 0.95))]

    def _inputs(self, exact: Block, first: int, wire: str) -> torch.Tensor:
        return self._embedded if first == 0 else on_wire(self._through(exact, 0, first, self._embedded, 1), wire)

    def _through(self, block: Block, first: int, last: int, inputs: torch.Tensor, size: int) -> torch.Tensor:
        """The rows through some layers: a prompt at once, then frames of `size` rows."""
        steps = []
        ends = [PROMPT_ROWS, *range(PROMPT_ROWS + size, len(self._tokens), size), len(self._tokens)]
        for start, stop in zip([0, *ends], ends, strict=False):
            if start >= stop:
                continue
            rows = certain_rows(self._layout, start, self._tokens[start:stop])
            rows.want[:] = True
            steps.append(Step(no_commits(), rows, inputs[start:stop] if first else None))
        return torch.cat([rows.float() for rows in run_block(block.view(first, last), self._layout, steps)])

    def _block(self, dtype: str) -> Block:
        if dtype not in self._blocks:
            layers = (0, self._layers)
            self._blocks[dtype] = load_block(
                *(self._checkpoint, *layers, CPU, torch.bfloat16 if dtype == PACKED else getattr(torch, dtype)),
                weights="auto" if dtype == PACKED else "expanded",
            )
        return self._blocks[dtype]


def _at_least(limit: Limit, dtype: str, wire: str) -> Limit:
    """Room for other machines: this one's own kernels round alike, others' need not."""
    if (dtype, wire) == ("float32", "float32"):
        return Limit(max(limit.median_ppm, 100), max(limit.row_ppm, 1000), max(limit.tie_ppm, 2000), limit.samples)
    median, room = (max(limit.median_ppm, 2000), 2.2) if is_coarse(wire) else (limit.median_ppm, 1.45)
    return Limit(median, max(limit.row_ppm, int(room * median)), limit.tie_ppm, limit.samples)


def _errors(inputs: torch.Tensor, sent: torch.Tensor, expected: torch.Tensor, wire: str) -> list[float]:
    error_of = delta_error
    if is_coarse(wire):
        sent, error_of = compared(inputs, expected, sent, wire), coarse_error
    return [error_of(*rows) for rows in zip(inputs.tolist(), sent.tolist(), expected.tolist(), strict=True)]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
