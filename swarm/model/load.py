"""Building a block from a checkpoint: prune, read, check."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from swarm.base.errors import ModelError, SwarmError
from swarm.base.events import Progress, Report
from swarm.model import attend, cached
from swarm.model.attention import Attending, Call
from swarm.model.blocked import give_back
from swarm.model.compressed import take_compressors
from swarm.model.edges import Edges, open_edges
from swarm.model.files.causal import causal_class
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import Manifest
from swarm.model.files.ties import Ties
from swarm.model.fused import fuse
from swarm.model.indexed import masks_for, take_indices
from swarm.model.kvcache import KVShape
from swarm.model.latent import mark_latents, settle_latents
from swarm.model.linear.mixers import StateCall, replaced, take_over
from swarm.model.linear.shapes import PLAIN_KINDS, POOLED_KINDS, RECURRENT_KINDS
from swarm.model.masks import TRIAL, MaskChanged
from swarm.model.nearest import nearest
from swarm.model.packing import plan_packing, put_in, put_in_experts, share_head
from swarm.model.places import settle_places
from swarm.model.prune import LayerRange, PassedBy, check_config, cut, inner_model, inner_name, join, layer_list, unfit
from swarm.model.quant.dense import pack_linears
from swarm.model.quant.native import Library
from swarm.model.quant.on_device import take_to
from swarm.model.quant.sliced import Places, slice_layers
from swarm.model.rope import settle_rope
from swarm.model.shared import hang_in, let_go, looks_back, untie
from swarm.model.state import ModelState, read_state, unconsumed
from swarm.model.tiles.kernels import RowTiles
from swarm.model.warmth import settle_warmth

PIECE_BYTES = 2 << 30

_COMPUTED = ("encoder.embed_positions.weight",)
"""Tensors that some files have and classes work out (RoFormer's rotation, which lies beside every stage's layers)."""


@dataclass(frozen=True)
class Loaded:
    """A pruned model with its weights, ready to compute. kv_shapes: per layer; positions: that the model was made
    for."""

    model: nn.Module
    shape: LayerRange
    attending: Attending
    edges: Edges
    kv_shapes: tuple[KVShape, ...]
    positions: int


def load_layers(
    checkpoint: Checkpoint,
    first: int,
    last: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Report,
    piece_bytes: int = PIECE_BYTES,
    weights: str = "expanded",
    lib: Library | None = None,
    places: Places | None = None,
    tiles: RowTiles | None = None,
) -> Loaded:
    """What `block.load_block` builds on; see there. lib, on a GPU tiles: kernels whose rows do not depend on each
    other, to be used. A large range is loaded in pieces of about `piece_bytes` that go to the device one by one: while
    experts are joined a piece is in memory twice."""
    manifest = checkpoint.manifest
    manifest.check_layers()
    manifest.check_cut(first, last)
    shape = LayerRange(first, last, manifest.n_layers, manifest.row_width, manifest.vocab_size, manifest.ties)
    kind = model_class(checkpoint.config, manifest.model)
    models: list[nn.Module] = []
    report(Progress("load", manifest.model, 0, last - first, "layers"))
    for a, b in _pieces(manifest, first, last, piece_bytes):

        def tell(layers: int, before: int = a - first) -> None:
            report(Progress("load", manifest.model, before + layers, last - first, "layers"))

        piece = _load_piece(checkpoint, kind, shape.within(a, b), dtype, tell, weights, device)
        if places is not None:
            _cut_over(piece, places, kind.__name__, lib)
        piece = piece.to(device)
        if device.type != "cpu":
            take_to(piece, device, tiles is not None)
        models.append(piece)
    model = join(models, shape, checkpoint.config)
    _, layers = layer_list(model, kind.__name__)
    if looks_back(layers):
        let_go(layers, shape.ties, shape.first)
        hang_in(layers, shape.ties, shape.first)
    if shape.ties.embeds and shape.first > 0 and shape.last == shape.n_layers:
        _share_table(model, checkpoint.config)
    model.eval().requires_grad_(False)
    if lib is not None:
        pack_linears(model, lib)
        give_back()
    if lib is not None or tiles is not None:
        _take_rows_in_order(model, layers, dtype)
    attending = Attending(lib, tiles)
    attending.reads = shape.ties.reads
    edges = _settle(model, layers, shape, attending)
    tried = _try_once(model, shape, attending, edges, device, dtype)
    return Loaded(model, shape, attending, edges, tuple(tried), manifest.positions)


def _take_rows_in_order(model: nn.Module, layers: nn.ModuleList, dtype: torch.dtype) -> None:
    """One expert after the other, each row's shares added in the order of their numbers; rows rounded as at a cut."""
    for module in model.modules():
        settings: Any = getattr(module, "config", None)
        if isinstance(settings, transformers.PreTrainedConfig):
            settings._experts_implementation = "eager"
    _round_rows(layers, dtype)


