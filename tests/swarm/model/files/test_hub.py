"""Pulling from a hub, against a stand-in on loopback that speaks as much of the hub's protocol as its client asks."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from swarm.base.errors import ModelError
from swarm.base.events import Event, Notice, Progress
from swarm.model.block import load_block
from swarm.model.files.checkpoint import end_tokens, load_tokenizer, open_model
from swarm.model.files.store import ModelStore
from tests.swarm.model.tiny import CPU, random_model, tiny_config

REPO = "org/tiny"


class Hub(ThreadingHTTPServer):
    """One repository. `sent`: bytes of content served per file."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.commit = "1" * 40
        self.sent: dict[str, int] = {}
        self.lie: str | None = None
        self.asked = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def describe(self) -> dict[str, Any]:
        siblings = []
        for path in sorted(self.folder.iterdir()):
            data = path.read_bytes()
            item: dict[str, Any] = {"rfilename": path.name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if path.suffix in (".safetensors", ".gguf"):
                item["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(item)
        return {"id": REPO, "modelId": REPO, "sha": self.commit, "private": False, "siblings": siblings, "tags": []}


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if re.fullmatch(f"/api/models/{REPO}(/revision/(main|{self.server.commit}))?", path):
            self.server.asked += 1
            self.reply(200, json.dumps(self.server.describe()).encode(), {"Content-Type": "application/json"})
            return
        found = re.fullmatch(rf"/{REPO}/resolve/({self.server.commit}|main)/([\w.-]+)", path)
        if found is None or not (self.server.folder / found[2]).is_file():
            code = "EntryNotFound" if path.startswith(f"/{REPO}/") else "RepoNotFound"
            self.reply(404, b"", {"X-Error-Code": code})
            return
        self.file(found[2])

    do_HEAD = do_GET

    def file(self, name: str) -> None:
        data = (self.server.folder / name).read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        if name == self.server.lie:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.commit, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        code, body = 200, data
        if wanted:
            end = min(int(wanted[2]) + 1 if wanted[2] else len(data), len(data))
            code, body = 206, data[int(wanted[1]) : end]
            headers["Content-Range"] = f"bytes {wanted[1]}-{end - 1}/{len(data)}"
        if self.command == "GET":
            self.server.sent[name] = self.server.sent.get(name, 0) + len(body)
        self.reply(code, body, headers)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.utils.close_session()
    folder = tmp_path / "repo"
    config = tiny_config("llama")
    # Shards large enough that reading the start of one is not reading all of it.
    config.vocab_size, config.intermediate_size = 2000, 1600
    random_model(config).save_pretrained(folder, max_shard_size="1000KB")
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    huggingface_hub.utils.close_session()


@pytest.fixture
def store(hub: Hub, tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint=hub.endpoint, hub_cache=tmp_path / "cache")


def shards(hub: Hub) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in hub.folder.glob("*.safetensors")}


def test_only_the_shards_of_the_block_are_fetched(hub: Hub, store: ModelStore) -> None:
    seen: list[Event] = []
    checkpoint = open_model(REPO, store, layers=(2, 4), report=seen.append)
    index = json.loads((hub.folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {shard for name, shard in index.items() if ".layers.2." in name or ".layers.3." in name}
    sizes = shards(hub)
    assert 0 < len(needed) < len(sizes)
    for name, size in sizes.items():
        if name in needed:
            assert hub.sent[name] >= size
        else:
            assert hub.sent[name] <= 100_001 < size  # its header, to know the whole manifest
    load_block(checkpoint, 2, 4, CPU, torch.float32)
    with pytest.raises(ModelError, match="is not on this machine; pull its layers first"):
        load_block(checkpoint, 5, 6, CPU, torch.float32)
    done = {e.what for e in seen if isinstance(e, Progress) and e.step == "download" and e.done == e.total > 0}
    assert {f"{REPO}/{name}" for name in needed} <= done
    (stored,) = store.list()
    assert (stored.ref, stored.here_bytes, stored.total_bytes) == (
        REPO, sum(sizes[n] for n in needed), sum(sizes.values()),
    )  # fmt: skip


def test_a_node_with_one_shard_and_one_with_all_agree_on_the_model(hub: Hub, store: ModelStore, tmp_path: Path) -> None:
    part = open_model(REPO, store, layers=(2, 3)).manifest
    all_of_it = ModelStore(tmp_path / "other", endpoint=hub.endpoint, hub_cache=tmp_path / "other-cache")
    assert open_model(REPO, all_of_it).manifest.digest == part.digest
    assert open_model(str(hub.folder), all_of_it).manifest.digest == part.digest


def test_what_was_pulled_opens_without_the_hub(hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.pull(REPO, layers=(0, 2))
    assert (path / "config.json").is_file()
    before = dict(hub.sent)
    open_model(REPO, store, layers=(0, 2))
    assert hub.sent == before  # nothing is fetched twice
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load_block(open_model(REPO, store, layers=(0, 2)), 0, 2, CPU, torch.float32)
    with pytest.raises(ModelError, match=r"layers 4:6 of org/tiny need .*without HF_HUB_OFFLINE"):
        open_model(REPO, store, layers=(4, 6))
    with pytest.raises(ModelError, match="org/other is not on this machine and downloads are off"):
        open_model("org/other", store)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    gone = ModelStore(store.root, endpoint="http://127.0.0.1:9", hub_cache=store.hub_cache)
    seen: list[Event] = []
    open_model(REPO, gone, layers=(0, 2), report=seen.append)
    assert any(isinstance(e, Notice) and "as pulled before" in e.text for e in seen)


def test_a_commit_is_asked_for_once_and_a_branch_each_time(hub: Hub, store: ModelStore) -> None:
    pinned = f"{REPO}@{hub.commit}"
    digest = open_model(pinned, store, layers=(0, 2)).manifest.digest
    asked = hub.asked
    assert open_model(pinned, store, layers=(0, 3)).manifest.digest == digest  # another layer is fetched, no question
    assert hub.asked == asked
    open_model(REPO, store, layers=(0, 2))
    assert hub.asked > asked
    assert sorted(m.ref for m in store.list()) == [REPO, pinned]
    with pytest.raises(ModelError, match="no model org/tiny@elsewhere on the hub"):
        open_model(f"{REPO}@elsewhere", store)


def test_a_cleared_cache_is_filled_again(hub: Hub, store: ModelStore) -> None:
    open_model(REPO, store, layers=(0, 2))
    assert store.hub_cache is not None
    shutil.rmtree(store.hub_cache)
    load_tokenizer(REPO, store)
    shutil.rmtree(store.hub_cache)
    load_block(open_model(REPO, store, layers=(0, 2)), 0, 2, CPU, torch.float32)


def test_a_cache_that_another_tool_filled_is_used_offline(hub: Hub, store: ModelStore, tmp_path: Path) -> None:
    for path in hub.folder.iterdir():
        huggingface_hub.hf_hub_download(REPO, path.name, endpoint=hub.endpoint, cache_dir=store.hub_cache)
    fresh = ModelStore(tmp_path / "fresh", endpoint="http://127.0.0.1:9", hub_cache=store.hub_cache)
    checkpoint = open_model(REPO, fresh, offline=True)
    assert checkpoint.manifest.digest == open_model(str(hub.folder), fresh).manifest.digest


def test_tokenizer_and_end_tokens_need_no_weights(hub: Hub, store: ModelStore) -> None:
    tokenizer = load_tokenizer(REPO, store)
    assert tokenizer("a")["input_ids"] == [0]
    assert not set(hub.sent) & set(shards(hub))
    checkpoint = open_model(REPO, store, layers=(0, 1))
    assert end_tokens(checkpoint, store, REPO) == {1, 5}


def test_a_shard_that_is_not_what_the_hub_promised_is_refused(hub: Hub, store: ModelStore) -> None:
    index = json.loads((hub.folder / "model.safetensors.index.json").read_text())["weight_map"]
    open_model(REPO, store, layers=(0, 1))
    hub.lie = index["model.layers.5.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match="has SHA-256 .* the hub says .* delete it, pull again"):
        open_model(REPO, store, layers=(5, 6))


def test_an_index_that_leads_out_is_refused(hub: Hub, store: ModelStore) -> None:
    (hub.folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    with pytest.raises(ModelError, match="leads out of the folder"):
        open_model(REPO, store)


def test_models_that_are_not_there_or_have_no_weights(hub: Hub, store: ModelStore) -> None:
    with pytest.raises(ModelError, match="no model org/none on the hub"):
        open_model("org/none", store)
    for path in hub.folder.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(ModelError, match="has no safetensors weights"):
        open_model(REPO, store)
    (hub.folder / "config.json").unlink()
    hub.commit = "2" * 40
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_model(REPO, store)


def test_a_hub_that_does_not_answer(store: ModelStore, tmp_path: Path) -> None:
    gone = ModelStore(tmp_path / "gone", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "gone-cache")
    with pytest.raises(ModelError, match="the hub does not answer"):
        open_model("org/name", gone)


def test_a_method_that_is_not_read_is_refused_before_a_weight_comes(hub: Hub, store: ModelStore) -> None:
    config = json.loads((hub.folder / "config.json").read_text())
    shown = store.show(REPO)  # from small files and the starts of others
    assert shown.n_layers == 6
    assert not any(size > 200_000 for name, size in hub.sent.items() if name.endswith(".safetensors"))
    hub.commit = "2" * 40
    config["quantization_config"] = {"quant_method": "aqlm", "nbits_per_codebook": 16}
    (hub.folder / "config.json").write_text(json.dumps(config))
    hub.sent.clear()
    for ask in (store.show, lambda ref: open_model(ref, store)):
        shutil.rmtree(store.root / "hub", ignore_errors=True)
        with pytest.raises(
            ModelError, match="quantised by 'aqlm', expected fp8, .*take its unquantised weights, a GGUF"
        ):
            ask(REPO)
    weights = sum((hub.folder / name).stat().st_size for name in hub.sent if name.endswith(".safetensors"))
    assert sum(size for name, size in hub.sent.items() if name.endswith(".safetensors")) < weights / 2
