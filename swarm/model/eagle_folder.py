"""Folders of EAGLE heads as they lie on disk: what a requester asks whether there is one, before anything is computed.

What is in them and what is made of it: `swarm.model.eagle`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from swarm.base.errors import ModelError, SwarmError

BESIDE = "drafter"
"""Folder of a drafter in a model's folder."""
WEIGHTS = "model.safetensors"
MOST_CONFIG_BYTES = 1 << 20
_TAPS = ("midlayer.", "layers.0.hidden_norm.", "hidden_norm.")


@dataclass(frozen=True)
class EagleFolder:
    """A head's folder, its config, and the shapes of its tensors by name."""

    path: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]


def read_eagle(path: Path) -> EagleFolder | None:
    """The EAGLE head in a folder; None where there is none. Raises ModelError for one that cannot be computed here."""
    file = path / WEIGHTS
    if not file.is_file() or not (path / "config.json").is_file():
        return None
    try:
        if (path / "config.json").stat().st_size > MOST_CONFIG_BYTES:
            raise ModelError(f"{path}/config.json has more than {MOST_CONFIG_BYTES} bytes")
        config = json.loads((path / "config.json").read_bytes())
        with safe_open(file, framework="pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot read the drafter in {path}: {error}") from error
    if not isinstance(config, dict) or "fc.weight" not in shapes or any(name.startswith(_TAPS) for name in shapes):
        return None
    return EagleFolder(path, config, shapes)


@contextlib.contextmanager
def drafter_of(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a drafter's modules are made of what its files say is theirs: raises ModelError.

    transformers' classes hold a config's numbers against each other in ways of their own."""
    try:
        yield
    except SwarmError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(
            f"the config in {path} does not make the drafter whose tensors lie beside it: {type(error).__name__} "
            f"({reason}); take another drafter, or none"
        ) from error
