"""Audit: rows that a stage opened, recomputed from what came in to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import msgpack
import numpy as np
import torch

from receipts.check.audit import Taken
from receipts.check.checks import MIXED_STORED
from receipts.check.context import Drew, Followed
from receipts.check.samples import Bits, RowSample, TokenSample
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Order, PlannedStage
from receipts.record.row_opening import CrossedFrame as OpenedFrame
from receipts.record.row_opening import OpeningRequest
from swarm.base.errors import ModelError, PeerError, SwarmError
from swarm.base.events import Report, silent
from swarm.model.compiling import Compiler
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.own_kernels import KernelsHere, OwnKernels
from swarm.model.quant.native import library
from swarm.model.sampler import pick
from swarm.model.weights_as import PACKED
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Message, unpack_untrusted
from swarm.net.channel.wire import decode_tensor_untrusted
from swarm.recheck.context import Trace, said_of_rows
from swarm.recheck.draw_distance import token_gaps
from swarm.recheck.exactly import as_opened, bits_of, exact_outputs, same_answers, same_rows
from swarm.recheck.one_session import in_one_layout_untrusted, see_only_written
from swarm.recheck.quantization_grid import compared, grains, is_coarse, on_wire
from swarm.recheck.recompute import Layers, Step
from swarm.recheck.replayer import held_to_of, sampling_of
from swarm.recheck.second import Seconds, Via
from swarm.recheck.tail import at_least_usual, rounding, scores_of
from swarm.ring.drawing import Drawing, needed_from, needs_tokens
from swarm.ring.frame import ANSWER, DOWN, Answer, Frame, answer_of, parse_answer_untrusted, parse_frame_untrusted
from swarm.ring.kept_rows import SlotTokens
from swarm.ring.recomputing import with_rows


class Nodes(Protocol):
    """The nodes of a run, to be asked for what they kept."""

    def fetch(self, node: str, request: OpeningRequest, known: Sequence[OpenedFrame] = ()) -> bytes | None:
        """Ask the node of this name (hex) to open rows; None when it cannot be reached or no longer keeps them.

        `known`: frames that came in to it, and that an earlier answer held: they need not be sent again.
        """


class RingAuditor:
    """`receipts.check.audit.Auditor`: `nodes` are asked, the checkpoint recomputes in float32.

    fingerprints: by node (hex), of the kernels that it signed to compute with. Where this machine has the same ones,
    rows are computed by them too and compared bit for bit. seconds: a third node to be asked besides, whose word judges
    nothing.

    Every output that the inbound frames give is computed at once and kept for the stage's other samples, so asking for
    the last frame first makes one pass over the layers of each stage. Those of the stage before are kept beside them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        nodes: Nodes,
        group_bytes: int | None = None,
        report: Report = silent,
        compiler: Compiler | None = None,
        fingerprints: Mapping[str, str] | None = None,
        kernels: KernelsHere | None = None,
        seconds: Seconds | None = None,
    ) -> None:
        self._seconds = seconds
        self._compiler, self._fingerprints = compiler, fingerprints or {}
        self._kernels = kernels or KernelsHere(checkpoint.manifest, checkpoint.config)
        self._checkpoint, self._nodes = checkpoint, nodes
        self._group_bytes, self._report = group_bytes, report
        self._done: list[tuple[Taken, _Recomputed]] = []

    def fetch(self, node: str, request: OpeningRequest, known: Sequence[OpenedFrame] = ()) -> bytes | None:
        """The node's answer."""
        return self._nodes.fetch(node, request, known)

    def recompute(
        self,
        order: Order,
        stage: PlannedStage,
        before: Sequence[OpenedFrame],
        inbound: Sequence[OpenedFrame],
        outbound: OpenedFrame,
    ) -> Sequence[RowSample | TokenSample]:
        """Samples of the rows of one outbound frame. Raises ReceiptError for frames that no honest stage passes.

        None where a row sees keys and values that no opened frame left: what came in then is not all there is.
        """
        done = self._of(order, Taken(stage, tuple(before), tuple(inbound)))
        if not done.whole:
            return []
        try:
            samples = done.samples(len(before) + len(inbound), outbound)
            self._second(done, stage, len(before) + len(inbound), outbound)
            return samples
        except PeerError as error:
            raise ReceiptError(Refusal.AUDIT, f"stage {stage.node[:16]} sent what no stage sends: {error}") from error

    def _second(self, done: _Recomputed, stage: PlannedStage, upto: int, opened: OpenedFrame) -> None:
        """Ask the third node about one outbound frame."""
        seconds = self._seconds
        if seconds is None or seconds.refused(stage):
            return
        signed = self._fingerprints.get(stage.node)
        if stage.node == seconds.via.node:
            return seconds.refuse(stage, "it is the stage itself, which seconds nothing of its own")
        if signed is None:
            return seconds.refuse(stage, "the stage signed no fingerprint of its kernels")
        try:
            if (same := done.seconded(seconds.via, stage, signed, upto, opened)) is not None:
                seconds.note(stage, same)
        except SwarmError as error:
            seconds.refuse(stage, error)

    def follow(
        self,
        order: Order,
        stage: PlannedStage,
        before: Sequence[OpenedFrame],
        inbound: Sequence[OpenedFrame],
        outbound: Sequence[OpenedFrame],
        text: Sequence[int],
    ) -> Followed:
        """Every row that came in, held against the text; at the tail what it drew after each wanted one."""
        try:
            return self._of(order, Taken(stage, tuple(before), tuple(inbound))).followed(outbound, text)
        except PeerError as error:
            raise ReceiptError(Refusal.OPENING, f"an opened frame is none: {error}") from error

    def handed(self, order: Order, giving: Taken, taking: Taken) -> Sequence[RowSample] | None:
        """What `taking` began from, as rows that `giving` gave out; None where that holds none of them."""
        after = self._of(order, taking)
        needed = after.needed()
        if not needed:
            return []
        before = self._of(order, giving)
        return before.handed_on(needed, after) if before.whole and after.whole else None

    def _of(self, order: Order, taken: Taken) -> _Recomputed:
        """This stage's outputs; computed anew unless they are among those of the last two stages asked for."""
        for known, done in self._done:
            same = (known.stage, known.before) == (taken.stage, taken.before)
            if same and known.inbound[: len(taken.inbound)] == taken.inbound:
                return done
        layers = Layers(self._checkpoint, taken.stage.first, taken.stage.last, self._group_bytes, report=self._report)
        signed = self._fingerprints.get(taken.stage.node)
        own = self._kernels.find(signed) if signed is not None else None
        done = _Recomputed(order, layers, taken.before, taken.inbound, self._compiler, own)
        self._done = [*self._done[-1:], (taken, done)]
        return done


