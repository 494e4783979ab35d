"""GGUF models of a hub, against its stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.base.errors import ModelError
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from tests.swarm.model.files.test_hub import REPO, Hub
from tests.swarm.model.files.test_hub import hub as hub
from tests.swarm.model.gguf_files import write_gguf
from tests.swarm.model.tiny import random_model, tiny_config


@pytest.fixture
def packed(hub: Hub) -> Hub:
    """Two models, one in parts; and one that cannot be read."""
    for path in hub.folder.iterdir():
        path.unlink()
    config = tiny_config("llama")
    config.vocab_size, config.intermediate_size = 2000, 1600
    model = random_model(config)
    write_gguf(hub.folder / "tiny-Q8_0.gguf", model, "llama", kind="F16")
    write_gguf(hub.folder / "tiny-F32.gguf", model, "llama", split=20)
    write_gguf(hub.folder / "tiny-odd.gguf", model, "llama", {"logit_scale": 0.5, "general.name": "x" * 3_000_000})
    return hub


def test_a_set_is_chosen_fetched_and_opened(packed: Hub, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", endpoint=packed.endpoint, hub_cache=tmp_path / "cache")
    ref = f"{REPO}:F32"
    here = open_model(str(sorted(packed.folder.glob("tiny-F32-*"))[0]), store)
    assert open_model(ref, store).manifest.digest == here.manifest.digest
    assert not any("Q8_0" in name for name in packed.sent)
    packed.sent.clear()
    assert open_model(ref, store, offline=True).manifest.n_layers == 6
    assert store.show(ref).digest == here.manifest.digest and packed.sent == {}
    assert store.tokenizer_source(ref).name.startswith("tiny-F32-00001")


def test_a_file_that_is_not_what_the_hub_lists_is_refused(packed: Hub, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", endpoint=packed.endpoint, hub_cache=tmp_path / "cache")
    packed.lie = "tiny-Q8_0.gguf"
    with pytest.raises(ModelError, match="the hub says"):
        open_model(f"{REPO}:Q8_0", store)


def test_what_cannot_be_read_is_refused_before_it_is_fetched(packed: Hub, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", endpoint=packed.endpoint, hub_cache=tmp_path / "cache")
    for look in (store.show, store.pull):
        with pytest.raises(ModelError, match=r"llama\.logit_scale = 0\.5"):
            look(f"{REPO}:tiny-odd.gguf")
    with pytest.raises(ModelError, match="is not on this machine"):
        store.show(f"{REPO}:F32")
    assert packed.sent["tiny-odd.gguf"] <= 8 << 20 < (packed.folder / "tiny-odd.gguf").stat().st_size
    with pytest.raises(ModelError, match="'Q4_K_M' means 0 GGUF models of org/tiny, which holds tiny-F32-00001"):
        open_model(f"{REPO}:Q4_K_M", store)
    with pytest.raises(ModelError, match=f"{REPO} holds GGUF files: name one, as in {REPO}:tiny-F32-00001"):
        open_model(REPO, store)
    sorted(packed.folder.glob("tiny-F32-*"))[1].unlink()
    with pytest.raises(ModelError, match="lacks tiny-F32-00002-of-"):
        open_model(f"{REPO}:F32", store)
    with pytest.raises(ModelError, match="not on this machine and downloads are off"):
        open_model(f"{REPO}:Q8_0", store, offline=True)
