"""Building a block from a checkpoint: prune, read, check."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from swarm.base.errors import ModelError, SwarmError
from swarm.base.events import Progress, Report
from swarm.model import attention
from swarm.model.attention import Attending, Call, settle_scales
from swarm.model.blocked import give_back
from swarm.model.edges import Edges, open_edges
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import Manifest
from swarm.model.fused import fuse
from swarm.model.kvcache import KVShape
from swarm.model.linear.mixers import StateCall, replaced, take_over
from swarm.model.linear.shapes import PLAIN_KINDS, RECURRENT_KINDS
from swarm.model.masks import TRIAL, MaskChanged
from swarm.model.packing import plan_packing, put_in, share_head
from swarm.model.prune import LayerRange, check_config, cut, inner_model, inner_name, join, layer_list, unfit
from swarm.model.quant.dense import pack_linears
from swarm.model.quant.matrix import Matrix
from swarm.model.quant.native import Library
from swarm.model.rope import settle_rope
from swarm.model.state import read_state, unconsumed

PIECE_BYTES = 2 << 30


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
) -> Loaded:
    """What `block.load_block` builds on; see there. lib: kernels whose rows do not depend on each other, to be used. A
    large range is loaded in pieces of about `piece_bytes` that go to the device one by one: while experts are joined a
    piece is in memory twice."""
    manifest = checkpoint.manifest
    manifest.check_layers()
    manifest.check_range(first, last)
    shape = LayerRange(first, last, manifest.n_layers, manifest.hidden_size, manifest.vocab_size)
    kind = model_class(checkpoint.config, manifest.model)
    done = 0
    models: list[nn.Module] = []
    report(Progress("load", manifest.model, 0, last - first, "layers"))
    for a, b in _pieces(manifest, first, last, piece_bytes):

        def tell(layers: int, before: int = done) -> None:
            report(Progress("load", manifest.model, before + layers, last - first, "layers"))

        models.append(_load_piece(checkpoint, kind, shape.within(a, b), dtype, tell, weights).to(device))
        done += b - a
    model = join(models, shape, checkpoint.config)
    model.eval().requires_grad_(False)
    if lib is not None:
        pack_linears(model, lib)
        give_back()
        # One expert after the other, each row's shares added in the order of their numbers.
        for module in model.modules():
            settings: Any = getattr(module, "config", None)
            if isinstance(settings, transformers.PreTrainedConfig):
                settings._experts_implementation = "eager"
    attending = Attending(lib)
    for module in inner_model(model).modules():
        if hasattr(module, "layer_idx"):
            setattr(module, "swarm_attending", attending)  # noqa: B010  (a plain attribute, not a submodule)
    take_over(inner_model(model), attending)
    settle_rope(inner_model(model), kind.__name__)
    settle_scales(inner_model(model))
    _, layers = layer_list(model, kind.__name__)
    fuse(layers)
    edges = open_edges(layers, head=first == 0, tail=last == shape.n_layers)
    tried = _try_once(model, shape, attending, edges, device, dtype)
    return Loaded(model, shape, attending, edges, tuple(tried), manifest.positions)


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
) -> nn.Module:
    """The model cut to `shape` with its weights, on the CPU."""
    name = checkpoint.manifest.model
    config = copy.deepcopy(checkpoint.config)
    if shape.last == shape.n_layers and shape.first > 0:
        config.tie_word_embeddings = False  # the head is then read by itself; there is no embedding to share
    part = _pruned_class(kind, shape)
    try:
        with _quiet(), torch.device("meta"):
            outline = _build(part, config)
            expected = {key: tensor.shape for key, tensor in outline.state_dict().items()}
    except AttributeError as exc:  # it looks for a part of its own that was cut out
        raise unfit(kind.__name__, f"it is not built without the parts that a range lacks ({exc})") from exc
    _check_recurrent(outline, config, kind.__name__)
    packing = plan_packing(outline, weights)
    state, packed = read_state(checkpoint, shape, expected, inner_name(outline), dtype, tell, packing)
    # What is missing would be filled with random numbers first, as large as the config likes: stop before that.
    planned, present = sum(s.numel() for s in expected.values()), sum(t.numel() for t in state.values())
    present += sum(matrix.shape[0] * matrix.shape[1] for matrix in packed.values())
    if planned > 2 * present + (1 << 20):
        raise ModelError(f"the config of {name} wants {planned} weights for these layers, it has {present}")
    if packed:
        if config.tie_word_embeddings and (shape.first, shape.last) == (0, shape.n_layers):
            config.tie_word_embeddings = not share_head(outline, packed)
        part = _pruned_class(kind, shape, packed, dtype)
    with _quiet():
        return _fill(part, config, state, name, dtype)


def model_class(config: Any, model: str) -> type[Any]:
    """The causal language model class of a config. Raises ModelError when there is none or it cannot be cut."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise ModelError(f"{model} is a {type(config).__name__}, not a causal language model; use one that is")
    name = kind.__name__
    if quantised := getattr(config, "quantization_config", None):  # a checkpoint that unpacks leaves it out
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else "?"
        raise ModelError(f"{model} is quantised ({method}) and nothing has unpacked it; use its unquantised weights")
    _check_architecture(config, kind, model)
    check_config(config, name)
    # No hybrid declares a backend, though their attention takes one: the trial sees whether every layer asks for it.
    hybrid = not RECURRENT_KINDS.isdisjoint(getattr(config, "layer_types", None) or ())
    if not hybrid and not getattr(kind, "_supports_attention_backend", False):
        raise unfit(name, "its attention function cannot be replaced")
    if "logits_to_keep" not in inspect.signature(kind.forward).parameters:
        raise unfit(name, "it cannot give logits for chosen rows")
    return kind  # type: ignore[no-any-return]


