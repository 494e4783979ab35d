"""What an order says where stages compute in different types."""

from __future__ import annotations

import pytest

from receipts.check.checks import MIXED, MIXED_STORED
from swarm.client.router import joint_dtype, joint_wire
from swarm.model.weights_as import PACKED


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({"bfloat16"}, "bfloat16"),
        ({PACKED}, PACKED),
        ({"bfloat16", "float32"}, MIXED),
        ({"bfloat16", PACKED}, MIXED_STORED),
        ({MIXED, PACKED}, MIXED_STORED),
        ({MIXED_STORED, "float32"}, MIXED_STORED),
        ({MIXED, "bfloat16"}, MIXED),
    ],
)
def test_stages_with_stored_weights_are_named_in_a_mixture(found: set[str], word: str) -> None:
    """Audits hold a mixture to its coarsest type, and none is coarser than rows rounded to bytes."""
    assert joint_dtype(found) == word


@pytest.mark.parametrize(
    ("found", "wire"),
    [
        ({"float32"}, "float32"),
        ({"float16"}, "float16"),
        ({"bfloat16"}, "bfloat16"),
        ({"q8"}, "bfloat16"),
        ({"float16", "float32"}, "bfloat16"),
        ({"float16", "bfloat16"}, "bfloat16"),
        ({"float16", ""}, "bfloat16"),
    ],
)
def test_the_wire_holds_what_every_stage_computes(found: set[str], wire: str) -> None:
    assert joint_wire(found) == wire
