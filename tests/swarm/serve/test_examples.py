"""What stands on the pages of the API to be copied: all of it is run by a test, or named with the reason why not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import io
import re
import shutil
import subprocess

import pytest

from tests.clients.examples import NOT_HERE, Example, commands, examples, put_in
from tests.swarm.serve.conftest import Serve

ALL = list(examples())
HERE = [
    example
    for example in ALL
    if example.kind == "python"
    and all(importlib.util.find_spec(name) for name in re.findall(r"^(?:from|import) (\w+)", example.text, re.M))
]


def test_every_example_is_run_or_said_why_not() -> None:
    """Python's that need no further package are run below; all of Python, Node, llm and curl by `make clients`."""
    assert len(HERE) >= 5 and {example.kind for example in ALL} == {"python", "js", "yaml", "sh"}
    lost = [
        line
        for example in ALL
        for line in (commands(example) if example.kind == "sh" else example.text.splitlines()[:1])
        if example.kind in ("sh", "yaml") and not line.startswith(("curl ", "# extra-openai-models", *NOT_HERE))
    ]
    assert lost == []


# Examples close no client: what is left open goes with the process.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("example", HERE, ids=lambda example: example.name)
async def test_pythons_examples_run_as_they_stand(serve: Serve, example: Example) -> None:
    async with serve() as served:
        served.backend.script = '{"name": "Ada Lovelace", "age": 36}'
        text = put_in(example.text, served.url, served.model)
        assert text != example.text
        said = io.StringIO()

        def run() -> None:
            with contextlib.redirect_stdout(said):
                exec(compile(text, example.name, "exec"), {"__name__": "__main__"})  # our own page

        await asyncio.to_thread(run)
        gc.collect()
        assert "Ada" in said.getvalue()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
async def test_curls_examples_run_as_they_stand(serve: Serve) -> None:
    asked = [line for example in ALL if example.kind == "sh" for line in commands(example) if line.startswith("curl ")]
    assert asked
    async with serve() as served:
        for line in asked:
            command = ["sh", "-c", put_in(line, served.url, served.model) + " --fail"]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
            assert done.returncode == 0 and '"text"' in done.stdout, done
