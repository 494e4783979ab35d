"""This machine as an entry of a fleet file: what `swarm probe` writes and `swarm plan` reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from swarm.base.events import Report, silent
from swarm.discovery.model_shape import model_shape
from swarm.model.block import load_block
from swarm.model.device import choose_device, free_bytes
from swarm.model.dtype import choose_dtype
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.probe import ROWS, probe
from swarm.model.weights_as import choose_weights
from swarm.planner.coverage_need import MEMORY_SHARE
from swarm.planner.fleet import ModelShape

DIGITS = 4


@dataclass(frozen=True)
class Described:
    """Whose machine it is and where. `region`: machines of one region are taken to be in one room; "": its own."""

    name: str
    region: str = ""
    owner: str = ""


@dataclass(frozen=True)
class MachineEntry:
    """A fleet file's `[[node]]`: memory in GB that a node which begins now would plan with, and milliseconds of one
    layer for 1, 8 and 64 rows."""

    name: str
    region: str
    memory_gb: float
    ms: tuple[float, ...]
    owner: str = ""


@dataclass(frozen=True)
class ModelEntry:
    """A fleet file's `[model]`, which knows one size of layers: their mean. `together`: ranges [first, last) of layers
    that stay in one stage."""

    name: str
    layers: int
    layer_gb: float
    hidden: int
    kv_bytes: int
    head_gb: float
    tail_gb: float
    together: tuple[tuple[int, int], ...] = ()


def measure_entry(
    ref: str, models: Path, place: Described, gpu: int | None = None, weights_as: str = "auto", report: Report = silent
) -> tuple[ModelEntry, MachineEntry]:
    """A model, and this machine measured with two layers of it, of which no more is fetched. Raises ModelError."""
    device = choose_device(gpu)
    dtype = choose_dtype("auto", device)
    weights = choose_weights(weights_as, "auto", device)
    free = free_bytes(device)  # before two layers take some of it
    checkpoint = open_model(ref, ModelStore(models), (0, 2), report)
    block = load_block(checkpoint, 0, min(2, checkpoint.manifest.n_layers), device, dtype, report, weights=weights)
    measured = probe(block, report=report)
    machine = MachineEntry(
        place.name,
        place.region or place.name,
        round(free * MEMORY_SHARE / 1e9, 2),
        tuple(round(measured.ms_per_layer[rows], DIGITS) for rows in ROWS),
        place.owner,
    )
    return describe_shape(model_shape(checkpoint.manifest, dtype, weights)), machine


def describe_shape(shape: ModelShape) -> ModelEntry:
    """A model's sizes as `[model]` has them."""
    return ModelEntry(
        shape.name,
        shape.n_layers,
        round(sum(shape.layer_bytes) / shape.n_layers / 1e9, 6),
        shape.hidden_size,
        shape.kv_bytes,
        round((shape.head_bytes + shape.every_bytes) / 1e9, 6),
        round(shape.tail_bytes / 1e9, 6),
        tuple((a, b) for a, b in shape.parts(0, shape.n_layers) if b - a > 1),
    )


def as_json(model: ModelEntry, machine: MachineEntry) -> str:
    """A fleet file of one machine as JSON; what is empty is left away."""
    return json.dumps({"model": _told(model), "node": [_told(machine)]})


def as_toml(model: ModelEntry, machine: MachineEntry) -> str:
    """The same as TOML. JSON's numbers, lists and plain texts are TOML's too."""
    lines = ["[model]", *(f"{key} = {json.dumps(value)}" for key, value in _told(model).items())]
    lines += ["", "[[node]]", *(f"{key} = {json.dumps(value)}" for key, value in _told(machine).items())]
    return "\n".join(lines) + "\n"


def _told(entry: ModelEntry | MachineEntry) -> dict[str, object]:
    return {name: value for name, value in asdict(entry).items() if value not in ("", ())}
