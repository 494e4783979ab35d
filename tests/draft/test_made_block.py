"""A made drafter computed without transformers holds its file's own numbers, and computes what transformers does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from draft.asset import MadeCheckpoint, default_drafter, load_drafter, read_made
from draft.four_bits import unpacked
from draft.lm import LmDrafter
from draft.made_block import EMBEDDING, SCALE, MadeBlock, MadeShape
from draft.packed import Int8Linear, can_pack, pack_linears, round_rows
from swarm.base.errors import ModelError, UsageError
from swarm.model.block import load_block
from swarm.model.files.checkpoint import load_tokenizer, open_model
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.files.weights import RowTable, _of_bytes
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.quant.native import library
from swarm.model.rows import Layout, no_commits
from swarm.model.sampler import Sampling
from tests.swarm.model.tiny import certain, drafted

CPU = torch.device("cpu")
needs_kernel = pytest.mark.skipif(not can_pack(CPU, torch.bfloat16), reason="this torch has no int8 kernel")
needs_library = pytest.mark.skipif(library() is None, reason="no kernels were compiled here")
pytestmark = needs_kernel


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return ModelStore(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def made(store: ModelStore) -> MadeCheckpoint:
    target = open_model(DEFAULT_MODEL, store, (0, 1))
    folder = default_drafter(target.manifest)
    assert folder is not None
    found = read_made(folder)
    assert found is not None
    return MadeCheckpoint(found, target)


@pytest.fixture(scope="module")
def block(made: MadeCheckpoint) -> MadeBlock:
    """As it is loaded: by the compiled kernels, where this installation has them."""
    found = made.block()
    assert found is not None and (found._together is not None) == (library() is not None)
    return found


@pytest.fixture(scope="module")
def stepwise(made: MadeCheckpoint) -> MadeBlock:
    """By torch, as where no kernels were built."""
    return without_kernels(made)


def without_kernels(made: MadeCheckpoint) -> MadeBlock:
    shape, tokens = MadeShape.of(made._made.config), made.head_tokens()
    assert shape is not None and tokens is not None
    return MadeBlock(shape, made.stored(), RowTable(made._target, EMBEDDING, torch.bfloat16), tokens)


def in_int8(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as drafters had them before they were kept in four bits."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.uint8:
            found[name], found[name + SCALE] = round_rows(unpacked(tensor))
        else:
            found[name] = tensor
    return found


def computed(block: MadeBlock, tokens: list[int], layout: Layout, tree: Any = None) -> torch.Tensor:
    """Logits of all rows: of certain tokens, or behind those of drafted ones."""
    kv = KVPool(block, 1 << 40).open(layout, 0, block.last)
    (logits,) = block.forward([Job(kv, no_commits(), certain(tokens, 0, layout), None)])
    return logits if tree is None else block.forward([Job(kv, no_commits(), tree, None)])[0]


def test_it_computes_what_transformers_does(made: MadeCheckpoint, stepwise: MadeBlock) -> None:
    """The same matrices within transformers' own classes: products are the same, what lies between is theirs."""
    from transformers import LlamaForCausalLM

    config = made.config
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config).to(torch.bfloat16)
    stored, table = in_int8(made.stored()), made._target.read(EMBEDDING, torch.bfloat16)
    for path, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            name = f"model.{path}.weight"
            parent, _, last = path.rpartition(".")
            model.model.get_submodule(parent)._modules[last] = Int8Linear(stored.pop(name), stored.pop(name + SCALE))
    model.load_state_dict({**stored, EMBEDDING: table}, assign=True, strict=False)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.lm_head = stepwise._head
    tokens = [*range(100, 140), 7, 7, 40000]
    with torch.inference_mode():
        theirs = model(torch.tensor([tokens])).logits[0].float()
    ours = computed(stepwise, tokens, Layout(64, 128))
    assert float((ours - theirs).abs().max()) < 0.02 * float(theirs.abs().max())
    lost = theirs.amax(-1) - theirs.gather(-1, ours.argmax(-1, keepdim=True))[:, 0]
    assert bool((lost <= 0.01 * theirs.amax(-1)).all())  # where two are a step of bfloat16 apart either may be best
    assert int((lost > 0).sum()) <= 1


