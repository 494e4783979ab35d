"""A drafter of some of the target's layers in the making, with its embedding and a short head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from draft.corpus import Batch
from draft.loss import ShortHead, sparse_kl
from draft.trainable import Choices
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
    """Trainable copies of layers and final norm around the target's frozen embedding. Implements
    `draft.trainable.Trainable`.

    head_tokens int64 [v]: the ids that it scores, ascending.
    """

    def __init__(self, target: PreTrainedModel, layers: Sequence[int], head_tokens: torch.Tensor) -> None:
        super().__init__()
        embedding, head = target.get_input_embeddings(), target.get_output_embeddings()
        if head.weight.data_ptr() != embedding.weight.data_ptr():
            raise ModelError(
                "drafters of kind layers are distilled for models whose head is their embedding; this one has its own: "
                "take another --kind, eagle3 for example"
            )
        self.layers = tuple(layers)
        self.model = copy.deepcopy(getattr(shortened(target, layers), target.base_model_prefix)).float()
        self.model.requires_grad_(True)
        listed, _ = layer_list(target, type(target).__name__)
        for i, layer in enumerate(self.model.get_submodule(listed).children()):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.__dict__["layer_idx"] = i
        self.prefix, self._listed = target.base_model_prefix, listed
        self.target_config, self.vocabulary = target.config, len(embedding.weight)
        self.model.set_input_embeddings(embedding)
        embedding.requires_grad_(False)
        self.head_tokens = head_tokens.to(embedding.weight.device)
        self.head = embedding.weight[self.head_tokens].clone()
        self.device = embedding.weight.device
        self._short = ShortHead.of(self.head, self.head_tokens, self.vocabulary)

    @torch.no_grad()
    def refine(self, read: Callable[[str], torch.Tensor]) -> None:
        """Take weights anew, by their names in the target: what a target in bfloat16 has of them is rounded."""
        for name, value in self.trained():
            if name.startswith(f"{self._listed}."):
                number, rest = name.removeprefix(f"{self._listed}.").split(".", 1)
                name = f"{self._listed}.{self.layers[int(number)]}.{rest}"
            value.copy_(read(f"{self.prefix}.{name}"))

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

    def loss(self, batch: Batch, draw: torch.Generator) -> torch.Tensor:
        """See `Trainable.loss`: KL of the next token."""
        ids, target = self._short.target(batch.ids, batch.logits)
        hidden = self(batch.inputs.to(self.device), batch.rows.to(self.device))
        return sparse_kl(hidden, self.head, ids, target)

    @torch.no_grad()
    def choices(self, batch: Batch) -> list[Choices]:
        """See `Trainable.choices`: of the next token."""
        hidden = self(batch.inputs.to(self.device), batch.rows.to(self.device))
        return [Choices(torch.arange(len(batch.rows)), self._short.best(hidden))]
