"""The Python API: every example of docs/python.md as it stands there, and what the page says of errors and threads."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

import swarm
from receipts.check.verify import verify
from swarm.base.config import JoinConfig, MemberConfig
from swarm.base.members import MemberOptions
from swarm.base.option import declared
from swarm.client.options import AnswerOptions, request_of
from swarm.model.sampling import Sampling
from swarm.node.embedded import NodeOptions
from swarm.run.api import RunRequest
from tests.swarm.serve.tiny import tiny_model, tiny_tokenizer

PAGE = (Path(__file__).parents[3] / "docs/python.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    whole = tiny_model(258)
    whole.config.eos_token_id = whole.generation_config.eos_token_id = tiny_tokenizer().eos_token_id
    whole.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ring(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes inside this process; the invite."""
    state = tmp_path_factory.mktemp("nodes")
    options: dict[str, Any] = {"model": str(model), "lan": False, "threads": 1, "dtype": "float32", "grace_s": 1.0}
    with (
        swarm.Node(state=state / "a", layers=(0, 1), found=True, **options) as first,
        swarm.Node(first.invite, state=state / "b", layers=(1, 2), **options) as second,
    ):
        assert (first.layers, second.layers) == ((0, 1), (1, 2))
        yield first.invite


@pytest.fixture
def client(ring: str, tmp_path: Path) -> Iterator[swarm.Client]:
    with swarm.Client(ring, state=tmp_path, lan=False, draft="suffix") as client:
        yield client


