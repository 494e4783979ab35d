"""What a model is, by content: its architecture and a digest for every tensor's stored bytes.

Two nodes serve the same model exactly when their manifests have the same digest. To make that hold between a node
that keeps one shard and a node that keeps them all, a tensor is identified by the *blob* that holds it:

- GGUF: every tensor is a blob of its own (`digest` = SHA-256 of its stored bytes, `offset` 0). The file is always
  whole when its manifest is made, so this costs one read of the file.
- safetensors: the blob is the shard file (`digest` = SHA-256 of the file, `offset` = start of the tensor behind the
  file's header). A model hub states the digest of every shard, and the headers are small, so a node knows the whole
  manifest after fetching only the shards of its block; a local copy of the same files gives the same manifest.

Blobs are also the unit in which weights travel between nodes (see blobs.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from swarm.base.errors import ModelError
from swarm.model.files.facts import Facts
from swarm.model.files.mtp import MTPTensors, first_head, is_mtp
from swarm.model.files.ties import SHARED_BLOCK, Ties, end_of, ties_of
from swarm.model.files.wrappers import is_wrapper, text_name, text_values

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")

_EMBEDDING = re.compile(
    r"(?:^|\.)(?:(?:embed_tokens|embed_in|wte|wpe|word_embeddings|word_embeddings_layernorm|embed_positions"
    r"|layernorm_embedding|project_in|embeddings_project|embedding_hidden_mapping_in|tokens_embed|positions_embed|w"
    r"|position_embeddings|embeddings)\.)"
)
_BOTH_ENDS = re.compile(r"(?:^|\.)layernorm_embedding\.")
"""What is an embedding's norm in most classes and the last norm in BigBird-Pegasus."""
_EVERYWHERE = re.compile(r"(?:^|\.)encoder\.embed_positions\.")
"""What every layer looks into (RoFormer's rotation)."""
_OTHER_HALF = re.compile(r"(?:^|\.)embed_tokens_extend\.")
"""Tensors of a part that takes pictures and sound (Phi-4 multimodal): no layer's, neither fetched nor held."""
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.")

VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_commit_hash")
"""Keys of a config.json that say how a file was written, not what the model is."""

MAX_MANIFEST_BYTES = 256 << 20


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as stored.

    name    the transformers name, with the layer's number in the whole model
    shape   as a model wants it (rows first), not as a file orders it
    format  "F32", "BF16", ... (safetensors) or "gguf:Q4_1", ...
    nbytes  stored size in bytes
    digest  hex SHA-256 of the blob that holds it; `offset` is where it starts in that blob's tensor data
    """

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    digest: str
    offset: int = 0


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to; None for embeddings, final norm and head."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def is_embedding(name: str) -> bool:
    """Is it read where token ids come in?"""
    return _EMBEDDING.search(name) is not None


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without the keys that differ between copies of one model."""
    return {key: config[key] for key in sorted(config) if key not in VOLATILE}


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


_LONGROPE_SWITCH = 4096
"""Where Phi-3 changes frequencies when its config does not say."""

_LAYER_LISTS = ("layers_block_type", "hybrid_override_pattern")
"""What Nemotron-H's configs state their layers by, one kind or letter each; a number beside it does not count."""

