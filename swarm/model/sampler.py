"""Drawing tokens: the same logits, seed and position give the same token everywhere.

The token of position p is argmax(logits / temperature + g(seed, p)), where g is Gumbel noise made from a counter-based
generator keyed by (seed, p). That is an exact draw from softmax(logits / temperature) (Gumbel 1954; the "Gumbel-max
trick"), it does not depend on how rows were grouped into frames, and anybody who knows the seed can repeat it. The
noise is always made on the CPU from the raw words of numpy's Philox (the stream that numpy promises to keep), so that
stage, drafter and replay agree.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.errors import ModelError
from swarm.model.sampling import Sampling as Sampling
from swarm.model.shaped_logits import held_open, shifted
from swarm.model.token_counts import Answered

if TYPE_CHECKING:
    from swarm.model.held import Allowed

_FEW = 1024
"""Candidates that top-p looks at before it sorts a whole vocabulary."""
_ONE = float(1 << 40)
"""What the most probable token weighs in the whole numbers that top-p adds up: a vocabulary's sum stays below 2**63."""
_UNSURE = 1e-4
"""How far a sum of probabilities in float32 may be off, many times over."""
MAX_MARGIN = 1e9
"""Reported where filters or a constraint left one token."""
LEAST_LOGPROB = -9999.0
"""Reported for a token that a constraint or a least length does not allow."""


@dataclass(frozen=True)
class Picked:
    """A drawn token.

    margin   how far its score was above the next one's, in logits (before division by the temperature when greedy);
             near 0 means that rounding could have decided
    logprob  of the token under the model (after penalties, biases and constraint, before temperature and filters)
    top      the `Sampling.logprobs` most probable tokens and their logprobs
    """

    token: int
    margin: float
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def gumbel(seed: int, position: int, vocab: int) -> NDArray[np.float32]:
    """Noise float32 [vocab] for the token that is drawn at `position` of the sequence."""
    words = np.random.Philox(key=np.array([seed, position], np.uint64)).random_raw(vocab)
    uniform = ((words >> np.uint64(12)) + 0.5) * 2.0**-52  # strictly between 0 and 1: both logarithms are finite
    noise: NDArray[np.float32] = (-np.log(-np.log(uniform))).astype(np.float32)
    return noise


def pick(
    logits: torch.Tensor,
    positions: Sequence[int],
    sampling: Sampling,
    contexts: Sequence[Iterable[int]] | None = None,
    allowed: Sequence[Allowed] | None = None,
    answers: Sequence[Answered] | None = None,
) -> list[Picked]:
    """Draw one token per row.

    logits float32 [n, vocab]; positions[i] is the position of the token being drawn (the row's own plus one);
    contexts[i] are the token ids before it, in any order, needed when the repetition penalty is not 1; allowed[i] is
    what the sampling's constraint allows after row i, needed when there is one; answers[i] are the answer's tokens
    before it, or how often each comes, needed when they count. Nothing is mutated. A token that the order gives is not
    drawn, only found as likely as it is; raises ModelError for one that the model lacks.
    """
    logits = shaped(logits, positions, sampling, contexts, allowed, answers)
    with _undivided(logits.device):
        scores = logits if sampling.greedy else _perturbed(logits, positions, sampling)
        norm = (
            torch.cat([torch.logsumexp(row, -1) for row in torch.split(logits, 1)]) if len(logits) else logits.sum(-1)
        )
    tokens, margins = _best(scores)
    for row, position in enumerate(positions):
        if (given := sampling.dictated(int(position), answers[row] if answers is not None else None)) >= 0:
            if given >= logits.shape[-1]:
                raise ModelError(f"expected given tokens below {logits.shape[-1]}, found {given}")
            tokens[row], margins[row] = given, MAX_MARGIN
    chosen = torch.tensor(tokens, device=logits.device)
    logprobs = (logits.gather(1, chosen[:, None])[:, 0] - norm).clamp(min=LEAST_LOGPROB).tolist()
    tops = _tops(logits, norm, sampling.logprobs)
    return [Picked(*item) for item in zip(tokens, margins, logprobs, tops, strict=True)]


