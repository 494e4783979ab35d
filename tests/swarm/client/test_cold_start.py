"""What a start does not import: told by modules, for times are another matter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swarm.client.target_model import load_target
from swarm.model.files.named import DEFAULT_MODEL

ROOT = Path(__file__).parents[3]

REQUESTER = """
import sys
from pathlib import Path
import swarm.client.client
from swarm.client.target_model import load_target
from swarm.model.sampler import Sampling

target = load_target(sys.argv[2], Path(sys.argv[1]), "auto", None, None)
target.drafters.lm.begin(target.encode_chat([{"role": "user", "content": "Say hi"}]), Sampling())
print(len(target.decode([5])), target.special[2], target.compiler.ready is not None, file=sys.stderr)
target.templates.close()
"""


def imported(code: str, *words: str) -> set[str]:
    """First words of all modules that a program has in the end."""
    told = "\nprint(*sorted(name for name in sys.modules if '.' not in name or name.startswith('transformers.')))"
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code + told, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the default model was loaded once."""
    folder = tmp_path_factory.mktemp("models")
    load_target(DEFAULT_MODEL, folder, "auto", None, None)
    return folder


def test_a_requester_of_a_known_model_imports_no_transformers(models: Path) -> None:
    found = imported(REQUESTER, str(models), DEFAULT_MODEL)
    assert "torch" in found
    assert not {name for name in found if name.startswith(("transformers", "huggingface_hub"))}
