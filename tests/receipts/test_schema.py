"""The JSON Schema in the package is the one that the code reads by, and every receipt obeys it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from receipts.format.json_schema import receipt_schema, schema_text
from receipts.format.statement import BODIES

STORED = files("receipts").joinpath("schema/receipt-v1.schema.json").read_text()
VALIDATOR = Draft202012Validator(json.loads(STORED))


def test_the_stored_schema_is_up_to_date() -> None:
    assert schema_text() == STORED, (
        "run: python -m receipts.format.json_schema > receipts/schema/receipt-v1.schema.json"
    )


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(receipt_schema())


@pytest.mark.parametrize("name", ["plain", "recovered", "failed", "private", "open"])
def test_receipts_obey_it(rings: Any, name: str) -> None:
    VALIDATOR.validate(json.loads(rings(name).receipt))


@pytest.mark.parametrize("kind", sorted(BODIES))
def test_what_the_reader_refuses_the_schema_refuses(rings: Any, kind: str) -> None:
    value = json.loads(rings("own" if kind == "own" else "recovered").receipt)
    index = next(i for i, s in enumerate(value["readable"]) if s["predicateType"] == f"urn:wanswarm:receipt:{kind}:v1")
    for change in (
        lambda p: p.update(note=1),
        lambda p: p.pop("chain"),
        lambda p: p["chain"].update(sequence=-1),
        lambda p: p["chain"].update(previous="x"),
    ):
        broken = json.loads(json.dumps(value))
        change(broken["readable"][index]["predicate"])
        assert not VALIDATOR.is_valid(broken)
