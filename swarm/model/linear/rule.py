"""A decaying state that takes outer products in, read along paths.

With k, q, v, beta and log-decay g of row i, G the sum of g along the row's own path, S the state at a committed
position with sum G_S, and j over the rows that i sees beyond that position:

    u_i = beta_i (v_i - exp(G_i - G_S) k_i S - sum over j before i of exp(G_i - G_j) (k_i . k_j) u_j)
    o_i = exp(G_i - G_S) q_i S + sum over j up to i of exp(G_i - G_j) (q_i . k_j) u_j

u_i depends on the row's own ancestors alone, so it is kept in the row's slot beside k_i and G_i, and reading is
attention without a softmax. Rows of one pass that come before each other are one unit-triangular system. This is the
gated delta rule (Yang et al. 2024, arXiv:2412.06464); with a decay for each key dimension Kimi Delta Attention
(arXiv:2510.26692); without the correction, u_i = v_i, it is Mamba-2 (arXiv:2405.21060) and lightning attention
(arXiv:2401.04658).
"""

from __future__ import annotations

import numpy as np
import torch

from swarm.model.linear.paths import Paths, Segment
from swarm.model.linear.shapes import RuleShape
from swarm.model.linear.store import RuleStore


def run_rule(
    store: RuleStore,
    paths: Paths,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor | None,
) -> torch.Tensor:
    """Rows of one job through one operator: writes their slots, gives [n, value_heads, value_dim].

    query, key [n, key_heads, key_dim], scaled and normalised already; value [n, value_heads, value_dim]; decay
    [n, value_heads, decays], logarithms; beta [n, value_heads], or None where rows correct nothing. All float32.
    """
    out = torch.empty_like(value)
    for segment in paths.segments:
        rows = _index(segment.rows)
        out[rows] = _segment(
            store, segment, query[rows], key[rows], value[rows], decay[rows], None if beta is None else beta[rows]
        )
    return out


def _index(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> slice | torch.Tensor:
    first = int(rows[0])
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        return slice(first, first + len(rows))
    return torch.from_numpy(rows)  # on the CPU: torch takes such an index for tensors of any device


def _segment(
    store: RuleStore,
    segment: Segment,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor | None,
) -> torch.Tensor:
    shape, device = store.shape, store.device
    if segment.newest:
        store.make_room(segment.oldest, segment.newest)
    # A part of a prompt is long enough to fold what lies before it and to read none of it.
    store.approach(segment.start, segment.stop, exactly=len(segment.rows) > RuleStore.NEAR)
    query, key, value = (x.transpose(0, 1).contiguous() for x in (query, key, value))
    within = torch.from_numpy(segment.within).to(device)
    sums = _sums(store, segment, decay, within)
    wanted = value if beta is None else value - _from_state(store, key, sums, shape)
    out = _from_state(store, query, sums, shape)
    for keys, updates, old, seen in _sources(store, segment):
        if beta is not None:
            wanted = wanted - torch.matmul(_weights(key, keys, sums, old, seen, shape), updates)
        out += torch.matmul(_weights(query, keys, sums, old, seen, shape), updates)
    if beta is None:
        updates = wanted
    else:
        rate = beta.transpose(0, 1)[..., None]
        # Its diagonal is not read: the system is unit-triangular.
        system = _weights(key, key, sums, sums, within, shape) * rate
        updates = torch.linalg.solve_triangular(system, wanted * rate, upper=False, unitriangular=True)
    out += torch.matmul(_weights(query, key, sums, sums, within, shape), updates)
    store.put(segment.slots, [key, updates, sums])
    return out.transpose(0, 1)


def _sums(store: RuleStore, segment: Segment, decay: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
    """Summed decays of the rows, [value_heads, n, decays] float64."""
    n = len(segment.rows)
    own = (within.double() @ decay.double().reshape(n, -1)).reshape(decay.shape)
    parent = segment.parent
    # Before the first position that some row sees beside the state, the sum is that of the state's own position.
    last = segment.start - 1 + store.layout.scratch if segment.start > store.at else -1
    parent = np.where(parent < 0, last, parent)
    before = store.sums[:, torch.from_numpy(store.local(parent)).to(store.device)]
    state = torch.from_numpy(parent < 0).to(store.device)
    return torch.where(state[:, None], store.near_sum[:, None], before) + own.transpose(0, 1)


def _sources(store: RuleStore, segment: Segment) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Keys, updates, sums and visibility of the entries that the segment reads and does not write."""
    scratch = store.layout.scratch
    found: list[tuple[slice, torch.Tensor]] = []
    if segment.low < scratch:
        found.append((slice(segment.low, scratch), torch.from_numpy(segment.drafts)))
    if store.at < segment.stop:
        all_see = np.ones((len(segment.rows), segment.start - store.at), np.bool_)
        line = slice(scratch + store.at - store.base, scratch + segment.stop - store.base)
        found.append((line, torch.from_numpy(np.concatenate([all_see, segment.committed], axis=1))))
    return [
        (store.keys[:, line], store.updates[:, line], store.sums[:, line], seen.to(store.device))
        for line, seen in found
    ]


def _weights(
    rows: torch.Tensor,
    keys: torch.Tensor,
    sums: torch.Tensor,
    old: torch.Tensor,
    seen: torch.Tensor,
    shape: RuleShape,
) -> torch.Tensor:
    """exp(G_i - G_j) (x_i . k_j) where row i sees j, else 0: [value_heads, n, m]."""
    if shape.decays == 1:
        left = torch.exp((sums - old.transpose(1, 2)).float()).masked_fill_(~seen, 0.0)
        products = torch.matmul(rows, keys.transpose(1, 2))
        group = shape.value_heads // shape.key_heads
        n, m = left.shape[1:]
        return (left.view(-1, group, n, m) * products[:, None]).view(-1, n, m)
    parts = []
    for head in range(shape.value_heads):  # [n, m, key_dim] of one head at a time
        at = head * shape.key_heads // shape.value_heads
        left = torch.exp((sums[head, :, None] - old[head, None]).float()).masked_fill_(~seen[..., None], 0.0)
        parts.append(torch.einsum("nd,md,nmd->nm", rows[at], keys[at], left))
    return torch.stack(parts)


def _from_state(store: RuleStore, rows: torch.Tensor, sums: torch.Tensor, shape: RuleShape) -> torch.Tensor:
    """exp(G_i - G_S) x_i S: [value_heads, n, value_dim]."""
    left = torch.exp(sums - store.near_sum[:, None]).float()
    group = shape.value_heads // shape.key_heads
    if shape.decays == 1:
        state = store.near.view(-1, group, shape.key_dim, shape.value_dim)
        return torch.matmul(rows[:, None], state).flatten(0, 1) * left
    many = rows.repeat_interleave(group, 0) if group > 1 else rows
    return torch.matmul(many * left, store.near)
