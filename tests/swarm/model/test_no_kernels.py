"""An installation whose compiled kernels cannot be used computes without them, and says so once, with what to do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.base.errors import ModelError
from swarm.base.events import Event, Notice
from swarm.cli import main
from swarm.client.target_model import load_target
from swarm.model.quant import native
from swarm.terminal import doctor

SOURCE = "int swarm_quant_version(void) { return 3; }\nint swarm_quant_isa(void) { return 0; }\n"
FUNCTIONS = (
    "quant_bytes quant_pack quant_numbers quant_products quant_grouped layer_before layer_after layers_whole batched "
    "attend rule scan"
).split()


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """What this process found before is found again, before and after."""
    native._found.cache_clear()
    yield
    native._found.cache_clear()


def compiled(folder: Path, functions: list[str]) -> Path:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler")
    source = folder / "old.c"
    source.write_text(SOURCE + "".join(f"void swarm_{name}(void) {{}}\n" for name in functions))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "old.so", source], check=True, timeout=60)
    return folder / "old.so"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("absent", "none were built when this was installed"),
        ("garbage", "cannot be used here"),
        ("without a function", "cannot be used here"),
        ("another interface", f"has interface 3, this version of wanswarm needs {native.VERSION}"),
    ],
)
def test_it_is_said_why_there_are_none(kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "absent.so"
    if kind == "garbage":
        path = tmp_path / "garbage.so"
        path.write_bytes(b"no library at all")
    elif kind != "absent":
        path = compiled(tmp_path, FUNCTIONS if kind == "another interface" else FUNCTIONS[:-1])
    monkeypatch.setattr(native, "_built", lambda suffix: path)
    told: list[Event] = []
    native.warn_of_none(told.append)
    (notice,) = told
    assert isinstance(notice, Notice) and notice.level == "warning"
    assert native.library() is None and said in notice.text and "C++ compiler" in notice.text
    assert "\n" not in notice.text and said in doctor._kernels().advice


def test_an_installation_with_kernels_says_nothing() -> None:
    if native.library() is None:
        pytest.skip("no kernels were built: install with a C++ compiler")
    told: list[Event] = []
    native.warn_of_none(told.append)
    assert told == [] and native.why_none() == ""


def test_nodes_and_requesters_say_it_before_they_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "_built", lambda suffix: tmp_path / "absent.so")
    folders = ["--state", str(tmp_path / "state"), "--models", str(tmp_path / "models")]
    assert main(["join", "--no-lan", "--listen", "127.0.0.1:0", "--model", "./absent", *folders]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith("warning: computing without compiled kernels") and "absent" in said[1]
    told: list[Event] = []
    with pytest.raises(ModelError):
        load_target("./absent", tmp_path / "models", "none", None, None, told.append)
    assert [event.level for event in told if isinstance(event, Notice)] == ["warning"]
