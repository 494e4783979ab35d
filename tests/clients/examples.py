"""What stands to be copied on the pages, run as it stands: `python tests/clients/examples.py [NODE_FOLDER] URL`.

Only the gateway's address, names of models and paths of files are put in. Needs the packages of requirements.txt; with
NODE_FOLDER (where package.json was installed) JavaScript's, and they alone. Ends with 1 when one of them fails.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("docs/api.md", "docs/integrations.md")
NOT_HERE = {
    "swarm ": "parsed by tests/test_pages.py; what they do is tested in tests/swarm/cli and tests/swarm/serve",
    "lm_eval": "TASK and MODEL are anybody's: tests/clients/plain.py runs it with a task of its own",
    "ANTHROPIC_BASE_URL": "tests/clients/programs runs Claude Code with these settings",
    "OLLAMA_HOST": "ollama's own program is not on a package index; its two clients are",
    "codex": "tests/clients/programs runs it with these settings",
    "aider": "tests/clients/programs runs it with these settings",
    "# config.yaml of litellm": "tests/clients/plain.py starts its proxy with such a file",
    "# config.yaml of Continue": "an editor's; requests of it are in tests/swarm/serve/test_chat_programs.py",
    "# librechat.yaml": "a server with a database; requests of it are in tests/swarm/serve/test_chat_programs.py",
}
"""Commands and files that stand on the pages and are not run from there, by how they begin, and why."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.M)


@dataclass(frozen=True)
class Example:
    """A block of a page."""

    page: str
    kind: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}, {self.kind}: {self.text.strip().splitlines()[0]}"


def examples() -> Iterator[Example]:
    """All that stands on the pages, in its order."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        for kind, block in _FENCE.findall(text):
            yield Example(page, kind, block)
        for block in _INDENTED.findall(_FENCE.sub("", text)):
            yield Example(page, "sh", textwrap.dedent(block))


def commands(example: Example) -> list[str]:
    """Command lines of a block of the shell, without comments."""
    whole = re.sub(r"\s*\\\n\s*", " ", example.text)
    return [line.split("  #")[0].strip() for line in whole.splitlines() if line.strip()]


def put_in(text: str, url: str, model: str) -> str:
    """An example for a gateway at `url`, without the /v1, that serves `model`."""
    text = re.sub(r"http://127\.0\.0\.1:8080|(?<![\w.])localhost:8080", url, text)
    return re.sub(r"smollm2-135m-instruct|qwen2\.5-coder-1\.5b", model, text)


def python_of(text: str) -> str:
    """A program: what awaits stands in a coroutine."""
    if "await " not in text and "async with" not in text:
        return text
    return "import asyncio\nasync def main():\n" + textwrap.indent(text, "    ") + "\nasyncio.run(main())\n"


def run(example: Example, url: str, model: str, node: Path | None) -> bool:
    """Whether it was run. Raises RuntimeError with what it said when it failed."""
    home, text = Path(__file__).parent, put_in(example.text, url, model)
    if example.kind == "python":
        ours = text.replace('"command": "python"', f'"command": {sys.executable!r}')
        _called([sys.executable, "-c", python_of(ours)], home)
    elif example.kind == "js":
        assert node is not None
        path = node / "example.mjs"
        path.write_text(text + "process.exit(0);\n")
        _called(["node", path.name], node)
    elif example.kind == "yaml" and "extra-openai-models" in text:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "extra-openai-models.yaml").write_text(text)
            program = str(Path(sys.executable).with_name("llm"))
            _called([program, "-m", "swarm", "-o", "max_tokens", "8", "Name a river."], home, LLM_USER_PATH=folder)
    elif example.kind == "sh" and (asked := [line for line in commands(example) if line.startswith("curl ")]):
        for line in asked:
            _called(["sh", "-c", put_in(line, url, model)], home)
    else:
        return False
    return True


def _called(command: list[str], where: Path, **settings: str) -> None:
    quiet = {"OPENAI_API_KEY": "unused", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    paths = {**os.environ, **quiet, **settings}
    done = subprocess.run(command, cwd=where, env=paths, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])


def main() -> None:
    """Run all."""
    url, node = sys.argv[-1].rstrip("/"), Path(sys.argv[1]).absolute() if len(sys.argv) > 2 else None
    with urllib.request.urlopen(f"{url}/models") as told:
        model = json.load(told)["data"][0]["id"]
    failed = 0
    for example in examples():
        if "response_format=Person" in example.text:  # a model of no sense ends no name: tests/swarm/serve runs it
            continue
        if (example.kind == "js") != (node is not None):
            continue
        try:
            if run(example, url.removesuffix("/v1"), model, node):
                print(f"ok      {example.name}", flush=True)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"FAILED  {example.name}: {error}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
