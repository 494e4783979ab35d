"""EAGLE-3, DFlash, DSpark and Medusa drafters against their computation over the whole text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from draft.base import ROOT, Child, DraftNode, DraftStep, Expansion
from draft.dflash import BlockDrafter
from draft.eagle3 import Eagle3Drafter
from draft.medusa import MedusaDrafter
from draft.tapped_folder import TappedDrafter, load_tapped, read_tapped
from draft.tapped_layer import LayerShape, TappedLayer
from draft.taps import MOST_ROWS, ReadsTaps, TapStore, at_position
from swarm.base.errors import ModelError
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.sampler import Sampling, gumbel
from tests.draft.tapped import (
    BLOCK,
    OWN_VOCAB,
    BlockReference,
    Eagle3Reference,
    MedusaReference,
    own_ids,
    rows_of,
    save_block,
    save_eagle3,
    save_medusa,
)
from tests.swarm.model.tiny import random_model, tiny_config

PROMPT = [5, 9, 33, 12, 70, 8, 41]
N_LAYERS = 6


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    model, folder = random_model(tiny_config("llama")), tmp_path_factory.mktemp("target")
    model.save_pretrained(folder)
    return model, folder


def loaded(folder: Path, target: Path) -> TappedDrafter:
    found = read_tapped(folder, N_LAYERS)
    assert found is not None
    return load_tapped(found, open_model(str(target), ModelStore(target.parent / "s")), torch.float32, 200)


class Fed:
    """A drafter and what stages would send it: the rows of a text as they were computed."""

    def __init__(self, drafter: TappedDrafter, model: Any) -> None:
        assert isinstance(drafter, ReadsTaps)
        self.drafter, self.model = drafter, model
        self.text: list[int] = []

    def begin(self, prompt: Sequence[int], sampling: Sampling = Sampling()) -> None:  # noqa: B008
        self.text = list(prompt)
        self.drafter.begin(prompt, sampling)

    def send(self, names: Sequence[tuple[int, int]], text: Sequence[int] | None = None) -> None:
        """Rows of positions, each under its name."""
        rows = rows_of(self.model, text or self.text, self.drafter.layers)
        for name, position in names:
            self.drafter.store.put(name, rows[position])

    def prompt_rows(self, first: int = 0) -> None:
        self.send([(at_position(p), p) for p in range(first, len(self.text) - 1)])

    def step(self, **changes: Any) -> dict[int, Expansion]:
        return {found.id: found for found in self.drafter.step(DraftStep(**changes))}


def firsts(expansion: Expansion) -> list[int]:
    return [level[0].token for level in expansion.levels]


def same(level: Sequence[Child], scores: torch.Tensor) -> None:
    shares = torch.softmax(scores, -1)
    best = shares.argsort(descending=True)[: len(level)]
    assert [child.token for child in level] == own_ids(97)[best].tolist()
    torch.testing.assert_close(torch.tensor([c.confidence for c in level]), shares[best], atol=1e-5, rtol=1e-3)


def same_shares(levels: Sequence[Sequence[Child]], shares: torch.Tensor) -> None:
    assert len(levels) == len(shares)
    for level, share in zip(levels, shares, strict=True):
        assert [child.token for child in level] == share.argsort(descending=True)[: len(level)].tolist()
        torch.testing.assert_close(
            torch.tensor([c.confidence for c in level]), share[[c.token for c in level]], atol=1e-5, rtol=1e-3
        )


@pytest.mark.parametrize(("form", "blocks"), [("authors", 1), ("authors", 2), ("vllm", 2)])
def test_medusa_heads_draft_as_their_makers_have_it(
    target: tuple[LlamaForCausalLM, Path], tmp_path: Path, form: str, blocks: int
) -> None:
    model, folder = target
    save_medusa(tmp_path / "d", model.config, form, blocks=blocks)
    drafter = loaded(tmp_path / "d", folder)
    assert isinstance(drafter, MedusaDrafter) and drafter.layers == (N_LAYERS,) and len(drafter.heads) == 3
    fed, reference = Fed(drafter, model), MedusaReference(model, tmp_path / "d", form)
    fed.begin(PROMPT)
    assert fed.step(expand=(ROOT,), depth=3)[ROOT].levels == ()  # no row is here, and none was asked for
    drafter.store.expect([at_position(5)])
    assert fed.step(expand=(ROOT,)) == {}  # it is on its way
    fed.send([(at_position(5), 5)])
    shares = reference.shares(PROMPT[:-1])
    same_shares(fed.step(expand=(ROOT,), depth=4)[ROOT].levels, shares)
    same_shares(fed.step(expand=(ROOT,), depth=1)[ROOT].levels, shares[:1])
    # Drafted tokens: by the heads further on, whoever proposed them; none is left behind the last.
    branch = (DraftNode(7, ROOT, 50, 7), DraftNode(8, 7, 51, 8), DraftNode(9, 8, 52, 9))
    found = fed.step(nodes=branch, expand=(7, 8, 9), depth=3)
    same_shares(found[7].levels, shares[1:])
    same_shares(found[8].levels, shares[2:])
    assert found[9].levels == ()
    # A drafted token's row that is here early is nearer; committed ones keep theirs.
    fed.send([(7, 7)], [*PROMPT, 50])
    same_shares(fed.step(expand=(8,), depth=3)[8].levels, reference.shares([*PROMPT, 50]))
    committed = (DraftNode(7, ROOT, 50, 7), DraftNode(8, 7, 51, 8))
    same_shares(fed.step(committed=committed, expand=(8,), depth=3)[8].levels, reference.shares([*PROMPT, 50]))
    # With a temperature: the noise of the drawing.
    fed.begin(PROMPT, Sampling(temperature=0.9, seed=3))
    fed.send([(at_position(5), 5)])
    ((first, *_), *_) = fed.step(expand=(ROOT,), depth=3)[ROOT].levels
    noise = torch.from_numpy(gumbel(3, 7, 97))
    assert first.token == int((shares[0].log() / 0.9 + noise).argmax())


def test_medusa_heads_made_for_another_model_are_refused(target: tuple[LlamaForCausalLM, Path], tmp_path: Path) -> None:
    model, folder = target
    for number, (name, tensor, why) in enumerate(
        (
            ("0.0.linear.weight", torch.zeros(16, 16), r"0.0.linear.weight of shape \[48, 48\]"),
            ("1.1.weight", torch.zeros(5, 48), r"1.1.weight of shape \[97, 48\]"),
            ("1.1.weight", None, r"the scores of head 1 of shape \[97, 48\].*, found none"),
            ("0.0.linear.bias", torch.full((48,), float("nan")), "finite numbers in 0.0.linear.bias"),
            ("17.1.weight", torch.zeros(97, 48), "at most 16 heads"),
            ("token_map", torch.arange(97) % 5, "each once"),
            ("token_map", torch.arange(97) + 1, "ids of the target"),
            ("token_map", torch.zeros(97), "ids of the target"),
        )
    ):
        place = tmp_path / str(number)
        save_medusa(place, model.config)
        tensors = load_file(place / "model.safetensors")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
        save_file(tensors, place / "model.safetensors")
        with pytest.raises(ModelError, match=why):
            loaded(place, folder)


FORMS = [
    ("authors", {}),
    ("speculators", {"norm_before_residual": True}),
    ("speculators", {"norm_before_fc": True, "norm_output": True}),
    ("speculators", {"fc_norm": True}),
]


@pytest.mark.parametrize(("form", "flags"), FORMS)
def test_an_eagle3_head_drafts_as_its_makers_have_it(
    target: tuple[LlamaForCausalLM, Path], tmp_path: Path, form: str, flags: dict[str, Any]
) -> None:
    model, folder = target
    save_eagle3(tmp_path / "d", model.config, form, **flags)
    drafter = loaded(tmp_path / "d", folder)
    assert isinstance(drafter, Eagle3Drafter)
    fed = Fed(drafter, model)
    reference = Eagle3Reference(model, tmp_path / "d", [1, 3, 4] if form == "authors" else [4, 1, 2])
    fed.begin(PROMPT)
    assert fed.step(expand=(ROOT,), depth=3) == {}  # nothing is known of the text yet
    fed.prompt_rows()
    found = fed.step(expand=(ROOT,), depth=4)[ROOT]
    path = list[int]()
    for level in found.levels:
        same(level, reference.scores(PROMPT, path))
        path.append(level[0].token)
    assert len(path) == 4
    # A branch that somebody else proposed, and then one that was right after all.
    other = (DraftNode(7, ROOT, 50, 7), DraftNode(8, 7, 51, 8))
    found = fed.step(nodes=other, expand=(8,), depth=1)[8]
    same(found.levels[0], reference.scores(PROMPT, [50, 51]))
    fed.text = [*PROMPT, 50]
    fed.drafter.store.expect([ROOT])
    committed = (DraftNode(7, ROOT, 50, 7),)
    assert fed.step(committed=committed, expand=(7,)) == {}  # its row is on the way
    fed.send([(ROOT, 6)])
    same(fed.step(expand=(7,))[7].levels[0], reference.scores(fed.text, []))
    # Rows that never come: what the head made itself serves, and later rows make it right again.
    fed.text = [*fed.text, 51, 60]
    node = DraftNode(20, 8, 60, 9)
    assert fed.step(committed=(DraftNode(8, 7, 51, 8),), nodes=(node,), expand=(20,))[20].levels
    fed.step(committed=(node,))
    fed.send([(7, 7), (8, 8)])
    same(fed.step(expand=(20,))[20].levels[0], reference.scores(fed.text, []))


def test_an_eagle3_head_reads_a_window_of_a_long_prompt(target: tuple[LlamaForCausalLM, Path], tmp_path: Path) -> None:
    """Rows that were not sent are no gap that anybody sees; of the next text what is the same stays."""
    model, folder = target
    save_eagle3(tmp_path / "d", model.config, "speculators")
    drafter = loaded(tmp_path / "d", folder)
    fed, reference = Fed(drafter, model), Eagle3Reference(model, tmp_path / "d", [4, 1, 2])
    text = [random.Random(3).randrange(97) for _ in range(40)]
    fed.begin(text)
    fed.prompt_rows(first=25)
    same(fed.step(expand=(ROOT,))[ROOT].levels[0], reference.scores(text, [], known=25))
    longer = [*text, 11, 12, 13]
    fed.begin(longer)
    fed.prompt_rows(first=39)  # as a run that took over the first 39 positions is sent
    same(fed.step(expand=(ROOT,))[ROOT].levels[0], reference.scores(longer, [], known=25))
    fed.begin(text[:30])  # and a run of its own, shorter
    fed.prompt_rows()
    same(fed.step(expand=(ROOT,))[ROOT].levels[0], reference.scores(text[:30], []))


def test_sampled_drafts_have_the_noise_of_the_drawing(target: tuple[LlamaForCausalLM, Path], tmp_path: Path) -> None:
    model, folder = target
    save_eagle3(tmp_path / "d", model.config, "speculators")
    fed = Fed(loaded(tmp_path / "d", folder), model)
    said = []
    for seed in range(6):
        fed.begin(PROMPT, Sampling(temperature=1.5, seed=seed))
        fed.prompt_rows()
        said.append(firsts(fed.step(expand=(ROOT,), depth=3)[ROOT])[0])
    assert len(set(said)) > 2


BLOCKS = [
    ("authors", {}),
    ("dflash", {}),
    ("dflash", {"windowed": True}),
    ("dspark", {}),
    ("dspark", {"markov_head_type": "gated"}),
    ("dspark", {"markov_head_type": "rnn", "windowed": True}),
    ("dspark", {"sample_from_anchor": False}),
]


@pytest.mark.parametrize(("kind", "flags"), BLOCKS)
def test_a_block_drafter_drafts_as_its_makers_have_it(
    target: tuple[LlamaForCausalLM, Path], tmp_path: Path, kind: str, flags: dict[str, Any]
) -> None:
    model, folder = target
    taps = [1, 3, 4]
    save_block(tmp_path / "d", model.config, kind, taps, **flags)
    drafter = loaded(tmp_path / "d", folder)
    assert isinstance(drafter, BlockDrafter) and drafter.layers == (1, 3, 4)
    assert drafter.name == ("dspark" if kind == "dspark" else "dflash")
    fed, reference = Fed(drafter, model), BlockReference(model, tmp_path / "d", taps)
    text = [random.Random(4).randrange(97) for _ in range(12)]
    fed.begin(text)
    assert fed.step(expand=(ROOT,)) == {}
    fed.prompt_rows()
    found = firsts(fed.step(expand=(ROOT,), depth=1)[ROOT])
    assert found == reference.firsts(text[:-1], text[-1:])
    assert len(found) == BLOCK - (kind != "dspark" or flags.get("sample_from_anchor") is False)
    # Behind tokens that are not certain: they stand in the block, or where their rows came early, before it.
    nodes = (DraftNode(3, ROOT, 44, 12), DraftNode(4, 3, 45, 13))
    assert firsts(fed.step(nodes=nodes, expand=(4,))[4]) == reference.firsts(text[:-1], [text[-1], 44, 45])
    fed.send([(ROOT, 11), (3, 12)], [*text, 44, 45])
    assert firsts(fed.step(expand=(4,))[4]) == reference.firsts([*text, 44], [45])
    # And when they are right they are part of the text.
    assert firsts(fed.step(committed=nodes, expand=(4,))[4]) == reference.firsts([*text, 44], [45])
    deep = tuple(DraftNode(10 + i, 4 if i == 0 else 9 + i, 20 + i, 14 + i) for i in range(BLOCK))
    assert fed.step(nodes=deep, expand=(14,)) == {}  # the block is full of what is known


def test_what_does_not_fit_is_refused_by_name(target: tuple[LlamaForCausalLM, Path], tmp_path: Path) -> None:
    model, folder = target

    def changed(name: str, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Path:
        save_eagle3(tmp_path / name, model.config, "speculators")
        tensors = load_file(tmp_path / name / "model.safetensors")
        told = json.loads((tmp_path / name / "config.json").read_text())
        change(tensors, told)
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(told))
        return tmp_path / name

    def wide(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
        tensors["fc.weight"] = torch.zeros(48, 2 * 48)

    def far(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
        told["eagle_aux_hidden_state_layer_ids"] = [1, 2, 6]

    def beyond(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
        tensors["d2t"] = tensors["d2t"] + 90

    def other(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
        told["transformer_layer_config"]["model_type"] = "gpt2"

    def lacking(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
        del tensors["layers.0.self_attn.o_proj.weight"]

    for change, why in (
        (wide, "fc.weight of shape"),
        (far, "rows behind layers 1 to 5"),
        (beyond, "d2t to name"),
        (other, "llama's or qwen3's kind"),
        (lacking, "o_proj.weight of shape"),
    ):
        with pytest.raises(ModelError, match=why):
            loaded(changed(change.__name__, change), folder)
    save_eagle3(tmp_path / "plain", model.config, "authors")
    told = json.loads((tmp_path / "plain" / "config.json").read_text())
    del told["eagle_config"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(told))
    found = read_tapped(tmp_path / "plain", 12)
    assert found is not None and found.taps == (2, 6, 9)  # what its authors' code reads where nothing is said
    with pytest.raises(ModelError, match="a drafter's layer with silu, found 'gelu'"):
        TappedLayer({}, LayerShape(1, 1, 8, 1e-6), "gelu")
    assert read_tapped(tmp_path / "nowhere", 6) is None and read_tapped(folder, 6) is None
    (tmp_path / "wide" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot read the drafter"):
        read_tapped(tmp_path / "wide", 6)


def test_the_store_of_rows_is_bounded() -> None:
    store = TapStore()
    store.expect([1, 2])
    for name in range(MOST_ROWS + 10):
        store.put(name, torch.zeros(1))
    assert store.look(5) is None and store.look(MOST_ROWS) is not None and not store.awaits(1)
    assert store.take(-9, 20) is not None and store.take(20) is None
    store.clear()
    assert store.look(MOST_ROWS) is None
    assert OWN_VOCAB < 97
