"""What commands import before they do anything: told by modules, for times are another matter on a busy machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECEIPT = "docs/receipts/three-cpu-stages.json"

MODELS = {"torch", "transformers", "tokenizers", "gguf", "safetensors", "huggingface_hub"}
WEB = {"aiohttp", "jinja2"}
RUN = """
import contextlib, io, sys
from swarm.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main({words!r})
"""
LOOKING = "import swarm.cli.status, swarm.terminal.observer, swarm.terminal.status"


def modules(code: str) -> set[str]:
    """The packages that a program has imported in the end."""
    told = "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code + told], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import swarm", MODELS | WEB | {"numpy", "asyncio", "nacl", "typing"}),
        ("import receipts", MODELS | WEB | {"numpy", "msgpack", "psutil"}),
        (RUN.format(words=["--help"]), MODELS | WEB | {"numpy", "asyncio", "rich"}),
        (RUN.format(words=["status", "--help"]), MODELS | WEB | {"numpy"}),
        (RUN.format(words=["generate", "--help"]), MODELS | WEB | {"numpy"}),
        (RUN.format(words=["join", "--help"]), MODELS | WEB | {"numpy"}),
        (RUN.format(words=["verify", RECEIPT]), MODELS | WEB | {"numpy"}),
        (LOOKING, MODELS | WEB),
    ],
    ids=["swarm", "receipts", "help", "status-help", "generate-help", "join-help", "verify", "status"],
)
def test_a_start_imports_no_more_than_it_needs(code: str, without: set[str]) -> None:
    found = modules(code)
    assert found & {"swarm", "receipts"}
    assert found & without == set()
