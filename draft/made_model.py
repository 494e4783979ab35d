"""A made drafter's weights in memory as its file has them: int8 matrices go to the kernel that multiplies them.

The usual way, through floats and transformers' loader, takes seconds of a processor before a requester's first token,
most of it for rounding anew what was rounded when the drafter was made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from draft.packed import COLUMNS, Int8Linear
from swarm.base.errors import ModelError, UsageError
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.load import blank_model

KNOWN = "llama"
"""Model types whose modules have no buffers but their rotary frequencies: `swarm draft distill` makes these of most."""


def stored_model(
    checkpoint: Checkpoint, stored: dict[str, torch.Tensor], scale: str, dtype: torch.dtype
) -> nn.Module | None:
    """The model of a checkpoint, whose `stored` tensors lie by name, beside int8 ones their scales NAME + `scale`;
    None for a type that is loaded as others are. Raises UsageError for tensors that do not fit the config."""
    if checkpoint.config.model_type != KNOWN:
        return None
    model: Any = blank_model(checkpoint)
    # Made outside of the meta device: its frequencies are computed, not stored.
    model.model.rotary_emb = type(model.model.rotary_emb)(checkpoint.config)
    try:
        for path, module in list(model.named_modules()):
            weight = stored.get(f"{path}.weight")
            if not isinstance(module, nn.Linear) or weight is None or weight.dtype != torch.int8:
                continue
            if tuple(weight.shape) != (module.out_features, module.in_features) or module.in_features % COLUMNS:
                return None
            rows = stored.pop(f"{path}.weight{scale}")
            if rows.shape != weight.shape[:1] or not bool((rows.isfinite() & (rows > 0)).all()):
                raise UsageError(f"expected a finite scale for each row of {path} in a drafter; distil it again")
            bias = stored.pop(f"{path}.bias", None)
            parent, _, name = path.rpartition(".")
            packed = Int8Linear(stored.pop(f"{path}.weight"), rows, None if bias is None else bias.to(dtype))
            model.get_submodule(parent)._modules[name] = packed
        rest = {name: tensor.to(dtype) for name, tensor in stored.items()}
        bad = [name for name, tensor in rest.items() if not bool(tensor.isfinite().all())]
        if bad:
            raise ModelError(f"expected finite numbers in {bad[0]} of a drafter, found others; distil it again")
        model.load_state_dict(rest, assign=True, strict=False)
    except (RuntimeError, KeyError) as error:
        raise UsageError(f"the drafter's tensors do not fit its config: {error}; distil it again") from error
    model.tie_weights()
    if lacking := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise UsageError(f"the drafter lacks {lacking[0]} ({len(lacking)} such); distil it again")
    return model  # type: ignore[no-any-return]
