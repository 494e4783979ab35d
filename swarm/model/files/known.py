"""What a start need not work out anew: results of code that takes seconds of a processor to import.

A note is JSON beside the kept manifests. It counts only while what made it is the same: the files of `swarm.model` by
name, size and time of change, and the versions of the libraries. Its name says what it is of, by content or by the
stamp of files; so a note of other code or of other files is never read, and a damaged one is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from swarm.base.errors import ModelError
from swarm.model.files.facts import Facts
from swarm.model.files.files import keep, read_bounded
from swarm.model.files.keys import key_numbers, layer_kinds
from swarm.model.files.manifest import Manifest, canonical_json
from swarm.model.files.wrappers import is_wrapper

_MADE_BY = ("transformers", "tokenizers")
_MOST_BYTES = 256 << 20


def stamp_of(paths: Sequence[Path]) -> str:
    """Changes whenever one of the files does (path, size, time of change). Raises OSError for one that is not there."""
    stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return hashlib.sha256(canonical_json(stats)).hexdigest()


class Notes:
    """Notes in a folder. `made_by`: what tells the code apart whose results they are."""

    def __init__(self, folder: Path, made_by: str | None = None) -> None:
        self._folder = folder
        self._made_by = _code() if made_by is None else made_by

    def read(self, name: str) -> Any:
        """What was written under this name by the same code; None where there is nothing such."""
        try:
            note = json.loads(read_bounded(self._path(name), _MOST_BYTES))
            return note["found"] if note["made_by"] == self._made_by else None
        except (ModelError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, name: str, found: Any) -> None:
        """Keep it. A folder that cannot be written, and what JSON does not hold, are no failures: the next start works
        it out again."""
        with contextlib.suppress(ModelError, TypeError, ValueError):
            keep(self._path(name), json.dumps({"made_by": self._made_by, "found": found}, allow_nan=False).encode())

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.note.json"


def settle(manifest: Manifest, notes: Notes, check: Callable[[], object]) -> None:
    """Give a manifest its facts. `check` refuses a config that transformers refuses; it is asked once for each model
    and version of the code. Raises ModelError as it does."""
    name = f"facts-{manifest.digest}"
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        manifest.know(Facts.from_json(notes.read(name)))
        return
    check()
    try:
        facts = facts_of(manifest)
        if Facts.from_json(json.loads(json.dumps(facts.as_json(), allow_nan=False))) != facts:
            return  # a config with values that JSON does not give back: it is asked again each time
    except Exception:  # a model that is no model: whoever needs the fact is told, as before
        return
    notes.write(name, facts.as_json())
    manifest.know(facts)


def facts_of(manifest: Manifest) -> Facts:
    """Asked of transformers. Raises ModelError."""
    text = manifest.text_config if is_wrapper(manifest.config) else None
    return Facts(manifest.ties, tuple(layer_kinds(manifest)), key_numbers(manifest), text)


def _code() -> str:
    """Stands for the code that makes notes: ours about models, and the versions of the libraries that it asks."""
    ours = sorted(Path(__file__).parents[1].rglob("*.py"))
    stats = [(p.name, (stat := p.stat()).st_size, stat.st_mtime_ns) for p in ours]
    return hashlib.sha256(canonical_json([stats, [_version(name) for name in _MADE_BY]])).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
