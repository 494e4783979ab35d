"""Coverage-guided fuzzing of the receipt readers and of the verifier (needs `pip install atheris`).

    python -m tests.fuzz.fuzz_receipts -max_total_time=60

Besides raw bytes it mutates single fields of a true receipt and signs everything anew, so that the checks behind the
signatures are reached too. Anything but the package's own error, or a verdict, is a finding.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["receipts"]):
    from receipts.check.recompute import limits_untrusted
    from receipts.check.report import text_report
    from receipts.check.sequence_check import other_untrusted
    from receipts.check.verify import verify
    from receipts.format.document import secrets_untrusted
    from receipts.format.errors import ReceiptError
    from receipts.format.sign import envelope_untrusted
    from receipts.record.epoch import opening_untrusted
    from receipts.record.row_opening import history_untrusted, opened_untrusted, request_untrusted
    from tests.receipts.conftest import resigned, run_ring


RINGS = [run_ring(), run_ring(fail_at=2), run_ring(fail_at=2, own=2)]


def _read_raw(data: bytes) -> None:
    readers = (
        secrets_untrusted,
        envelope_untrusted,
        request_untrusted,
        limits_untrusted,
        lambda raw: opened_untrusted(raw, [1], ("00" * 32, 1), ("00" * 32, 1)),
        lambda raw: history_untrusted(raw, ("00" * 32, 1)),
        other_untrusted,
        lambda raw: opening_untrusted({"secret": bytes(32), "order": raw, "replan": raw}),
    )
    for reader in readers:
        try:
            reader(data)
        except ReceiptError:
            pass
    assert verify(data).exit_code not in (0, 3, 4), "raw bytes verified"


def _fields(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        _fields(value[key], found)
    return found


def _value(provider: Any, old: Any) -> Any:
    match provider.ConsumeIntInRange(0, 5):
        case 0:
            return provider.ConsumeInt(8)
        case 1:
            return provider.ConsumeUnicodeNoSurrogates(70)
        case 2:
            return None
        case 3:
            return [old, old]
        case 4:
            return old + 1 if isinstance(old, int) else str(old)[::-1]
        case _:
            return {"first": provider.ConsumeIntInRange(0, 64), "last": provider.ConsumeIntInRange(0, 64)}


def _resign_mutated(provider: Any) -> None:
    ring = RINGS[provider.ConsumeIntInRange(0, len(RINGS) - 1)]

    def change(items: list[dict[str, Any]]) -> None:
        for _ in range(provider.ConsumeIntInRange(1, 3)):
            item = items[provider.ConsumeIntInRange(0, len(items) - 1)]
            part = item[("body", "chain")[provider.ConsumeBool()]]
            places = _fields(part, [])
            container, key = places[provider.ConsumeIntInRange(0, len(places) - 1)]
            container[key] = _value(provider, json.loads(json.dumps(container[key])))

    try:
        receipt = resigned(ring, change)
    except ReceiptError:
        return
    text_report(verify(receipt), 80)


def one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        _read_raw(provider.ConsumeBytes(len(data)))
    else:
        _resign_mutated(provider)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
