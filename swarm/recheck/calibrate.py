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
from swarm.model.rows import Layout, no_commits
from swarm.model.weights_as import PACKED
from swarm.recheck.quantization_grid import compared, grains, is_coarse, on_wire
from swarm.recheck.recompute import CPU, Step, run_block
from swarm.ring.certain_rows import certain_rows

TEXTS = (
    "The sky is blue because molecules of air scatter short waves of light more than long ones. At sunset the light "
    "has come a long way, and what is left of it is red. Clouds, whose drops are far larger, scatter all of it alike.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)"
    "\n\n\nclass Window:\n    def __init__(self, size: int) -> None:\n        self.size = size\n",
    "1. Boil two eggs for six minutes.\n2. Peel them under cold water.\n3. Cut them in half, add salt and oil.\n"
    "4. Serve at once.\n\nFor four people take eight eggs, and a larger pot.",
    "Der Zug nach Bern fährt um 7.42 Uhr von Gleis 3. Wer ihn versäumt, nimmt den nächsten in einer halben Stunde, "
    "muss aber in Olten umsteigen und ist erst gegen zehn am Ziel.",
    "user: My router restarts every night, what could it be?\nassistant: Look at its log first. A timer, an update or "
    "a weak power supply are the usual reasons.\nuser: It says 'watchdog'. And now?\nassistant:",
    '{"order": 4711, "items": [{"name": "lamp", "price": 39.9, "count": 2}, {"name": "bulb", "price": 4.25}], '
    '"paid": true, "address": {"street": "Long Lane 5", "city": "York"}}',
    "| year | rain (mm) | sun (h) |\n| --- | --- | --- |\n| 2019 | 812 | 1650 |\n| 2020 | 745 | 1833 |\n| 2021 | 901 "
    "| 1502 |\n| 2022 | 640 | 2011 |\n\nThe mean rain is",
    "The tide comes in, the tide goes out,\nthe gulls are crying all about,\nand on the pier an old man stands\nwith "
    "nothing but his empty hands.\nHe counts the boats, he counts the years,",
)
"""What models are asked for, of as many kinds as there are users: rows of one kind alone made gates too narrow."""
MOST_TOKENS = 64
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
    prompts: Sequence[Sequence[int]],
    settings: Sequence[tuple[str, str]] = SETTINGS,
    report: Report = silent,
) -> tuple[ErrorLimits, list[MeasuredLimit]]:
    """Limits of a model from the rows of these prompts' tokens (of each at most 64 are used). Raises ModelError."""
    work = _Bench(checkpoint, [list(tokens)[:MOST_TOKENS] for tokens in prompts])
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


@dataclass(frozen=True)
class _Prompt:
    """Its tokens, and their rows in front of the first layer: float32 [tokens, hidden]."""

    tokens: Sequence[int]
    embedded: torch.Tensor

    @property
    def layout(self) -> Layout:
        return Layout(0, len(self.tokens))


