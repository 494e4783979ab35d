"""Answers of the types that people write with pydantic: what is held fits, what is not is refused by name."""

from __future__ import annotations

import pytest

from tests.clients.typed import TYPES, Tagged, of_pydantic

REFUSED = ("re.Pattern", "set[uuid.UUID]", "set[float]", "set[tuple", "set[datetime.date]")
SOME = [name for number, name in enumerate(TYPES) if number % 3 == 0 or "set[" in name or "Tagged" in name]


@pytest.mark.parametrize("name", SOME)
def test_a_type_is_held_to_or_refused_by_name(name: str) -> None:
    came, why = of_pydantic(TYPES[name])
    wanted = "refused" if name.startswith(REFUSED) else "no schema" if "Callable" in name else "held"
    assert came == wanted, why


def test_sets_are_sets() -> None:
    assert [of_pydantic(Tagged, seed) for seed in range(10)] == [("held", "")] * 10