def shaped(
    logits: torch.Tensor,
    positions: Sequence[int],
    sampling: Sampling,
    contexts: Sequence[Iterable[int]] | None = None,
    allowed: Sequence[Allowed] | None = None,
    answers: Sequence[Answered] | None = None,
) -> torch.Tensor:
    """The logits that tokens are drawn from, and whose log-probabilities are told; arguments as for `pick`.

    In this order: the repetition penalty, penalties by count, biases, the constraint, the least length.
    """
    if sampling.repetition_penalty != 1:
        if contexts is None:
            raise ValueError("a repetition penalty needs the contexts of the rows")
        logits = penalised(logits, contexts, sampling.repetition_penalty)
    if sampling.shaping is not None:
        logits = shifted(logits, answers, sampling.shaping)
    if sampling.constraint is not None:
        if allowed is None:
            raise ValueError("a constraint needs what it allows after each row")
        logits = masked(logits, allowed)
    return logits if sampling.shaping is None else held_open(logits, positions, sampling.shaping)


@contextlib.contextmanager
def _undivided(device: torch.device) -> Iterator[None]:
    """Sums of a row by one thread of torch: divided among several they have other bits."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _best(scores: torch.Tensor) -> tuple[list[int], list[float]]:
    """The largest score of each row, the smaller id among equals, and how far it is ahead of the next one.

    On a CPU by numpy: a search of a few dozen rows takes it a twentieth of the time, and a tail does one in every pass.
    """
    if scores.device.type != "cpu":
        return best_by_torch(scores)
    table = scores.numpy()
    tokens = table.argmax(-1).tolist()
    margins = [_lead(row, token) for row, token in zip(table, tokens, strict=True)]
    return tokens, margins


def best_by_torch(scores: torch.Tensor) -> tuple[list[int], list[float]]:
    """The same of scores [n, vocab] on any device, without a copy of them to the host."""
    two = scores.topk(min(2, scores.shape[-1]), dim=-1).values
    return scores.argmax(-1).tolist(), (two[:, 0] - two[:, -1]).clamp(max=MAX_MARGIN).tolist()


def _lead(row: NDArray[np.float32], token: int) -> float:
    """How far `token` is ahead of the best of the others, at most MAX_MARGIN."""
    others = [float(part.max()) for part in (row[:token], row[token + 1 :]) if len(part)]
    return min(MAX_MARGIN, float(row[token] - np.float32(max(others)))) if others else 0.0


def _perturbed(logits: torch.Tensor, positions: Sequence[int], sampling: Sampling) -> torch.Tensor:
    if not len(logits):
        return logits
    # Row by row: a sum over a vocabulary has other bits beside other rows.
    warm = divided(logits, sampling.temperature)
    scaled = torch.cat([filtered(row, sampling) for row in torch.split(warm, 1)])
    made = {p: gumbel(sampling.seed, p, logits.shape[-1]) for p in set(map(int, positions))}  # trees share positions
    noise = np.stack([made[int(p)] for p in positions])
    return scaled + torch.from_numpy(noise).to(logits.device)


def filtered(scaled: torch.Tensor, sampling: Sampling, static: bool | None = None) -> torch.Tensor:
    """Logits [n, vocab], already divided by the temperature, with -inf for what top-k, then top-p, then min-p drop.

    Of equal logits the smaller ids are kept first. The most probable token always stays. Probabilities are added as
    whole numbers, so the sum does not depend on the order in which a device adds: every device keeps the same tokens of
    the same logits.

    static: nothing is read on the host, so a CUDA graph can hold it; sorts the whole vocabulary, which only pays on a
    GPU (None: there).
    """
    if 0 < sampling.top_k < scaled.shape[-1] or sampling.top_p < 1:
        if scaled.device.type != "cpu" if static is None else static:
            scaled = _sorted_out(scaled, sampling)
        else:
            scaled = _keep_largest(scaled, *_cut(scaled, sampling))
    if sampling.min_p > 0:
        best = scaled.max(-1, keepdim=True).values
        scaled = scaled.masked_fill(scaled < best + math.log(sampling.min_p), -math.inf)
    return scaled


def _weights(values: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Probabilities up to a factor, as int64: those of `best` [n, 1] are 2**40. Exponentials of float64 differ between
    libraries in their last bit, thirteen bits below what is kept."""
    return ((values - best).double().exp() * _ONE).round().long()


