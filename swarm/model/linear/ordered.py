"""Recurrent operators in the kernels of fixed order: a row's bits follow from its own path.

`rule` and `scan` solve the rows of a pass together, so sums follow the number of rows and the place where a state was
folded. Here every row goes one step from the state of the row before it on its path, whoever computed that one and
when (native/states.h): the state of another row of the pass, or of the text's end, or one made again from what rows
left in their slots, which takes the same steps. The slots keep each row's own decay instead of sums of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.errors import ModelError
from swarm.model.linear.paths import Paths, Segment
from swarm.model.linear.scan import ScanStore
from swarm.model.linear.store import ROWS, RuleStore
from swarm.model.quant.native import Library

_ON, _NEAR, _NO = -2, -1, -1
"""A row goes on with the state of the row before it, or with the one near the text's end; none."""


@dataclass(frozen=True)
class Steps:
    """The kernels' struct StateRows of a segment, and the arrays that it points to. stop: committed positions that the
    state near the text's end has taken in then."""

    words: bytes
    arrays: tuple[NDArray[np.int64], ...]
    stop: int


def run_rule_in_order(
    lib: Library,
    store: RuleStore,
    paths: Paths,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor | None,
) -> torch.Tensor:
    """As `rule.run_rule`."""
    store.lib = lib
    inputs = [x.contiguous() for x in (query, key, value, decay)]
    rates = None if beta is None else beta.contiguous()
    out = torch.empty_like(inputs[2])
    given = [x.data_ptr() for x in (*inputs, *(() if rates is None else (rates,)))]
    for number, segment in enumerate(paths.segments):
        steps = _steps(store, paths, number, segment)
        lib.rule(store.words(store.near, given, out.data_ptr()), steps.words)
        store.at = steps.stop
    return out


def run_scan_in_order(
    lib: Library,
    store: ScanStore,
    paths: Paths,
    steps: torch.Tensor,
    updates: torch.Tensor,
    decay: torch.Tensor,
    given: torch.Tensor,
    wanted: torch.Tensor,
) -> torch.Tensor:
    """As `scan.run_scan`."""
    store.lib, store.decay = lib, decay.contiguous()
    inputs = [x.contiguous() for x in (steps, updates, store.decay, given, wanted)]
    out = torch.empty_like(inputs[1])
    places = [x.data_ptr() for x in inputs]
    for number, segment in enumerate(paths.segments):
        planned = _steps(store, paths, number, segment)
        lib.scan(store.words(store.near, places, out.data_ptr()), planned.words)
        store.at = planned.stop
    return out


def _steps(store: RuleStore | ScanStore, paths: Paths, number: int, segment: Segment) -> Steps:
    """What the kernels do for a segment; worked out once for all layers, whose stores hold the same positions."""
    if segment.newest:
        store.make_room(segment.oldest, segment.newest)
    if segment.stop - store.base > store.capacity or segment.start < store.base:
        raise ModelError(
            f"a row wants a recurrent layer's state behind position {segment.start}, it is kept from {store.base} on: "
            "begin the session anew"
        )
    if segment.start < store.at:
        store.rewind()
    key = (number, store.base, store.at)
    found = paths.steps.get(key)
    if not isinstance(found, Steps):
        found = paths.steps[key] = _plan(store, paths, segment)
    return found


def _plan(store: RuleStore | ScanStore, paths: Paths, segment: Segment) -> Steps:
    scratch, count = store.layout.scratch, len(segment.rows)
    came, save, saved, settle = np.full(count, _NEAR), np.full(count, _NO), 0, _NO
    replayed = [np.arange(store.at, segment.start) + scratch]
    places, final = paths.place[segment.rows], paths.final[segment.rows]
    for row in range(count):
        inside = np.flatnonzero(segment.within[row, :row])
        if len(inside):
            replayed.append(np.empty(0, np.int64))
            parent = int(inside[-1])
            _check_last(segment, paths, row, int(places[inside[0]]))
            if parent == row - 1:
                came[row] = _ON
            else:
                if save[parent] == _NO:
                    save[parent], saved = saved, saved + 1
                came[row] = save[parent]
        else:
            committed = segment.start + np.flatnonzero(segment.committed[row]) + scratch
            drafts = segment.low + np.flatnonzero(segment.drafts[row])
            drafts = drafts[np.argsort(paths.position[drafts], kind="stable")]
            replayed.append(np.concatenate([committed, drafts]).astype(np.int64))
        follows = not len(replayed[-1]) if row == 0 else len(inside) == row
        if settle == row - 1 and final[row] and places[row] == segment.start + row and follows:
            settle = row
    arrays = (
        segment.rows.astype(np.int64),
        store.local(segment.slots),
        came.astype(np.int64),
        save.astype(np.int64),
        np.cumsum([0, *map(len, replayed)]).astype(np.int64),
        store.local(np.concatenate(replayed)),
    )
    words = ROWS.pack(count, saved, settle, *(array.ctypes.data for array in arrays))
    return Steps(words, arrays, segment.start + settle + 1)


def _check_last(segment: Segment, paths: Paths, row: int, first: int) -> None:
    """Rows of a pass come behind everything else on a path. Raises ModelError."""
    drafts = segment.low + np.flatnonzero(segment.drafts[row])
    if len(drafts) and int(paths.position[drafts].max()) >= first:
        raise ModelError(
            "a recurrent layer was given a row before one that was computed already: begin the session anew"
        )
