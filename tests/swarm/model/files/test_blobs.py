"""Weights by digest, from one node's files into another node's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm.base.errors import ModelError
from swarm.model.block import load_block
from swarm.model.files import blobs
from swarm.model.files.blobs import CHUNK, Blob, BlobSource, TensorSink, blobs_of, keep_blobs, open_blobs
from swarm.model.files.checkpoint import load_tokenizer, open_model
from swarm.model.files.local import open_folder, open_gguf
from swarm.model.files.manifest import parse_manifest
from swarm.model.files.store import ModelStore
from tests.swarm.model.gguf_files import write_gguf
from tests.swarm.model.tiny import CPU, random_model, tiny_config


@pytest.fixture(params=["gguf", "safetensors"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    config = tiny_config("llama")
    config.intermediate_size = 6000  # over a chunk in one tensor
    model = random_model(config)
    if request.param == "gguf":
        write_gguf(tmp_path / "m.gguf", model, "llama")
        return open_gguf(tmp_path / "m.gguf", "m", tmp_path / "kept")
    model.save_pretrained(tmp_path / "m", max_shard_size="5MB")
    return open_folder(tmp_path / "m", "m", tmp_path / "kept")


def test_a_block_computes_from_fetched_blobs(source: Any, tmp_path: Path) -> None:
    manifest = parse_manifest(source.manifest.to_bytes())  # as it came over the wire
    sink = TensorSink(tmp_path / "blobs")
    wanted = blobs_of(manifest, 2, 4)
    assert sink.missing(wanted) == wanted
    keep_blobs(BlobSource(source), sink, wanted)
    assert sink.missing(wanted) == ()
    checkpoint = open_blobs(manifest, sink.folder)
    block, right = (load_block(c, 2, 4, CPU, torch.float32) for c in (checkpoint, source))
    for (name, found), (_, expected) in zip(
        block.loaded.model.state_dict().items(), right.loaded.model.state_dict().items(), strict=True
    ):
        assert torch.equal(found, expected), name
    stored = sum(p.stat().st_size for p in sink.folder.iterdir())
    assert stored < sum(t.nbytes for t in manifest.tensors) * 0.75
    with pytest.raises(ModelError, match="is not on this machine"):
        load_block(checkpoint, 5, 6, CPU, torch.float32)
    # What was fetched can be served on.
    again = TensorSink(tmp_path / "again")
    keep_blobs(BlobSource(checkpoint), again, wanted)
    assert {p.name for p in again.folder.iterdir()} == {p.name for p in sink.folder.iterdir()}


def test_the_store_keeps_what_came_from_peers(source: Any, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    ref = f"sha256:{source.manifest.digest}"
    with pytest.raises(ModelError, match="was fetched from other nodes"):
        open_model(ref, store)
    folder = store.peer_folder(source.manifest)
    keep_blobs(BlobSource(source), TensorSink(folder), blobs_of(source.manifest, 0, 2))
    load_block(open_model(ref, store, layers=(0, 2)), 0, 2, CPU, torch.float32)
    (listed,) = store.list()
    assert (listed.ref, listed.kind, listed.path) == (ref, "peers", folder)
    assert 0 < listed.here_bytes < listed.total_bytes
    assert store.show(ref).digest == source.manifest.digest
    with pytest.raises(ModelError, match="come without a tokenizer"):
        load_tokenizer(ref, store)
    (folder / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ModelError, match="was fetched from other nodes"):
        open_model(ref, store)


def first_large(source: Any) -> tuple[BlobSource, Blob, tuple[str, ...]]:
    served = BlobSource(source)
    blob = next(b for b in served.blobs() if b.nbytes > CHUNK)
    return served, blob, served.chunk_digests(blob.digest)


def test_a_transfer_goes_on_where_it_broke(source: Any, tmp_path: Path) -> None:
    served, blob, digests = first_large(source)
    TensorSink(tmp_path / "b").write(blob, 0, served.read(blob.digest, 0, CHUNK), digests)
    after = TensorSink(tmp_path / "b")
    assert after.have(blob.digest) == CHUNK
    with pytest.raises(ModelError, match=f"a chunk at 0 came where {CHUNK} was next"):
        after.write(blob, 0, served.read(blob.digest, 0, CHUNK), digests)
    keep_blobs(served, after, [w for w in blobs_of(source.manifest, 0, 6) if w.digest == blob.digest])
    assert after.have(blob.digest) == blob.nbytes


def test_a_bad_chunk_is_dropped_and_what_came_before_stays(source: Any, tmp_path: Path) -> None:
    served, blob, digests = first_large(source)
    sink = TensorSink(tmp_path / "b")
    sink.write(blob, 0, served.read(blob.digest, 0, CHUNK), digests)
    rest = min(CHUNK, blob.nbytes - CHUNK)
    with pytest.raises(ModelError, match="is not what its source listed"):
        sink.write(blob, CHUNK, bytes(rest), digests)
    with pytest.raises(ModelError, match="a chunk of"):
        sink.write(blob, CHUNK, bytes(rest + 1), digests)
    assert sink.have(blob.digest) == CHUNK


def test_a_source_that_lies_about_all_chunks_is_caught_by_the_manifest(source: Any, tmp_path: Path) -> None:
    served, blob, _ = first_large(source)
    sink = TensorSink(tmp_path / "b")
    wrong = [bytes(min(CHUNK, blob.nbytes - at)) for at in range(0, blob.nbytes, CHUNK)]
    digests = [blobs.hashlib.sha256(chunk).hexdigest() for chunk in wrong]
    for i, chunk in enumerate(wrong):
        sink.write(blob, i * CHUNK, chunk, digests)
    with pytest.raises(ModelError, match="did not add up to its digest: fetch it from another node"):
        sink.finish(blob)
    assert sink.have(blob.digest) == 0
    with pytest.raises(ModelError, match="did not add up"):
        sink.finish(blob)  # unfinished is not whole


def test_sizes_are_held_to_the_manifest(source: Any) -> None:
    wanted = blobs_of(source.manifest, 0, 6)[0]
    with pytest.raises(ModelError, match="a source says"):
        wanted.sized(wanted.most + 1)
    with pytest.raises(ModelError, match="a source says"):
        wanted.sized(wanted.least - 1)


def test_requests_are_bounded(source: Any) -> None:
    served, blob, _ = first_large(source)
    for offset, length in ((0, CHUNK + 1), (-1, 5), (0, -1), (blob.nbytes - 1, 2)):
        with pytest.raises(ModelError, match="wanted, at most"):
            served.read(blob.digest, offset, length)
    with pytest.raises(ModelError, match="does not hold blob"):
        served.read("0" * 64, 0, 1)


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "/x"])
def test_blob_names_cannot_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="64 hex digits"):
        TensorSink(tmp_path / "b").path(name)


def test_a_manifest_that_points_elsewhere_in_a_blob_is_refused(source: Any, tmp_path: Path) -> None:
    sink = TensorSink(tmp_path / "b")
    keep_blobs(BlobSource(source), sink, blobs_of(source.manifest, 0, 1))
    entry = source.manifest.layer_tensors(0, 1)[-1]
    bent = replace(entry, offset=entry.offset + 4, nbytes=entry.nbytes - 4)
    tensors = tuple(bent if t.name == entry.name else t for t in source.manifest.tensors)
    with pytest.raises(ModelError, match="manifest says"):
        open_blobs(replace(source.manifest, tensors=tensors), sink.folder)