_ENDLESS = {"mamba": 1 << 20, "mamba2": 1 << 20, "falcon_mamba": 1 << 20, "bloom": 2048}
"""Types whose configs name no end of a text: those without attention, whose rows know no positions, and BLOOM, which is
made for 2048 tokens."""
_BEHIND_PADDING = frozenset(
    {"roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "data2vec-text", "roberta-prelayernorm"}
)
"""Types whose table of positions begins behind the number of their padding token."""


@dataclass(frozen=True)
class Manifest:
    """Identity of a model. `model` is its name for people and not part of the digest."""

    model: str
    config: Mapping[str, Any]
    tensors: tuple[TensorEntry, ...]

    @cached_property
    def facts(self) -> Facts | None:
        """What transformers was asked about it before (see `files.known`); None: it is asked when somebody wants to
        know. A copy with other tensors or another config has none."""
        return None

    def know(self, facts: Facts) -> None:
        """Take facts of just this config and these tensors."""
        self.__dict__["facts"] = facts

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over config and tensors, in canonical JSON."""
        body = {"config": dict(self.config), "tensors": [asdict(t) for t in self._sorted]}
        return hashlib.sha256(canonical_json(body)).hexdigest()

    @cached_property
    def _sorted(self) -> tuple[TensorEntry, ...]:
        return tuple(sorted(self.tensors, key=lambda t: t.name))

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Tensors by name."""
        return {t.name: t for t in self.tensors}

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        """The config of what is served: of a model that takes more than text, its text half's."""
        if not is_wrapper(self.config):
            return self.config
        known = None if self.facts is None else self.facts.text
        return text_values(self.config, self.model) if known is None else known

    def _int(self, *keys: str) -> int:
        for key in keys:
            value = self.text_config.get(key)
            if isinstance(value, int) and value > 0:
                return value
        if "text_config" in self.text_config:
            raise ModelError(
                f"{self.model} takes more than text ({self.config.get('model_type')}); use a text-only model"
            )
        raise ModelError(f"the config of {self.model} must state {keys[0]}; it does not")

    @cached_property
    def n_layers(self) -> int:
        """How many the config says. Raises ModelError for more than there are tensors: it sizes what is planned."""
        count = self._n_layers()
        if self.tensors and count > len(self.tensors):
            held = {layer_of(t.name) for t in self.tensors} - {None}
            raise ModelError(f"the config of {self.model} says {count} layers, its weights hold {len(held)}")
        return count

    def _n_layers(self) -> int:
        for key in _LAYER_LISTS:
            listed = self.config.get(key)
            if isinstance(listed, list | str) and listed:
                return len(listed)
        return self._int(
            "decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers", "n_layers"
        )

    @property
    def hidden_size(self) -> int:
        return self._int("hidden_size", "n_embd", "d_model")

    @cached_property
    def ties(self) -> Ties:
        """What ties its layers together."""
        if self.facts is not None:
            return self.facts.ties
        return ties_of(self.text_config, self.model, len(self.tensors))

    @property
    def row_width(self) -> int:
        """Values of one row between two layers."""
        return self.hidden_size * self.ties.streams

    @property
    def vocab_size(self) -> int:
        return self._int("vocab_size")

    @property
    def positions(self) -> int:
        """Positions the model was made for."""
        known = ("max_position_embeddings", "n_positions", "n_ctx", "model_max_length", "max_seq_len")
        if self.config.get("model_type") == "whisper":
            known = ("max_target_positions", *known[1:])
        kind = self.config.get("model_type")
        if kind in _ENDLESS and not any(self.config.get(key) for key in known):
            return _ENDLESS[str(kind)]
        if kind in _BEHIND_PADDING:
            padding = self.config.get("pad_token_id", 1)
            return self._int(*known) - 1 - (padding if isinstance(padding, int) else 1)
        return self._int(*known)

    @property
    def context(self) -> int:
        """Most tokens of a text: all positions, with `longrope` those before its frequencies change (see rope.py)."""
        config = self.text_config
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):
            return self.positions
        # The config's own field goes before the table's, and Phi-3's has a default: the least of them is always right.
        key = "original_max_position_embeddings"
        stated = (config.get(key, _LONGROPE_SWITCH), rope.get(key))
        return min(self.positions, *(n for n in stated if isinstance(n, int) and n > 0))

    @cached_property
    def _by_layer(self) -> Mapping[int | None, tuple[TensorEntry, ...]]:
        layers: dict[int | None, list[TensorEntry]] = {}
        wraps = is_wrapper(self.config)
        for entry in self._sorted:
            if (wraps and text_name(entry.name) is None) or _OTHER_HALF.search(entry.name):
                continue
            if entry.name in self._of_heads:
                continue
            layers.setdefault(layer_of(entry.name), []).append(entry)
        return {layer: tuple(entries) for layer, entries in layers.items()}

    @cached_property
    def _of_heads(self) -> frozenset[str]:
        n, config = self.n_layers, self.text_config
        return frozenset(t.name for t in self.tensors if is_mtp(t.name, n, config))

    @property
    def mtp_tensors(self) -> tuple[TensorEntry, ...]:
        """Tensors of the checkpoint's multi-token prediction heads, by name: no layer's (see `files.mtp`)."""
        return tuple(t for t in self._sorted if t.name in self._of_heads)

    @cached_property
    def mtp(self) -> MTPTensors | None:
        """The checkpoint's first head; None without one that is laid out in a known way."""
        return None if is_wrapper(self.config) else first_head(self.mtp_tensors, self.n_layers, self.text_config)

    @property
    def embedding_tensors(self) -> tuple[TensorEntry, ...]:
        """What token ids are looked up in."""
        return tuple(t for t in self._by_layer.get(None, ()) if is_embedding(t.name))

    def stage_tensors(self, first: int, last: int) -> tuple[TensorEntry, ...]:
        """What a node that serves layers [first, last) reads: `layer_tensors`, and for a tail what its head for
        drafting needs."""
        found = {t.name: t for t in self.layer_tensors(first, last)}
        if last == self.n_layers and self.mtp is not None:
            found |= {t.name: t for t in (*self.mtp_tensors, *self.embedding_tensors)}
        return tuple(found[name] for name in sorted(found))

    def layer_bytes(self, layer: int) -> int:
        """Stored bytes of one layer."""
        return sum(t.nbytes for t in self._by_layer.get(layer, ()))

    def layer_tensors(self, first: int, last: int) -> tuple[TensorEntry, ...]:
        """Tensors of layers [first, last), by name; with the first layer also embeddings, with the last also final
        norm and head (the embeddings where the head shares them); of layers elsewhere what these share with them."""
        self.check_range(first, last)
        found = [t for layer in range(first, last) for t in self._by_layer.get(layer, ())]
        for layer in self.ties.borrowed(first, last):
            found += [t for t in self._by_layer.get(layer, ()) if f".{SHARED_BLOCK}." in t.name]
        outer = self._by_layer.get(None, ())
        shared = not any(_HEAD.search(t.name) for t in outer)
        for entry in outer:
            place = end_of(entry.name, self.ties)
            if place is not None:
                wanted = place == "every" or first == 0
            elif _EVERYWHERE.search(entry.name):
                wanted = True
            elif _BOTH_ENDS.search(entry.name):
                wanted = first == 0 or last == self.n_layers
            elif is_embedding(entry.name):
                wanted = first == 0 or (shared and last == self.n_layers)
            else:
                wanted = last == self.n_layers
            if wanted:
                found.append(entry)
        return tuple(sorted(found, key=lambda t: t.name))

    def weights_digest(self, first: int, last: int) -> str:
        """Hex SHA-256 over the entries of layers [first, last): what a stage claims to have computed with.

        Heads count where their names put them: stages have always signed for `mtp.layers.0.` with layer 0 and for the
        rest with the last one.
        """
        found = [*self.layer_tensors(first, last), *(t for t in self.mtp_tensors if self._claimed(t, first, last))]
        entries = [asdict(t) for t in sorted(found, key=lambda t: t.name)]
        return hashlib.sha256(canonical_json({"layers": [first, last], "tensors": entries})).hexdigest()

    def _claimed(self, head: TensorEntry, first: int, last: int) -> bool:
        if is_wrapper(self.config) and text_name(head.name) is None:
            return False
        layer = layer_of(head.name)
        within = layer is not None and layer < self.n_layers
        return first <= (layer or 0) < last if within else last == self.n_layers

    def check_layers(self) -> None:
        """Raises ModelError unless the tensors make up as many layers as the config says (a config alone could name
        any number, and a model is built from it)."""
        held = {layer for layer in self._by_layer if layer is not None}
        if held != set(range(len(held))) or len(held) != self.n_layers:
            raise ModelError(f"the config of {self.model} says {self.n_layers} layers, its weights hold {len(held)}")

    def check_range(self, first: int, last: int) -> None:
        """Raises ModelError unless 0 <= first < last <= n_layers."""
        if not 0 <= first < last <= self.n_layers:
            raise ModelError(f"layers {first}:{last} are not in {self.model}, which has layers 0:{self.n_layers}")

    def check_cut(self, first: int, last: int) -> None:
        """Raises ModelError unless layers [first, last) can be a stage."""
        self.check_range(first, last)
        for cut in (first, last):
            if cut in self.ties.forbidden:
                allowed = [part for part in self.ties.parts(0, self.n_layers) if part[0] < cut < part[1]][0]
                raise ModelError(
                    f"{self.model} cannot be cut before layer {cut}: {self.ties.why(cut)}; "
                    f"layers {allowed[0]}-{allowed[1] - 1} stay together (end at {allowed[0]} or {allowed[1]})"
                )

    def to_bytes(self) -> bytes:
        """Canonical JSON, name included; what is kept on disk and sent to a node that lacks the model."""
        return canonical_json(
            {"model": self.model, "config": dict(self.config), "tensors": [asdict(t) for t in self._sorted]}
        )


