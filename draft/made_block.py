"""A made drafter of Llama's kind, computed from its file's tensors, whose matrices stay as they are stored.

What is computed is what transformers' `LlamaForCausalLM` computes (`tests/draft/test_made_block.py` holds it against
it), over slots as stages attend. Without its classes, because whoever waits for a requester's first token waits for
their import too: two seconds of a processor, and as much again for building the model and rounding its matrices anew.
Where this installation has compiled kernels all layers are one call of them (`made_packed`); elsewhere torch computes
step by step, matrices in int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from draft.four_bits import BLOCK, BLOCK_BYTES, unpacked
from draft.made_packed import LANES, ORDER, PackedLayers, packed_floats, packed_int8, packed_q4
from draft.packed import COLUMNS, Int8Linear, round_rows
from draft.tapped_layer import normed, turned
from swarm.base.errors import ModelError, UsageError
from swarm.model.attend import attend_rows
from swarm.model.attention import JobPlan
from swarm.model.files.weights import RowTable
from swarm.model.gpu import Gpu
from swarm.model.job import Job
from swarm.model.kvcache import KVShape
from swarm.model.quant.layer_words import LayerSizes
from swarm.model.quant.matrix import PackedMatrix
from swarm.model.quant.native import Library
from swarm.model.rows import Rows

SCALE = ".scale"
"""What the name of an int8 matrix's scales ends in."""
EMBEDDING = "model.embed_tokens.weight"
CPU, BFLOAT16 = torch.device("cpu"), torch.bfloat16