@needs_library
def test_compiled_layers_compute_what_torch_does(block: MadeBlock, stepwise: MadeBlock) -> None:
    """Rows that are rounded to bytes before a product move a logit by a hundredth of the largest; the order stays."""
    layout, prompt = Layout(64, 128), [*range(300, 330)]
    tree = drafted([5, 6, 8, 9], [-1, 0, 0, -1], [63, 62, 61, 60], len(prompt), layout)
    for rows in (None, tree):
        ours, theirs = (computed(one, prompt, layout, rows) for one in (block, stepwise))
        apart = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
        assert float(apart.median()) < 0.05
        best = theirs.topk(8, dim=-1).indices
        assert float((best == ours.argmax(-1)[:, None]).any(-1).float().mean()) == 1.0


@needs_library
@pytest.mark.parametrize("stored", ["int8", "bfloat16"])
def test_other_weights_are_computed_by_both_ways_alike(
    made: MadeCheckpoint, block: MadeBlock, stepwise: MadeBlock, stored: str
) -> None:
    shape, tokens, tensors = MadeShape.of(made._made.config), torch.arange(512), made.stored()
    assert shape is not None
    if stored == "int8":
        tensors = in_int8(tensors)
    else:
        tensors = {n: unpacked(t).bfloat16() if t.dtype == torch.uint8 else t for n, t in tensors.items()}
    rows = RowTable(made._target, EMBEDDING, torch.bfloat16)
    quick, slow = (MadeBlock(shape, tensors, rows, tokens, lib) for lib in (library(), None))
    assert quick._together is not None and slow._together is None
    layout, prompt = Layout(64, 128), [*range(300, 340)]
    ours, theirs = (computed(one, prompt, layout) for one in (quick, slow))
    assert float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).median()) < 0.06


@pytest.mark.parametrize("way", ["block", "stepwise"])
def test_drafted_rows_see_their_branch_alone(way: str, request: pytest.FixtureRequest) -> None:
    block: MadeBlock = request.getfixturevalue(way)
    layout, prompt = Layout(64, 128), [*range(300, 330)]
    # Two branches behind the prompt, 5 6 and 5 8, and another root 9.
    tree = drafted([5, 6, 8, 9], [-1, 0, 0, -1], [63, 62, 61, 60], len(prompt), layout)
    found = computed(block, prompt, layout, tree)
    for row, path in enumerate(([5], [5, 6], [5, 8], [9])):
        alone = computed(block, [*prompt, *path], layout)[-1]
        assert int(alone.argmax()) == int(found[row].argmax())
        assert float((alone - found[row]).abs().max()) < 0.02 * float(alone.abs().max())


def test_it_drafts_as_the_usual_way_does(made: MadeCheckpoint, block: MadeBlock) -> None:
    tokens = made.head_tokens()
    assert tokens is not None
    usual = load_block(made, 0, made.manifest.n_layers, CPU, torch.bfloat16, blocked=False)
    usual.narrow_head(tokens)
    pack_linears(usual.loaded.model)
    said = []
    for one in (usual, block):
        drafter = LmDrafter(one, tokens, context=256)
        drafter.begin([*range(100, 140)], Sampling())
        said.append(drafter._text.root.ranks or ())
    # The usual way rounds matrices of four bits to eight with one scale a row.
    assert said[0][0].token == said[1][0].token
    ours, theirs = ({child.token: child.confidence for child in ranks} for ranks in said)
    assert len(set(ours) & set(theirs)) >= 6
    assert all(abs(ours[token] - theirs[token]) < 0.02 for token in set(ours) & set(theirs))


def test_the_shipped_drafter_is_computed_by_it(made: MadeCheckpoint, store: ModelStore) -> None:
    lm = load_drafter(None, made._target, load_tokenizer(DEFAULT_MODEL, store), store, CPU)
    assert isinstance(lm, LmDrafter) and isinstance(lm.block, MadeBlock)
    assert lm.another().block is lm.block


Change = Callable[[dict[str, torch.Tensor]], object]
Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


