"""Queries that grow with their position, in layers without rotation (Llama 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Warmth:
    """Llama 4 scales the queries of its layers without rotation by their position
    (https://huggingface.co/papers/2501.19399)."""

    floor: float
    scale: float

    def scales(self, position: torch.Tensor) -> torch.Tensor:
        """float32 [T]."""
        return torch.log1p(torch.floor((position.float() + 1.0) / self.floor)) * self.scale + 1.0


def settle_warmth(inner: torch.nn.Module) -> None:
    """Take over from modules that scale a query by the place of its row in the forward: sessions share forwards."""
    for module in inner.modules():
        if getattr(module, "attn_temperature_tuning", False) and hasattr(module, "floor_scale"):
            setattr(module, "attn_temperature_tuning", False)  # noqa: B010
            if not module.use_rope:
                warmth = Warmth(float(module.floor_scale), float(module.attn_scale))  # type: ignore[arg-type]
                setattr(module, "swarm_warmth", warmth)  # noqa: B010
