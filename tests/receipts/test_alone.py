"""The verifier by itself: the package alone in a folder, nothing of this machine's packages but PyNaCl."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted((ROOT / "docs/receipts").glob("*.json"))

FORBID = """
import sys
from importlib.abc import MetaPathFinder

class OnlyThese(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        ours = {"receipts", "nacl", "_cffi_backend", "cffi", "pycparser"}
        if root not in sys.stdlib_module_names and root not in ours:
            raise ImportError(f"not to be had here: {name}")

sys.meta_path.insert(0, OnlyThese())
sys.path[:0] = sys.argv[1:3]
from receipts.__main__ import main
code = main(sys.argv[3:])
assert not {"torch", "transformers", "swarm", "numpy"} & sys.modules.keys()
sys.exit(code)
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install ./receipts` lays down."""
    target = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source") / "receipts"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "receipts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in listed:
        place = source.parent / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((ROOT / name).read_bytes())
    words = [
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--target",
        str(target),
    ]
    subprocess.run([sys.executable, "-m", "pip", *words, str(source)], check=True, timeout=120)
    return target


def check(alone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    nacl = find_spec("nacl")
    assert nacl is not None and nacl.origin is not None
    site = str(Path(nacl.origin).parents[1])
    words = [sys.executable, "-I", "-S", "-c", FORBID, str(alone), site, *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_published_receipts_verify_without_torch(alone: Path) -> None:
    done = check(alone, *map(str, PUBLISHED))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RESULT") == len(PUBLISHED) == 4
    line = json.loads(check(alone, "--json", str(PUBLISHED[0])).stdout)
    assert line["level"] == 1 and line["exit_code"] == 0


def test_a_bad_receipt_and_a_missing_file_end_with_their_codes(alone: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(PUBLISHED[0].read_bytes().replace(b'"payload":"', b'"payload":"AAAA', 1))
    assert check(alone, str(PUBLISHED[1]), str(bad)).returncode >= 10
    for unread, why in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        said = check(alone, str(unread))
        assert (said.returncode, said.stderr.count("Errno")) == (2, 0)
        assert f"cannot read {unread}: {why}" in said.stderr
    assert check(alone, "--require-level", "4", str(PUBLISHED[0])).returncode == 3


def test_the_package_that_is_published_alone_has_the_version_and_needs_of_the_whole() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    part = tomllib.loads((ROOT / "receipts/pyproject.toml").read_text())
    assert part["project"]["version"] == whole["version"]
    assert set(part["project"]["dependencies"]) <= set(whole["dependencies"])
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "receipts").rglob("__init__.py")}
    assert set(part["tool"]["setuptools"]["packages"]) == packages
