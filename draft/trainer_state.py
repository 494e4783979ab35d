"""A trainer on disk, so that a stopped run goes on: weights and AdamW's moments in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from draft.train import Trainer
from swarm.model.files.safetensors_file import save_tensors


def save_state(path: Path, trainer: Trainer, notes: Mapping[str, str] | None = None) -> None:
    """Write the trainer's weights, moments and counts, and `notes`; whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in trainer.values:
        tensors[f"weight.{name}"] = value.detach().cpu().contiguous()
        state = trainer.optimizer.state.get(value)
        if state:
            tensors[f"first.{name}"] = state["exp_avg"].cpu().contiguous()
            tensors[f"second.{name}"] = state["exp_avg_sq"].cpu().contiguous()
    counts = {**(notes or {}), "steps": str(trainer.steps), "positions": str(trainer.positions)}
    part = path.with_suffix(".part")
    save_tensors(tensors, part, metadata=counts)
    part.replace(path)


@torch.no_grad()
def load_state(path: Path, trainer: Trainer) -> dict[str, str]:
    """Take up what `save_state` wrote, and return its notes; nothing happens when there is nothing."""
    if not path.exists():
        return {}
    with safe_open(path, framework="pt") as file:
        names, counts = set(file.keys()), file.metadata()
        trainer.steps, trainer.positions = int(counts["steps"]), int(counts["positions"])
        for name, value in trainer.values:
            value.copy_(file.get_tensor(f"weight.{name}"))
            if f"first.{name}" in names:
                trainer.optimizer.state[value] = {
                    "step": torch.tensor(float(trainer.steps)),
                    "exp_avg": file.get_tensor(f"first.{name}").to(value.device),
                    "exp_avg_sq": file.get_tensor(f"second.{name}").to(value.device),
                }
    trainer.settle()
    return dict(counts)
