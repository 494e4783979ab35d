"""The multi-token prediction (MTP) head of a checkpoint: which tensors are its, and the head as a layer of its own.

A model trained with one (DeepSeek V3, GLM-4.5 and later, Qwen3-Next) ships a layer that guesses one token further than
the model says: from the row that the model's head was given at position p and the token that followed, the token after
that one. transformers leaves it out of the model. Files lay it out in two ways:

- `model.layers.N.` behind the N layers that the config names, with `eh_proj`, `enorm`, `hnorm`, `shared_head.norm`, and
  often copies of embedding and head (DeepSeek-V3 report, section 2.2; the config says how many);
- `mtp.`: `fc`, `pre_fc_norm_embedding`, `pre_fc_norm_hidden`, `layers.0.` and `norm` (Qwen3-Next).

None of these is a layer of the model: a stage neither holds nor computes them for what the model says.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm.model.files.manifest import TensorEntry

_APART = re.compile(r"^(?:model\.)?(?:mtp|mtp_layers|mtp_block)\.")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "num_mtp_modules")
_MOST = 16

_INPUTS = {
    "eh_proj": "joins",
    "fc": "joins",
    "enorm": "of_token",
    "pre_fc_norm_embedding": "of_token",
    "hnorm": "of_row",
    "pre_fc_norm_hidden": "of_row",
}
"""Modules before the layer, by the names that files have for them."""
_COPIES = ("shared_head.head.", "embed_tokens.")


def is_mtp(name: str, n_layers: int, config: Mapping[str, Any]) -> bool:
    """Does a tensor belong to the checkpoint's heads rather than to the model?

    A layer behind the last one is a head's only where the config says that there is one: else weights and config are
    of different models.
    """
    if _APART.match(name):
        return True
    found = _LAYER.search(name)
    return found is not None and n_layers <= int(found.group(1)) < n_layers + heads(config)


def heads(config: Mapping[str, Any]) -> int:
    """How many heads a config names, 0 where it names none."""
    counts = [value for key in _COUNTS if type(value := config.get(key)) is int]
    return min(_MOST, max((count for count in counts if count > 0), default=0))


@dataclass(frozen=True)
class MTPTensors:
    """The first head of a checkpoint.

    inputs  "joins", "of_token" and "of_row": names of the weights that make a row of a token and a row
    layer   stored name -> the name it would have if the model had one layer more; the last norm among them
    sparse  its layer has experts
    held    stored names of all that is read of it
    """

    inputs: Mapping[str, str]
    layer: Mapping[str, str]
    sparse: bool
    held: frozenset[str]


def first_head(entries: Sequence[TensorEntry], n_layers: int, config: Mapping[str, Any]) -> MTPTensors | None:
    """The first head among a model's tensors; None without one, or with one laid out in another way."""
    inputs: dict[str, str] = {}
    layer: dict[str, str] = {}
    held: set[str] = set()
    for name in (entry.name for entry in entries if is_mtp(entry.name, n_layers, config)):
        within = _within(name, n_layers)
        if within is None or within.startswith(_COPIES):
            continue
        module = within.partition(".")[0]
        if module in _INPUTS:  # in whatever it is stored, it is a weight
            inputs[_INPUTS[module]] = f"{name.removesuffix(within)}{module}.weight"
            held.add(name)
        elif within in ("shared_head.norm.weight", "norm.weight"):
            layer[name] = "model.norm.weight"
        else:
            layer[name] = f"model.layers.{n_layers}.{within}"
    if len(inputs) != 3 or "model.norm.weight" not in layer.values() or len(layer) < 2:
        return None
    sparse = any(".experts." in name or ".mlp.gate." in name for name in layer)
    return MTPTensors(inputs, layer, sparse, frozenset(held | layer.keys()))


def _within(name: str, n_layers: int) -> str | None:
    """What a tensor is called inside the first head; None for one of a later head."""
    apart = re.match(r"^(?:model\.)?mtp\.(.*)$", name)
    if apart is not None:
        inner = apart.group(1)
        found = re.match(r"^layers\.(\d+)\.(.*)$", inner)
        return inner if found is None else found.group(2) if found.group(1) == "0" else None
    found = re.match(rf"^(?:model\.)?layers\.{n_layers}\.(.*)$", name)
    return None if found is None else found.group(1)


def longer_config(values: Mapping[str, Any], made: Any, sparse: bool) -> dict[str, Any]:
    """The config of a model with the head's layer behind its own ones.

    values: config.json of the model; made: the same as its class reads it, which works out lists that a file leaves
    out. Raises KeyError where such a list does not say what the head's layer would be.
    """
    longer = copy.deepcopy(dict(values))
    n = int(made.num_hidden_layers)
    longer["num_hidden_layers"] = n + 1
    for key in ("layer_types", "mlp_layer_types", "indexer_types"):
        listed = getattr(made, key, None)
        if not isinstance(listed, list | tuple) or len(listed) < n:
            continue
        stated = values.get(f"mtp_{key}") or getattr(made, f"mtp_{key}", None)
        own = stated[0] if stated else _usual(key, listed, sparse)
        longer[key] = [*list(listed)[:n], own]
    if isinstance(longer.get("first_k_dense_replace"), int) and not sparse:
        longer["first_k_dense_replace"] = n + 1
    return longer


def _usual(key: str, listed: Sequence[str], sparse: bool) -> str:
    """What the layer of a head is where nothing says so: attention to everything, experts where it has some."""
    if key == "layer_types":
        return next(kind for kind in ("full_attention", listed[-1]) if kind in listed)
    if key == "mlp_layer_types":
        return "sparse" if sparse else "dense"
    return "full"
