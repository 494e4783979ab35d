"""Replay: the prompt and the receipt's own tokens go through the model, and each token is drawn again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch

from receipts.check.replay import Replayed
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Order
from swarm.base.errors import ModelError, UsageError
from swarm.base.events import Report, silent
from swarm.model.compiling import Compiler
from swarm.model.constraint import Constraint, Kind
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.held import Matcher
from swarm.model.own_kernels import OwnKernels
from swarm.model.rows import Layout, no_commits
from swarm.model.sampler import Sampling
from swarm.model.shaping import Shaping
from swarm.model.text.decoder import TokenDecoder
from swarm.model.thought import ThoughtLimit
from swarm.recheck.draw_distance import token_gaps
from swarm.recheck.exactly import as_opened, exact_outputs
from swarm.recheck.quantization_grid import on_wire
from swarm.recheck.recompute import Layers, Step
from swarm.ring.certain_rows import certain_rows

CHUNK_ROWS = 64


class ModelReplayer:
    """`receipts.check.replay.Replayer` over a checkpoint, in float32 on this machine.

    decoder      gives the text of the tokens, to compare with the receipt's; None leaves that out
    group_bytes  as in `walk.Layers`
    compiler     reads constraints of orders; None: runs that are held to one are not replayed
    own          kernels that every stage computed with, of rows that keep their bits in any company: the run is then
                 computed as the ring did, cut and wire and all, and no token may differ. None: in float32, in limits
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        decoder: TokenDecoder | None = None,
        group_bytes: int | None = None,
        report: Report = silent,
        compiler: Compiler | None = None,
        own: OwnKernels | None = None,
    ) -> None:
        self._compiler, self._own = compiler, own
        self._checkpoint, self._decoder = checkpoint, decoder
        self._group_bytes, self._report = group_bytes, report

    def replay(self, order: Order, prompt: Sequence[int], tokens: Sequence[int]) -> Replayed:
        """Draw every token again. Raises ReceiptError for tokens or samplers that the model cannot have had."""
        manifest = self._checkpoint.manifest
        forced = [*prompt, *tokens]
        if not prompt or not all(0 <= token < manifest.vocab_size for token in forced):
            raise ReceiptError(Refusal.REPLAY, f"tokens are not all among the model's {manifest.vocab_size}")
        sampling, given = sampling_of(order), forced[:-1]
        held_to = held_to_of(sampling, self._compiler)
        layout = Layout(0, len(given))
        steps = []
        for first in range(0, len(given), CHUNK_ROWS):
            rows = certain_rows(layout, first, given[first : first + CHUNK_ROWS])
            rows.want[:] = rows.position + 1 >= len(prompt)
            steps.append(Step(no_commits(), rows))
        best: list[int] = []
        gaps: list[float] = []
        for step, logits in zip(steps, self._logits(order, layout, steps), strict=True):
            drawn = [int(position) + 1 for position in step.rows.position[step.rows.want]]
            if drawn:
                contexts = [forced[:position] for position in drawn] if sampling.repetition_penalty != 1 else None
                allowed = None
                if held_to is not None:
                    allowed = [held_to.after(forced[len(prompt) : position]) for position in drawn]
                answers = [forced[len(prompt) : position] for position in drawn] if sampling.looks_back else None
                given = [forced[position] for position in drawn]
                found = token_gaps(logits, drawn, given, sampling, contexts, allowed, answers)
                best += found[0]
                gaps += found[1]
        text = self._decoder.decode(tokens) if self._decoder is not None else None
        return Replayed(best, gaps, text, self._own is not None)

    def _logits(self, order: Order, layout: Layout, steps: Sequence[Step]) -> Iterator[torch.Tensor]:
        """float32 logits of each step's wanted rows."""
        manifest = self._checkpoint.manifest
        if self._own is None:
            layers = Layers(self._checkpoint, 0, manifest.n_layers, self._group_bytes, report=self._report)
            yield from layers.outputs(layout, steps)
            return
        slots = as_opened(order, manifest, layout)
        for stage in order.plan:
            layers = Layers(self._checkpoint, stage.first, stage.last, self._group_bytes, report=self._report)
            outputs = exact_outputs(layers, self._own, slots, steps)
            if stage.last == manifest.n_layers:
                yield from outputs
                return
            sent = (on_wire(rows, order.wire) for rows in outputs)
            steps = [Step(step.commits, step.rows, rows) for step, rows in zip(steps, sent, strict=True)]


def held_to_of(sampling: Sampling, compiler: Compiler | None) -> Matcher | None:
    """A matcher for the sampling's constraint; None without one. Raises ModelError where it cannot be read here."""
    if sampling.constraint is None:
        return None
    if compiler is None:
        raise ModelError("the run is held to a constraint, for which the model's tokenizer is needed here")
    try:
        return compiler.held(sampling.constraint)
    except UsageError as error:
        raise ModelError(f"the run's constraint cannot be followed here: {error}") from error


def sampling_of(order: Order) -> Sampling:
    """The order's sampler. Raises ReceiptError(SHAPE) for one that does not exist."""
    sampler, held_to = order.sampler, order.held_to
    try:
        constraint = None
        if held_to is not None:
            kind = cast(Kind, held_to.kind)
            constraint = Constraint(kind, held_to.text, held_to.engine, held_to.vocabulary, order.prompt_tokens)
        return Sampling(
            temperature=sampler.temperature_ppm / 1e6,
            top_p=sampler.top_p_ppm / 1e6,
            top_k=sampler.top_k,
            min_p=sampler.min_p_ppm / 1e6,
            repetition_penalty=sampler.repetition_penalty_ppm / 1e6,
            seed=int(sampler.seed, 16),
            constraint=constraint,
            shaping=_shaping_of(order),
        )
    except UsageError as error:
        raise ReceiptError(Refusal.SHAPE, f"the order's sampler: {error}") from error


def _shaping_of(order: Order) -> Shaping | None:
    """Raises UsageError for one that does not exist."""
    said = order.shaped
    if said is None:
        return None
    limit = said.thought
    return Shaping(
        said.presence_ppm / 1e6,
        said.frequency_ppm / 1e6,
        tuple((bias.token, bias.ppm / 1e6) for bias in said.bias),
        said.min_tokens,
        said.ends,
        said.given,
        order.prompt_tokens,
        None if limit is None else ThoughtLimit(limit.most, limit.closes, limit.opens, limit.opened),
    )
