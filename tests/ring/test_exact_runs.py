"""The benchmark that counts answers that differ, and honest stages called wrong: a short one, and at size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swarm.model.quant.native import library
from tests.bench.audit_power import random_model
from tests.bench.exact_runs import KINDS, audits, main, texts

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")


@pytest.mark.timeout(300)
async def test_a_request_has_one_answer_and_an_honest_stage_no_wrong_bit(tmp_path: Path) -> None:
    checkpoint = random_model(tmp_path)
    kinds = {"bfloat16": KINDS["bfloat16"]}
    found = await texts(checkpoint, kinds, 1, 6, tmp_path / "texts", (1, 2), (0.8,))
    assert found == {"bfloat16": {"runs": 10, "requests": 1, "requests with more than one answer": 0}}
    audited = await audits(checkpoint, 2, 4, tmp_path / "audits", (torch.bfloat16,))
    assert audited["wrong"] == 0 and audited["audits"] == 3 and audited["openings"] > 0


@pytest.mark.soak
@pytest.mark.timeout(6000)
def test_nor_at_size() -> None:
    assert main([]) == 0
