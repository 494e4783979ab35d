"""Whether a signed order says what a stage is asked to compute, and whether it was taken before.

A stage signs that it accepts an order, and is held to it afterwards. So it takes part only where the order says what
the ring runs, in every field, and in each epoch of an order once: rows of a second session could be opened for the
first one's receipt, where they fit no signed root.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from receipts import PlannedStage, Sampler
from receipts.check.checks import MIXED, MIXED_STORED
from receipts.format.opening import Bias, HeldTo, LimitedThought, Shaped
from receipts.record.epoch import Opening
from swarm.base.errors import BusyError, PeerError
from swarm.base.files import write_whole
from swarm.model.sampler import Sampling
from swarm.ring.opening import OpenRun

CONTEXT_STEP = 64
"""A session's context is what the order needs, rounded up to a multiple of this, or the model's own."""
MOST_ORDERS = 50_000
EPOCH_BYTES = 8


def exact(sampling: Sampling) -> Sampling:
    """Sampling in parts per million, as receipts carry it, so that a replay draws alike."""
    ratios = ("temperature", "top_p", "min_p", "repetition_penalty")
    shaping = sampling.shaping
    if shaping is not None:
        bias = tuple((token, round(added, 6)) for token, added in shaping.bias)
        shaping = replace(
            shaping, presence=round(shaping.presence, 6), frequency=round(shaping.frequency, 6), bias=bias
        )
    return replace(sampling, shaping=shaping, **{name: round(getattr(sampling, name), 6) for name in ratios})


def sampler_of(sampling: Sampling) -> Sampler:
    """The order's word for a sampling."""
    return Sampler(
        temperature_ppm=round(sampling.temperature * 1e6),
        top_p_ppm=round(sampling.top_p * 1e6),
        top_k=sampling.top_k,
        min_p_ppm=round(sampling.min_p * 1e6),
        repetition_penalty_ppm=round(sampling.repetition_penalty * 1e6),
        seed=f"{sampling.seed & (2**64 - 1):016x}",
    )


def held_to_of(sampling: Sampling) -> HeldTo | None:
    """The order's word for a constraint."""
    said = sampling.constraint
    return None if said is None else HeldTo(said.kind, said.text, said.engine, said.vocabulary)


def shaped_of(sampling: Sampling) -> Shaped | None:
    """The order's word for a shaping."""
    said = sampling.shaping
    if said is None:
        return None
    limit = said.thought
    return Shaped(
        round(said.presence * 1e6),
        round(said.frequency * 1e6),
        tuple(Bias(token, round(added * 1e6)) for token, added in said.bias),
        said.least,
        said.ends,
        said.given,
        None if limit is None else LimitedThought(limit.most, limit.closes, limit.opens, limit.opened),
    )


def check_order(signed: Opening, opening: OpenRun, dtype: str, model_context: int) -> None:
    """The signed order, and plan of this epoch, are what the opening asks for. Raises PeerError naming what differs.

    dtype          what this stage computes in; an order may say "mixed" or "mixed q8" instead
    model_context  positions that the model has; 0: unknown
    """
    order, asked = signed.order, opening
    plan = tuple(PlannedStage(stage.node.hex(), stage.first, stage.last) for stage in asked.stages)
    _same("requester", signed.requester, asked.requester.hex())
    _same("epoch", signed.epoch, asked.epoch)
    _same("plan", signed.plan, plan)
    _same("layers kept by the requester", order.own_layers, asked.stages[0].first)
    _same("layers of the model", order.model.layers - order.own_layers, asked.stages[-1].last)
    _same("wire format", order.wire, asked.wire)
    if order.dtype not in (MIXED, MIXED_STORED):
        _same("dtype", order.dtype, dtype)
    _same("sampler", order.sampler, sampler_of(asked.sampling))
    _same("constraint", order.held_to, held_to_of(asked.sampling))
    _same("shaping", order.shaped, shaped_of(asked.sampling))
    for part in (asked.sampling.constraint, asked.sampling.shaping):
        if part is not None:
            _same("prompt's length", order.prompt_tokens, part.after)
    if exact(asked.sampling) != asked.sampling:
        raise PeerError("expected ratios of the sampler in parts per million, as the order has them, found finer ones")
    want = -(-(order.prompt_tokens + order.max_tokens) // CONTEXT_STEP) * CONTEXT_STEP
    _same("context", min(want, model_context) if model_context else want, asked.layout.context)


def _same(what: str, signed: object, asked: object) -> None:
    if signed != asked:
        raise PeerError(f"the signed order differs from the ring in its {what}: {signed!s:.80} and {asked!s:.80}")


class OrderBook:
    """Which epoch of which order this node took last, in which session; the newest `most`, kept in a file.

    `path` None: in memory alone. Lines of the file: order, epoch, run; what a crash tore off its end is left out.
    """

    def __init__(self, path: Path | None = None, most: int = MOST_ORDERS) -> None:
        self._path, self._most = path, most
        self._taken: dict[bytes, bytes] = {}
        """Of each order's digest the epoch and the run, in one string of bytes: there are up to `most`, so each byte
        that a run leaves here counts."""
        self._lines = 0
        for order, epoch, run in self._read():
            self._note(order, epoch, run)
            self._lines += 1
        if path is not None and self._lines:
            self._rewrite(path)  # so that nothing torn stands before the next line

    def take(self, order: str, epoch: int, run: bytes) -> None:
        """Take part in an epoch. Raises PeerError when that was done before, BusyError when it cannot be noted."""
        key = bytes.fromhex(order)
        known = self._taken.get(key)
        if known is not None and (known[EPOCH_BYTES:] != run or int.from_bytes(known[:EPOCH_BYTES]) >= epoch):
            raise PeerError(f"expected an order that this node has not taken, found {order[:16]} epoch {epoch} again")
        if self._path is not None:
            try:
                if self._lines >= 2 * self._most:
                    self._rewrite(self._path)
                with self._path.open("ab") as file:
                    file.write(_line(key, epoch, run))
            except OSError as error:
                raise BusyError(f"busy: cannot note orders in {self._path}: {error.strerror}") from error
            self._lines += 1
        self._note(key, epoch, run)

    def _note(self, order: bytes, epoch: int, run: bytes) -> None:
        self._taken.pop(order, None)
        self._taken[order] = epoch.to_bytes(EPOCH_BYTES) + run
        if len(self._taken) > self._most:
            del self._taken[next(iter(self._taken))]

    def _rewrite(self, path: Path) -> None:
        write_whole(
            path,
            b"".join(
                _line(order, int.from_bytes(known[:EPOCH_BYTES]), known[EPOCH_BYTES:])
                for order, known in self._taken.items()
            ),
        )
        self._lines = len(self._taken)

    def _read(self) -> Iterator[tuple[bytes, int, bytes]]:
        if self._path is None or not self._path.is_file():
            return
        with self._path.open("rb") as file:
            for line in file:
                try:
                    order, epoch, run = line.decode("ascii").split()
                    found = bytes.fromhex(order), int(epoch), bytes.fromhex(run)
                except ValueError:
                    continue
                if len(found[0]) == 32 and len(found[2]) == 16 and 0 <= found[1] < 1 << 8 * EPOCH_BYTES:
                    yield found


def _line(order: bytes, epoch: int, run: bytes) -> bytes:
    return f"{order.hex()} {epoch} {run.hex()}\n".encode()
