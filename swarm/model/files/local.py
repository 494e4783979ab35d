"""Checkpoints from what lies on this machine: a GGUF file, or a folder with config.json and safetensors.

Making a manifest reads every byte once, for the digests; it is kept beside the store and used again while the files
keep their size and time of change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swarm.base.errors import ModelError
from swarm.base.events import Progress, Report, silent
from swarm.model.files import gguf_split, safetensors_file
from swarm.model.files.files import inside, keep, read_bounded, sha256_file
from swarm.model.files.known import Notes, stamp_of
from swarm.model.files.manifest import Manifest, TensorEntry, architecture, parse_manifest
from swarm.model.files.weights import FileCheckpoint, Place

MAX_CONFIG = 16 << 20
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def open_gguf(path: Path, name: str, kept: Path, report: Report = silent) -> FileCheckpoint:
    """A GGUF file, or the set of files that `path` is a part of, as a checkpoint. The manifest does not depend on how
    the model is split. `kept`: folder for the manifest. Raises ModelError."""
    notes, parts = Notes(kept), [path.parent / part for part in gguf_split.part_names(path.name)]
    if (found := _recall_gguf(kept, notes, parts, name)) is not None:
        return found
    # Names of GGUF tensors are those of the model that transformers builds: seconds of a processor, so once a file.
    from swarm.model.files import gguf_families, gguf_map

    header = gguf_split.read_set(path)
    config = architecture(gguf_families.transformers_config(header, str(path)))
    places: dict[str, Place] = {}
    entries: list[TensorEntry] = []
    for piece in gguf_map.pieces(header, config, str(path)):
        places[piece.name] = Place(piece.source.path, piece.offset)
        entries.append(TensorEntry(piece.name, piece.shape, f"gguf:{piece.kind}", piece.nbytes, "0" * 64))
    files = sorted({tensor.path for tensor in header.tensors.values()} | {path})
    manifest = _recall(kept, files, name)
    if manifest is None or manifest.config != config or {e.name for e in entries} != set(manifest.entries):
        manifest = Manifest(name, config, tuple(_digested(path, entries, places, report)))
        _keep(kept, files, manifest)
    lies = {name: [parts.index(place.path), place.offset] for name, place in places.items()}
    notes.write(f"places-{stamp_of(parts)}", {"manifest": manifest.digest, "files": stamp_of(files), "lies": lies})
    return FileCheckpoint(manifest, places)


def _recall_gguf(kept: Path, notes: Notes, parts: Sequence[Path], name: str) -> FileCheckpoint | None:
    """What `open_gguf` made of the same files before."""
    try:
        note = notes.read(f"places-{stamp_of(parts)}")
        manifest = _recalled(kept, note["files"], name)
        if manifest is None or manifest.digest != note["manifest"] or set(note["lies"]) != set(manifest.entries):
            return None
        places = {name: Place(parts[int(part)], int(offset)) for name, (part, offset) in note["lies"].items()}
    except (OSError, KeyError, TypeError, ValueError, IndexError):
        return None  # nothing was kept, or it is damaged
    return FileCheckpoint(manifest, places)


def _digested(
    path: Path, entries: Sequence[TensorEntry], places: Mapping[str, Place], report: Report
) -> list[TensorEntry]:
    """The entries with the SHA-256 of their stored bytes."""
    total, done, result = sum(e.nbytes for e in entries), 0, []
    by_file: dict[Path, list[TensorEntry]] = {}
    for entry in sorted(entries, key=lambda e: places[e.name].offset):
        by_file.setdefault(places[entry.name].path, []).append(entry)
    for source in sorted(by_file):
        try:
            with source.open("rb") as file:
                for entry in by_file[source]:
                    file.seek(places[entry.name].offset)
                    digest = hashlib.sha256()
                    for start in range(0, entry.nbytes, 4 << 20):
                        digest.update(file.read(min(4 << 20, entry.nbytes - start)))
                    done += entry.nbytes
                    report(Progress("load", f"digests of {path.name}", done, total))
                    result.append(replace(entry, digest=digest.hexdigest()))
        except OSError as exc:
            raise ModelError(f"cannot read {source}: {exc.strerror}") from exc
    return result


def open_folder(folder: Path, name: str, kept: Path, report: Report = silent) -> FileCheckpoint:
    """A folder as `save_pretrained` or a model hub lays it out. Raises ModelError."""
    config = read_config(folder)
    names = shard_names(folder)
    paths = [inside(folder, shard) for shard in names]
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{folder} lacks {path.name}, which its index names: copy the whole model")
    manifest = _recall(kept, [folder / "config.json", *paths], name)
    headers = {shard: safetensors_file.read_header(path) for shard, path in zip(names, paths, strict=True)}
    if manifest is None:
        digests = {shard: sha256_file(path, report) for shard, path in zip(names, paths, strict=True)}
        manifest = safetensors_manifest(name, config, {s: h[1] for s, h in headers.items()}, digests)
        _keep(kept, [folder / "config.json", *paths], manifest)
    return FileCheckpoint(manifest, safetensors_places(folder, headers))


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json without volatile keys. Raises ModelError."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: a model folder has one beside its safetensors files")
    return architecture(_json(folder / "config.json"))


def shard_names(folder: Path) -> list[str]:
    """The safetensors files of a folder, sorted; from the index if there is one. Raises ModelError."""
    if (folder / INDEX).is_file():
        return index_shards(_json(folder / INDEX), str(folder / INDEX))
    if (folder / SINGLE).is_file():
        return [SINGLE]
    raise ModelError(f"{folder} has neither {SINGLE} nor {INDEX}: convert the model to safetensors")


def index_shards(index: Mapping[str, Any], where: str) -> list[str]:
    """Sorted file names in an index's weight_map. Raises ModelError, also for names that lead out of the folder."""
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(v, str) for v in mapping.values()):
        raise ModelError(f"{where} has no weight_map of tensor names to files; fetch it again")
    shards = sorted(set(mapping.values()))
    for shard in shards:
        inside(Path(where).parent, shard)
        if not shard.endswith(".safetensors"):
            raise ModelError(f"{where} names {shard}, which is not a safetensors file")
    return shards