def parse_manifest(data: bytes) -> Manifest:
    """Read `Manifest.to_bytes`. Raises ModelError for anything else; safe on bytes from anywhere."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ModelError(f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, found {len(data)}")
    try:
        body = json.loads(data)
        tensors = tuple(_entry(item) for item in body["tensors"])
        manifest = Manifest(str(body["model"]), dict(body["config"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ModelError("a manifest is malformed: pull the model again") from exc
    if len(manifest.entries) != len(tensors):
        raise ModelError("a manifest names a tensor twice: pull the model again")
    return manifest


def _entry(item: dict[str, Any]) -> TensorEntry:
    entry = TensorEntry(
        name=str(item["name"]),
        shape=tuple(int(d) for d in item["shape"]),
        format=str(item["format"]),
        nbytes=int(item["nbytes"]),
        digest=str(item["digest"]),
        offset=int(item["offset"]),
    )
    if entry.nbytes < 0 or entry.offset < 0 or any(d < 0 for d in entry.shape) or len(entry.shape) > 8:
        raise ValueError(entry.name)
    if not re.fullmatch(r"[0-9a-f]{64}", entry.digest):
        raise ValueError(entry.name)
    return entry


def read_manifest(path: Path) -> Manifest | None:
    """A manifest kept on disk; None when there is none or it is of no use any more."""
    try:
        return parse_manifest(path.read_bytes())
    except (OSError, ModelError):
        return None
