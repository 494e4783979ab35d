"""What a stage does with a batch of frames, on the one compute thread: rows in, bytes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from swarm.base.errors import BusyError, ModelError, PeerError
from swarm.model.block import Block, Job, Watched
from swarm.model.gpu import Clock, entered, first_line, out_of_memory
from swarm.net.channel.message import Body, Message
from swarm.net.channel.wire import decode_tensor_untrusted, encode_tensor, fits
from swarm.ring.drawing import Drawing, needs_tokens
from swarm.ring.frame import Answer, Drafts, Frame, answer_of
from swarm.ring.taps import Taps, encode_taps
from swarm.stage.session import Arrived, StageSession

log = logging.getLogger(__name__)

LOST = "the device answers no more"


@dataclass(frozen=True)
class Computed:
    """The outcome of one frame: what goes to the next stage or to the requester, nothing, or a failure.

    given: the failure lies in what the stage before gave, not in this one. busy: a later try may succeed.
    fault: it was an error of no kind that is meant for users. lost: why the device answers no more, which ends the
    node; empty as long as it does. taps: what goes to the requester besides.
    """

    session: StageSession
    arrived: Arrived
    out: Frame | Answer | None = None
    compute_us: int = 0
    error: str | None = None
    given: bool = False
    busy: bool = False
    fault: bool = False
    lost: str = ""
    taps: Message | None = None


class UnfitRowsError(PeerError):
    """The stage before gave hidden rows that no honest stage gives."""


def compute(batch: Sequence[tuple[StageSession, Arrived]]) -> list[Computed]:
    """Run one forward for each layer range that the batch touches; usually that is one.

    A frame that cannot be computed fails alone: the others of the batch are still answered.
    """
    started = time.monotonic()
    done: list[Computed] = []
    ranges: dict[tuple[int, int], list[tuple[StageSession, Arrived]]] = {}
    for session, arrived in batch:
        ranges.setdefault((session.block.first, session.block.last), []).append((session, arrived))
    for group in ranges.values():
        block = group[0][0].block
        with entered(block.gpu):
            found = _computed(group, started)
        if any(outcome.fault for outcome in found) and any(gpu.lost() for gpu in block.gpus):
            found = [replace(outcome, lost=outcome.error or LOST) for outcome in found]
        done += found
    return done


def _computed(group: Sequence[tuple[StageSession, Arrived]], started: float) -> list[Computed]:
    """One forward over frames of one layer range. What a device finds wrong it may say long after it was told to
    compute, wherever its results are read: so nothing of a frame is outside of a handler."""
    done: list[Computed] = []
    jobs: list[tuple[StageSession, Arrived, Job]] = []
    for session, arrived in group:
        try:
            jobs.append((session, arrived, _job(session, arrived.frame)))
        except Exception as error:
            done.append(_failed(session, arrived, error))
    if not jobs:
        return done
    try:
        clock = group[0][0].block.clock()
        seen = _forward(jobs)
        clock.stop()
    except Exception as error:
        return done + [_failed(session, arrived, error) for session, arrived, _ in jobs]
    for place, (session, arrived, _) in enumerate(jobs):
        rows, taps = seen.given[place] if seen.given else None, seen.tapped[place] if seen.tapped else {}
        try:
            outcome = _outcome(session, arrived, seen.outputs[place], rows, clock, started)
            done.append(replace(outcome, taps=_taps(session, arrived.frame, taps)))
        except Exception as error:
            done.append(_failed(session, arrived, error))
    return done


def _forward(jobs: Sequence[tuple[StageSession, Arrived, Job]]) -> Watched:
    """What the block gives for each job; where a run is drafted for here, also what the model's head was given, and
    where a requester's drafter reads rows of these layers, those rows."""
    block = jobs[0][0].block
    head = any(session.mtp is not None for session, _, _ in jobs)
    taps = {tap for session, arrived, _ in jobs if arrived.frame.tap_rows for tap in session.taps}
    if isinstance(block, Block) and (head or taps):
        return block.forward_watched([job for _, _, job in jobs], taps, head)
    return Watched(block.forward([job for _, _, job in jobs]), [], [])


def _taps(session: StageSession, frame: Frame, seen: Mapping[int, torch.Tensor]) -> Message | None:
    """The rows that a frame asks for, as they go to the requester; None where they are none of this stage's, or
    beyond the format: they are dispensable."""
    rows = slice(frame.tap_first, frame.tap_first + frame.tap_rows)
    wanted = [tap for tap in session.taps if tap in seen]
    if not (frame.tap_rows and wanted) or frame.replay >= 0 or rows.start >= len(frame.rows):
        return None
    hidden = torch.stack([seen[tap][rows] for tap in wanted])
    wire = session.opening.taps_wire
    if not (torch.isfinite(hidden).all() and fits(hidden, wire)):
        return None
    return encode_taps(Taps(frame.run, frame.epoch, frame.seq, rows.start, tuple(wanted), hidden), wire)


def _failed(session: StageSession, arrived: Arrived, error: Exception) -> Computed:
    """A frame that could not be computed: the node lives on, its run does not."""
    if isinstance(error, PeerError):
        return Computed(session, arrived, error=str(error), given=isinstance(error, UnfitRowsError))
    if isinstance(error, BusyError):
        return Computed(session, arrived, error=str(error), busy=True)
    if isinstance(error, ModelError):
        return Computed(session, arrived, error=str(error))
    log.error("a forward failed", exc_info=error)
    why = f"the forward failed: {first_line(error)}"
    return Computed(session, arrived, error=why, busy=out_of_memory(error), fault=True)