_PLAIN = {
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "mlp_bias": False,
    "rope_scaling": None,
    "pretraining_tp": 1,
}
"""What a config must say, where it says anything of it, to be computed here."""
_MATRICES = {
    "self_attn.q_proj": ("heads", "hidden"),
    "self_attn.k_proj": ("kv_heads", "hidden"),
    "self_attn.v_proj": ("kv_heads", "hidden"),
    "self_attn.o_proj": ("hidden", "heads"),
    "mlp.gate_proj": ("inner", "hidden"),
    "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class MadeShape:
    """Numbers of a config: layers, heads, key/value heads, values of a head, of a row and between the halves of a
    feed-forward part; epsilon of norms; base of the rotation."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    eps: float
    theta: float

    @classmethod
    def of(cls, config: Mapping[str, object]) -> MadeShape | None:
        """From a config.json; None for one that says anything which is not computed here."""
        rope = config.get("rope_parameters")
        if any(config.get(key, usual) != usual for key, usual in _PLAIN.items()) or not isinstance(rope, Mapping):
            return None
        if set(rope) - {"rope_theta", "rope_type"} or rope.get("rope_type") != "default":
            return None
        names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
        sizes = [config.get(name) for name in (*names, "intermediate_size")]
        reals = [config.get("rms_norm_eps"), rope.get("rope_theta")]
        if not all(isinstance(n, int) and n > 0 for n in sizes) or not all(isinstance(r, int | float) for r in reals):
            return None
        found = cls(*sizes, *map(float, reals))  # type: ignore[arg-type]
        fits = found.heads % found.kv_heads == 0 and found.head_dim % 2 == 0
        return found if fits and all(width % COLUMNS == 0 for width in found.widths.values()) else None

    @property
    def sizes(self) -> LayerSizes:
        """For the compiled kernels."""
        return LayerSizes(self.hidden, self.inner, self.heads, self.kv_heads, self.head_dim)

    @property
    def widths(self) -> Mapping[str, int]:
        """Rows and columns of matrices, by the names in `_MATRICES`."""
        heads, kv_heads = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {"hidden": self.hidden, "inner": self.inner, "heads": heads, "kv_heads": kv_heads}


class MadeBlock:
    """All layers of a drafter, on a CPU in bfloat16: what `LmDrafter` wants of a block.

    tensors: all of its file but the tokens of its head, by name. table: the target's embedding in bfloat16, which is
    the drafter's too. tokens: ids that the head scores, int64 [v]. Threads may compute at once.

    lib: the compiled kernels, or None to do without.

    Raises UsageError for tensors that do not fit the config, ModelError for numbers that are not finite.
    """

    head = tail = True
    first = 0
    gpu: Gpu | None = None
    device, dtype = CPU, BFLOAT16

    def __init__(
        self,
        shape: MadeShape,
        tensors: Mapping[str, torch.Tensor],
        table: RowTable,
        tokens: torch.Tensor,
        lib: Library | None = None,
    ) -> None:
        self.shape, self.last, self.vocab_size = shape, shape.layers, len(tokens)
        self.kv_shapes = (KVShape(shape.kv_heads, shape.head_dim),) * shape.layers
        left = dict(tensors)
        lib = lib if shape.head_dim % LANES == 0 else None
        stored = [_Stored(shape, left, f"model.layers.{number}.") for number in range(shape.layers)]
        self._norm = _norm(left, "model.norm", shape.hidden)
        if left:
            raise UsageError(f"expected no tensor {min(left)} in a drafter of {shape.layers} layers; distil it again")
        self._table = table
        packed = None if lib is None else [layer.packed(lib) for layer in stored]
        self._together: PackedLayers | None = None
        self._layers: list[_Layer] = []
        if lib is not None and packed is not None and all(found is not None for found in packed):
            held = [found for found in packed if found is not None]
            self._together = PackedLayers(shape.sizes, held, [layer.norms for layer in stored], shape.eps, lib)
        else:
            self._layers = [_Layer(shape, layer) for layer in stored]
        rows = table.rows(tokens)
        head = None if self._together is None or lib is None else packed_floats(rows, "head", lib)
        self._head: PackedMatrix | Int8Linear = Int8Linear(*round_rows(rows)) if head is None else head
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
        self._turns = 1.0 / shape.theta**half

    @torch.inference_mode()
    def forward(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        """Per job float32 logits [rows with want, vocab_size]."""
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> torch.Tensor:
        job.kv.prepare()
        job.kv.commit(job.commits)
        plan = JobPlan(job.kv, job.rows, 0, self.device, self.dtype, in_order=self._together is not None)
        turn = self._turn(job.rows)
        rows = self._table.rows(torch.from_numpy(job.rows.token.astype("int64")))
        if self._together is not None:
            rows = self._together(rows, *turn, plan)
        for number, layer in enumerate(self._layers):
            rows = layer(rows, turn, plan, number)
        wanted = rows[torch.from_numpy(job.rows.want)]
        if not len(wanted):
            return torch.empty(0, self.vocab_size)
        wanted = normed(wanted, self._norm, self.shape.eps)
        if isinstance(self._head, PackedMatrix):
            return self._head.product(wanted.float(), None)
        return self._head.forward(wanted).float()

    def _turn(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [n, head_dim] of the rows' positions, as `LlamaRotaryEmbedding` rounds them."""
        angles = torch.from_numpy(rows.position.astype("float32"))[:, None] * self._turns
        both = torch.cat((angles, angles), -1)
        return both.cos().to(self.dtype), both.sin().to(self.dtype)


class _Stored:
    """One layer's tensors, taken out of `left` and looked at."""

    def __init__(self, shape: MadeShape, left: dict[str, torch.Tensor], before: str) -> None:
        self.norms = [_norm(left, before + name, shape.hidden) for name in _NORMS]
        self._before, widths = before, shape.widths
        self._matrices = {
            name: _matrix(left, before + name, widths[out], widths[into]) for name, (out, into) in _MATRICES.items()
        }

    def packed(self, lib: Library) -> dict[str, PackedMatrix] | None:
        """For the compiled kernels, by the names in `ORDER`; None where they have none for it."""
        found: dict[str, PackedMatrix] = {}
        for name, one in self._matrices.items():
            matrix = None if one.bias is not None else one.packed(self._before + name, lib)
            if matrix is None:
                return None
            found[name.rpartition(".")[2]] = matrix
        return found

    def linears(self) -> list[Int8Linear]:
        """For torch's kernel, in the order of `ORDER`."""
        assert [name.rpartition(".")[2] for name in self._matrices] == list(ORDER)
        return [one.linear() for one in self._matrices.values()]


@dataclass(frozen=True)
class _Matrix:
    """As in the file: uint8 rows of Q4_1, int8 with scales, or numbers. bias: bfloat16."""

    weight: torch.Tensor
    scales: torch.Tensor | None
    bias: torch.Tensor | None

    def packed(self, name: str, lib: Library) -> PackedMatrix | None:
        if self.weight.dtype == torch.uint8:
            return packed_q4(self.weight, name, lib)
        if self.scales is not None:
            return packed_int8(self.weight, self.scales, name, lib)
        return packed_floats(self.weight, name, lib)

    def linear(self) -> Int8Linear:
        if self.scales is not None:
            return Int8Linear(self.weight, self.scales, self.bias)
        wide = unpacked(self.weight) if self.weight.dtype == torch.uint8 else self.weight
        return Int8Linear(*round_rows(wide), self.bias)


class _Layer:
    """One decoder layer in torch."""

    def __init__(self, shape: MadeShape, stored: _Stored) -> None:
        self._shape = shape
        self._scale = shape.head_dim**-0.5
        self._norms = stored.norms
        self._q, self._k, self._v, self._o, self._gate, self._up, self._down = (one.forward for one in stored.linears())

    def __call__(
        self, rows: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], plan: JobPlan, number: int
    ) -> torch.Tensor:
        """Rows [n, hidden] behind the layer, of rows before it."""
        shape = self._shape
        inner = normed(rows, self._norms[0], shape.eps)
        query = turned(_by_head(self._q(inner), shape.heads), turn)
        key = turned(_by_head(self._k(inner), shape.kv_heads), turn)
        value = _by_head(self._v(inner), shape.kv_heads)
        seen = attend_rows([plan], number, query[None], key[None], value[None], self._scale)
        rows = rows + self._o(seen.reshape(len(rows), -1))
        inner = normed(rows, self._norms[1], shape.eps)
        return rows + self._down(functional.silu(self._gate(inner)) * self._up(inner))


