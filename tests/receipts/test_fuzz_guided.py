"""The coverage-guided fuzzer for a while: no crash, no hang, only the package's own error."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[1] / "fuzz" / "fuzz_receipts.py"


@pytest.mark.fuzz
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris (pip install atheris)")
def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(HARNESS), "-max_total_time=90", "-timeout=5", "-rss_limit_mb=2048", "-max_len=4096"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
