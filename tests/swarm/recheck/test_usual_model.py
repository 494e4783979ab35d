"""Which model recomputes a receipt when none is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarm.base.errors import ModelError, UsageError
from swarm.model.files.named import DEFAULT_MODEL, NAMED
from swarm.recheck.check import _usual_model

OTHERS = sorted(set(NAMED) - {DEFAULT_MODEL})


class Store:
    """Holds the models of these names."""

    def __init__(self, *held: str) -> None:
        self.held = held

    def path(self, ref: str) -> Path:
        if ref not in self.held:
            raise ModelError("not here")
        return Path(ref)


def usual(name: str, *held: str) -> str:
    run: Any = SimpleNamespace(order=SimpleNamespace(model=SimpleNamespace(name=name)))
    store: Any = Store(*held)
    return _usual_model(run, store)


def test_the_default_model_is_taken_and_fetched_if_need_be() -> None:
    assert usual(DEFAULT_MODEL) == DEFAULT_MODEL


@pytest.mark.parametrize("name", OTHERS)
def test_every_short_name_is_taken_where_it_lies_here_and_a_stranger_makes_nobody_fetch_it(name: str) -> None:
    assert usual(name, name) == name
    with pytest.raises(UsageError, match=f"not here: --model {name} fetches it"):
        usual(name)


def test_any_other_name_has_to_be_said() -> None:
    with pytest.raises(UsageError, match="say where yours is with --model REF"):
        usual("/home/somebody/model", "/home/somebody/model")