class _Recomputed:
    """The outputs of a stage for all frames that came in, in order: those `before` its epoch, then those of it."""

    def __init__(
        self,
        order: Order,
        layers: Layers,
        before: Sequence[OpenedFrame],
        inbound: Sequence[OpenedFrame],
        compiler: Compiler | None = None,
        own: OwnKernels | None = None,
    ) -> None:
        self._sampling, self._layers, self._wire, self._own = sampling_of(order), layers, order.wire, own
        self._order = order
        manifest = layers.checkpoint.manifest
        self._vocab, self._began = manifest.vocab_size, len(before)
        try:
            found = [parse_frame_untrusted(message_untrusted(DOWN, opened)) for opened in (*before, *inbound)]
            self._as_sent = found
            self._layout, self._frames = in_one_layout_untrusted(order, manifest.positions, found, len(before))
            steps = [self._step_untrusted(frame) for frame in self._frames]
        except PeerError as error:
            raise ReceiptError(Refusal.OPENING, f"an opened frame is none: {error}") from error
        self._held_to = held_to_of(self._sampling, compiler) if self._tail else None
        self.whole = see_only_written(self._frames, self._layout)
        if not self.whole:
            return
        self._inputs = self._inputs_of(steps)
        self._outputs = list(layers.outputs(self._layout, steps))
        self._exact = exact_outputs(layers, own, as_opened(order, manifest, self._layout), steps) if own else []
        self._honest = self._emulated(order, steps)

    @property
    def _tail(self) -> bool:
        return self._layers.last == self._layers.checkpoint.manifest.n_layers

    def _step_untrusted(self, frame: Frame) -> Step:
        """Raises PeerError for rows that do not fit the model."""
        tokens = frame.rows.token
        if int(tokens.max()) >= self._vocab:
            raise PeerError(f"expected token ids below {self._vocab}, found {int(tokens.max())}")
        ties = self._layers.checkpoint.manifest.ties
        if int(tokens.min()) < 0 and (self._layers.first == 0 or ties.by_token):
            raise PeerError("expected token ids of the model with the rows of this stage")
        if self._layers.first == 0:
            if frame.hidden is not None:
                raise PeerError("expected token ids of the model at the head of the ring")
            return Step(frame.commits, frame.rows)
        return Step(frame.commits, frame.rows, self._hidden_untrusted(frame, len(frame.rows)))

    def _hidden_untrusted(self, frame: Frame | Answer, count: int) -> torch.Tensor:
        """The `count` hidden rows of a frame as float32 [count, hidden_size]. Raises PeerError."""
        if frame.hidden is None:
            raise PeerError("expected hidden rows in a frame, found none")
        hidden = decode_tensor_untrusted(*frame.hidden, torch.float32)
        if hidden.shape != (count, self._layers.checkpoint.manifest.row_width):
            raise PeerError(f"expected {count} hidden rows, found a tensor {list(hidden.shape)}")
        return hidden

    def _inputs_of(self, steps: Sequence[Step]) -> list[torch.Tensor]:
        """What entered the first layer at each step: at the head, the embeddings of its tokens."""
        if self._layers.first > 0:
            return [step.hidden for step in steps if step.hidden is not None]
        whole = self._layers.embeddings(np.concatenate([step.rows.token for step in steps]).tolist())
        return list(torch.split(whole, [len(step.rows) for step in steps]))

    def _emulated(self, order: Order, steps: Sequence[Step]) -> list[torch.Tensor]:
        """What an honest stage sends for each step (nothing where that is float32 too); of a tail, its rounding."""
        dtype = computed_in(order)
        if self._tail:
            if dtype == torch.float32:
                return [torch.zeros(len(exact)) for exact in self._outputs]
            honest: Iterable[torch.Tensor] = self._exact or self._as_ordered(order, dtype, steps)
            return at_least_usual([rounding(exact, rows) for exact, rows in zip(self._outputs, honest, strict=True)])
        if dtype == torch.float32 and order.wire == "float32":
            return []
        honest = self._exact or self._as_ordered(order, dtype, steps)
        return [on_wire(rows, order.wire) for rows in honest]

    def _as_ordered(self, order: Order, dtype: torch.dtype, steps: Sequence[Step]) -> Iterable[torch.Tensor]:
        return replace(self._layers, dtype=dtype, weights=weights_of(order)).outputs(self._layout, steps)

    def samples(self, upto: int, opened: OpenedFrame) -> list[RowSample | TokenSample]:
        """What one outbound frame shows; it answers one of the first `upto` inbound frames. Raises PeerError."""
        plain = message_untrusted(DOWN, opened)
        out = parse_frame_untrusted(plain) if plain.header.get("do") == "frame" else None
        answer = parse_answer_untrusted(message_untrusted(ANSWER, opened)) if out is None else None
        fitting = self._answered(upto, opened.seq, out)
        if not fitting and out is not None and out.replay >= 0:
            return self._again(out)
        if not fitting:
            raise PeerError(f"expected frame {opened.seq} to answer one that came in, found none")
        index = fitting[-1]
        if answer is not None and answer.hidden is None:
            return self._tokens(index, answer)
        sent = out if out is not None else answer
        assert sent is not None
        return self._rows(index, self._hidden_untrusted(sent, len(self._frames[index].rows)))

    def _answered(self, upto: int, seq: int, out: Frame | None) -> list[int]:
        """Which of the first `upto` inbound frames an outbound one answers."""
        wanted = (seq, out.replay if out is not None else -1)
        return [i for i in range(self._began, upto) if (self._frames[i].seq, self._frames[i].replay) == wanted]

    def seconded(
        self, via: Via, stage: PlannedStage, fingerprint: str, upto: int, opened: OpenedFrame
    ) -> list[bool] | None:
        """By row or answer of an outbound frame, whether a third node recomputes the same bits; None for rows that were
        sent again. Raises SwarmError where it gives none."""
        plain = message_untrusted(DOWN, opened)
        out = parse_frame_untrusted(plain) if plain.header.get("do") == "frame" else None
        if not (fitting := self._answered(upto, opened.seq, out)):
            return None
        index, manifest = fitting[-1], self._layers.checkpoint.manifest
        given = self._inputs if self._layers.first > 0 else [None] * len(self._frames)
        frames = [with_rows(frame, rows) for frame, rows in zip(self._frames[: index + 1], given, strict=False)]
        width = manifest.vocab_size if self._tail else manifest.row_width
        layout = as_opened(self._order, manifest, self._layout)
        found = via.rows(manifest.digest, fingerprint, stage, layout, frames, index, width)
        answer = parse_answer_untrusted(message_untrusted(ANSWER, opened)) if out is None else None
        if answer is not None and answer.hidden is None:
            wanted = np.flatnonzero(self._frames[index].rows.want)
            if len(found) != len(wanted):
                raise PeerError(f"expected logits of {len(wanted)} rows, found {len(found)}")
            return same_answers(answer, self._drawn_from(index, found)) if len(wanted) else []
        sent = out if out is not None else answer
        assert sent is not None
        return same_rows(self._hidden_untrusted(sent, len(self._frames[index].rows)), on_wire(found, self._wire))

    def _drawn_from(self, index: int, logits: torch.Tensor) -> Answer:
        """What the tail says of the frame's wanted rows, by these logits."""
        rows = self._frames[index].rows
        wanted = np.flatnonzero(rows.want)
        seen = self._seen(index) if needs_tokens(self._sampling) else None
        drawing = Drawing(self._sampling, seen, self._held_to)
        before = drawing.contexts(rows), drawing.allowed(rows), drawing.answers(rows)
        positions = [int(position) + 1 for position in rows.position[wanted]]
        return answer_of(self._frames[index], wanted, pick(logits, positions, self._sampling, *before), ())

    def _rows(self, index: int, sent: torch.Tensor) -> list[RowSample | TokenSample]:
        rows = self._frames[index].rows
        inputs, expected = self._inputs[index], self._outputs[index]
        if self._tail or sent.shape != expected.shape:
            raise PeerError(f"expected {len(rows)} rows in frame {self._frames[index].seq}, found {len(sent)}")
        honest = self._honest[index] if self._honest else None
        bits = self._bits(sent, self._exact[index] if self._exact else None)
        return self._samples(rows.position.tolist(), inputs, sent, expected, honest, bits)

    def _bits(self, sent: torch.Tensor, exact: torch.Tensor | None) -> list[Bits]:
        """Rows as the next stage reads them, against what the same kernels give."""
        if exact is None or self._own is None:
            return [Bits.NOT_COMPARED] * len(sent)
        return bits_of(same_rows(sent, on_wire(exact, self._wire)), self._own)

    def _samples(
        self,
        positions: Sequence[int],
        inputs: torch.Tensor,
        sent: torch.Tensor,
        expected: torch.Tensor,
        honest: torch.Tensor | None,
        bits: Sequence[Bits],
    ) -> list[RowSample | TokenSample]:
        """Rows as they are judged: over a coarse format by what is left of their differences on its grid."""
        grain: list[Any] = [None] * len(positions)
        if is_coarse(self._wire):
            sent = compared(inputs, expected, sent, self._wire)
            honest = compared(inputs, expected, honest, self._wire) if honest is not None else None
            grain = grains(inputs, expected, self._wire).tolist()
        own = honest.tolist() if honest is not None else [()] * len(positions)
        parts = zip(positions, inputs.tolist(), sent.tolist(), expected.tolist(), own, grain, bits, strict=True)
        return [RowSample(*row) for row in parts]

    def _again(self, out: Frame) -> list[RowSample | TokenSample]:
        """Rows of committed positions from before, sent once more to fill the stages after this one."""
        positions = [int(position) for position in out.rows.position]
        places = self._committed()
        if self._tail or not all(position in places for position in positions):
            raise PeerError("rows sent again that were never computed")
        sent = self._hidden_untrusted(out, len(positions))
        return self._held_against(positions, places, sent)

    def _held_against(
        self, positions: list[int], places: dict[int, tuple[int, int]], sent: torch.Tensor
    ) -> list[RowSample | TokenSample]:
        """Rows `sent` [n, hidden] of committed positions, against what was computed where they were filled."""
        at = [places[position] for position in positions]
        inputs, expected, honest, exact = (
            torch.stack([rows[step][row] for step, row in at]) if rows else None
            for rows in (self._inputs, self._outputs, self._honest, self._exact)
        )
        assert inputs is not None and expected is not None
        return self._samples(positions, inputs, sent, expected, honest, self._bits(sent, exact))

    @property
    def _passes_from(self) -> int:
        """Index of the epoch's first frame that is a pass: replays, which fill a newcomer, come before them."""
        replays = (i for i in range(self._began, len(self._frames)) if self._frames[i].replay < 0)
        return next(replays, len(self._frames))

    def followed(self, outbound: Sequence[OpenedFrame], text: Sequence[int]) -> Followed:
        """The epoch's passes held against the text, and what was drawn after them. Raises PeerError."""
        head = self._layers.first == 0
        # A penalty or a constraint looks at the tokens that came with the rows: a missing one changes what is drawn.
        needed = 0 if self._layers.checkpoint.manifest.ties.by_token else needed_from(self._sampling)
        trace = Trace(self._layout, text, head or needed is not None, 0 if head or needed is None else needed)
        passes = self._frames[self._passes_from :]
        for frame in self._frames[: self._passes_from]:
            trace.take(frame)
        right = tuple(tuple(bool(row) for row in trace.take(frame)) for frame in passes)
        said = tuple(said_of_rows(frame) for frame in self._as_sent[self._passes_from :])
        return Followed(said, right, self._drew(passes, outbound) if self._tail else ())

    def _drew(self, passes: Sequence[Frame], outbound: Sequence[OpenedFrame]) -> tuple[Drew, ...]:
        numbers = {frame.seq: number for number, frame in enumerate(passes)}
        found = []
        for opened in outbound:
            answer = parse_answer_untrusted(message_untrusted(ANSWER, opened))
            number = numbers.get(opened.seq)
            if number is None or (len(answer.row) and int(answer.row.max()) >= len(passes[number].rows)):
                raise PeerError(f"expected answer {opened.seq} to be of a frame that came in")
            positions = passes[number].rows.position
            rows = zip(answer.row.tolist(), answer.token.tolist(), strict=True)
            found += [Drew(int(positions[row]) + 1, token, number, row) for row, token in rows]
        return tuple(found)

    def needed(self) -> list[int]:
        """Committed positions that passes of this epoch saw and that none of them wrote before."""
        written = np.zeros(self._layout.context + 1, bool)
        needed = np.zeros(self._layout.context + 1, bool)
        for frame in self._frames[self._passes_from :]:
            rows = frame.rows
            written[frame.commits.position] = True
            written[rows.position[rows.slot >= self._layout.scratch]] = True
            needed[: int(rows.prefix.max())] |= ~written[: int(rows.prefix.max())]
        return [int(position) for position in np.flatnonzero(needed)]

    def handed_on(self, positions: list[int], after: _Recomputed) -> list[RowSample] | None:
        """What the next stage began from, as rows of this one; None where this one does not show how they came to be.

        A survivor's were computed frame by frame, and each row saw those before it as they were then. So all of its
        frames are compared, whether their rows were kept or not: row by row with what this stage made of the same.
        """
        if self._tail:
            return None
        if after._began:
            theirs, ours = ([said_of_rows(f) for f in side._as_sent[: side._began]] for side in (after, self))
            if theirs != ours:
                return None
            found: list[RowSample | TokenSample] = []
            for step, sent in enumerate(after._inputs[: after._began]):
                honest = self._honest[step] if self._honest else None
                where = self._frames[step].rows.position.tolist()
                bits = self._bits(sent, self._exact[step] if self._exact else None)
                found += self._samples(where, self._inputs[step], sent, self._outputs[step], honest, bits)
            return [sample for sample in found if isinstance(sample, RowSample)]
        here, there = self._committed(self._passes_from), after._committed(after._passes_from)
        if not all(position in here and position in there for position in positions):
            return None
        sent = torch.stack([after._inputs[step][row] for step, row in (there[position] for position in positions)])
        return [s for s in self._held_against(positions, here, sent) if isinstance(s, RowSample)]

    def _committed(self, until: int | None = None) -> dict[int, tuple[int, int]]:
        """By position, the step and row that filled it before this epoch, or before frame number `until`."""
        scratch = self._layout.scratch
        slots: dict[int, tuple[int, int]] = {}
        places: dict[int, tuple[int, int]] = {}
        for step, frame in enumerate(self._frames[: self._began if until is None else until]):
            for slot, position in zip(frame.commits.slot.tolist(), frame.commits.position.tolist(), strict=True):
                if slot in slots:
                    places[position] = slots[slot]
            for row, (slot, position) in enumerate(zip(frame.rows.slot, frame.rows.position, strict=True)):
                (slots if slot < scratch else places)[int(slot if slot < scratch else position)] = (step, row)
        return places

    def _tokens(self, index: int, answer: Answer) -> list[RowSample | TokenSample]:
        rows = self._frames[index].rows
        wanted = np.flatnonzero(rows.want)
        if not self._tail or not np.array_equal(answer.row, wanted):
            raise PeerError(f"expected {len(wanted)} answers in frame {answer.seq}, found {len(answer.row)}")
        if not len(wanted):
            return []
        positions = [int(position) + 1 for position in rows.position[wanted]]
        tokens = [int(token) for token in answer.token]
        seen = self._seen(index) if needs_tokens(self._sampling) else None
        drawing = Drawing(self._sampling, seen, self._held_to)
        before = drawing.contexts(rows), drawing.allowed(rows), drawing.answers(rows)
        logits = self._outputs[index]
        _, gaps = token_gaps(logits, positions, tokens, self._sampling, *before)
        if max(tokens) >= self._vocab:
            raise PeerError(f"expected tokens below {self._vocab}, found {max(tokens)}")
        drawn = list(zip(positions, tokens, answer.margin.tolist(), answer.logprob.tolist(), strict=True))
        scores = scores_of(logits, self._honest[index], drawn, self._sampling, *before)
        bits = [Bits.NOT_COMPARED] * len(wanted)
        if self._exact and self._own is not None:
            bits = bits_of(same_answers(answer, self._drawn_from(index, self._exact[index])), self._own)
        return [TokenSample(*sample) for sample in zip(positions, gaps, scores, bits, tokens, strict=True)]

    def _seen(self, index: int) -> SlotTokens:
        """Tokens by slot once a frame came in, as the tail noted them."""
        seen = SlotTokens(self._layout)
        for frame in self._frames[: index + 1]:
            seen.commit(frame.commits)
            seen.write(frame.rows)
        return seen


def computed_in(order: Order) -> torch.dtype:
    """What the stages compute in by the order; the coarser where they differ."""
    return torch.float32 if order.dtype == "float32" else torch.float16 if order.dtype == "float16" else torch.bfloat16


def weights_of(order: Order) -> str:
    """How stages hold weights by the order. Raises ModelError where this machine cannot do as they do."""
    if order.dtype not in (PACKED, MIXED_STORED):
        return "expanded"
    if library() is None:
        raise ModelError(
            "the run was computed with weights as stored, for which no kernels were built here; install wanswarm "
            "again where there is a C++ compiler"
        )
    return "auto"


def message_untrusted(kind: str, opened: OpenedFrame) -> Message:
    """The message whose header and body were hashed. Raises PeerError."""
    packed = b"\x94" + b"".join(bytes(msgpack.packb(part)) for part in (kind, 0, 0)) + opened.head
    return unpack_untrusted(packed, opened.body, ChannelLimits()).message
