"""docs/receipts.md says what the code does, and the receipts published beside it verify forever."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from receipts.check.recompute import default_limit
from receipts.check.verdict import LEVEL_NAMES
from receipts.check.verify import verify
from receipts.format.canonical import emit
from receipts.format.errors import Refusal
from receipts.format.sign import envelope_from_json_untrusted
from receipts.format.statement import BODIES, statement_untrusted

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "receipts.md").read_text()
PUBLISHED = {"three-cpu-stages.json", "emulated-wan.json", "recovered.json", "private-ends.json"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_worked_example_verifies() -> None:
    envelope_text, payload_text = blocks("json")
    envelope = envelope_from_json_untrusted(json.loads(envelope_text))
    envelope.check()
    assert envelope.to_bytes() == envelope_text.strip().encode()
    assert envelope.payload == payload_text.strip().encode() == emit(json.loads(payload_text))
    assert envelope.digest in PAGE and f"is {len(envelope.payload)} bytes" in PAGE
    assert statement_untrusted(envelope).body.kind == "order"


def test_the_verifier_of_the_page_agrees(rings: Any, tmp_path: Path) -> None:
    (program,) = blocks("python")
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    receipt = rings("recovered").receipt
    good.write_bytes(receipt)
    bad.write_bytes(receipt.replace(b'"interrupted":true', b'"interrupted":false', 1))
    done = subprocess.run([sys.executable, "-c", program, str(good)], capture_output=True, text=True)
    assert done.returncode == 0 and "every signature fits" in done.stdout, done.stderr
    assert subprocess.run([sys.executable, "-c", program, str(bad)], capture_output=True).returncode == 1


def test_the_table_of_exit_codes_is_the_code() -> None:
    listed = re.findall(r"^\| (\d+) \| `([a-z-]+)` \| (.*) \|$", PAGE, re.M)
    assert listed == [(str(refusal.exit_code), refusal.word, refusal.meaning) for refusal in Refusal]
    codes = [refusal.exit_code for refusal in Refusal]
    assert len(set(codes)) == len(codes) and not set(codes) & {0, 1, 3, 4}


def test_levels_kinds_and_limits_are_those_of_the_code() -> None:
    for level, name in LEVEL_NAMES.items():
        assert f"| {int(level)} | {name} |" in PAGE
    for kind in BODIES:
        assert f"| `{kind}` |" in PAGE
    for dtype in ("float32", "bfloat16", "float16"):
        limit = default_limit(dtype, dtype)
        assert f"| {dtype} | {limit.median_ppm / 1e6:g} | {limit.row_ppm / 1e6:g} |" in PAGE


def published() -> list[Path]:
    return sorted(path for path in (DOCS / "receipts").glob("*.json") if not path.name.endswith(".secrets.json"))


def test_all_of_them_are_published() -> None:
    assert {path.name for path in published()} >= PUBLISHED


def test_published_receipts_verify_forever() -> None:
    for path in published():
        check_published(path, path.read_bytes())


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_flipped_byte_of_a_real_receipt_is_refused(name: str) -> None:
    data = (DOCS / "receipts" / name).read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 7
        verdict = verify(bytes(changed))
        assert verdict.refusal is not None and verdict.exit_code not in (0, 3, 4), position


def check_published(path: Path, data: bytes) -> None:
    verdict = verify(data)
    assert (verdict.refusal, verdict.exit_code) == (None, 0), verdict.line
    assert verdict.run is not None
    assert (len(verdict.run.last.plan) >= 3) != (verdict.run.order.own_layers > 0)
    assert (verdict.run.order.own_layers > 0) == (path.name == "private-ends.json")
    assert (len(verdict.run.epochs) > 1) == (path.name == "recovered.json")
    for position in range(7, len(data), max(1, len(data) // 150)):
        changed = bytearray(data)
        changed[position] ^= 1
        assert verify(bytes(changed)).refusal is not None, position
