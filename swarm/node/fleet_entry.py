"""This machine as an entry of a fleet file: what `swarm probe` writes and `swarm plan` reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm.base.events import Report, silent
from swarm.discovery.model_shape import model_shape
from swarm.model.block import load_block
from swarm.model.device import choose_device, free_bytes
from swarm.model.dtype import choose_dtype
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.packing import choose_weights
from swarm.model.probe import ROWS, probe
from swarm.planner.coverage_need import MEMORY_SHARE
from swarm.planner.fleet import ModelShape

DIGITS = 4


@dataclass(frozen=True)
class Described:
    """Whose machine it is and where. `region`: machines of one region are taken to be in one room; "": its own."""

    name: str
    region: str = ""
    owner: str = ""


def measure_entry(
    ref: str, models: Path, place: Described, gpu: int | None = None, weights_as: str = "auto", report: Report = silent
) -> dict[str, Any]:
    """A fleet file's `[model]` and one `[[node]]`, measured with two layers of the model, of which no more is fetched.

    Memory is what a node that begins now would plan with. Raises ModelError.
    """
    device = choose_device(gpu)
    dtype = choose_dtype("auto", device)
    weights = choose_weights(weights_as, "auto", device)
    free = free_bytes(device)  # before two layers take some of it
    checkpoint = open_model(ref, ModelStore(models), (0, 2), report)
    block = load_block(checkpoint, 0, min(2, checkpoint.manifest.n_layers), device, dtype, report, weights=weights)
    measured = probe(block, report=report)
    node: dict[str, Any] = {
        "name": place.name,
        "region": place.region or place.name,
        "memory_gb": round(free * MEMORY_SHARE / 1e9, 2),
        "ms": [round(measured.ms_per_layer[rows], DIGITS) for rows in ROWS],
    }
    if place.owner:
        node["owner"] = place.owner
    return {"model": describe_shape(model_shape(checkpoint.manifest, dtype, weights)), "node": [node]}


def describe_shape(shape: ModelShape) -> dict[str, Any]:
    """A model's sizes as `[model]` has them, which knows one size of layers: their mean."""
    entry: dict[str, Any] = {
        "name": shape.name,
        "layers": shape.n_layers,
        "layer_gb": round(sum(shape.layer_bytes) / shape.n_layers / 1e9, 6),
        "hidden": shape.hidden_size,
        "kv_bytes": shape.kv_bytes,
        "head_gb": round((shape.head_bytes + shape.every_bytes) / 1e9, 6),
        "tail_gb": round(shape.tail_bytes / 1e9, 6),
    }
    together = [[a, b] for a, b in shape.parts(0, shape.n_layers) if b - a > 1]
    return entry | ({"together": together} if together else {})


def as_toml(entry: dict[str, Any]) -> str:
    """The same as TOML. JSON's numbers, lists and plain texts are TOML's too."""
    lines = ["[model]", *(f"{key} = {json.dumps(value)}" for key, value in entry["model"].items())]
    for node in entry["node"]:
        lines += ["", "[[node]]", *(f"{key} = {json.dumps(value)}" for key, value in node.items())]
    return "\n".join(lines) + "\n"