def test_the_examples_of_the_page(
    ring: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platformdirs.user_state_path", lambda name: tmp_path / "state" / name)
    monkeypatch.setattr("swarm.client.drafters.find_drafter", lambda *_: None)  # loading one is most of the time
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    space: dict[str, Any] = {"INVITE": ring, "MODEL": str(model), "STATE": tmp_path}
    for example in EXAMPLES:
        exec(compile(example, "docs/python.md", "exec"), space)
    said = capsys.readouterr().out
    for expected in ("tokens/s over 2 stages", "RESULT", "level 1: signed and consistent", "level 4: recomputed whole"):
        assert expected in said


def test_the_table_of_errors_names_what_is_exported() -> None:
    rows = re.findall(r"^\| (`.*?`) \| ", PAGE, re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    errors = {name for name in swarm.__all__ if isinstance(getattr(swarm, name), type)}
    errors = {name for name in errors if issubclass(getattr(swarm, name), swarm.SwarmError)}
    assert named == errors - {"SwarmError"}


def test_importing_the_package_loads_no_model_library() -> None:
    code = (
        "import sys, swarm; swarm.Client, swarm.AsyncClient, swarm.Node, swarm.SwarmError; "
        "print(*sorted({'torch', 'transformers', 'numpy', 'aiohttp'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
    bare = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; before = set(sys.modules); import swarm; print(len(set(sys.modules) - before))",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(bare.stdout) < 15


def test_every_name_that_is_promised_is_there() -> None:
    assert all(getattr(swarm, name) is not None for name in swarm.__all__)
    assert set(swarm.__all__) <= set(dir(swarm))
    with pytest.raises(AttributeError, match="Clint"):
        _ = swarm.Clint


def test_keywords_of_a_node_are_the_fields_of_its_configuration() -> None:
    own = set(NodeOptions.__annotations__) - set(MemberOptions.__annotations__) - {"report"}
    assert own == {field.name for field in fields(JoinConfig)} - {"member"}
    assert set(MemberOptions.__annotations__) == {field.name for field in fields(MemberConfig)} - {"invite", "remember"}


def test_keywords_of_an_answer_are_the_options_that_a_run_declares() -> None:
    own = {name for kind in (RunRequest, Sampling) for name, _, _ in declared(kind)}
    assert own | {"system", "raw", "regex", "grammar"} == set(AnswerOptions.__annotations__)
    with pytest.raises(swarm.UsageError, match="private must be 0 to 1000, found -1"):
        request_of({"private": -1}, (1,), None, "auto")
    with pytest.raises(swarm.UsageError, match=r"expected --wire model\|auto.*, found 'float8'"):
        request_of({"wire": "float8"}, (1,), None, "auto")
    request = request_of({"speculation": "plain", "seed": 3, "witnesses": 2, "stop": "x"}, (1,), None, "auto")
    assert (request.draft, request.sampling.seed, request.witnesses, request.stop) == ("none", 3, 2, ("x",))


def test_sync_and_async_have_the_same_names() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert names(swarm.Client) == names(swarm.AsyncClient)
    assert names(swarm.Node) == names(swarm.AsyncNode)


def test_a_stream_says_what_generate_says(client: swarm.Client) -> None:
    whole = client.generate("hello", max_tokens=12)
    stream = client.stream([{"role": "user", "content": "hello"}], max_tokens=12)
    with pytest.raises(swarm.UsageError, match="read to its end"):
        _ = stream.result
    assert "".join(stream) == whole.text == stream.result.text
    assert whole.new_tokens == 12 and [stage.layers for stage in whole.ring] == [(0, 1), (1, 2)]


def test_leaving_a_stream_ends_the_run(client: swarm.Client) -> None:
    with client.stream("hello", max_tokens=400, ignore_eos=True, speculation="plain") as pieces:
        next(iter(pieces))
    desk = client._inner._inside.desk

    async def idle() -> None:
        async with asyncio.timeout(20):
            while desk.flights():  # noqa: ASYNC110 - nobody tells of an end
                await asyncio.sleep(0.02)

    client._background.call(idle())
    assert client.generate("hello", max_tokens=2).new_tokens == 2


def test_several_threads_share_a_client(client: swarm.Client) -> None:
    alone = [client.generate(f"hello {n}", max_tokens=6).text for n in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda n: client.generate(f"hello {n}", max_tokens=6).text, range(3)))
    assert together == alone


class Wet(BaseModel, extra="forbid"):
    wet: bool
    why: str = Field(max_length=4)


def test_structured_gives_values_and_refuses_half_ones(client: swarm.Client) -> None:
    found = client.structured("Is water wet?", Wet, max_tokens=200)
    assert isinstance(found, Wet) and len(found.why) <= 4
    assert set(client.structured("Is water wet?", Wet.model_json_schema(), max_tokens=200)) <= {"wet", "why"}
    with pytest.raises(swarm.RunError, match="max_tokens"):
        client.structured("Is water wet?", {"type": "string", "minLength": 30}, max_tokens=3)
    with pytest.raises(swarm.UsageError, match="one form"):
        client.structured("Is water wet?", Wet, regex="a")


def test_receipts_go_where_they_are_told(client: swarm.Client, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    answer = client.generate("hello", max_tokens=3, receipt=path)
    assert answer.receipt == str(path) and verify(path.read_bytes()).exit_code == 0
    for receipt in (answer, path, str(path), path.read_bytes()):
        assert client.verify(receipt).exit_code == 0
    assert client.verify(answer, audit=2).level == 3
    bad = json.loads(path.read_text())
    bad["epochs"] = []
    assert client.verify(json.dumps(bad).encode()).refusal is not None
    none = client.generate("hello", max_tokens=3, receipt=False)
    assert none.receipt is None
    with pytest.raises(swarm.UsageError, match="told to leave none"):
        client.verify(none)


def test_what_cannot_be_meant_is_refused_by_name(client: swarm.Client, tmp_path: Path) -> None:
    with pytest.raises(swarm.UsageError, match="did you mean max_tokens"):
        client.generate("hello", max_token=3)  # type: ignore[call-arg]
    with pytest.raises(swarm.UsageError, match="did you mean state"):
        swarm.Client(stat=tmp_path)  # type: ignore[call-arg]
    with pytest.raises(swarm.UsageError, match="did you mean layers"):
        swarm.Node(layer=(0, 1))  # type: ignore[call-arg]
    with pytest.raises(swarm.UsageError, match="empty"):
        client.generate(" ")
    with pytest.raises(swarm.UsageError, match="holds an invite"):
        swarm.Client(tmp_path / "nothing.invite")
    with pytest.raises(swarm.UsageError, match="with .* as client"):
        swarm.Client("x").generate("hello")


def test_a_wrong_invite_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    code = (
        "import swarm, sys\n"
        "for make in (swarm.Client, swarm.Node):\n"
        "    try:\n"
        f"        make('nonsense', state={str(tmp_path)!r}).__enter__()\n"
        "    except swarm.SwarmError as error:\n"
        "        assert 'begins with swarm1' in str(error), error\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_main_memory_beside_a_gpu_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(swarm.UsageError, match="gpu with overflow_bytes"):
        swarm.Node(state=tmp_path, overflow_bytes=10**9)


def test_a_node_that_cannot_serve_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(swarm.SwarmError, match="nowhere-at-all"),
        swarm.Node(model=str(tmp_path / "nowhere-at-all"), state=tmp_path / "s", lan=False),
    ):
        pass
    with swarm_locked(tmp_path / "held"), pytest.raises(swarm.UsageError, match="in use"):
        with swarm.Node(state=tmp_path / "held", lan=False):
            pass


def swarm_locked(folder: Path) -> Any:
    from swarm.discovery.state_dir import locked

    return locked(folder)