def _sorted_out(scaled: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Top-k, then top-p by one stable sort, without a branch that depends on the logits."""
    values, order = scaled.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(values, dtype=torch.bool)
    if 0 < sampling.top_k < scaled.shape[-1]:
        keep[:, sampling.top_k :] = False
    if sampling.top_p < 1:
        weights = _weights(values, values[:, :1]) * keep
        before = weights.cumsum(-1) - weights
        keep &= before.double() < weights.sum(-1, keepdim=True).double() * sampling.top_p
        keep[:, 0] = True
    return scaled.masked_fill(~torch.zeros_like(keep).scatter(-1, order, keep), -math.inf)


def _cut(scaled: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """(how many tokens top-k and top-p keep, the smallest logit among them), each [n, 1].

    Sorting a whole vocabulary costs more than a small model's forward, so the largest few are looked at first; they
    hold the wanted probability unless the distribution is nearly flat.
    """
    vocab = scaled.shape[-1]
    limited = 0 < sampling.top_k < vocab
    few = scaled.topk(sampling.top_k if limited else min(_FEW, vocab), dim=-1).values
    if sampling.top_p == 1:
        return torch.full_like(few[:, :1], few.shape[-1], dtype=torch.long), few[:, -1:]
    best = few[:, :1]
    weights = _weights(few, best)
    if limited:
        count = _reach(weights, weights.sum(-1, keepdim=True).double() * sampling.top_p)
        return count, few.gather(1, count - 1)
    # Weighing a whole vocabulary takes longer than this estimate, which nearly always settles the count.
    wanted = (scaled.logsumexp(-1, keepdim=True) - best).double().exp() * _ONE * sampling.top_p
    count, most = _reach(weights, wanted * (1 - _UNSURE)), _reach(weights, wanted * (1 + _UNSURE))
    cut = few.gather(1, count - 1)
    for row in ((count != most) | (most == few.shape[-1])).nonzero()[:, 0].tolist():
        one = slice(row, row + 1)
        total = _weights(scaled[one], best[one]).sum(-1, keepdim=True).double()
        values = few[one]
        count[one] = _reach(weights[one], total * sampling.top_p)
        if int(count[row, 0]) == few.shape[-1] < vocab:
            values = scaled[one].sort(dim=-1, descending=True).values
            count[one] = _reach(_weights(values, best[one]), total * sampling.top_p)
        cut[one] = values.gather(1, count[one] - 1)
    return count, cut


def _reach(weights: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How many of the falling `weights` it takes to reach what is `wanted` [n, 1] of them, at least 1: [n, 1]."""
    before = weights.cumsum(-1) - weights
    return (before.double() < wanted).sum(-1, keepdim=True).clamp(min=1)


def _keep_largest(scaled: torch.Tensor, count: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
    """-inf below `cut`; of the logits equal to it only as many, smaller ids first, as make up `count`."""
    drop = scaled < cut
    if bool(((~drop).sum(-1, keepdim=True) > count).any()):
        equal = scaled == cut
        above = (scaled > cut).sum(-1, keepdim=True)
        drop |= equal & (equal.cumsum(-1) > count - above)
    return scaled.masked_fill(drop, -math.inf)


def divided(values: torch.Tensor, by: float) -> torch.Tensor:
    """values / by, rounded once. For a Python number CUDA multiplies by its inverse, which rounds twice and gives other
    bits than a CPU (aten/src/ATen/native/cuda/BinaryDivTrueKernel.cu)."""
    return values / torch.full((), by, dtype=values.dtype, device=values.device)


def penalised(logits: torch.Tensor, contexts: Sequence[Iterable[int]], penalty: float) -> torch.Tensor:
    """Logits [n, vocab] with those of each row's context made less likely (Keskar et al., CTRL, 2019); a copy."""
    changed = logits.to("cpu", copy=True)  # by numpy: torch takes ten times as long for a few entries of a row
    for row, context in zip(changed.numpy(), contexts, strict=True):
        # An array may have a token twice: both times it gets the same value.
        seen = context if isinstance(context, np.ndarray) else np.unique(np.fromiter(context, np.int64))
        values = row[seen]
        row[seen] = np.where(values > 0, values / np.float32(penalty), values * np.float32(penalty))
    return changed.to(logits.device)


def masked(logits: torch.Tensor, allowed: Sequence[Allowed]) -> torch.Tensor:
    """Logits [n, vocab] with -inf for every token that may not follow its row; a copy."""
    masks = np.stack([entry.mask(logits.shape[-1]) for entry in allowed]) if allowed else np.zeros(logits.shape, bool)
    return logits.masked_fill(torch.from_numpy(~masks).to(logits.device), -math.inf)


def _tops(logits: torch.Tensor, norm: torch.Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    if not count:
        return [()] * len(logits)
    values, ids = logits.topk(min(count, logits.shape[-1]), dim=-1)
    values = (values - norm[:, None]).clamp(min=LEAST_LOGPROB)
    return [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
