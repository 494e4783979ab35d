"""Which layers of a target a drafter starts from: those that are missed most when they are left out."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from draft.corpus import Batch, Sample, batches
from draft.student import shortened
from swarm.base.errors import UsageError
from swarm.base.events import Progress, Report, silent


def pick_layers(
    model: PreTrainedModel, samples: Sequence[Sample], count: int, report: Report = silent, tokens: int = 600
) -> tuple[int, ...]:
    """`count` layers of `model`, ascending, found by leaving out one after another.

    In each round the layer goes without which what is left stays closest to the whole (least KL on about `tokens`
    positions of `samples`). The first and the last layer always stay. Raises UsageError for an impossible count.
    """
    total = int(model.config.num_hidden_layers)
    if not 1 <= count <= total:
        raise UsageError(f"--layers must be 1 to {total} for this target, found {count}")
    kept = list(range(total))
    batch = next(batches(samples, tokens, random.Random(0)))
    while len(kept) > count:
        report(Progress("distil", "choosing layers", total - len(kept), total - count, "layers"))
        inner = kept[1:-1] or kept[1:]
        best = min(inner, key=lambda gone: missed(model, [i for i in kept if i != gone], batch))
        kept.remove(best)
    return tuple(kept)


@torch.inference_mode()
def missed(model: PreTrainedModel, layers: Sequence[int], batch: Batch) -> float:
    """Mean KL in nats of the shortened model against what the whole one said in `batch`."""
    short = shortened(model, layers)
    device = model.device
    hidden = getattr(short, short.base_model_prefix)(input_ids=batch.inputs.to(device), use_cache=False)
    rows = hidden.last_hidden_state.flatten(0, 1)[batch.rows.to(device)]
    said = torch.log_softmax(short.get_output_embeddings()(rows).float(), -1)
    target = torch.softmax(batch.logits.to(device), -1)
    chosen = said.gather(1, batch.ids.to(device))
    return float((target * (target.clamp(min=1e-9).log() - chosen)).sum(1).mean())


def pick_head(samples: Sequence[Sample], vocab: int, count: int) -> torch.Tensor:
    """The `count` token ids that the target gives most weight to, int64, ascending; all when `count` is 0.

    Low ids fill up what the samples leave open: tokenizers give them to the commonest pieces.
    """
    if count <= 0 or count >= vocab:
        return torch.arange(vocab)
    weight = torch.zeros(vocab, dtype=torch.float64)
    for sample in samples:
        share = torch.softmax(sample.logits.float(), -1)[:, :8].double()
        weight.index_add_(0, sample.ids[:, :8].long().flatten(), share.flatten())
        weight.index_add_(0, sample.tokens.long(), torch.full((len(sample.tokens),), 0.2, dtype=torch.float64))
    order = torch.sort(weight, descending=True, stable=True).indices
    return order[:count].sort().values
