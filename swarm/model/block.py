"""A layer range as one callable: rows in, rows out.

A block is a transformers model of the original class whose other layers were removed before any weight was loaded:
the class is built on the meta device, pruned to the range, and only what is left is read. Layers keep their number in
the whole model, so models whose layers depend on it (GPT-2 scaling, sparse steps, window patterns) stay right.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from swarm.base.events import Report, silent
from swarm.model.attention import JobPlan, Plan
from swarm.model.blocked import BlockedLinear, block_linears, can_block
from swarm.model.dtype import dtype_name
from swarm.model.edges import entering, open_edges
from swarm.model.exact import InOrder, stands_against, stands_against_on_device, weights_of, writes_products
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.fused import settle
from swarm.model.gpu import Clock, EventClock, Gpu, WallClock, entered, gpu_of
from swarm.model.guard import check_cut, one_layer
from swarm.model.indexed import masks_for
from swarm.model.job import Job as Job
from swarm.model.kinds import kind_of, listed_kinds, singles
from swarm.model.load import Loaded, load_layers
from swarm.model.packing import computes_in
from swarm.model.prune import cut, inner_model, inner_name, layer_list, layer_path
from swarm.model.quant.modules import PackedLinear
from swarm.model.quant.native import library
from swarm.model.quant.sliced import Places
from swarm.model.rows import Rows
from swarm.model.tiles.kernels import RowTiles, tiles_of
from swarm.model.tiles.watch import InTiles
from swarm.model.weights_as import PACKED

_FEW_SEEN = 128 * 2048
"""Rows times slots in sight up to which attention of a layer over packed weights is too little to divide."""

_HEAD = -1


@dataclass(frozen=True)
class Watched:
    """What a forward gave for each job, and what was seen on the way: `given` to the head, and rows by tap."""

    outputs: list[torch.Tensor]
    given: list[torch.Tensor]
    tapped: list[dict[int, torch.Tensor]]


class Block:
    """Layers [first, last) of a model.

    head: first is 0, so it takes token ids. tail: last is n_layers, so it gives logits. Threads compute one after
    the other. gpu: what it computes on; None on a CPU.
    """

    def __init__(self, loaded: Loaded, device: torch.device, dtype: torch.dtype, gpu: Gpu | None = None) -> None:
        shape = loaded.shape
        self.first, self.last, self.n_layers = shape.first, shape.last, shape.n_layers
        self.head, self.tail = shape.first == 0, shape.last == shape.n_layers
        self.hidden_size, self.vocab_size = shape.hidden_size, shape.vocab_size
        self.device, self.dtype = device, dtype
        self.gpu = gpu or gpu_of(device)
        self.computes_in = computes_in(loaded.model, dtype_name(dtype))
        self.kv_shapes = loaded.kv_shapes
        self.loaded, self._model, self._attending = loaded, loaded.model, loaded.attending
        self._edges = loaded.edges
        self.why_not_exact: str | None = "its rows were not looked at"
        self._order: InOrder | InTiles | None = None
        self.ties, self.by_token = shape.ties, shape.ties.by_token
        self._picks_rows = "logits_to_keep" in inspect.signature(type(loaded.model).forward).parameters

    def view(self, first: int, last: int) -> Block:
        """Layers [first, last) of this block, sharing its weights. Raises ValueError if it does not hold them, or its
        model must not be cut there."""
        if not self.first <= first < last <= self.last:
            raise ValueError(f"layers {first}:{last} of a block that holds {self.first}:{self.last}")
        if not self.ties.forbidden.isdisjoint((first, last)):
            raise ValueError(f"layers {first}:{last} of a model whose layers read each other's keys across that cut")
        if (first, last) == (self.first, self.last):
            return self
        shape = self.loaded.shape.within(first, last)
        model = _twin(self._model)
        cut(model, shape, offset=self.first)
        kv = self.kv_shapes[first - self.first : last - self.first]
        layers = layer_list(model, type(model).__name__)[1]
        ends = {"head": first == 0, "tail": last == self.n_layers}
        edges = open_edges(layers, **ends, streams=shape.ties.streams, streams_last=shape.ties.streams_last)
        edges.given = masks_for(model.config) if self._attending.indexed else {}
        loaded = Loaded(model, shape, self._attending, edges, kv, self.loaded.positions)
        part = Block(loaded, self.device, self.dtype, self.gpu)
        part.why_not_exact, part._order = self.why_not_exact, self._order
        return part

    def taps(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """Which of the taps asked for this block can give: those behind its layers, on a CPU, where rows are plain.
        The one behind the model's last layer is what its head is given: rows behind the last norm."""
        if self.gpu is not None or self.ties.streams != 1:
            return ()
        return tuple(sorted({tap for tap in wanted if self.first < tap <= self.last}))

    def parts(self) -> Sequence[tuple[int, int]]:
        """The smallest ranges that the block can be cut into."""
        return self.ties.parts(self.first, self.last)

    def kinds(self) -> Sequence[Hashable]:
        """Of each layer, what tells it from others; equal for layers that compute alike."""
        layers = layer_list(self._model, type(self._model).__name__)[1]
        return [
            (
                kind_of(layer),
                listed_kinds(self._model.config, place),
                shape,
                self._attending.spans.get(self.first + place),
            )
            for place, (layer, shape) in enumerate(zip(layers, self.kv_shapes, strict=True))
        ]

    @torch.inference_mode()
    def forward(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        """One forward over the rows of all jobs, in order.

        Returns per job: at the tail float32 logits [rows with want, vocab_size] (on the CPU where the device lacks the
        float64 that drawing needs); elsewhere hidden rows [n, hidden_size] in the block's dtype.
        Jobs of one session may share a forward when no later one commits a slot that an earlier one writes; ValueError
        otherwise.
        """
        with entered(self.gpu), self._attending.lock:
            self._attending.jobs = plans = self._plan(jobs)
            with self._divided(plans), self._in_order():
                return self._forward(jobs, plans)

    @torch.inference_mode()
    def forward_to_head(self, jobs: Sequence[Job]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """`forward` at the tail, and per job what the head was given: rows [n, hidden_size] behind the last norm, of
        all rows, wanted or not."""
        watched = self.forward_watched(jobs, (), to_head=True)
        return watched.outputs, watched.given

    @torch.inference_mode()
    def forward_watched(self, jobs: Sequence[Job], taps: Collection[int], to_head: bool) -> Watched:
        """`forward`, and what rows were on the way: behind layer b - 1 for each b of `taps`, which are of this block;
        and where it is the tail and `to_head` what the head was given. Rows are [n, hidden_size], of all rows."""
        layers = layer_list(self._model, type(self._model).__name__)[1]
        seen: dict[int, torch.Tensor] = {}
        with entered(self.gpu), self._attending.lock, contextlib.ExitStack() as hooks:
            self._attending.jobs = plans = self._plan(jobs)
            for tap in taps:
                gives = inner_model(self._model) if tap == self.n_layers else layers[tap - 1 - self.first]
                hooks.callback(gives.register_forward_hook(_keeping(seen, tap)).remove)
            if to_head:
                hooks.callback(inner_model(self._model).register_forward_hook(_keeping(seen, _HEAD)).remove)
            with self._divided(plans), self._in_order():
                outputs = self._forward(jobs, plans)
        given = [seen[_HEAD][plan.start : plan.stop] for plan in plans] if to_head else []
        tapped = [{tap: seen[tap][plan.start : plan.stop] for tap in taps} for plan in plans]
        return Watched(outputs, given, tapped)

    @property
    def gpu_out(self) -> Gpu | None:
        """The one that what `forward` returns lies on."""
        return self.gpu

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All that it computes on."""
        return () if self.gpu is None else (self.gpu,)

    def clock(self) -> Clock:
        """A clock that is started: of the device's own time where it has such."""
        return WallClock() if self.gpu is None else EventClock(self.gpu)

    def _forward(self, jobs: Sequence[Job], plans: Sequence[JobPlan]) -> list[torch.Tensor]:
        try:
            rows = [job.rows for job in jobs]
            position = np.concatenate([r.position for r in rows]).astype(np.int64)
            places = torch.from_numpy(position).to(self.device)
            self._attending.position = places
            self._attending.begin(range(self.first, self.last))
            inputs = {
                "position_ids": places[None],
                "use_cache": False,
                **self._input(jobs),
                **self._cache(),
            }
            if not self.tail:
                hidden = self._edges.rows_through(inner_model(self._model), inputs)
                return [hidden[plan.start : plan.stop] for plan in plans]
            return self._logits(rows, inputs)
        finally:
            self._attending.end()

    def _divided(self, plans: Sequence[JobPlan]) -> contextlib.AbstractContextManager[None]:
        """Who has the CPU's threads: the kernels of packed weights alone, where little else is worth dividing, and
        where rows must not depend on each other: torch's threads meet in the middle of a row, and what it does with
        the odd numbers at the end of a thread's part differs in the last bit."""
        if (exact := self._attending.lib) is not None:
            return exact.undivided()
        if self.computes_in == PACKED and sum((p.stop - p.start) * p.high for p in plans) <= _FEW_SEEN:
            lib = library()
            if lib is not None:
                return lib.undivided()
        return contextlib.nullcontext()

    def _in_order(self) -> contextlib.AbstractContextManager[object]:
        """For models that write out products themselves, as routers and experts are, or have odd widths."""
        return contextlib.nullcontext() if self._order is None else self._order

    @torch.inference_mode()
    def compute(self, plans: Sequence[Plan], inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One forward over what is on the device already; nothing is read on the host, so a CUDA graph can hold it.

        inputs: token ids int64 [T] at the head, else hidden rows [T, hidden_size]; positions int64 [T]; the plans
        cover the T rows. Returns hidden rows [T, hidden_size], at the tail float32 logits [T, vocab_size] of all rows.
        """
        with self._attending.lock, self._order if isinstance(self._order, InTiles) else contextlib.nullcontext():
            self._attending.jobs, self._attending.position = plans, positions
            self._attending.begin(range(self.first, self.last))
            try:
                # Called within a capture too: whoever calls has entered the device.
                named = "input_ids" if self.head else "inputs_embeds"
                given = {named: inputs[None], "position_ids": positions[None], "use_cache": False, **self._cache()}
                if self.tail:
                    return self._edges.through(self._model, given).logits[0].float()  # type: ignore[no-any-return]
                return self._edges.rows_through(inner_model(self._model), given)
            finally:
                self._attending.end()

    def forward_static(self, plan: Plan, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """`compute` of a whole model for the rows of one plan: logits float32 [n, vocab_size]."""
        return self.compute([plan], tokens, positions)

    @torch.inference_mode()
    def embedded(self, tokens: Sequence[int]) -> torch.Tensor:
        """The embeddings of token ids, float32 [n, hidden_size]; of rows with several streams what enters the first
        layer. Only at the head."""
        ids = torch.tensor(list(tokens), dtype=torch.long, device=self.device)
        if self.ties.streams == 1:
            table = self._model.get_input_embeddings()  # type: ignore[operator]
            return table(ids).float()  # type: ignore[no-any-return]
        first = layer_list(self._model, type(self._model).__name__)[1][0]
        ties = self.ties
        return entering(inner_model(self._model), first, ids, ties.streams, ties.streams_last).float()

    def narrow_head(self, tokens: torch.Tensor) -> None:
        """From now on score these token ids only (int64 [v]), in this order. Changes `vocab_size`; for drafters, whose
        head would cost as much as their layers."""
        before = self._model.get_output_embeddings()  # type: ignore[operator]
        if isinstance(before, PackedLinear):
            rows = before.matrix.rows(tokens).to(self.dtype)
        else:
            whole = before.weight
            rows = whole[tokens.to(whole.device)].clone()
        head = nn.Linear(rows.shape[1], len(tokens), bias=False, device="meta")
        head.weight = nn.Parameter(rows, requires_grad=False)
        blocked = isinstance(before, BlockedLinear | PackedLinear)
        again = BlockedLinear(head) if blocked and can_block(self.device, self.dtype) else head
        self._model.set_output_embeddings(again)  # type: ignore[operator]
        self.vocab_size = len(tokens)

    def _logits(self, rows: Sequence[Rows], inputs: dict[str, object]) -> list[torch.Tensor]:
        wanted = np.flatnonzero(np.concatenate([r.want for r in rows]))
        if not len(wanted):
            self._edges.through(inner_model(self._model), inputs)
            empty = torch.empty(0, self.vocab_size, dtype=torch.float32, device=self.device)
            return [empty for _ in rows]
        keep = torch.from_numpy(wanted).to(self.device)
        if self._picks_rows:
            logits = self._edges.through(self._model, {**inputs, "logits_to_keep": keep}).logits[0].float()
        else:
            logits = self._edges.through(self._model, inputs).logits[0, keep].float()
        if self.gpu is not None and not self.gpu.cuda.has_float64:
            logits = self.gpu.to_host(logits)
        return list(logits.split([int(r.want.sum()) for r in rows]))

    def _cache(self) -> dict[str, object]:
        """For classes that compute attention themselves."""
        return {} if self._attending.cache is None else {"past_key_values": self._attending.cache}

    def _input(self, jobs: Sequence[Job]) -> dict[str, torch.Tensor]:
        ids: dict[str, torch.Tensor] = {}
        if self.head or self.by_token:
            tokens = np.concatenate([job.rows.token for job in jobs]).astype(np.int64)
            ids = {"input_ids": torch.from_numpy(tokens[None]).to(self.device)}
        if self.head:
            return ids
        parts = [job.hidden for job in jobs if job.hidden is not None]
        if len(parts) != len(jobs):
            raise ValueError("a stage behind the head needs hidden rows")
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        return {**ids, "inputs_embeds": hidden.to(self.device, self.dtype)[None]}

    def _plan(self, jobs: Sequence[Job]) -> list[JobPlan]:
        plans: list[JobPlan] = []
        start = 0
        for i, job in enumerate(jobs):
            for other in jobs[:i]:
                if other.kv is job.kv and np.isin(job.commits.slot, other.rows.slot).any():
                    raise ValueError("a job commits slots that another job of the same forward still writes")
            job.kv.prepare()
            job.kv.commit(job.commits)
            in_order = self._attending.lib is not None
            plans.append(JobPlan(job.kv, job.rows, start, self.device, self.dtype, in_order))
            start += len(job.rows)
        return plans


def _keeping(seen: dict[int, torch.Tensor], name: int) -> Callable[..., None]:
    """A hook that keeps the rows [T, hidden_size] that a module gave."""

    def hook(module: nn.Module, inputs: object, output: Any) -> None:
        rows = getattr(output, "last_hidden_state", None)
        if rows is None:
            rows = output[0] if isinstance(output, tuple | list) else output
        seen[name] = rows[0]

    return hook


def load_block(
    checkpoint: Checkpoint,
    first: int,
    last: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Report = silent,
    *,
    blocked: bool = True,
    weights: str = "expanded",
    exact: bool = True,
    places: Places | None = None,
    tiles: RowTiles | None = None,
    exact_on_gpu: bool = False,
) -> Block:
    """Layers [first, last) of a model, ready to compute. Reads only their tensors; reports "load" in layers.

    weights: "expanded": every matrix as `dtype`. "auto" (on a CPU): matrices whose format a kernel multiplies stay as
    they are stored. "stored": the others too, unpacked in parts for every product.

    blocked: on a CPU, keep matrices in the order that its kernels read fastest; without it they are plain parameters.

    exact: on a CPU, with blocked, compute rows in kernels that give the same bits whatever the row's company
    (`Block.why_not_exact` says where that is not so); without it by torch's. exact_on_gpu: the same on a GPU, where
    that is only done when it is asked for: no card has shown yet what it costs. tiles: a GPU's such kernels, in the
    place of those that `device` has.

    places: devices, `device` first, and the share that each takes of every matrix of a layer (quant/sliced.py).

    Raises ModelError for a range outside the model, an architecture that does not fit (by name), and tensors that are
    missing, of another shape than the config says, or not finite (by name).
    """
    lib = library() if exact and blocked and device.type == "cpu" and tiles is None else None
    card = tiles or (_card(device, dtype, exact and exact_on_gpu, places) if device.type != "cpu" else None)
    tiles = card if isinstance(card, RowTiles) else None
    loaded = load_layers(
        checkpoint, first, last, device, dtype, report, weights=weights, lib=lib, places=places, tiles=tiles
    )
    if blocked and lib is None and tiles is None and can_block(device, dtype):
        block_linears(loaded.model)
    block = Block(loaded, device, dtype)
    watch = None if tiles is None else InTiles(tiles, loaded.attending)
    block._order = watch if lib is None else InOrder(lib, weights_of(loaded.model), loaded.attending)
    settle(layer_list(loaded.model, type(loaded.model).__name__)[1], lambda place: one_layer(block, first + place))
    equal = check_cut(block, type(loaded.model).__name__, loaded.positions)
    alone = singles(block.parts(), block.kinds(), block.head, block.tail)
    if watch is not None:
        against = stands_against_on_device(block, watch, alone)
    else:
        against = card if isinstance(card, str) else stands_against(block, lib, alone)
    block.why_not_exact = against or (None if equal else "a cut between layers changes rows")
    if isinstance(block._order, InOrder) and not block._order.changed and not writes_products(loaded.model):
        block._order = None  # it costs some microseconds for every call of torch, and there is nothing to do for it
    return block


def _card(device: torch.device, dtype: torch.dtype, exact: bool, places: Places | None) -> RowTiles | str:
    """The kernels of a GPU, or why there are none."""
    if not exact:
        return "products and attention on a GPU follow the number of rows (--exact-on-gpu: by kernels that do not)"
    return tiles_of(device, dtype) if places is None else "a block on several devices"


def _twin(model: nn.Module) -> nn.Module:
    """The same modules under a new top and a new inner model, so that these can be cut without harm."""
    twin = copy.copy(model)
    twin.__dict__["_modules"] = dict(model._modules)
    parent, steps = twin, [inner_name(model), *(child for _, child in layer_path(model, type(model).__name__)[:-1])]
    for step in steps:
        fresh = copy.copy(parent._modules[step])
        assert fresh is not None
        fresh.__dict__["_modules"] = dict(fresh._modules)
        parent._modules[step] = fresh
        parent = fresh
    return twin
