"""Models of a Hugging Face hub: only the shard files that hold a block's tensors are fetched.

The hub states the SHA-256 of every shard and serves the start of a file alone, so the whole manifest is known before
any weight is here. Files live in huggingface_hub's own cache, shared with other tools; what the hub said is kept in
the store, so that a pulled model opens without a network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import HfApi, errors
from tqdm import tqdm  # type: ignore[import-untyped]

from swarm.base.errors import ModelError
from swarm.base.events import Notice, Progress, Report
from swarm.model.files import local, safetensors_file
from swarm.model.files.files import inside, keep, sha256_file
from swarm.model.files.manifest import Manifest, read_manifest
from swarm.model.files.resume import HubFile, bring
from swarm.model.files.schemes import weights_of
from swarm.model.files.weights import FileCheckpoint

_T = TypeVar("_T")
_TIMEOUT_S = 20.0

SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files that are fetched besides weights, where the model has them."""


@dataclass(frozen=True)
class Pulled:
    """What is kept about a hub model: the revision, and per shard [size in bytes, SHA-256]."""

    repo: str
    commit: str
    shards: dict[str, tuple[int, str]]
    checked: tuple[str, ...] = ()


class HubModel:
    """One repository of a hub at one revision.

    ref: "org/name" (its main branch) or "org/name@revision". kept: its folder in the store. cache: None for
    huggingface_hub's own.
    """

    def __init__(self, ref: str, kept: Path, endpoint: str | None, cache: Path | None) -> None:
        self.ref, self.kept, self.cache = ref, kept, cache
        self.repo, _, revision = ref.partition("@")
        self.revision = revision or "main"
        self.endpoint = endpoint
        self.api = HfApi(endpoint=endpoint)

    def open(self, layers: tuple[int, int] | None, report: Report, offline: bool) -> FileCheckpoint:
        """The model with the shards of `layers` (all if None) on this machine. Raises ModelError."""
        offline = offline or huggingface_hub.is_offline_mode()
        pulled, manifest = self._known()
        if not offline and (pulled is None or not self._whole(pulled) or pulled.commit != self.revision):
            try:
                pulled, manifest = self._ask(report)
            except _Unreachable as exc:
                if pulled is None:
                    raise ModelError(str(exc)) from exc
                report(Notice(f"{exc}; using {self.ref} as pulled before", "warning"))
                offline = True
        if pulled is None or manifest is None:
            return self._cached(report)
        weights_of(manifest)  # what cannot be read is refused before it is fetched
        first, last = layers or (0, manifest.n_layers)
        needed = {entry.digest for entry in manifest.stage_tensors(first, last)}
        wanted = [name for name, (_, digest) in pulled.shards.items() if digest in needed]
        if not offline:
            self._fetch(pulled, wanted, report)
        folder = self.folder(pulled.commit)
        present = {s: safetensors_file.read_header(folder / s) for s in pulled.shards if (folder / s).is_file()}
        lacking = sorted(set(wanted) - set(present))
        if lacking:
            raise ModelError(
                f"layers {first}:{last} of {self.ref} need {lacking[0]} ({len(lacking)} files in all), not on this "
                f"machine, and downloads are off: run `swarm model pull {self.ref}` with a network and without "
                "HF_HUB_OFFLINE"
            )
        self._check(pulled, wanted, folder, report)
        self._agree(manifest, present)
        return FileCheckpoint(manifest, local.safetensors_places(folder, present))

    def describe(self, report: Report, offline: bool) -> Manifest:
        """The manifest; asks the hub where nothing was pulled, for small files and the starts of others. Raises
        ModelError."""
        pulled, manifest = self._known()
        if offline or huggingface_hub.is_offline_mode() or (pulled is not None and self._whole(pulled)):
            return self.open((0, 1), report, offline=True).manifest if manifest is None else manifest
        return self._ask(report)[1]

    def folder(self, commit: str) -> Path:
        """The folder in the cache that holds the files of a revision."""
        found = huggingface_hub.try_to_load_from_cache(self.repo, "config.json", self.cache, commit)
        if not isinstance(found, str):
            raise ModelError(
                f"{self.ref} is not on this machine and downloads are off: run `swarm model pull {self.ref}` "
                "with a network and without HF_HUB_OFFLINE"
            )
        return Path(found).parent

    def small_files(self, report: Report, offline: bool) -> Path:
        """The folder with config and tokenizer, fetched if need be; no weights. Raises ModelError."""
        offline = offline or huggingface_hub.is_offline_mode()
        pulled, _ = self._known()
        if offline or (pulled is not None and self._whole(pulled)):
            return self.folder(pulled.commit if pulled else self.revision)
        info = self._call(lambda: self.api.model_info(self.repo, revision=self.revision, timeout=_TIMEOUT_S))
        names = {sibling.rfilename for sibling in info.siblings or ()}
        for name in SMALL:
            if name in names:
                self._get(name, str(info.sha), report)
        return self.folder(str(info.sha))

    def _known(self) -> tuple[Pulled, Manifest] | tuple[None, None]:
        try:
            body = json.loads((self.kept / "hub.json").read_bytes())
            shards = {str(k): (int(v[0]), str(v[1])) for k, v in body["shards"].items()}
            pulled = Pulled(str(body["repo"]), str(body["commit"]), shards, tuple(body["checked"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None, None
        manifest = read_manifest(self.kept / "manifest.json")
        return (None, None) if manifest is None else (pulled, manifest)

    def _whole(self, pulled: Pulled) -> bool:
        """Whether what was pulled is still in the cache; people clear caches."""
        return isinstance(
            huggingface_hub.try_to_load_from_cache(self.repo, "config.json", self.cache, pulled.commit), str
        )

    def _cached(self, report: Report) -> FileCheckpoint:
        """Offline and never pulled here: another tool may have put the whole model into the cache."""
        return local.open_folder(self.folder(self.revision), self.repo, self.kept, report)

    def _ask(self, report: Report) -> tuple[Pulled, Manifest]:
        """What the hub has now; nothing is asked again when the revision is the one that is kept."""
        info = self._call(
            lambda: self.api.model_info(self.repo, revision=self.revision, files_metadata=True, timeout=_TIMEOUT_S)
        )
        pulled, manifest = self._known()
        commit = str(info.sha)
        if pulled is not None and manifest is not None and pulled.commit == commit and self._whole(pulled):
            return pulled, manifest
        files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        packed = sorted(name for name in files if name.endswith(".gguf"))
        if packed and not any(name.endswith(".safetensors") for name in files):
            raise ModelError(f"{self.repo} holds GGUF files: name one, as in {self.repo}:{packed[0]}")
        for name in (*SMALL, local.INDEX):
            if name in files:
                self._get(name, commit, report)
        if "config.json" not in files:
            raise ModelError(f"{self.repo} has no config.json, so it is not a transformers model; use another one")
        folder = self.folder(commit)
        names = local.shard_names(folder) if local.INDEX in files else [local.SINGLE]
        if not set(names) <= set(files):
            raise ModelError(f"{self.repo} has no safetensors weights ({names[0]} is missing); use a model that has")
        shards: dict[str, tuple[int, str]] = {}
        headers: dict[str, dict[str, safetensors_file.Stored]] = {}
        for name in names:
            digest = getattr(files[name].lfs, "sha256", None)
            if digest is None:  # small enough to be kept without large-file storage: then hash it here
                digest = sha256_file(self._get(name, commit, report))
            shards[name] = (int(files[name].size or 0), str(digest))
            headers[name] = self._header(name, commit)
        config = local.read_config(folder)
        manifest = local.safetensors_manifest(self.repo, config, headers, {n: d for n, (_, d) in shards.items()})
        pulled = Pulled(self.repo, commit, shards)
        keep(self.kept / "manifest.json", manifest.to_bytes())
        self._keep(pulled)
        return pulled, manifest

    def _keep(self, pulled: Pulled) -> None:
        keep(self.kept / "hub.json", json.dumps(asdict(pulled)).encode())

    def _header(self, name: str, commit: str) -> dict[str, safetensors_file.Stored]:
        """A shard's header, from the file if it is here, else from the start of the file on the hub."""
        found = huggingface_hub.try_to_load_from_cache(self.repo, name, self.cache, commit)
        if isinstance(found, str):
            return safetensors_file.read_header(Path(found))[1]
        data = self._call(lambda: self.api.parse_safetensors_file_metadata(self.repo, name, revision=commit))
        plain = {
            tensor: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": list(t.data_offsets)}
            for tensor, t in data.tensors.items()
        }
        return safetensors_file.parse_header(json.dumps(plain).encode(), f"{self.repo}/{name}")

    def _fetch(self, pulled: Pulled, names: Iterable[str], report: Report) -> None:
        for name in names:
            size, digest = pulled.shards[name]
            self._resume(HubFile(self.repo, pulled.commit, name, digest, size), report)
            self._get(name, pulled.commit, report)

    def _resume(self, file: HubFile, report: Report) -> None:
        """Bring a large file's content, going on where a killed process was. Raises ModelError."""
        inside(self.kept, file.name)
        here = huggingface_hub.try_to_load_from_cache(self.repo, file.name, self.cache, file.commit)
        if not isinstance(here, str):
            bar = _bar(report, f"{self.repo}/{file.name}")
            self._call(lambda: bring(file, self.endpoint, self.cache, bar))

    def _get(self, name: str, commit: str, report: Report) -> Path:
        inside(self.kept, name)
        return Path(
            self._call(
                lambda: huggingface_hub.hf_hub_download(
                    self.repo,
                    name,
                    revision=commit,
                    cache_dir=self.cache,
                    endpoint=self.endpoint,
                    tqdm_class=_bar(report, f"{self.repo}/{name}"),
                )
            )
        )

    def _check(self, pulled: Pulled, names: Iterable[str], folder: Path, report: Report) -> None:
        """Hash shards once after they came: the hub's client checks sizes, a manifest promises content."""
        checked = set(pulled.checked)
        for name in names:
            digest = pulled.shards[name][1]
            if digest in checked:
                continue
            found = sha256_file(folder / name, report)
            if found != digest:
                raise ModelError(
                    f"{folder / name} has SHA-256 {found[:12]}..., the hub says {digest[:12]}...: delete it, pull again"
                )
            checked.add(digest)
        if checked != set(pulled.checked):
            self._keep(Pulled(pulled.repo, pulled.commit, pulled.shards, tuple(sorted(checked))))

    def _agree(self, manifest: Manifest, present: Mapping[str, tuple[int, dict[str, safetensors_file.Stored]]]) -> None:
        """The manifest was made from the starts of files on the hub: hold it to the files that came."""
        for _, tensors in present.values():
            for name, stored in tensors.items():
                entry = manifest.entries.get(name)
                if entry is None or (entry.shape, entry.format, entry.offset, entry.nbytes) != (
                    stored.shape,
                    stored.format,
                    stored.offset,
                    stored.nbytes,
                ):
                    raise ModelError(
                        f"{name} of {self.repo} is not what the hub described: remove {self.kept}, pull again"
                    )

    def _call(self, ask: Callable[[], _T]) -> _T:
        """Errors of the hub's client in our words."""
        try:
            return ask()
        except ModelError:
            raise
        except errors.GatedRepoError as exc:
            raise ModelError(
                f"{self.repo} needs permission: accept its terms on the hub and run `hf auth login`"
            ) from exc
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as exc:
            raise ModelError(f"no model {self.ref} on the hub (or it is private): check the name") from exc
        except errors.EntryNotFoundError as exc:
            if isinstance(exc, errors.LocalEntryNotFoundError):
                raise _Unreachable(f"the hub does not answer for {self.ref}; connect, or name a local model") from exc
            raise ModelError(f"{self.repo} misses a file that it should have: {_line(exc)}") from exc
        except Exception as exc:  # errors of whichever HTTP library the client uses, which differ between versions
            raise _Unreachable(
                f"the hub does not answer for {self.ref} ({_line(exc)}); connect, or name a local model"
            ) from exc


def fetch_by_digest(repo: str, digest: str, target: Path, endpoint: str | None, report: Report) -> None:
    """Put the file of a repository that has this SHA-256 at `target`; nothing is fetched unless the hub lists one.
    Raises ModelError."""
    model = HubModel(repo, target.parent, endpoint, target.parent / "hub")
    if huggingface_hub.is_offline_mode():
        raise ModelError("HF_HUB_OFFLINE is set")
    info = model._call(lambda: model.api.model_info(repo, files_metadata=True, timeout=_TIMEOUT_S))
    names = [s.rfilename for s in info.siblings or () if s.lfs is not None and s.lfs.sha256 == digest]
    if not names:
        raise ModelError(f"{repo} has no file with SHA-256 {digest[:12]}... any more")
    target.unlink(missing_ok=True)
    sizes = {s.rfilename: int(s.size or 0) for s in info.siblings or ()}
    model._resume(HubFile(repo, str(info.sha), names[0], digest, sizes[names[0]]), report)
    found = model._get(names[0], str(info.sha), report)
    try:
        found.resolve().replace(target)
    except OSError as exc:
        raise ModelError(f"cannot write {target}: {exc.strerror}; free space or choose another --models") from exc


class _Unreachable(ModelError):
    """No answer from the hub; what was pulled before may still serve."""


def _line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]


def _bar(report: Report, what: str) -> type[Any]:
    """A progress bar class that reports instead of drawing."""

    class Bar(tqdm):  # type: ignore[misc]
        def display(self, *args: Any, **kwargs: Any) -> bool:
            report(Progress("download", what, int(self.n), int(self.total or 0)))
            return True

        def close(self) -> None:
            self.display()
            self.disable: bool = True  # or tqdm would write a line end to the terminal

    return Bar
