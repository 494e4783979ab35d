"""Where measured recompute limits are kept: shipped with the program, or beside the models of this machine."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from receipts.check.checks import MIXED, MIXED_STORED
from receipts.check.recompute import ErrorLimits, Limit, default_limit, limits_bytes, limits_untrusted
from receipts.format.errors import ReceiptError
from swarm.base.errors import UsageError
from swarm.base.files import write_whole
from swarm.model.weights_as import PACKED

LimitOf = Callable[[str, str], Limit]


def limits_path(models: Path, manifest: str) -> Path:
    """The file of a model (hex digest of its manifest) under the folder of models."""
    return models / "limits" / f"{manifest}.json"


def save_limits(models: Path, limits: ErrorLimits) -> Path:
    """Keep limits for later verifications. Raises UsageError when they cannot be written."""
    path = limits_path(models, limits.manifest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, limits_bytes(limits), 0o644)
    except OSError as error:
        raise UsageError(f"cannot keep limits in {path}: {error.strerror}; choose another --models") from error
    return path


def load_limits(models: Path, manifest: str) -> ErrorLimits | None:
    """Limits measured here, else those that ship; None when nobody measured this model. Raises UsageError."""
    path = limits_path(models, manifest)
    here = path.read_bytes() if path.is_file() else None
    shipped = (entry.read_bytes() for entry in files("swarm").joinpath("data/limits").iterdir())
    for data in (here, *shipped):
        if data is None:
            continue
        try:
            limits = limits_untrusted(data)
        except ReceiptError as error:
            raise UsageError(f"the limits in {path} are damaged: {error}; run swarm verify --calibrate") from error
        if limits.manifest == manifest:
            return limits
    return None


def limit_of(limits: ErrorLimits | None) -> LimitOf:
    """What `receipts.check.verify` asks for; stages of different types are held to the coarsest."""

    def limit(dtype: str, wire: str) -> Limit:
        dtype = {MIXED: "bfloat16", MIXED_STORED: PACKED}.get(dtype, dtype)
        wire = "bfloat16" if wire in (MIXED, MIXED_STORED, PACKED) else wire
        return limits.get(dtype, wire) if limits is not None else default_limit(dtype, wire)

    return limit
