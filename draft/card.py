"""Writing a made drafter: weights, config and a model card that says how good it is and how it came about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from draft.asset import HEAD_TOKENS, Learned
from draft.four_bits import Grid
from draft.made_block import SCALE
from draft.packed import round_rows
from draft.train import Score
from swarm.model.files.safetensors_file import save_tensors

MEASURED = "prompts of kinds that it never saw (`HELD_OUT` in draft/kinds.py)"
MEASURED_OWN = "its user's own runs that it was never trained on"


@dataclass(frozen=True)
class Origin:
    """How a drafter came about.

    target, target_digest  of which model; layers: which of its layers it started from, or whose rows it reads
    made                   what made it, in words or as a command
    sequences, positions   of the target's own text that it was trained on; trained: positions passed, repeats counted
    minutes                of training and of collecting, wall clock
    learned                of which user's runs it learned; None: of none
    """

    target: str
    target_digest: str
    layers: tuple[int, ...]
    made: str
    sequences: int
    positions: int
    trained: int
    minutes: float
    learned: Learned | None = None


def write_drafter(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    head_tokens: torch.Tensor | None,
    origin: Origin,
    scores: Mapping[str, Mapping[str, Score]],
    dtype: str = "int8",
    grids: Mapping[str, Grid] | None = None,
) -> int:
    """Write config.json, model.safetensors and README.md into `folder`. Returns the size of the weights in bytes.

    weights: float tensors under the names of a model of `config` with its embedding left out.
    dtype: "int8" (matrices; a scale per row), "q4_1" (those that `grids` has by name) or "bfloat16".
    scores: by name of the weights they were measured with.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if dtype == "q4_1" and grids is not None and name in grids:
            tensors[name] = grids[name].stored(value)
        elif dtype == "int8" and value.ndim == 2:
            tensors[name], scale = round_rows(value)
            tensors[name + SCALE] = scale
        else:
            tensors[name] = value.to(torch.bfloat16).contiguous()
    if head_tokens is not None:
        tensors[HEAD_TOKENS] = head_tokens.int()
    told: dict[str, object] = {"target": origin.target, "target_digest": origin.target_digest}
    told["layers"] = list(origin.layers)
    if origin.learned is not None:
        told["learned"] = asdict(origin.learned)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / "model.part")
    (folder / "model.part").replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "drafter": told}, indent=1, sort_keys=True) + "\n")
    (folder / "model.safetensors").chmod(0o644)
    size = (folder / "model.safetensors").stat().st_size
    (folder / "README.md").write_text(_card(origin, scores, dtype, size, head_tokens))
    return size


def write_published(
    folder: Path,
    config: Mapping[str, object],
    tensors: Mapping[str, torch.Tensor],
    origin: Origin,
    scores: Mapping[str, Mapping[str, Score]],
    form: str,
) -> int:
    """Write a drafter that reads the target's rows, as it is published: config.json, model.safetensors and README.md.
    Returns the size of the weights in bytes. form: what it is, in words, one sentence."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(dict(tensors), folder / "model.part")
    (folder / "model.part").replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(config), indent=1, sort_keys=True) + "\n")
    (folder / "model.safetensors").chmod(0o644)
    size = (folder / "model.safetensors").stat().st_size
    taps = ", ".join(map(str, origin.layers))
    lines = [
        f"# Drafter for {origin.target}",
        "",
        f"{form} It reads what enters layers {taps} of the target (a number past the last one: what its head is given) "
        "and was trained on text that the target wrote. It proposes tokens; what is said is the target's choice alone.",
        "",
        f"- weights: bfloat16, {size / 1e6:.1f} MB; what is not in the file is the target's",
        *_history(origin),
        *_tables(scores),
        "",
        "What the target's licence says of models trained on what it writes holds for this one.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))
    return size


def _history(origin: Origin) -> list[str]:
    return [
        f"- target: manifest {origin.target_digest}",
        f"- training text: {origin.sequences} sequences, {origin.positions} positions; {origin.trained} positions "
        f"passed in training; {origin.minutes:.0f} minutes in all",
        f"- made by: {origin.made}",
        "",
    ]


def _tables(scores: Mapping[str, Mapping[str, Score]], on: str = MEASURED) -> list[str]:
    """How often it is right by rank, and where it predicts several tokens, by how far ahead."""
    lines = [
        f"Measured on {on}. First: its first choice is the "
        "target's. First 8: the target's choice is among its first eight. Each row teacher-forced.",
        "",
        "| weights | text | positions | first | rank 2 | rank 3 | rank 4 | ranks 5-8 | first 8 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, table in scores.items():
        for name, score in table.items():
            share = [count / max(1, score.positions) for count in score.ranks]
            cells = [score.first, *share[1:4], sum(share[4:]), score.first8]
            lines.append(f"| {label} | {name} | {score.positions} | {_cells(cells)} |")
    ahead = max((len(score.further) for table in scores.values() for score in table.values()), default=0)
    if not ahead:
        return lines
    numbers = range(1, ahead + 2)
    lines += ["", "First choices by how many tokens ahead, the ones between being the target's own:", ""]
    lines += [
        f"| weights | text | {' | '.join(map(str, numbers))} |",
        f"| --- | --- | {' | '.join('---' for _ in numbers)} |",
    ]
    for label, table in scores.items():
        for name, score in table.items():
            lines.append(
                f"| {label} | {name} | {_cells([score.first, *(further.first for further in score.further)])} |"
            )
    return lines


def _cells(values: Sequence[float]) -> str:
    return " | ".join(f"{value:.3f}" for value in values)


def _card(
    origin: Origin,
    scores: Mapping[str, Mapping[str, Score]],
    dtype: str,
    size: int,
    head_tokens: torch.Tensor | None,
) -> str:
    own = origin.learned
    if own is not None:
        dtype += f", learned from {own.runs} runs of its user: keep it to yourself, as you would these texts"
    head = "the target's whole vocabulary" if head_tokens is None else f"{len(head_tokens)} of the target's tokens"
    lines = [
        f"# Drafter for {origin.target}",
        "",
        f"{len(origin.layers)} layers, started from layers {', '.join(map(str, origin.layers))} of the target and "
        f"trained on text that the target wrote. It proposes tokens; what is said is the target's choice alone.",
        "",
        f"- weights: {dtype}, {size / 1e6:.1f} MB; the embedding is the target's and is not repeated",
        f"- head: {head}",
        *_history(origin),
        *_tables(scores, MEASURED if own is None else MEASURED_OWN),
    ]
    return "\n".join([*lines, "", "License: Apache-2.0, like the target's weights that it started from.", ""])
