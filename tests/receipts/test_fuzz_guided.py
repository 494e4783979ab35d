"""The coverage-guided fuzzer for a while: no crash, no hang, only the package's own error."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMITS = ["-max_total_time=90", "-timeout=5", "-rss_limit_mb=2048", "-max_len=4096"]


@pytest.mark.fuzz
@pytest.mark.timeout(850)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris (pip install atheris)")
def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_receipts", *LIMITS, f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