def _by_head(rows: torch.Tensor, heads: int) -> torch.Tensor:
    return rows.view(len(rows), heads, -1).transpose(0, 1)


def _take(left: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    found = left.pop(name, None)
    if found is None:
        raise UsageError(f"the drafter lacks {name}; distil it again")
    if tuple(found.shape) != shape:
        raise UsageError(
            f"the drafter's tensors do not fit its config: expected {list(shape)} for {name}, found "
            f"{list(found.shape)}; distil it again"
        )
    return found


def _finite(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if not bool(tensor.isfinite().all()):
        raise ModelError(f"expected finite numbers in {name} of a drafter, found others; distil it again")
    return tensor


def _norm(left: dict[str, torch.Tensor], name: str, width: int) -> torch.Tensor:
    return _finite(_take(left, f"{name}.weight", (width,)).to(BFLOAT16), f"{name}.weight")


def _matrix(left: dict[str, torch.Tensor], name: str, rows: int, columns: int) -> _Matrix:
    tensor = left.get(f"{name}.weight")
    four = tensor is not None and tensor.dtype == torch.uint8
    weight = _take(left, f"{name}.weight", (rows, columns // BLOCK * BLOCK_BYTES if four else columns))
    bias = _take(left, f"{name}.bias", (rows,)).to(BFLOAT16) if f"{name}.bias" in left else None
    if bias is not None:
        _finite(bias, f"{name}.bias")
    if weight.dtype == torch.int8:
        scales = _take(left, f"{name}.weight{SCALE}", (rows,))
        if not bool((scales.isfinite() & (scales > 0)).all()):
            raise UsageError(f"expected a finite scale for each row of {name} in a drafter; distil it again")
        return _Matrix(weight, scales, bias)
    _finite(unpacked(weight) if four else weight, f"{name}.weight")
    return _Matrix(weight if four else weight.to(BFLOAT16), None, bias)
