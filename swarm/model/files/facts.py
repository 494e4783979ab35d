"""What of a model's config only transformers' config classes can tell, as plain data that can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from swarm.model.files.ties import Ties

_PAIRS = ("reads", "selects", "shares")


@dataclass(frozen=True)
class Facts:
    """Of one model.

    ties   what ties its layers together
    kinds  the kind of each layer, as transformers names them
    keys   numbers that a slot of each layer holds, were it to keep keys and values of its own
    text   of a model that takes more than text: the config of the half that is served; None for others
    """

    ties: Ties
    kinds: tuple[str, ...]
    keys: tuple[int, ...]
    text: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON's own types, where `text` holds such."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Any) -> Facts:
        """What `as_json` gave, after a trip through JSON. Raises KeyError, TypeError, ValueError, AttributeError."""
        ties = dict(found["ties"])
        for name in _PAIRS:  # JSON has no keys but text
            ties[name] = {int(layer): int(source) for layer, source in ties[name].items()}
        text = found["text"]
        if text is not None and not isinstance(text, dict):
            raise TypeError("expected a config or none")
        return cls(Ties(**ties), tuple(map(str, found["kinds"])), tuple(map(int, found["keys"])), text)
