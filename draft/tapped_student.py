"""What students that read the target's rows have in common: those rows, computed by the frozen target, and parameters
under the names that a published drafter has for them.

What they compute is what `draft.eagle3` and `draft.dflash` compute of the folder that is written: the same weights
objects and layers, over parameters instead of what was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from draft.borrowed import borrowed_head, borrowed_table
from draft.corpus import Sample, collate
from draft.loss import ShortHead
from draft.recipe import Source
from draft.tapped_layer import LayerShape, Rotary, TappedLayer
from swarm.base.errors import UsageError
from swarm.model.files.manifest import Manifest
from swarm.model.files.weights import make_config

Values = dict[str, str | int | float | bool]


class TargetRows:
    """Rows of a frozen target behind layers `taps` of it; the one behind its last layer is what its head is given."""

    def __init__(self, model: PreTrainedModel, taps: Sequence[int]) -> None:
        self._base, self._taps = getattr(model, model.base_model_prefix), tuple(taps)
        self._count = int(model.config.get_text_config().num_hidden_layers)

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of tokens int64 [b, t]: float32 [b, t, taps x hidden_size], side by side in the order of the taps."""
        out = self._base(input_ids=inputs, use_cache=False, output_hidden_states=self._taps != (self._count,))
        found = [out.last_hidden_state if tap == self._count else out.hidden_states[tap] for tap in self._taps]
        return torch.cat(found, -1).float()

    @torch.no_grad()
    def spread(self, samples: Sequence[Sample], most: int = 16) -> torch.Tensor:
        """The root mean square of each value over some samples, float32 [taps x hidden_size]: a few of them are a
        hundred times larger than the rest in many models."""
        batch = collate(samples[:most])
        rows = self(batch.inputs.to(self._base.device)).flatten(0, 1)[batch.rows.to(self._base.device)]
        return rows.pow(2).mean(0).sqrt().clamp(min=1e-4)


@dataclass
class Fresh:
    """Parameters by name, drawn at random in the order in which they are asked for."""

    device: torch.device
    draw: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    values: dict[str, nn.Parameter] = field(default_factory=dict)

    def matrix(self, name: str, rows: int, columns: int) -> nn.Parameter:
        """Of a variance that keeps that of what it is applied to."""
        return self.own(name, torch.randn(rows, columns, generator=self.draw) * columns**-0.5)

    def norm(self, name: str, width: int) -> nn.Parameter:
        """All 1."""
        return self.own(name, torch.ones(width))

    def own(self, name: str, value: torch.Tensor) -> nn.Parameter:
        """That begins as a copy of `value`."""
        self.values[name] = made = nn.Parameter(value.to(self.device, torch.float32, copy=True).contiguous())
        return made

    def layer(self, prefix: str, values: Values, wide: bool = False) -> TappedLayer:
        """A decoder layer of these `values` of a config; `wide`: as EAGLE-3's first one."""
        config = make_config(values, "a drafter in the making")
        shape, width, inner = LayerShape.of(config), int(config.hidden_size), int(config.intermediate_size)
        entering, q, kv = width * (1 + wide), shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        sized = {"q": (q, entering), "k": (kv, entering), "v": (kv, entering), "o": (width, q)}
        own: dict[str, torch.Tensor] = {}
        for name in ("input_layernorm", "post_attention_layernorm", *(("hidden_norm",) if wide else ())):
            own[f"{name}.weight"] = self.norm(f"{prefix}{name}.weight", width)
        for part, (rows, columns) in sized.items():
            own[name] = self.matrix(prefix + (name := f"self_attn.{part}_proj.weight"), rows, columns)
        for part, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            own[name] = self.matrix(prefix + (name := f"mlp.{part}_proj.weight"), rows, columns)
        if values["model_type"] == "qwen3":
            for part in ("q", "k"):
                name = f"self_attn.{part}_norm.weight"
                own[name] = self.norm(prefix + name, shape.head_dim)
        return TappedLayer(own, shape, "silu")