def _job(session: StageSession, frame: Frame) -> Job:
    block = session.block
    if block.head and frame.hidden is not None:
        raise PeerError("expected token ids at the head of the ring, found hidden rows")
    if block.head or block.by_token:
        tokens = frame.rows.token
        if int(tokens.min()) < 0 or int(tokens.max()) >= block.vocab_size:
            worst = int(tokens.min()) if int(tokens.min()) < 0 else int(tokens.max())
            raise PeerError(f"expected token ids from 0 to {block.vocab_size - 1}, found {worst}")
    if block.head:
        hidden = None
    else:
        if frame.hidden is None:
            raise PeerError("expected hidden rows after the head of the ring, found token ids")
        header, data = frame.hidden
        if header.get("wire") != session.opening.wire:
            raise PeerError(f"expected hidden rows as {session.opening.wire}, found {str(header.get('wire'))[:40]!r}")
        shape = (len(frame.rows), block.hidden_size)
        hidden = narrowed(rows_untrusted(header, data, shape, block.dtype), block.dtype)
        if block.gpu is not None:
            hidden = block.gpu.to_device(hidden, block.dtype)
    if session.sent is not None:
        session.sent.commit(frame.commits)
    if session.tokens is not None:
        session.tokens.commit(frame.commits)
        session.tokens.write(frame.rows)
    return Job(session.kv, frame.commits, frame.rows, hidden)


def rows_untrusted(
    header: Mapping[str, object], data: Body, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Hidden rows of the stage before: as `dtype`, but float32 instead of float16, which holds less than they may be.
    Raises PeerError for others than `shape`, UnfitRowsError for rows that no honest stage gives."""
    hidden = decode_tensor_untrusted(header, data, torch.float32 if dtype == torch.float16 else dtype)
    if hidden.shape != shape:
        raise PeerError(f"expected hidden rows {shape[0]} x {shape[1]}, found {list(hidden.shape)}")
    if not torch.isfinite(hidden).all():  # attention would spread one such row over all that follow
        raise UnfitRowsError("expected finite hidden rows from the stage before, found others")
    return hidden


def narrowed(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows as a block of `dtype` computes them. Raises ModelError for rows that are right but beyond float16."""
    rows = hidden.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(rows).all():
        raise ModelError("hidden rows are beyond float16, in which this node computes; use --dtype float32 on it")
    return rows


def _outcome(
    session: StageSession,
    arrived: Arrived,
    output: torch.Tensor,
    given: torch.Tensor | None,
    clock: Clock,
    started: float,
) -> Computed:
    frame, gpu = arrived.frame, session.block.gpu_out
    if gpu is not None and not session.block.tail:
        output = gpu.to_host(output)  # once; all that follows looks at it there
    if not torch.isfinite(output).all():
        return Computed(session, arrived, error="the block's output is not finite; use --dtype float32 on that node")
    session.computed(frame)
    timing = (max(0, int((started - arrived.since) * 1e6)), clock.us())
    timings = (*frame.timings, timing)
    if session.sent is not None:
        session.sent.write(frame.rows, output)
    if frame.replay == session.opening.index:
        _drafted(session, frame, given, {})
        return Computed(session, arrived, None, timing[1])
    if session.block.tail:
        answer = _sampled(session, frame, output, given, timings)
        return Computed(session, arrived, answer, answer.timings[-1][1])
    if not fits(output, session.opening.wire):
        why = f"the block's output has values beyond the wire format {session.opening.wire}; use --wire float32"
        return Computed(session, arrived, error=why)
    wire = encode_tensor(output, session.opening.wire)
    opening = session.opening
    if not (needs_tokens(opening.sampling) or opening.drafts or session.block.by_token):
        # Only a penalty, a constraint or drafting at the tail needs token ids behind the head, or a model whose layers
        # look them up: nobody else is shown them.
        frame = replace(frame, rows=replace(frame.rows, token=np.full(len(frame.rows), -1, np.int32)))
    if session.opening.index + 1 < len(session.opening.stages):
        return Computed(session, arrived, replace(frame, timings=timings, hidden=wire), timing[1])
    return Computed(session, arrived, replace(answer_of(frame, np.zeros(0), [], timings), hidden=wire), timing[1])


def _sampled(
    session: StageSession,
    frame: Frame,
    logits: torch.Tensor,
    given: torch.Tensor | None,
    timings: tuple[tuple[int, int], ...],
) -> Answer:
    """Draw the token that follows each wanted row: position + 1, by the run's seed. Then draft, where that is asked."""
    wanted = np.flatnonzero(frame.rows.want)
    positions = [int(p) + 1 for p in frame.rows.position[wanted]]
    drawing = Drawing(session.opening.sampling, session.tokens, session.held_to)
    picked = drawing.pick(logits, positions, frame.rows) if len(wanted) else []
    started = time.monotonic()
    drawn = {int(row): one.token for row, one in zip(wanted, picked, strict=True)}
    drafts = _drafted(session, frame, given, drawn)
    took = int((time.monotonic() - started) * 1e6) if session.mtp is not None else 0
    timings = (*timings[:-1], (timings[-1][0], timings[-1][1] + took))
    return answer_of(frame, wanted, picked, timings, drafts, took)


def _drafted(
    session: StageSession, frame: Frame, given: torch.Tensor | None, drawn: Mapping[int, int]
) -> Drafts | None:
    """The run's drafts by the model's own head. Whatever goes wrong there ends drafting, not the run."""
    if session.mtp is None or given is None:
        return None
    try:
        return session.mtp.follow(frame.rows, frame.commits, given, drawn, frame.drafts)
    except Exception as error:
        log.warning("run %s: its MTP head drafts no more", session.run.hex()[:8], exc_info=error)
        session.mtp.close()
        session.mtp = None
        return None
