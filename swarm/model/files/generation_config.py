"""How a model's makers want it sampled: generation_config.json beside its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from swarm.base.errors import ModelError
from swarm.model.files.store import ModelStore

_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (-1.0, 2.0**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 10.0),
}
_ABOVE = frozenset({"top_p", "repetition_penalty"})


def generation_defaults(store: ModelStore, ref: str) -> Mapping[str, float]:
    """Sampling options that the model's generation_config.json names, by their names in `Sampling`; none without it.

    As vLLM does, `do_sample` is not looked at: who serves an API samples. Raises ModelError for values that no sampler
    can have.
    """
    source = store.tokenizer_source(ref, offline=True)
    path = source / "generation_config.json"
    if not source.is_dir() or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is damaged; pull the model again")
    named = {name: found[name] for name in _RANGES if found.get(name) is not None}
    for name, value in named.items():
        low, high = _RANGES[name]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high or (name in _ABOVE and value == low):
            raise ModelError(f"expected {name} from {low:g} to {high:g} in {path}, found {str(value)[:40]}; correct it")
    return {name: max(0, int(value)) if name == "top_k" else float(value) for name, value in named.items()}