class Borrowed:
    """What a student takes from the target and leaves as it is: the embedding, and the head over some tokens. In
    bfloat16's precision where it will be stored, which is where it is of some tokens alone."""

    def __init__(self, source: Source, tokens: Sequence[int]) -> None:
        manifest = source.checkpoint.manifest
        table = borrowed_table(source.checkpoint, manifest.hidden_size, torch.float32, "a student")
        head = borrowed_head(source.checkpoint, table)
        self.whole = len(tokens) == manifest.vocab_size
        self.table = table.to(source.device)
        self.tokens = torch.tensor(tokens)
        self.matrix = (head if self.whole else head[self.tokens].bfloat16().float()).to(source.device)
        self.vocabulary = manifest.vocab_size

    def short(self, matrix: torch.Tensor | None = None) -> ShortHead:
        """Scores over these tokens, by its own matrix or another."""
        return ShortHead.of(self.matrix if matrix is None else matrix, self.tokens, self.vocabulary)

    def map(self) -> dict[str, torch.Tensor]:
        """`d2t`, how far each scored id lies from the target's, and `t2d`, which of the target's are scored."""
        scored = torch.zeros(self.vocabulary, dtype=torch.bool).index_fill(0, self.tokens, True)
        return {"d2t": self.tokens - torch.arange(len(self.tokens)), "t2d": scored}


def turn_of(rotary: Rotary, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of positions int64 [n] or [b, n] for a batch, which have a dimension for the heads."""
    cos, sin = rotary(positions.flatten().cpu())
    sized = (*positions.shape[:-1], 1, positions.shape[-1], cos.shape[-1])
    return cos.view(sized).to(positions.device), sin.view(sized).to(positions.device)


def layer_values(target: Manifest, source: Source, model_type: str, layers: int) -> Values:
    """The config of a drafter's layers: as wide as the target's, with its heads."""
    config = source.model.config.get_text_config()
    width, heads = target.hidden_size, int(config.num_attention_heads)
    inner = getattr(config, "intermediate_size", None)
    return {
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": min(inner if isinstance(inner, int) else 4 * width, 4 * width),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": int(getattr(config, "num_key_value_heads", None) or heads),
        "head_dim": int(getattr(config, "head_dim", None) or width // heads),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": target.context,
        "vocab_size": target.vocab_size,
    }


def spread_taps(layers: int, count: int) -> tuple[int, ...]:
    """`count` layers of a target of `layers` whose rows are read, from the second to the third from the end, or fewer
    where it has not so many. Raises UsageError for a target with none."""
    if layers < 2:
        raise UsageError(f"expected a target of 2 layers or more, whose rows between them are read, found {layers}")
    first, last = (2, layers - 2) if layers - 3 >= count else (1, layers - 1)
    many = min(count, last - first + 1)
    return tuple(round(first + i * (last - first) / max(1, many - 1)) for i in range(many))


def pick_mask(samples: Sequence[Sample], table: torch.Tensor, special: Sequence[int]) -> int:
    """A token that stands for what is to be guessed: a special one that no text has, else the last such token. Its
    embedding is not nothing."""
    seen = torch.zeros(len(table), dtype=torch.bool)
    for sample in samples:
        seen[sample.tokens.long()] = True
    sizes = table.norm(dim=-1)
    free = ~seen & (sizes > 0.1 * sizes.median())
    for token in sorted(special, reverse=True):
        if 0 <= token < len(table) and free[token]:
            return token
    found = free.nonzero()
    return int(found[-1]) if len(found) else int(max(special, default=0))


@torch.no_grad()
def fold(parameters: Mapping[str, nn.Parameter], spread: torch.Tensor | None = None) -> None:
    """Round parameters as they are stored, in bfloat16. What `fc.weight` is divided by becomes part of it: `spread` is
    1 from then on."""
    if spread is not None:
        parameters["fc.weight"].div_(spread)
        spread.fill_(1.0)
    for value in parameters.values():
        value.copy_(value.bfloat16().float())


def stored(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """As they are written: bfloat16, of numbers that stand for tokens as they are."""
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        yield name, (tensor.bfloat16() if tensor.is_floating_point() else tensor).contiguous()