def _settle(model: nn.Module, layers: nn.ModuleList, shape: LayerRange, attending: Attending) -> Edges:
    """Let a model's parts follow slots and positions that a frame states. Raises ModelError."""
    inner, name = inner_model(model), type(model).__name__
    for number, layer in enumerate(layers, shape.first):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # LongCat's layers have two attentions, with numbers of their own
                setattr(module, "swarm_layer", number)  # noqa: B010  (a plain attribute, not a submodule)
                setattr(module, "swarm_attending", attending)  # noqa: B010
    take_over(inner, attending)
    take_compressors(inner, attending)
    settle_rope(inner, name)
    settle_warmth(inner)
    settle_latents(inner, attending.lib)
    settle_places(inner, layers, attending)
    if cached.computes_itself(layers):
        cached.settle_cached(inner, model.config, layers, shape.first, attending)
    fuse(layers)
    ends = {"head": shape.first == 0, "tail": shape.last == shape.n_layers}
    edges = open_edges(layers, **ends, streams=shape.ties.streams, streams_last=shape.ties.streams_last)
    attending.indexed = take_indices(inner, attending)
    edges.given = masks_for(model.config) if attending.indexed else {}
    return edges


def _cut_over(piece: nn.Module, places: Places, name: str, lib: Library | None) -> None:
    """Cut the matrices of a piece's layers over devices, those of plain numbers in panels where kernels use these."""
    if lib is not None:
        pack_linears(piece, lib)
    slice_layers(layer_list(piece, name)[1], places, name)


