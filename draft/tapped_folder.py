"""Published drafters that read hidden rows of the target, in folders: EAGLE-3, DFlash, DSpark and Medusa.

A folder has config.json and model.safetensors. Known are the forms of `speculators` (`speculators_model_type`), of
EAGLE-3's authors (`midlayer.`), of DFlash's (`dflash_config`), and Medusa heads (`draft.medusa_folder`). What a folder
does not bring, embedding and head, is the target's. Pickles are never read; docs/speculation.md says how to convert
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from draft.borrowed import borrowed_head, borrowed_table
from draft.dflash import BlockDrafter, BlockWeights, Markov, Window
from draft.eagle3 import Eagle3Drafter, Eagle3Weights
from draft.medusa import MedusaDrafter
from draft.medusa_folder import has_heads, load_medusa
from draft.tapped_layer import LayerShape, Rotary, TappedLayer
from swarm.base.errors import ModelError
from swarm.model.eagle_folder import MOST_CONFIG_BYTES, WEIGHTS, drafter_of
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.weights import make_config

MOST_TAPS = 16
KINDS = ("eagle3", "dflash", "dspark")
TappedDrafter = Eagle3Drafter | BlockDrafter | MedusaDrafter


@dataclass(frozen=True)
class TappedFolder:
    """A drafter's folder: its kind, its config, the config of its layers, and the layers whose rows it reads."""

    path: Path
    kind: str
    config: Mapping[str, Any]
    layers: Mapping[str, Any]
    taps: tuple[int, ...]


