"""Drafters on disk: made ones (draft.distill), the one that ships with the default model, and any causal model.

A made drafter is a folder with config.json (the architecture, plus what it was made for under "drafter") and
model.safetensors. It has no embedding of its own: it shares the target's, which every requester of that target can
read. Matrices are of four bits (`draft.four_bits`), int8 with one float scale per row, or bfloat16. `head_tokens` lists
the ids that its head scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from draft.across import AcrossDrafter, Pair
from draft.four_bits import BLOCK, BLOCK_BYTES, unpacked
from draft.lm import LmDrafter
from draft.made_block import EMBEDDING, SCALE, MadeBlock, MadeShape
from draft.packed import can_pack, pack_linears
from draft.tapped_folder import TappedDrafter, load_tapped, read_tapped
from draft.vocabulary import END_TURN, ByteVocabulary, same_specials
from draft.window import reading
from swarm.base.errors import UsageError
from swarm.base.events import Report, silent
from swarm.model.dtype import choose_dtype, dtype_name
from swarm.model.files.checkpoint import Checkpoint, load_tokenizer, open_model
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.files.store import ModelStore
from swarm.model.files.weights import RowTable, make_config
from swarm.model.quant.matrix import Matrix
from swarm.model.quant.native import library
from swarm.model.text.tokenizer import Tokenizer
from swarm.model.weights_as import choose_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from swarm.model.block import Block

DATA = Path(__file__).parent / "data"
HEAD_TOKENS = "head_tokens"
ACROSS_CONTEXT = 2048
"""Own tokens that a drafter across vocabularies reads: its prefill competes with the ring's, and what is farther back
is copied by `draft.suffix` rather than known."""
ACROSS_SCRATCH = 512


@dataclass(frozen=True)
class Learned:
    """A made drafter that went on from another: over how many runs of its user, and `draft.learned.origin_of` of the
    one that it began from."""

    runs: int
    origin: str


@dataclass(frozen=True)
class Made:
    """What config.json of a made drafter says: for which target (name and manifest digest), from which layers, and
    whether it learned from its user's runs."""

    path: Path
    config: Mapping[str, Any]
    target: str
    target_digest: str
    layers: tuple[int, ...]
    learned: Learned | None = None