def _round_rows(layers: nn.ModuleList, dtype: torch.dtype) -> None:
    """Where layers hand on wider rows than nodes do (Mamba's float32 sums), round them as between two nodes, so that
    a cut changes no bit."""

    def rounding(own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def forward(*args: Any, **named: Any) -> Any:
            out = own(*args, **named)
            return out.to(dtype) if isinstance(out, torch.Tensor) else (out[0].to(dtype), *out[1:])

        return forward

    for layer in layers:
        if getattr(layer, "residual_in_fp32", False):
            setattr(layer, "forward", rounding(layer.forward))  # noqa: B010  (hooks are a stage's own: edges.py)


def _share_table(model: Any, config: Any) -> None:
    """One matrix for the head and the embedding of a range that needs both."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    plain = isinstance(table, nn.Embedding) and isinstance(head, nn.Linear)
    if config.tie_word_embeddings and plain and torch.equal(head.weight, table.weight):  # else it came with its own
        head.weight = table.weight


def _pieces(manifest: Manifest, first: int, last: int, piece_bytes: int) -> list[tuple[int, int]]:
    """Cut [first, last) where stored layers add up to `piece_bytes`; a piece has one layer at least."""
    pieces, start, size = [], first, 0
    for layer in range(first, last):
        size += manifest.layer_bytes(layer)
        if size >= piece_bytes or layer + 1 == last:
            pieces.append((start, layer + 1))
            start, size = layer + 1, 0
    return pieces


def _load_piece(
    checkpoint: Checkpoint,
    kind: type[Any],
    shape: LayerRange,
    dtype: torch.dtype,
    tell: Callable[[int], None],
    weights: str,
    device: torch.device,
) -> nn.Module:
    """The model cut to `shape` with its weights, on the CPU."""
    name = checkpoint.manifest.model
    config = copy.deepcopy(checkpoint.config)
    if shape.last == shape.n_layers and shape.first > 0:
        config.tie_word_embeddings = False  # the head is then read by itself; there is no embedding to share
    part = _pruned_class(kind, shape)
    try:
        with _quiet(), torch.device("meta"):
            outline, built_as = _build(part, config)
            expected = {key: tensor.shape for key, tensor in outline.state_dict().items()}
    except AttributeError as exc:  # it looks for a part of its own that was cut out
        raise unfit(kind.__name__, f"it is not built without the parts that a range lacks ({exc})") from exc
    except SwarmError:
        raise
    except Exception as exc:  # classes hold their config's numbers against each other in ways of their own
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelError(f"the config of {name} does not make a {kind.__name__}: {reason}") from exc
    _check_recurrent(outline, config, shape.ties, kind.__name__)
    packing = plan_packing(outline, weights, device)
    state = read_state(checkpoint, shape, expected, inner_name(outline), dtype, tell, packing, _tied(kind))
    # What is missing would be filled with random numbers first, as large as the config likes: stop before that.
    planned, present = sum(s.numel() for s in expected.values()), state.numbers
    if planned > 2 * present + (1 << 20):
        raise ModelError(f"the config of {name} wants {planned} weights for these layers, it has {present}")
    if state.matrices or state.stacks:
        if config.tie_word_embeddings and (shape.first, shape.last) == (0, shape.n_layers):
            config.tie_word_embeddings = not share_head(outline, state.matrices)
        part = _pruned_class(kind, shape, state, dtype)
    with _quiet():
        return _fill(part, config, state.tensors, name, dtype, built_as)


def model_class(config: Any, model: str) -> type[Any]:
    """The causal language model class of a config. Raises ModelError when there is none or it cannot be cut."""
    kind = causal_class(type(config))
    if kind is None:
        told = nearest(type(config).__name__).told
        raise ModelError(
            f"{model} is a {type(config).__name__}, not a causal language model; use one that is, such as {told}"
        )
    name = kind.__name__
    if quantised := getattr(config, "quantization_config", None):  # a checkpoint that unpacks leaves it out
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else "?"
        raise ModelError(f"{model} is quantised ({method}) and nothing has unpacked it; use its unquantised weights")
    _check_architecture(config, kind, model)
    check_config(config, name)
    return kind


def _tied(kind: type[Any]) -> dict[str, str]:
    """Names of tensors that a class shares with others, as it states them."""
    stated = getattr(kind, "_tied_weights_keys", None)
    return dict(stated) if isinstance(stated, dict) else {}


def _check_recurrent(outline: nn.Module, config: Any, ties: Ties, name: str) -> None:
    """Refuse a recurrent layer whose rule is not ours, before its weights are read. Raises ModelError."""
    kinds = getattr(config, "layer_types", None) or ()
    if looks_back(layer_list(outline, name)[1]) and not ties.embeds:
        raise unfit(name, "its layers look at the embeddings of the tokens, in a way that is not known here")
    for layer in layer_list(outline, name)[1]:
        numbers = {number for m in layer.modules() if isinstance(number := getattr(m, "layer_idx", None), int)}
        recurrent = {kinds[n] for n in numbers if n < len(kinds)} & RECURRENT_KINDS
        if recurrent and not any(replaced(module) for module in layer.modules()):
            raise unfit(name, f"it has layers of kind {recurrent.pop()} whose rule is not known here")


def _check_architecture(config: Any, kind: type[Any], model: str) -> None:
    """Refuse a model whose files name another class than its type has: a head of another kind, or code of its own."""
    own = getattr(config, "auto_map", None) or {}
    code = own.get("AutoModelForCausalLM") if isinstance(own, dict) else None
    named = [str(code).rpartition(".")[2]] if code else []
    named += [str(a) for a in getattr(config, "architectures", None) or ()]
    # A model saved without its head names its inner class.
    other = [a for a in named if a != kind.__name__ and (a.endswith("LMHeadModel") or not a.endswith("Model"))]
    if other:
        raise ModelError(
            f"{model} is a {other[0]}, but its type {config.model_type} is {kind.__name__}"
            + (" and code shipped with a model is never run" if code else "")
            + "; use a model whose class this transformers has"
        )


def _pruned_class(
    kind: type[Any], shape: LayerRange, packed: ModelState | None = None, dtype: torch.dtype = torch.float32
) -> type[Any]:
    """The class again, pruned as soon as it is built: transformers then loads (and misses) only what is left. packed:
    what takes the place of weights."""

    def init(self: Any, config: Any) -> None:
        kind.__init__(self, config)
        _, layers = layer_list(self, kind.__name__)
        if len(layers) != shape.n_layers:
            raise unfit(kind.__name__, f"it has {len(layers)} layers where its config says {shape.n_layers}")
        cut(self, shape)
        if looks_back(layers):
            let_go(layer_list(self, kind.__name__)[1], shape.ties, shape.first)
            untie(self, inner_model(self))
        mark_latents(self)
        if packed is not None:
            put_in(self, packed.matrices, dtype)
            put_in_experts(self, packed.stacks)

    def init_weights(self: Any, module: nn.Module) -> None:
        if module is not self:  # of the parts on top some may be gone, and all come from files
            kind._init_weights(self, module)

    body: dict[str, Any] = {"__init__": init, "__module__": kind.__module__, "_init_weights": init_weights}
    if shape.first > 0 or shape.last < shape.n_layers or packed:
        body["_tied_weights_keys"] = {}
    return type(kind.__name__, (kind,), body)


def _works_by_row(layers: nn.ModuleList, config: Any) -> bool:
    """Whether all layers of a range are of kinds that keep nothing (Nemotron-H's experts, alone)."""
    kinds = getattr(config, "layer_types", None) or ()
    numbers = {n for m in layers.modules() if isinstance(n := getattr(m, "layer_idx", None), int)}
    return bool(numbers) and all(n < len(kinds) and kinds[n] in PLAIN_KINDS for n in numbers)


def _build(part: type[Any], config: Any) -> tuple[nn.Module, str]:
    """A model and what it was told to compute attention with: our function where its layers ask for one, its own code
    where they keep a cache (see cached.py). Raises ModelError for a class that does neither."""
    attend.register_attention()
    cached.register_cached()
    model: nn.Module = part._from_config(copy.deepcopy(config), attn_implementation=cached.BUILT_AS)
    layers = layer_list(model, part.__name__)[1]
    if cached.computes_itself(layers):
        return model, cached.BUILT_AS
    recurrent = any(replaced(module) for module in layers.modules())
    asks = any(cached.asks_interface(module) for module in layers.modules())
    if not recurrent and not asks and not _works_by_row(layers, config):
        raise unfit(part.__name__, "its attention function cannot be replaced")
    return model, attend.NAME


def _fill(
    part: type[Any], config: Any, state: dict[str, torch.Tensor], model: str, dtype: torch.dtype, built_as: str
) -> nn.Module:
    try:
        filled, info = part.from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict=state,
            attn_implementation=built_as,
            dtype=dtype,
            output_loading_info=True,
        )
    except AttributeError as exc:  # it looks for a part of its own that was cut out
        raise unfit(part.__name__, f"it is not built without the parts that a range lacks ({exc})") from exc
    except (RuntimeError, ValueError, KeyError, TypeError) as exc:
        raise ModelError(f"the weights of {model} do not fit its config: {str(exc).splitlines()[0]}") from exc
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(_COMPUTED))
    missing += [str(key) for key in info["mismatched_keys"]]
    if missing:
        raise ModelError(f"{model} lacks {missing[0]} or has it in another shape ({len(missing)} such); pull it again")
    if extra := unconsumed(str(key) for key in info["unexpected_keys"]):
        raise ModelError(
            f"{model} has {extra[0]}, which {part.__name__} does not take ({len(extra)} such): its config is of "
            "another architecture, or this transformers is too old for it"
        )
    return filled  # type: ignore[no-any-return]


