"""GGUF models of a Hugging Face hub: `org/name:Q4_K_M` or `org/name:file.gguf`.

Headers are read from the starts of the files, so that what cannot be computed is refused before weights are fetched.
A GGUF is fetched whole, with all its parts.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.utils import build_hf_headers, get_session

from swarm.base.errors import ModelError
from swarm.base.events import Report
from swarm.model.files import gguf_file, local
from swarm.model.files.files import inside, keep, sha256_file
from swarm.model.files.gguf_split import join_parts, part_names
from swarm.model.files.hub import HubModel
from swarm.model.files.manifest import architecture
from swarm.model.files.resume import HubFile
from swarm.model.files.weights import FileCheckpoint

_FIRST = 1 << 20
_OF_FACTORS = (".rope.scaling.attn_factor", ".rope.scaling.type")
"""Keys that mean something beside factors of frequencies only."""
_TIMEOUT_S = 20.0


class HubGGUF:
    """One GGUF model (a file or a set) of a repository. ref: "org/name[@revision]:selector"."""

    def __init__(self, ref: str, kept: Path, endpoint: str | None, cache: Path | None) -> None:
        self.ref = ref
        repo, _, self.selector = ref.partition(":")
        self.kept = kept
        self.hub = HubModel(repo, kept, endpoint, cache)

    def open(self, report: Report, offline: bool) -> FileCheckpoint:
        """The checkpoint, fetched if need be. Raises ModelError."""
        return local.open_gguf(self.file(report, offline), self.ref, self.kept, report)

    def file(self, report: Report, offline: bool) -> Path:
        """The first file of the model on this machine, fetched with its other parts if need be. Raises ModelError."""
        if (here := self._here()) is not None:
            return here
        if offline or huggingface_hub.is_offline_mode():
            raise ModelError(
                f"{self.ref} is not on this machine and downloads are off: run `swarm model pull {self.ref}` with a "
                "network and without HF_HUB_OFFLINE"
            )
        names, commit, files = self._choose()
        self._check(names, commit, files)
        for name in names:
            size, sha256 = files[name]
            if sha256 is not None:
                self.hub._resume(HubFile(self.hub.repo, commit, name, sha256, size), report)
        paths = [self.hub._get(name, commit, report) for name in names]
        for name, path in zip(names, paths, strict=True):
            digest = files[name][1]
            if digest is not None and (found := sha256_file(path, report)) != digest:
                raise ModelError(
                    f"{path} has SHA-256 {found[:12]}..., the hub says {digest[:12]}...: delete it, pull again"
                )
        keep(self.kept / "first", str(paths[0]).encode())
        return paths[0]

    def refuse_unreadable(self) -> None:
        """Raises ModelError when the model is not here and cannot be read by its headers (or nobody answers)."""
        if self._here() is None and not huggingface_hub.is_offline_mode():
            self._check(*self._choose())

    def _here(self) -> Path | None:
        """The first file, where it was fetched and is still in the cache with its other parts."""
        try:
            first = Path((self.kept / "first").read_text())
        except OSError:
            return None
        return first if all((first.parent / name).is_file() for name in part_names(first.name)) else None

    def _choose(self) -> tuple[list[str], str, dict[str, tuple[int, str | None]]]:
        """Names of the files of the model that the selector means, the revision, and of every GGUF file its size and
        SHA-256. Raises ModelError."""
        api, hub = self.hub.api, self.hub
        info = hub._call(
            lambda: api.model_info(hub.repo, revision=hub.revision, files_metadata=True, timeout=_TIMEOUT_S)
        )
        files = {
            s.rfilename: (int(s.size or 0), s.lfs.sha256 if s.lfs else None)
            for s in info.siblings or ()
            if s.rfilename.endswith(".gguf")
        }
        sets: dict[str, list[str]] = {}
        for name in sorted(files):
            inside(self.kept, name)
            folder, _, base = name.rpartition("/")
            parts = [f"{folder}/{part}" if folder else part for part in part_names(base)]
            sets[parts[0]] = parts
        ending = re.compile(rf"[-._]{re.escape(self.selector)}(-00001-of-\d{{5}})?\.gguf", re.IGNORECASE)
        found = [first for first, parts in sets.items() if self.selector in (*parts, *(Path(p).name for p in parts))]
        found = found or [first for first in sets if ending.search(first)]
        if len(found) != 1:
            there = ", ".join(sorted(sets)[:8]) or "no GGUF file"
            raise ModelError(f"{self.selector!r} means {len(found)} GGUF models of {hub.repo}, which holds {there}")
        missing = [name for name in sets[found[0]] if name not in files]
        if missing:
            raise ModelError(f"{hub.repo} lacks {missing[0]}, a part of {found[0]}: take another file")
        return sets[found[0]], str(info.sha), files

    def _check(self, names: list[str], commit: str, files: dict[str, tuple[int, str | None]]) -> None:
        """Refuse what cannot be read, from headers alone. Raises ModelError."""
        from swarm.model.files import gguf_config, gguf_families, gguf_map  # they bring transformers' modelling along

        headers = [self._header(name, commit, files[name][0]) for name in names]
        where = f"{self.hub.repo}/{names[0]}"
        header = join_parts([Path(name) for name in names], headers)
        # Values that become part of the config lie behind the header: they are checked once the file is here.
        behind = {"rope_freqs.weight", gguf_config.LONG, gguf_config.SHORT} & set(header.tensors)
        stated = {k: v for k, v in header.metadata.items() if not (behind and k.endswith(_OF_FACTORS))}
        header = replace(header, metadata=stated, tensors={n: t for n, t in header.tensors.items() if n not in behind})
        gguf_map.pieces(header, architecture(gguf_families.transformers_config(header, where)), where)

    def _header(self, name: str, commit: str, size: int) -> gguf_file.GGUFHeader:
        url = huggingface_hub.hf_hub_url(self.hub.repo, name, revision=commit, endpoint=self.hub.endpoint)
        data, want = b"", min(_FIRST, size)
        while True:
            start = len(data)
            headers = {**build_hf_headers(), "Range": f"bytes={start}-{want - 1}"}
            reply = self.hub._call(partial(_get, url, headers))
            if reply.status_code != 206 or len(reply.content) != want - start:
                raise ModelError(f"the hub does not serve the start of {name}; fetch it and name the file")
            data += reply.content
            try:
                return gguf_file.parse_header(data, size, Path(name))
            except ModelError:
                if want >= min(size, gguf_file.MAX_HEADER):
                    raise
                want = min(size, gguf_file.MAX_HEADER, want * 4)


def _get(url: str, headers: dict[str, str]) -> Any:
    return get_session().get(url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True)