def read_made(path: Path) -> Made | None:
    """The made drafter in a folder; None when there is none. Raises UsageError for a damaged one."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_bytes())
        told = config.pop("drafter")
        learned = told.get("learned")
        return Made(
            path,
            config,
            str(told["target"]),
            str(told["target_digest"]),
            tuple(map(int, told["layers"])),
            None if learned is None else Learned(int(learned["runs"]), str(learned["origin"])),
        )
    except (FileNotFoundError, NotADirectoryError, KeyError):
        return None
    except (OSError, ValueError, TypeError, AttributeError) as exc:
        raise UsageError(f"{file} is not the config of a drafter ({exc}); distil it again") from exc


def default_drafter(manifest: Manifest) -> Path | None:
    """The folder of the drafter that ships for a model; None if there is none.

    The same weights in another file (a hub copy of what ships as GGUF) have another digest, so a model of the same
    name and shape is served too: a drafter need not match exactly, it only proposes.
    """
    for folder in sorted(DATA.glob("*/config.json")):
        made = read_made(folder.parent)
        if made is None:
            continue
        name = manifest.model.lower().rsplit("/", 1)[-1]
        alike = all(made.config.get(k) == manifest.config.get(k) for k in ("model_type", "hidden_size", "vocab_size"))
        if made.target_digest == manifest.digest or (alike and name == made.target):
            return folder.parent
    return None


class MadeCheckpoint:
    """A made drafter as a checkpoint; its embedding is read from the target's. Implements `Checkpoint`.

    Raises UsageError when it was made for another shape of model or cannot be read.
    """

    def __init__(self, made: Made, target: Checkpoint) -> None:
        self.bytes_read = 0
        self._made, self._target, self._file = made, target, made.path / "model.safetensors"
        for key in ("hidden_size", "vocab_size"):
            if made.config.get(key) != getattr(target.manifest, key):
                raise UsageError(
                    f"the drafter in {made.path} was made for {made.target} ({key} {made.config.get(key)}), the target "
                    f"{target.manifest.model} has {getattr(target.manifest, key)}; distil one for it"
                )
        try:
            with safe_open(self._file, framework="pt") as file:
                names = [n for n in file.keys() if not n.endswith(SCALE) and n != HEAD_TOKENS]
                shapes = {name: _shape(file.get_slice(name)) for name in names}
        except (OSError, SafetensorError) as exc:
            raise UsageError(f"cannot read {self._file}: {exc}; distil it again") from exc
        shapes[EMBEDDING] = (target.manifest.vocab_size, target.manifest.hidden_size)
        entries = tuple(TensorEntry(name, shape, "I8", 0, "0" * 64) for name, shape in sorted(shapes.items()))
        self.manifest = Manifest(made.path.name, dict(made.config), entries)

    @property
    def made(self) -> Made:
        """What it is of."""
        return self._made

    @cached_property
    def config(self) -> PretrainedConfig:
        """For drafters that transformers' classes compute. Raises ModelError."""
        return make_config(self._made.config, self._made.path.name)

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        if name == EMBEDDING:
            return self._target.read(EMBEDDING, dtype)
        with safe_open(self._file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            self.bytes_read += tensor.nbytes
            if tensor.dtype == torch.uint8:
                tensor = unpacked(tensor)
            elif tensor.dtype == torch.int8:
                tensor = tensor.float() * file.get_tensor(name + SCALE).float()[:, None]
            return tensor.to(dtype)

    def stored(self) -> dict[str, torch.Tensor]:
        """All tensors by name as they lie in the file, scales among them."""
        with safe_open(self._file, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys() if name != HEAD_TOKENS}
        self.bytes_read += sum(tensor.nbytes for tensor in found.values())
        return found

    def block(self) -> MadeBlock | None:
        """Computed here without transformers, in bfloat16 on a CPU; None for a kind that is not. Raises UsageError,
        ModelError."""
        shape = MadeShape.of(self._made.config)
        if shape is None:
            return None
        tokens = self.head_tokens()
        if tokens is None:
            tokens = torch.arange(self._target.manifest.vocab_size)
        return MadeBlock(shape, self.stored(), RowTable(self._target, EMBEDDING, torch.bfloat16), tokens, library())

    def read_rows(self, name: str, rows: torch.Tensor, dtype: torch.dtype) -> None:
        return None

    def hold(self, name: str, without_kernel: bool) -> Matrix | None:
        return self._target.hold(EMBEDDING, without_kernel) if name == EMBEDDING else None

    def hold_stack(self, name: str, without_kernel: bool) -> None:
        return None

    def head_tokens(self) -> torch.Tensor | None:
        """Token ids that the head scores, int64, ascending; None: all."""
        with safe_open(self._file, framework="pt") as file:
            return file.get_tensor(HEAD_TOKENS).long() if HEAD_TOKENS in file.keys() else None

    def export_tensor_bytes(self, name: str, offset: int, length: int) -> bytes:
        raise UsageError("a drafter is not served to other nodes")


def _shape(stored: Any) -> tuple[int, ...]:
    """Of the numbers that a tensor of the file stands for."""
    rows, *columns = stored.get_shape()
    if stored.get_dtype() == "U8" and len(columns) == 1:
        return rows, columns[0] // BLOCK_BYTES * BLOCK
    return rows, *columns


def load_drafter(
    ref: str | None,
    target: Checkpoint,
    tokenizer: Tokenizer,
    store: ModelStore,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    context: int = 4096,
    report: Report = silent,
    offline: bool = False,
    ends: AbstractSet[int] = frozenset(),
) -> LmDrafter | AcrossDrafter | TappedDrafter | None:
    """The model drafter for a target, ready to begin.

    ref: a folder that `swarm draft distill` made, a published drafter that reads the target's hidden rows, or any model
    reference; one with another tokenizer than the target's drafts across vocabularies. None takes what ships with the
    target, and returns None when nothing does. Needs the target's embedding (layer 0) on this machine for made
    drafters. `ends`: the target's tokens that end a text.
    Raises UsageError for a missing folder or a drafter made for another shape, ModelError for a bad model.
    """
    path = default_drafter(target.manifest) if ref is None else Path(ref).expanduser()
    if path is None:
        return None
    dtype = dtype or choose_dtype("auto", device)
    made = read_made(path)
    if made is not None:
        checkpoint = MadeCheckpoint(made, target)
        return _made(checkpoint, device, dtype, min(context, checkpoint.manifest.context), report)
    assert ref is not None
    if ref.startswith((".", "/", "~")) and not path.exists():
        raise UsageError(f"no draft model at {ref}: expected a folder that exists, or a hub id such as org/name")
    if path.is_dir() and (tapped := read_tapped(path, target.manifest.n_layers)) is not None:
        return load_tapped(tapped, target, torch.float32, context)
    from swarm.model.block import load_block  # transformers' classes: made drafters do without them

    own = load_tokenizer(ref, store, report, offline)
    model = open_model(ref, store, None, report, offline)
    # Of a model as it is, 4-bit matrices stay so: a draft step is bound by the bytes that it reads.
    weights = choose_weights("auto", dtype_name(dtype), device)
    block = load_block(
        model, 0, model.manifest.n_layers, device, dtype, report, weights=weights, exact=device.type == "cpu"
    )
    if same_vocabulary(own, tokenizer):
        return _lm(block, None, min(context, model.manifest.context), report)
    context = min(ACROSS_CONTEXT, model.manifest.context)
    return across(_lm(block, None, context, report, ACROSS_SCRATCH), own, tokenizer, ends)


def _made(
    checkpoint: MadeCheckpoint, device: torch.device, dtype: torch.dtype, context: int, report: Report
) -> LmDrafter:
    tokens, int8 = checkpoint.head_tokens(), can_pack(device, dtype)
    if int8 and (made := checkpoint.block()) is not None:
        return LmDrafter(made, tokens, context=context)
    from swarm.model.block import load_block

    block = load_block(
        checkpoint, 0, checkpoint.manifest.n_layers, device, dtype, report, blocked=not int8, exact=device.type == "cpu"
    )
    if tokens is not None:
        block.narrow_head(tokens)
    if int8:
        pack_linears(block.loaded.model)
    return _lm(block, tokens, context, report)


def across(inner: LmDrafter, own: Tokenizer, target: Tokenizer, ends: AbstractSet[int]) -> AcrossDrafter:
    """`inner`, whose tokenizer is `own`, as drafter for a target with another one."""
    theirs, ours = ByteVocabulary(target), ByteVocabulary(own)
    back = {token: end for token, end in same_specials(ours.special, theirs.special).items() if end in ends}
    if ends:
        closing = {token: min(ends) for token, name in ours.special.items() if name in END_TURN}
        back = closing | back
    pair = Pair(theirs, ours, same_specials(theirs.special, ours.special), back)
    return AcrossDrafter(inner, pair)


def _lm(block: Block, tokens: torch.Tensor | None, context: int, report: Report, scratch: int = 256) -> LmDrafter:
    if block.gpu is None or not block.gpu.cuda.has_graphs:
        window = reading(context)
        return LmDrafter(block, tokens, context=window.context, scratch=scratch, window=window)
    from draft.loop import ChainLoop

    window = reading(_fitting(block, context))
    loop = ChainLoop(report=report)
    return LmDrafter(block, tokens, context=window.context, scratch=scratch, window=window, loop=loop)


def _fitting(block: Block, context: int) -> int:
    """A context whose keys and values take a quarter of the GPU's free memory at most: it is all taken at once."""
    per_position = sum(shape.numbers for shape in block.kv_shapes) * block.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(block.device)
    return max(1024, min(context, free // 4 // per_position))


def same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether both tokenizers give every token the same id."""
    return bool(one.get_vocab() == other.get_vocab())
