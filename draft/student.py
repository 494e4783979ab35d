"""The drafter in the making: some of the target's layers, its embedding and a short head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from swarm.base.errors import ModelError
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.load import model_class
from swarm.model.prune import layer_list


def whole_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The target as a plain transformers model, for generating in large batches. Raises ModelError."""
    kind = model_class(checkpoint.config, checkpoint.manifest.model)
    names = list(checkpoint.manifest.entries)
    state = {name: checkpoint.read(name, dtype) for name in names}
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = kind.from_pretrained(None, config=copy.deepcopy(checkpoint.config), state_dict=state, dtype=dtype)
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.to(device).eval().requires_grad_(False)


def shortened(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A model of the same class with only these layers, sharing all weights with `model`. Raises ModelError."""
    short = copy.copy(model)
    short.__dict__["_modules"] = dict(model._modules)
    inner = copy.copy(getattr(model, model.base_model_prefix))
    inner.__dict__["_modules"] = dict(inner._modules)
    short._modules[model.base_model_prefix] = inner
    name, kept = layer_list(model, type(model).__name__)
    inner._modules[name] = nn.ModuleList([kept[i] for i in layers])
    short.config = inner.config = short_config(model.config, layers)
    return short


def short_config(config: Any, layers: Sequence[int]) -> Any:
    """The config of the target with these layers only."""
    short = copy.deepcopy(config)
    for key, value in vars(config).items():
        if key == "layer_types" and isinstance(value, list):
            setattr(short, key, [value[i] for i in layers])
    short.num_hidden_layers = len(layers)
    return short


class Student(nn.Module):
    """Trainable copies of layers and final norm around the target's frozen embedding.

    head_tokens int64 [v]: the ids that it scores, ascending.
    """

    def __init__(self, target: PreTrainedModel, layers: Sequence[int], head_tokens: torch.Tensor) -> None:
        super().__init__()
        embedding, head = target.get_input_embeddings(), target.get_output_embeddings()
        if head.weight.data_ptr() != embedding.weight.data_ptr():
            raise ModelError("drafters are distilled for models whose head is their embedding; this one has its own")
        self.layers = tuple(layers)
        self.model = copy.deepcopy(getattr(shortened(target, layers), target.base_model_prefix)).float()
        self.model.requires_grad_(True)
        listed, _ = layer_list(target, type(target).__name__)
        for i, layer in enumerate(self.model.get_submodule(listed).children()):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.__dict__["layer_idx"] = i
        self._prefix, self._listed = target.base_model_prefix, listed
        self.model.set_input_embeddings(embedding)
        embedding.requires_grad_(False)
        self.head_tokens = head_tokens.to(embedding.weight.device)
        self.head = embedding.weight[self.head_tokens].clone()
        self.device, self.vocab_size = embedding.weight.device, len(embedding.weight)

    @torch.no_grad()
    def refine(self, read: Callable[[str], torch.Tensor]) -> None:
        """Take weights anew, by their names in the target: what a target in bfloat16 has of them is rounded."""
        for name, value in self.trained():
            if name.startswith(f"{self._listed}."):
                number, rest = name.removeprefix(f"{self._listed}.").split(".", 1)
                name = f"{self._listed}.{self.layers[int(number)]}.{rest}"
            value.copy_(read(f"{self._prefix}.{name}"))

    def forward(self, inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """inputs int64 [b, t]; rows int64 [r] into inputs.flatten(). Hidden rows after the final norm, [r, hidden]."""
        with torch.autocast(inputs.device.type, torch.bfloat16):
            hidden = self.model(input_ids=inputs, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[rows]  # type: ignore[no-any-return]

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names (as in the target, layers counted anew) and parameters that change."""
        embedding = self.model.get_input_embeddings().weight
        for name, value in self.model.named_parameters():
            if value is not embedding:
                yield name, value


class _SparseKL(torch.autograd.Function):
    """Mean over rows of KL(target || student), the target given on few ids. Saves the gradient, not the logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, ids: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """hidden [r, h], head [v, h], ids int64 [r, k] into v, target float32 [r, k] with rows summing to 1 (or 0)."""
        logits = (hidden.to(head.dtype) @ head.T).float()
        norm = logits.logsumexp(-1, keepdim=True)
        chosen = logits.gather(1, ids) - norm
        loss = (target * (target.clamp(min=1e-9).log() - chosen)).sum(1).mean()
        # Rows without a target have no loss, and so no part in the gradient.
        gradient = logits.sub_(norm).exp_().mul_(target.sum(1, keepdim=True)).scatter_add_(1, ids, -target)
        ctx.save_for_backward((gradient.to(head.dtype) @ head) / len(hidden))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None


def sparse_kl(hidden: torch.Tensor, head: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(target || student) in nats, mean over rows; see `_SparseKL.forward` for shapes. Scalar, differentiable in
    `hidden` only."""
    loss: torch.Tensor = _SparseKL.apply(hidden, head, ids, target)  # type: ignore[no-untyped-call]
    return loss