@pytest.mark.parametrize(
    "change, error, said",
    [
        (lambda t: t.pop(NORM), UsageError, f"lacks {NORM}"),
        (lambda t: t.pop(Q + SCALE), UsageError, f"lacks {Q}{SCALE}"),
        (lambda t: t.update({Q: t[Q][:-1]}), UsageError, f"do not fit its config: expected .* for {Q}"),
        (lambda t: t.update({Q + SCALE: t[Q + SCALE] * 0}), UsageError, "a finite scale for each row"),
        (lambda t: t.update({Q + SCALE: t[Q + SCALE] * torch.nan}), UsageError, "a finite scale for each row"),
        (lambda t: t.update({NORM: t[NORM] * torch.inf}), ModelError, f"finite numbers in {NORM}"),
        (
            lambda t: t.update({"model.layers.20.mlp.x.weight": t[NORM]}),
            UsageError,
            "expected no tensor model.layers.20",
        ),
    ],
)
def test_torn_files_are_refused(made: MadeCheckpoint, change: Change, error: type[Exception], said: str) -> None:
    shape, tensors = MadeShape.of(made._made.config), in_int8(made.stored())
    assert shape is not None
    change(tensors)
    rows = RowTable(made._target, EMBEDDING, torch.bfloat16)
    with pytest.raises(error, match=said):
        MadeBlock(shape, tensors, rows, torch.arange(64))


def test_torn_matrices_of_four_bits_are_refused(made: MadeCheckpoint) -> None:
    shape, rows = MadeShape.of(made._made.config), RowTable(made._target, EMBEDDING, torch.bfloat16)
    assert shape is not None
    whole = made.stored()
    step = whole[Q].clone()
    step[3, 20:22] = torch.tensor([0, 0x7C], dtype=torch.uint8)  # a step of infinity, as binary16 has it
    for torn, error, said in (
        (whole[Q][:, :-20], UsageError, f"do not fit its config: expected .* for {Q}"),
        (step, ModelError, f"finite numbers in {Q}"),
    ):
        with pytest.raises(error, match=said):
            MadeBlock(shape, {**whole, Q: torn}, rows, torch.arange(64))


@pytest.mark.parametrize(
    "other",
    [
        {"model_type": "qwen3"},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": False},
        {"rope_parameters": {"rope_theta": 1e5, "rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"head_dim": None},
        {"num_key_value_heads": 2},
        {"hidden_size": 580},
        {"num_hidden_layers": "20"},
    ],
)
def test_other_kinds_are_left_to_transformers(made: MadeCheckpoint, other: dict[str, Any]) -> None:
    assert MadeShape.of({**made._made.config, **other}) is None
    changed = replace(made._made, config={**made._made.config, **other})
    if "hidden_size" not in other:
        assert MadeCheckpoint(changed, made._target).block() is None


def test_rows_of_a_table_are_those_of_the_whole(made: MadeCheckpoint) -> None:
    target = made._target
    whole = target.read(EMBEDDING, torch.bfloat16)
    table = RowTable(target, EMBEDDING, torch.bfloat16)
    for ids in ([5], [0, 49151, 5, 5], [], [49151]):
        assert torch.equal(table.rows(torch.tensor(ids, dtype=torch.int64)), whole[ids])
    with pytest.raises(IndexError):
        table.rows(torch.tensor([len(whole)]))
    with pytest.raises(ModelError, match="does not have"):
        target.read_rows(EMBEDDING, torch.tensor([-1]), torch.bfloat16)
    assert target.read_rows(EMBEDDING, torch.tensor([3, 1]), torch.float32).equal(  # type: ignore[union-attr]
        target.read(EMBEDDING, torch.float32)[[3, 1]]
    )


def test_bytes_are_unpacked_as_the_gguf_library_does(made: MadeCheckpoint) -> None:
    import gguf
    import numpy as np

    stored = np.random.default_rng(3).integers(0, 256, (5, 2 * 34), np.uint8)
    stored[:, [1, 35]] = [[0x00, 0x7B], [0x80, 0x3C], [0x03, 0x83], [0x14, 0xBC], [0x7B, 0x00]]  # finite scales
    whole = gguf.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)
    assert _of_bytes(stored, 32).numpy().tobytes() == whole.tobytes()
