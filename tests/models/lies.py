"""Checkpoints that lie: a config that says something else than the weights, weights that are not all there.

A lie is one change to a folder that is whole. What must come of it: a refusal in one line (`SwarmError`), or what
transformers itself makes of the changed folder. Anything else (another answer, another exception) is a fault.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from swarm.base.errors import SwarmError
from swarm.discovery.model_shape import model_shape
from swarm.model.block import load_block
from swarm.model.earliest import TakeEarliest
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.rows import no_commits
from tests.models.configs import LAYERS, tiny_config
from tests.models.sweep import LAYOUT, _quiet, _random_model
from tests.swarm.model.tiny import CPU, Chain, certain

TOKENS = [5, 41, 17, 8, 30, 77, 12, 9, 61]
CUTS = (0, 2, 4, LAYERS)

_LEFT_ALONE = frozenset(
    {"model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id"}
)
"""Keys that say which class it is, or nothing at all."""


@dataclass(frozen=True)
class Lie:
    """One change. key: of the config, as a path; else `tensors`: what became of the weights."""

    words: str
    config: Mapping[str, Any] | None = None
    tensors: str = ""


def honest(case: str, folder: Path) -> None:
    """The tiny checkpoint of a case of the sweep."""
    _random_model(tiny_config(case)).save_pretrained(folder)


def config_lies(config: Mapping[str, Any]) -> Iterator[Lie]:
    """Every number and list of a config (those of configs inside too), changed in each of the ways that a number or a
    list can lie."""
    for path, value in _leaves(config, ()):
        for other in _others(value):
            yield Lie(f"{'.'.join(path)}: {_short(value)} -> {_short(other)}", set_value(config, path, other))


def tensor_lies() -> Iterator[Lie]:
    """Ways in which weights may be torn."""
    for what in ("without", "layer-lost", "layer-more", "layer-past", "wider", "flat", "infinite", "other-name"):
        yield Lie(what, None, what)


def tell(folder: Path, whole: Path, lie: Lie, source: random.Random) -> None:
    """Make `folder` the checkpoint `whole` with one lie."""
    shutil.copytree(whole, folder)
    if lie.config is not None:
        (folder / "config.json").write_text(json.dumps(lie.config))
        return
    path = folder / "model.safetensors"
    stored = load_file(path)
    inside = sorted(name for name in stored if ".2." in name) or sorted(stored)
    name = source.choice(inside)
    last = f".{LAYERS - 1}."
    if lie.tensors == "without":
        del stored[name]
    elif lie.tensors == "layer-lost":
        stored = {n: t for n, t in stored.items() if last not in n}
    elif lie.tensors in ("layer-more", "layer-past"):
        place = LAYERS if lie.tensors == "layer-more" else LAYERS + 3
        stored |= {n.replace(last, f".{place}."): t.clone() for n, t in stored.items() if last in n}
    elif lie.tensors == "wider":
        stored[name] = torch.cat([stored[name], stored[name]], 0)
    elif lie.tensors == "flat":
        stored[name] = stored[name].reshape(-1, 1)
    elif lie.tensors == "infinite":
        stored[name] = stored[name].clone()
        stored[name].view(-1)[0] = float("nan")
    else:
        stored[name.replace(".2.", ".2.odd_")] = stored.pop(name)
    save_file({n: t.contiguous() for n, t in stored.items()}, path, {"format": "pt"})


def fault(folder: Path, truth: torch.Tensor | None = None) -> str:
    """What is wrong with what becomes of a checkpoint; empty when nothing is: it is refused in a line, or says what
    transformers says. truth: the answer of the checkpoint before the lie, which is no fault where transformers has none
    (a lie about a chunk's size or about what looks at pictures changes nothing here, and transformers fails at it)."""
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        try:
            got = answer(folder)
        except SwarmError as exc:
            return "" if str(exc).strip() and "\n" not in str(exc) else f"a refusal of several lines: {exc}"
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}"
        unchanged = truth is not None and _apart(got, truth) < 1e-3
        try:
            expected = _reference(folder)
        except Exception as exc:  # transformers has no answer, and we gave one
            if unchanged:
                return ""
            return f"answered where transformers fails ({type(exc).__name__}: {str(exc)[:120]})"
        if expected is None:  # of a half that text does not go through, or of nothing
            return "" if unchanged else "answered where transformers makes weights up"
        apart = _apart(got, expected)
        return "" if apart < 1e-3 or not torch.isfinite(expected).all() else f"apart by {apart:.1e}"


def _apart(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-9))


def answer(folder: Path) -> torch.Tensor:
    """Logits [len(TOKENS), vocabulary] of the model in three blocks."""
    store = ModelStore(folder.parent / f"{folder.name}-store")
    manifest = store.open(str(folder)).manifest
    model_shape(manifest, torch.float32)
    cuts = [cut for cut in CUTS if cut not in manifest.ties.forbidden]
    blocks = [
        load_block(store.open(str(folder), (a, b)), a, b, CPU, torch.float32)
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    chain = Chain(blocks, [KVPool(block, 1 << 30) for block in blocks])
    rows = certain(TOKENS, 0, LAYOUT)
    rows.want[:] = np.ones(len(TOKENS), bool)
    return chain.run([(chain.open(LAYOUT), no_commits(), rows)])[0]


@torch.inference_mode()
def _reference(folder: Path) -> torch.Tensor | None:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        return None
    with TakeEarliest():
        return model.eval()(torch.tensor([TOKENS]), use_cache=False).logits[0].float()  # type: ignore[no-any-return]


def _leaves(value: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, item in value.items():
        if key in _LEFT_ALONE:
            continue
        if isinstance(item, Mapping):
            yield from _leaves(item, (*path, key))
        elif isinstance(item, int | list) and item != []:
            yield (*path, key), item


def _others(value: Any) -> Sequence[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, 2 * value, 0, -1, 10**12, "many", None, value + 0.5]
    kinds = sorted({json.dumps(item) for item in value})
    other = [json.loads(kinds[0])] * len(value)
    return [value[:-1], [*value, value[-1]], value[::-1], other, [], "none", ["telepathy"] * len(value)]


def set_value(config: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The config with one value changed."""
    inside = value if len(path) == 1 else set_value(config[path[0]], path[1:], value)
    return {**config, path[0]: inside}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else text[:37] + "..."
