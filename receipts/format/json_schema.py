"""The JSON Schema of a receipt, made from the same declarations that read it. The file in `schema/` is its output:

python -m receipts.format.json_schema > receipts/schema/receipt-v1.schema.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

from receipts.format.closing import MAX_STATEMENTS
from receipts.format.codec import schema
from receipts.format.document import FORMAT, MAX_DISCLOSED, SECRET_NAMES, VERSION
from receipts.format.statement import BODIES, STATEMENT_TYPE, Body, Chain, payload_type, predicate_type

_HEX32 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


def receipt_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a receipt file. It says what is well formed; signatures and agreement it cannot say."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:wanswarm:receipt:v1",
        "title": "wanswarm receipt, version 1",
        "type": "object",
        "additionalProperties": False,
        "required": ["disclosed", "envelopes", "format", "readable", "version"],
        "properties": {
            "format": {"const": FORMAT},
            "version": {"const": VERSION},
            "envelopes": _list({"$ref": "#/$defs/envelope"}, 1, MAX_STATEMENTS),
            "readable": _list({"oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in BODIES]}, 1, MAX_STATEMENTS),
            "disclosed": _list({"$ref": "#/$defs/disclosure"}, 0, MAX_DISCLOSED),
        },
        "$defs": {
            "envelope": _envelope(),
            "disclosure": _disclosure(),
            **{kind: _statement(kind, body) for kind, body in BODIES.items()},
        },
    }


def _list(items: dict[str, Any], low: int, high: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def _record(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": sorted(fields), "additionalProperties": False}


def _envelope() -> dict[str, Any]:
    signature = _record(keyid=_HEX32, sig={"type": "string", "pattern": "^[A-Za-z0-9+/]{86}==$"})
    return _record(
        payload={"type": "string", "pattern": _BASE64},
        payloadType={"enum": [payload_type(kind) for kind in BODIES]},
        signatures=_list(signature, 1, 1),
    )


def _disclosure() -> dict[str, Any]:
    value = {"type": ["string", "array", "object"]}
    return _record(name={"enum": list(SECRET_NAMES)}, salt=_HEX32, value=value)


def _statement(kind: str, body: type[Body]) -> dict[str, Any]:
    predicate = schema(body)
    predicate["properties"]["chain"] = schema(Chain)
    predicate["required"] = sorted([*predicate["required"], "chain"])
    subject = _record(name={"enum": ["model", "order", "close"]}, digest=_record(sha256=_HEX32))
    return _record(
        _type={"const": STATEMENT_TYPE},
        subject=_list(subject, 1, 2),
        predicateType={"const": predicate_type(kind)},
        predicate=predicate,
    )


def schema_text() -> str:
    return json.dumps(receipt_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