class _Bench:
    """The model in every type, and the prompts."""

    def __init__(self, checkpoint: Checkpoint, prompts: Sequence[Sequence[int]]) -> None:
        self._checkpoint = checkpoint
        self._layers = checkpoint.manifest.n_layers
        self._blocks: dict[str, Block] = {}
        exact = self._block("float32")
        self._prompts = [_Prompt(tokens, exact.embedded(tokens)) for tokens in prompts]

    @property
    def packs(self) -> bool:
        """Whether anything of the model is multiplied as it is stored here."""
        return self._block(PACKED).computes_in == PACKED

    def measure(self, dtype: str, wire: str) -> MeasuredLimit:
        """Honest rows of every stage, at the noise of each row; ties of the whole model. Raises ReceiptError."""
        rows: list[float] = []
        medians: list[float] = []
        spans = spans_of(self._layers, self._checkpoint.manifest.ties.forbidden)
        for prompt in self._prompts:
            for span in spans:
                found, middle = self._stage(prompt, span, dtype, wire)
                rows += found
                medians += middle
        typical = max(medians)
        if (dtype, wire) != ("float32", "float32"):
            rows = [typical * ratio for ratio in rows]
        limit = calibrate(rows, self._ties(dtype, wire))
        return MeasuredLimit(limit_name(dtype, wire), _at_least(limit, dtype, wire), typical, len(spans))

    def _stage(self, prompt: _Prompt, span: tuple[int, int], dtype: str, wire: str) -> tuple[list[float], list[float]]:
        """One stage over one prompt: the error of each row in the unit of its noise, and the median of each variant."""
        rows: list[float] = []
        medians: list[float] = []
        exact, own = self._block("float32"), self._block(dtype)
        inputs = self._inputs(exact, prompt, span[0], wire)
        expected = self._through(exact, prompt, *span, inputs, 1)
        honest = on_wire(self._through(own, prompt, *span, inputs, 1), wire)
        noise = _errors(inputs, honest, expected, wire)
        usual = max(statistics.median(noise), LEAST)
        grain = grains(inputs, expected, wire).tolist() if is_coarse(wire) else [0.0] * len(noise)
        for threads, size in VARIANTS:
            with _threads(threads):
                sent = on_wire(self._through(own, prompt, *span, inputs, size), wire)
            errors = _errors(inputs, sent, expected, wire)
            medians.append(statistics.median(errors))
            if (dtype, wire) == ("float32", "float32"):
                rows += errors
            else:
                floors = (max(row, usual, LEAST_GRAINS * one) for row, one in zip(noise, grain, strict=True))
                rows += [error / floor for error, floor in zip(errors, floors, strict=True)]
        return rows, medians

    def _ties(self, dtype: str, wire: str) -> list[float]:
        """The gap between likely tokens that rounding makes at one position in twenty, over stages of a third each."""
        exact, own = self._block("float32"), self._block(dtype)
        forbidden = self._checkpoint.manifest.ties.forbidden
        cuts = [cut for cut in (0, self._layers // 3, 2 * self._layers // 3, self._layers) if cut not in forbidden]
        gaps = []
        for prompt in self._prompts:
            wanted = self._through(exact, prompt, 0, self._layers, prompt.embedded, 1)
            hidden = prompt.embedded
            for first, last in zip(cuts, cuts[1:], strict=False):
                hidden = self._through(own, prompt, first, last, hidden, 1)
                hidden = hidden if last == self._layers else on_wire(hidden, wire)
            likely = wanted.topk(min(5, wanted.shape[-1]), dim=-1).indices
            off = (hidden - wanted).gather(1, likely)
            gaps.append(off.amax(1) - off.amin(1))
        # `calibrate` doubles it; half as much again is enough for what is no pair of tokens but the extremes of five.
        return [0.75 * float(torch.quantile(torch.cat(gaps), 0.95))]

    def _inputs(self, exact: Block, prompt: _Prompt, first: int, wire: str) -> torch.Tensor:
        if first == 0:
            return prompt.embedded
        return on_wire(self._through(exact, prompt, 0, first, prompt.embedded, 1), wire)

    def _through(
        self, block: Block, prompt: _Prompt, first: int, last: int, inputs: torch.Tensor, size: int
    ) -> torch.Tensor:
        """The rows through some layers: the first ones at once, then frames of `size` rows."""
        steps = []
        tokens, layout = list(prompt.tokens), prompt.layout
        ends = [PROMPT_ROWS, *range(PROMPT_ROWS + size, len(tokens), size), len(tokens)]
        for start, stop in zip([0, *ends], ends, strict=False):
            if start >= stop:
                continue
            rows = certain_rows(layout, start, tokens[start:stop])
            rows.want[:] = True
            steps.append(Step(no_commits(), rows, inputs[start:stop] if first else None))
        return torch.cat([rows.float() for rows in run_block(block.view(first, last), layout, steps)])

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