def read_tapped(path: Path, n_layers: int) -> TappedFolder | None:
    """The drafter in a folder that reads rows of a target of `n_layers`; None where there is none of these kinds.

    Raises ModelError for one that cannot be read, or that reads rows which no stage gives.
    """
    if not (path / WEIGHTS).is_file() or not (path / "config.json").is_file():
        return None
    try:
        if (path / "config.json").stat().st_size > MOST_CONFIG_BYTES:
            raise ModelError(f"{path}/config.json has more than {MOST_CONFIG_BYTES} bytes")
        config = json.loads((path / "config.json").read_bytes())
        with safe_open(path / WEIGHTS, framework="pt") as tensors:
            names = set(tensors.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot read the drafter in {path}: {error}") from error
    if isinstance(config, dict) and has_heads(names):
        return TappedFolder(path, "medusa", config, {}, (n_layers,))
    if not isinstance(config, dict) or "fc.weight" not in names:
        return None
    told = config.get("speculators_model_type")
    if told in KINDS:
        kind, layers = str(told), config.get("transformer_layer_config")
        taps = config.get("eagle_aux_hidden_state_layer_ids" if kind == "eagle3" else "aux_hidden_state_layer_ids")
    elif isinstance(config.get("dflash_config"), dict):
        kind, layers = "dflash", config
        ids = config["dflash_config"].get("target_layer_ids")
        # Its authors count layers from 0 and read what leaves them: the first layer's rows are tap 1.
        taps = [id + 1 for id in ids] if isinstance(ids, list) and all(type(id) is int for id in ids) else ids
    elif any(name.startswith(("midlayer.", "layers.0.hidden_norm.")) for name in names):
        kind, layers = "eagle3", config
        inner = config.get("eagle_config")
        taps = (inner if isinstance(inner, dict) else config).get("eagle_aux_hidden_state_layer_ids")
    else:
        return None
    if taps is None and kind == "eagle3":
        taps = [2, n_layers // 2, n_layers - 3]
    return TappedFolder(path, kind, config, _config_of_layers(layers, path), _taps(taps, n_layers, path))


def _config_of_layers(layers: object, path: Path) -> Mapping[str, Any]:
    if not isinstance(layers, Mapping):
        raise ModelError(f"expected the config of a drafter's layers in {path}/config.json, found none")
    drop = ("quantization_config", "architectures", "auto_map", "dtype", "torch_dtype")
    values = {key: value for key, value in layers.items() if key not in drop}
    if values.get("model_type") not in ("llama", "qwen3"):
        raise ModelError(
            f"expected a drafter with layers of llama's or qwen3's kind in {path}, found {values.get('model_type')!r}"
        )
    return values


def _taps(taps: object, n_layers: int, path: Path) -> tuple[int, ...]:
    """Raises ModelError for layers that the target lacks. What leaves its last one is none: makers differ on whether
    the last norm comes before it."""
    found = list(taps) if isinstance(taps, list) else []
    fits = 0 < len(found) <= MOST_TAPS and all(type(tap) is int and 0 < tap < n_layers for tap in found)
    if not fits or len(set(found)) != len(found):
        raise ModelError(
            f"expected a drafter that reads rows behind layers 1 to {n_layers - 1} of its target, found "
            f"{str(taps)[:80]} in {path}: it was made for another model"
        )
    return tuple(found)


@dataclass(frozen=True)
class _Head:
    """Scores' matrix [v, d], the target's ids that they stand for, ascending (None: all), and which of the folder's
    rows they are."""

    matrix: torch.Tensor
    tokens: torch.Tensor | None = None
    order: torch.Tensor | None = None


class _Folder:
    """Tensors of a folder, in `dtype`. Raises ModelError."""

    def __init__(self, folder: TappedFolder, target: Checkpoint, dtype: torch.dtype) -> None:
        self._folder, self._target, self._dtype = folder, target, dtype
        try:
            with safe_open(folder.path / WEIGHTS, framework="pt") as file:
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read the drafter in {folder.path}: {error}") from error
        self.config = make_config(folder.layers, folder.path.name)
        self.shape = LayerShape.of(self.config)

    def named(self, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        """A tensor that must be there, of that shape; None: of any size."""
        found = self.tensors.get(name)
        fits = found is not None and len(found.shape) == len(shape)
        if not fits or any(a is not None and a != b for a, b in zip(shape, found.shape, strict=True)):  # type: ignore[union-attr]
            has = "none" if found is None else f"{list(found.shape)}"
            raise ModelError(
                f"expected {name} of shape {[s if s is not None else 'any' for s in shape]} in {self._folder.path}, "
                f"found {has}: it was made for another model"
            )
        assert found is not None
        made: torch.Tensor = found.to(self._dtype)
        return made

    def maybe(self, name: str, shape: tuple[int | None, ...]) -> torch.Tensor | None:
        """A tensor that may be missing."""
        return self.named(name, shape) if name in self.tensors else None

    def layer(self, prefix: str, wide: bool) -> TappedLayer:
        """One decoder layer; `wide`: of inputs twice as wide."""
        width, s = self.config.hidden_size, self.shape
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        entering = 2 * width if wide else width
        for name, sized in (("q", (q, entering)), ("k", (kv, entering)), ("v", (kv, entering)), ("o", (width, q))):
            self.named(f"{prefix}self_attn.{name}_proj.weight", sized)
        inner = self.config.intermediate_size
        for name, sized in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            self.named(f"{prefix}mlp.{name}_proj.weight", sized)
        mine = {n.removeprefix(prefix): t.to(self._dtype) for n, t in self.tensors.items() if n.startswith(prefix)}
        return TappedLayer(mine, s, str(self.config.hidden_act))

    def table(self) -> torch.Tensor:
        """The embedding of token ids: its own, or the target's."""
        manifest, width = self._target.manifest, self.config.hidden_size
        sized = (manifest.vocab_size, width)
        own = self.maybe("embed_tokens.weight", sized)
        if own is not None:
            return own
        return borrowed_table(self._target, width, self._dtype, f"the drafter in {self._folder.path}")

    def head(self, table: torch.Tensor) -> _Head:
        """What scores rows: its own, or the target's."""
        manifest, width = self._target.manifest, self.config.hidden_size
        own = self.maybe("lm_head.weight", (None, width))
        if own is None:
            return _Head(borrowed_head(self._target, table))
        offsets = self.tensors.get("d2t")
        if offsets is None and len(own) == manifest.vocab_size:
            return _Head(own)
        if offsets is None or offsets.shape != (len(own),):
            raise ModelError(
                f"expected d2t of {len(own)} ids beside lm_head in {self._folder.path}, found none that fits"
            )
        ids = torch.arange(len(own)) + offsets.long()
        order = ids.argsort()
        ids = ids[order]
        if int(ids[0]) < 0 or int(ids[-1]) >= manifest.vocab_size or bool((ids[1:] == ids[:-1]).any()):
            raise ModelError(f"expected d2t to name {len(own)} ids of the target in {self._folder.path}, found others")
        return _Head(own[order], ids, order)


def load_tapped(folder: TappedFolder, target: Checkpoint, dtype: torch.dtype, context: int) -> TappedDrafter:
    """The drafter in a folder for a target. Raises ModelError for what does not fit it, by name."""
    with drafter_of(folder.path):
        if folder.kind == "medusa":
            return load_medusa(folder.path, target.manifest, dtype, context)
        return _loaded(folder, target, dtype, context)


def _loaded(folder: TappedFolder, target: Checkpoint, dtype: torch.dtype, context: int) -> TappedDrafter:
    parts = _Folder(folder, target, dtype)
    if type(parts.config.num_hidden_layers) is not int or parts.config.num_hidden_layers < 1:
        raise ModelError(f"expected a drafter of layers in {folder.path}, found {parts.config.num_hidden_layers!r}")
    return (
        _eagle3(folder, parts, target, dtype, context)
        if folder.kind == "eagle3"
        else _block(folder, parts, target, dtype, context)
    )


def _eagle3(
    folder: TappedFolder, parts: _Folder, target: Checkpoint, dtype: torch.dtype, context: int
) -> Eagle3Drafter:
    width, read, config = parts.config.hidden_size, target.manifest.hidden_size, folder.config
    count = len(folder.taps)
    first = "midlayer." if "midlayer.self_attn.q_proj.weight" in parts.tensors else "layers.0."
    deeper = 1 if first == "midlayer." else int(parts.config.num_hidden_layers)
    layers = (parts.layer(first, True), *(parts.layer(f"layers.{i}.", False) for i in range(1, deeper)))
    before: tuple[torch.Tensor, ...] = ()
    if config.get("norm_before_fc"):
        before = (parts.named("input_norm.weight", (count * read,)),)
    elif config.get("fc_norm"):
        before = tuple(parts.named(f"fc_norm.{i}.weight", (read,)) for i in range(count))
    table = parts.table()
    head = parts.head(table)
    return Eagle3Drafter(
        Eagle3Weights(
            taps=folder.taps,
            fc=parts.named("fc.weight", (width, count * read)),
            fc_bias=parts.maybe("fc.bias", (width,)),
            before=before,
            layers=layers,
            norm=parts.named("norm.weight", (width,)),
            head=head.matrix,
            table=table,
            tokens=head.tokens,
            rotary=Rotary(parts.config, dtype),
            plain_residual=not config.get("norm_before_residual", False),
            norms_out=bool(config.get("norm_output", False)),
        ),
        context,
    )


def _block(folder: TappedFolder, parts: _Folder, target: Checkpoint, dtype: torch.dtype, context: int) -> BlockDrafter:
    config, width, vocabulary = folder.config, parts.config.hidden_size, target.manifest.vocab_size
    own = config.get("dflash_config") if isinstance(config.get("dflash_config"), dict) else {}
    assert isinstance(own, dict)
    size = config.get("block_size") or own.get("block_size")
    mask = own.get("mask_token_id") if own else config.get("mask_token_id")
    if type(size) is not int or not 2 <= size <= 64 or type(mask) is not int or not 0 <= mask < vocabulary:
        raise ModelError(
            f"expected block_size of 2 to 64 and a mask_token_id under {vocabulary} in {folder.path}/config.json, "
            f"found {size!r} and {mask!r}"
        )
    layers = tuple(parts.layer(f"layers.{i}.", False) for i in range(parts.config.num_hidden_layers))
    kinds = list(getattr(parts.config, "layer_types", None) or ["full_attention"] * len(layers))
    causal = not (own or config.get("sliding_window_non_causal", False))
    windows = tuple(
        Window(int(parts.config.sliding_window), causal) if kind == "sliding_attention" else None for kind in kinds
    )
    table = parts.table()
    head = parts.head(table)
    return BlockDrafter(
        BlockWeights(
            taps=folder.taps,
            fc=parts.named("fc.weight", (width, len(folder.taps) * target.manifest.hidden_size)),
            joined_norm=parts.named("hidden_norm.weight", (width,)),
            layers=layers,
            windows=windows,
            norm=parts.named("norm.weight", (width,)),
            head=head.matrix,
            table=table,
            tokens=head.tokens,
            rotary=Rotary(parts.config, dtype),
            size=size,
            mask=mask,
            shifted=bool(config.get("sample_from_anchor", folder.kind == "dspark")),
            markov=_markov(config, parts, vocabulary, head, width) if folder.kind == "dspark" else None,
        ),
        context,
    )


def _markov(config: Mapping[str, Any], parts: _Folder, vocabulary: int, head: _Head, width: int) -> Markov | None:
    rank, kind = config.get("markov_rank", 256), config.get("markov_head_type", "vanilla")
    if rank == 0:
        return None
    if type(rank) is not int or kind not in ("vanilla", "gated", "rnn"):
        raise ModelError(f"expected a markov head of kind vanilla, gated or rnn, found {kind!r} of rank {rank!r}")
    inner, rows, columns = {
        "vanilla": ("", 0, 0),
        "gated": ("gate_proj", rank, width + rank),
        "rnn": ("joint_proj", 3 * rank, 2 * rank + width),
    }[kind]
    second = parts.named("markov_head.markov_w2.weight", (len(head.matrix), rank))
    return Markov(
        kind,
        parts.named("markov_head.markov_w1.weight", (vocabulary, rank)),
        second if head.order is None else second[head.order],
        parts.named(f"markov_head.{inner}.weight", (rows, columns)) if inner else None,
        parts.maybe(f"markov_head.{inner}.bias", (rows,)) if inner else None,
    )