@torch.inference_mode()
def _try_once(
    model: nn.Module, shape: LayerRange, attending: Attending, edges: Edges, device: torch.device, dtype: torch.dtype
) -> list[KVShape]:
    """Run two rows through, with attention watched: every layer must ask for it, in order."""
    attending.trial, attending.kept, attending.masks = (calls := list[Call]()), [], []
    rows = torch.zeros(1, 2, shape.hidden_size, dtype=dtype, device=device)
    place = torch.arange(2, device=device)[None]
    attending.position = place[0]
    name = type(model).__name__
    given: dict[str, Any] = {"position_ids": place, "use_cache": False}
    if shape.first == 0 or shape.ties.by_token:
        given["input_ids"] = torch.zeros_like(place)
    if shape.first > 0:
        given["inputs_embeds"] = rows
    config: Any = model.config
    usual = config._attn_implementation
    if attending.cache is None:
        config._attn_implementation = TRIAL
    else:
        given["past_key_values"] = attending.cache
    try:
        out = edges.through(inner_model(model), given).last_hidden_state
    except SwarmError:
        raise
    except MaskChanged as exc:
        raise unfit(name, "it makes a mask of its own") from exc
    except Exception as exc:  # a model that its own code does not allow to be cut fails in ways of its own
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise unfit(name, f"its layers do not run without the rest of it ({reason})") from exc
    finally:
        attending.trial = attending.position = None
        config._attn_implementation = usual
    if not all(call.causal for call in calls):
        raise unfit(name, "its attention is not causal, rows see what comes behind them (is_decoder in its config?)")
    if any(not call.span_known for call in calls):
        raise unfit(name, "its mask says more than its layers do")
    attending.spans = {call.layer: call.span for call in calls}
    attending.asked = dict(Counter(call.layer for call in calls))
    streams = shape.ties.streams
    if shape.ties.streams_last and shape.last < shape.n_layers:
        out = out.flatten(2)[..., : rows.shape[2] // streams]  # where what makes one row of them is cut off
    if out.shape[:2] != rows.shape[:2] or (streams > 1 and out.shape[2] != rows.shape[2] // streams):
        raise unfit(name, "its layers give rows of another shape")
    asked = Asked(calls, attending.kept, attending.index_widths)
    return _kept(asked, layer_list(model, name)[1], shape, config, name)


@dataclass(frozen=True)
class Asked:
    """What the modules of a range asked for in the trial: attention, states, and by layer the width of index keys."""

    calls: Sequence[Call]
    states: Sequence[StateCall]
    index_widths: Mapping[int, int]


def _kept(asked: Asked, layers: nn.ModuleList, shape: LayerRange, config: Any, name: str) -> list[KVShape]:
    """What each layer keeps, from what its modules asked for in the trial."""
    calls, kept = asked.calls, asked.states
    kinds = getattr(config, "layer_types", None) or ()
    passed = {place for place, layer in enumerate(layers) if isinstance(layer, PassedBy)}
    shapes = []
    for place, layer in enumerate(range(shape.first, shape.last)):
        own = [call for call in calls if call.layer == layer]
        states = [one.shape for one in kept if one.layer == layer]
        kind = kinds[place] if place < len(kinds) else "full_attention"
        recurrent = kind in RECURRENT_KINDS
        asks = place not in passed and kind not in PLAIN_KINDS and (not recurrent or kind == "hybrid")
        if bool(own) != asks or (recurrent or kind in POOLED_KINDS) != bool(states):
            found = f"layer {layer} ({kind}) asked for attention {len(own)} and for states {len(states)} times"
            if not kept:
                found = f"its layers asked for attention {len(calls)} times, expected once each or more"
            raise unfit(name, found)
        if len({type(state) for state in states}) != len(states):
            raise unfit(name, f"layer {layer} has several recurrent parts")
        if any(call.key[:3] != call.value[:3] or call.key[0] != 1 or call.key[2] != 2 for call in own):
            raise unfit(name, "its keys and values differ in number")
        if len({(call.key, call.value, call.span, call.latent) for call in own}) > 1:
            raise unfit(name, f"layer {layer} has attentions of several kinds")
        keeps = bool(own) and layer not in shape.ties.reads
        heads, dim, value_dim = (own[0].key[1], own[0].key[3], own[0].value[3]) if keeps else (0, 0, 0)
        latent = own[0].latent if keeps else 0
        dim, value_dim = (dim + value_dim, 0) if latent else (dim, value_dim)
        if kind in POOLED_KINDS:  # keys are the values
            value_dim, latent = 0, dim
        index = asked.index_widths.get(layer, 0)
        shapes.append(KVShape(heads * len(own), dim, value_dim, tuple(states), latent, index))
    if [call.layer for call in calls] != sorted(call.layer for call in calls):
        raise unfit(name, "its layers asked for attention in another order than theirs")
    return shapes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and reports off the terminal; what they would say is checked and raised here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