def safetensors_manifest(
    name: str,
    config: Mapping[str, Any],
    headers: Mapping[str, Mapping[str, safetensors_file.Stored]],
    digests: Mapping[str, str],
) -> Manifest:
    """A manifest whose blobs are shard files. `headers` and `digests` by shard name. Raises ModelError."""
    entries: dict[str, TensorEntry] = {}
    for shard in sorted(headers):
        for tensor, stored in headers[shard].items():
            if tensor in entries:
                raise ModelError(f"{name} has tensor {tensor} in two files; fetch it again")
            entries[tensor] = TensorEntry(
                tensor, stored.shape, stored.format, stored.nbytes, digests[shard], stored.offset
            )
    return Manifest(name, config, tuple(entries[tensor] for tensor in sorted(entries)))


def safetensors_places(
    folder: Path, headers: Mapping[str, tuple[int, Mapping[str, safetensors_file.Stored]]]
) -> dict[str, Place]:
    """Where the tensors of these shards lie. `headers`: shard name -> (start of tensor data, tensors)."""
    return {
        tensor: Place(folder / shard, start + stored.offset)
        for shard, (start, tensors) in headers.items()
        for tensor, stored in tensors.items()
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bounded(path, MAX_CONFIG))
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path} is not JSON; fetch it again") from exc
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object; fetch it again")
    return value


def _recall(kept: Path, paths: Sequence[Path], name: str) -> Manifest | None:
    return _recalled(kept, stamp_of(paths), name)


def _recalled(kept: Path, stamp: str, name: str) -> Manifest | None:
    try:
        manifest = parse_manifest((kept / f"{stamp}.json").read_bytes())
    except (OSError, ModelError):
        return None
    return replace(manifest, model=name)


def _keep(kept: Path, paths: Sequence[Path], manifest: Manifest) -> None:
    with contextlib.suppress(ModelError):  # then it is made again next time
        keep(kept / f"{stamp_of(paths)}.json", manifest.to_bytes())
