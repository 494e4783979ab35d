"""Random and mutated bytes into every reader: only the package's own error, whatever comes."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.check.recompute import limits_untrusted
from receipts.check.sequence_check import other_untrusted
from receipts.check.verify import trust_untrusted, verify
from receipts.format.canonical import emit
from receipts.format.document import document_bytes, document_untrusted, secrets_untrusted
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.sign import SignedEnvelope, envelope_untrusted
from receipts.format.statement import statement_untrusted
from receipts.record.epoch import opening_untrusted
from receipts.record.row_opening import history_untrusted, opened_untrusted, request_untrusted

READERS = [
    document_untrusted,
    secrets_untrusted,
    envelope_untrusted,
    request_untrusted,
    limits_untrusted,
    lambda data: opened_untrusted(data, [1], ("00" * 32, 1), ("00" * 32, 1)),
    lambda data: history_untrusted(data, ("00" * 32, 1)),
    other_untrusted,
    lambda data: opening_untrusted({"secret": bytes(32), "order": data, "replan": data}),
    lambda data: trust_untrusted(data.decode("latin-1")),
]


def only_own_error(reader: Any, data: Any) -> None:
    try:
        reader(data)
    except ReceiptError:
        pass


@given(st.binary(max_size=500))
def test_random_bytes(data: bytes) -> None:
    for reader in READERS:
        only_own_error(reader, data)
    verdict = verify(data)
    assert verdict.refusal is not None and verdict.exit_code not in (0, 3, 4)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["envelopes", "readable", "disclosed", "format", "version", "payload", "payloadType", "name"]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_random_json(value: Any) -> None:
    data = json.dumps(value).encode()
    for reader in READERS:
        only_own_error(reader, data)
    assert verify(data).refusal is not None


def _leaf_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [path, *(p for key, item in value.items() for p in _leaf_paths(item, (*path, key)))]
    if isinstance(value, list):
        return [path, *(p for index, item in enumerate(value) for p in _leaf_paths(item, (*path, index)))]
    return [path]


@settings(max_examples=300)
@given(st.integers(0, 10**9), JSON)
def test_any_field_replaced_by_anything(rings: Any, seed: int, value: Any) -> None:
    """Structure-aware: one field of one statement becomes something else; the readers say so in their own way."""
    chooser = random.Random(seed)
    envelopes = document_untrusted(rings("recovered").receipt).envelopes
    envelope = chooser.choice(envelopes)
    statement = json.loads(envelope.payload)
    path = chooser.choice([p for p in _leaf_paths(statement) if p])
    target = statement
    for step in path[:-1]:
        target = target[step]
    unchanged = target[path[-1]] == value
    target[path[-1]] = value
    try:
        payload = emit(statement)
    except ReceiptError:
        return
    changed = SignedEnvelope(envelope.payload_type, payload, envelope.key, envelope.signature)
    only_own_error(statement_untrusted, changed)
    if not unchanged:
        receipt = document_bytes([changed if e is envelope else e for e in envelopes], [])
        assert verify(receipt).refusal is Refusal.SIGNATURE