def _check_recurrent(outline: nn.Module, config: Any, name: str) -> None:
    """Refuse a recurrent layer whose rule is not ours, before its weights are read. Raises ModelError."""
    kinds = getattr(config, "layer_types", None) or ()
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
    kind: type[Any], shape: LayerRange, packed: Mapping[str, Matrix] | None = None, dtype: torch.dtype = torch.float32
) -> type[Any]:
    """The class again, pruned as soon as it is built: transformers then loads (and misses) only what is left. packed:
    matrices that take the place of weights."""

    def init(self: Any, config: Any) -> None:
        kind.__init__(self, config)
        _, layers = layer_list(self, kind.__name__)
        if len(layers) != shape.n_layers:
            raise unfit(kind.__name__, f"it has {len(layers)} layers where its config says {shape.n_layers}")
        cut(self, shape)
        put_in(self, packed or {}, dtype)

    body: dict[str, Any] = {"__init__": init, "__module__": kind.__module__}
    if shape.first > 0 or shape.last < shape.n_layers or packed:
        body["_tied_weights_keys"] = {}
    return type(kind.__name__, (kind,), body)


def _build(part: type[Any], config: Any) -> nn.Module:
    attention.register_attention()
    model: nn.Module = part._from_config(copy.deepcopy(config), attn_implementation=attention.NAME)
    return model


def _fill(part: type[Any], config: Any, state: dict[str, torch.Tensor], model: str, dtype: torch.dtype) -> nn.Module:
    try:
        filled, info = part.from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict=state,
            attn_implementation=attention.NAME,
            dtype=dtype,
            output_loading_info=True,
        )
    except AttributeError as exc:  # it looks for a part of its own that was cut out
        raise unfit(part.__name__, f"it is not built without the parts that a range lacks ({exc})") from exc
    except (RuntimeError, ValueError, KeyError, TypeError) as exc:
        raise ModelError(f"the weights of {model} do not fit its config: {str(exc).splitlines()[0]}") from exc
    missing = sorted(info["missing_keys"]) + [str(key) for key in info["mismatched_keys"]]
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
    """Run two rows through, with attention watched: every layer must ask for it exactly once, in order."""
    attending.trial, attending.kept = (calls := list[Call]()), []
    rows = torch.zeros(1, 2, shape.hidden_size, dtype=dtype, device=device)
    place = torch.arange(2, device=device)[None]
    name = type(model).__name__
    given = {"inputs_embeds": rows, "position_ids": place, "use_cache": False}
    config: Any = model.config
    config._attn_implementation = TRIAL
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
        attending.trial = None
        config._attn_implementation = attention.NAME
    if any(not call.span_known for call in calls):
        raise unfit(name, "its mask says more than its layers do")
    attending.spans = {call.layer: call.span for call in calls}
    if out.shape != rows.shape:
        raise unfit(name, "its layers give rows of another shape")
    return _kept(calls, attending.kept, shape, config, name)


def _kept(calls: list[Call], kept: list[StateCall], shape: LayerRange, config: Any, name: str) -> list[KVShape]:
    """What each layer keeps, from what its modules asked for in the trial."""
    kinds = getattr(config, "layer_types", None) or ()
    shapes = []
    for place, layer in enumerate(range(shape.first, shape.last)):
        own = [call for call in calls if call.layer == layer]
        states = [one.shape for one in kept if one.layer == layer]
        kind = kinds[place] if place < len(kinds) else "full_attention"
        recurrent = kind in RECURRENT_KINDS
        if len(own) != (kind not in PLAIN_KINDS and (not recurrent or kind == "hybrid")) or recurrent != bool(states):
            found = f"layer {layer} ({kind}) asked for attention {len(own)} and for states {len(states)} times"
            if not kept:
                found = f"its layers asked for attention {len(calls)} times, expected once each"
            raise unfit(name, found)
        if len({type(state) for state in states}) != len(states):
            raise unfit(name, f"layer {layer} has several recurrent parts")
        if any(call.key[:3] != call.value[:3] or call.key[0] != 1 or call.key[2] != 2 for call in own):
            raise unfit(name, "its keys and values differ in number")
        heads, dim, value_dim = (own[0].key[1], own[0].key[3], own[0].value[3]) if own else (0, 0, 0)
        shapes.append(KVShape(heads, dim, value_dim, tuple(states)))
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
