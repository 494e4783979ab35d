from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import ModelError
from swarm.model.files.manifest import Manifest, TensorEntry, architecture, layer_of, parse_manifest

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 4,
    "vocab_size": 8,
    "max_position_embeddings": 16,
}


def entry(name: str, digest: str = "a", nbytes: int = 64) -> TensorEntry:
    return TensorEntry(name, (4, 4), "F32", nbytes, digest * 64)


TENSORS = (
    entry("model.embed_tokens.weight"),
    entry("model.layers.0.mlp.experts.7.w1.weight"),
    entry("model.layers.1.self_attn.q_proj.weight", nbytes=32),
    entry("model.norm.weight"),
    entry("lm_head.weight"),
)
MANIFEST = Manifest("tiny", CONFIG, TENSORS)


def test_the_digest_never_changes() -> None:
    assert MANIFEST.digest == "d318390d063dbe73af501343a75972a2406f4d9bdad3ed4af21ecbdd7faac892"


def test_the_digest_ignores_name_and_order_but_nothing_else() -> None:
    assert replace(MANIFEST, model="other").digest == MANIFEST.digest
    assert replace(MANIFEST, tensors=TENSORS[::-1]).digest == MANIFEST.digest
    assert replace(MANIFEST, config={**CONFIG, "rope_theta": 1e6}).digest != MANIFEST.digest
    for change in (
        {"digest": "b" * 64},
        {"shape": (2, 8)},
        {"format": "BF16"},
        {"nbytes": 65},
        {"offset": 1},
        {"name": "x"},
    ):
        changed = (replace(TENSORS[0], **change), *TENSORS[1:])  # type: ignore[arg-type]
        assert replace(MANIFEST, tensors=changed).digest != MANIFEST.digest


def test_a_layer_range_has_its_own_tensors_and_digest() -> None:
    names = [t.name for t in MANIFEST.layer_tensors(0, 1)]
    assert names == ["model.embed_tokens.weight", "model.layers.0.mlp.experts.7.w1.weight"]
    assert {t.name for t in MANIFEST.layer_tensors(1, 2)} == {
        "model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight",
    }  # fmt: skip
    assert MANIFEST.layer_bytes(1) == 32
    digests = {MANIFEST.weights_digest(0, 1), MANIFEST.weights_digest(1, 2), MANIFEST.weights_digest(0, 2)}
    assert len(digests) == 3
    tied = replace(MANIFEST, tensors=TENSORS[:4])  # no head of its own: the last stage needs the embedding
    assert "model.embed_tokens.weight" in {t.name for t in tied.layer_tensors(1, 2)}


@pytest.mark.parametrize("first, last", [(0, 3), (1, 1), (-1, 1), (2, 1)])
def test_layers_outside_the_model_are_refused_with_its_range(first: int, last: int) -> None:
    with pytest.raises(ModelError, match=f"layers {first}:{last} are not in tiny, which has layers 0:2"):
        MANIFEST.layer_tensors(first, last)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.experts.3.w2.weight", 12), ("transformer.h.0.ln_1.bias", 0), ("h.5.attn.weight", 5),
        ("gpt_neox.layers.3.attention.dense.weight", 3), ("model.norm.weight", None), ("transformer.wte.weight", None),
    ],
)  # fmt: skip
def test_layer_of_a_tensor(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_architecture_drops_what_differs_between_copies() -> None:
    raw = {
        **CONFIG,
        "transformers_version": "4.1",
        "torch_dtype": "bfloat16",
        "_name_or_path": "/home/x",
        "use_cache": True,
    }
    assert architecture(raw) == CONFIG


def test_missing_numbers_are_named() -> None:
    with pytest.raises(ModelError, match="must state hidden_size"):
        _ = replace(MANIFEST, config={"num_hidden_layers": 2}).hidden_size


@given(
    st.lists(
        st.builds(
            TensorEntry,
            name=st.text(max_size=20),
            shape=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
            format=st.text(max_size=8),
            nbytes=st.integers(0, 2**50),
            digest=st.text("0123456789abcdef", min_size=64, max_size=64),
            offset=st.integers(0, 2**50),
        ),
        max_size=5,
        unique_by=lambda t: t.name,
    )
)
def test_manifests_survive_bytes(tensors: list[TensorEntry]) -> None:
    manifest = Manifest("m", CONFIG, tuple(tensors))
    again = parse_manifest(manifest.to_bytes())
    assert again.digest == manifest.digest
    assert again.entries == manifest.entries


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)).map(
        lambda v: json.dumps(v).encode()
    )
)
def test_other_bytes_are_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        parse_manifest(data)


@pytest.mark.parametrize(
    "change", [{"digest": "xyz"}, {"nbytes": -1}, {"offset": -4}, {"shape": [1] * 9}, {"shape": "ab"}, {"nbytes": None}]
)
def test_impossible_entries_are_refused(change: dict[str, object]) -> None:
    body = json.loads(MANIFEST.to_bytes())
    body["tensors"][0].update(change)
    with pytest.raises(ModelError, match="malformed"):
        parse_manifest(json.dumps(body).encode())


def test_a_tensor_named_twice_is_refused() -> None:
    body = json.loads(MANIFEST.to_bytes())
    body["tensors"].append(body["tensors"][0])
    with pytest.raises(ModelError, match="twice"):
        parse_manifest(json.dumps(body).encode())


@pytest.mark.parametrize("kind", [{"rope_type": "longrope"}, {"type": "longrope"}, {"type": "su"}])
@pytest.mark.parametrize("table", ["rope_parameters", "rope_scaling"])
def test_a_longrope_text_ends_where_its_frequencies_change(table: str, kind: dict[str, str]) -> None:
    key, large = "original_max_position_embeddings", {**CONFIG, "max_position_embeddings": 1 << 17}

    def context(own: dict[str, int], inside: dict[str, int]) -> int:
        manifest = replace(MANIFEST, config={**large, **own, table: {**kind, **inside}})
        assert manifest.positions == 1 << 17
        return manifest.context

    assert context({key: 8192}, {}) == 8192
    assert context({key: 64}, {key: 32}) == context({key: 32}, {key: 64}) == 32
    assert context({}, {key: 64}) == 64
    assert context({}, {}) == 4096  # what Phi-3 takes for it


@pytest.mark.parametrize("rope", [None, {"rope_type": "default"}, {"rope_type": "llama3", "type": "llama3"}])
def test_other_rotary_kinds_leave_the_context_whole(rope: dict[str, str] | None) -> None:
    config = {**CONFIG, "rope_scaling": rope, "original_max_position_embeddings": 8}
    assert replace(MANIFEST, config=config).context == 16
