"""Coding programs, each once against a gateway: `python -m tests.clients.programs FOLDER [NAME...]`.

Claude Code, Codex and aider, as they come from npm and PyPI into FOLDER, are each asked to write a file. Programs, HTTP
and gateway are the real ones; what the model says is written down here, since no model that fits a test could do their
work, and is told to them token by token. Prints what each sent that nobody reads; ends with 1 when a file is not there.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swarm.run.api import RunEvent, RunRequest
from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from tests.clients.gateway import TEMPLATE
from tests.swarm.serve.tiny import TinyBackend, TinyManifest, tiny_tokenizer

WISH = "Write the name of a river into river.txt"
CONTEXT = 1_000_000
"""Tokens are bytes here; the first prompt of Claude Code has some 70,000."""
PATIENCE_S = 300.0


@dataclass
class Player(TinyBackend):
    """Says `first` to whoever wishes for a river, and `then` once a tool has answered."""

    first: str = ""
    then: str = "I wrote it."
    log: list[str] = field(default_factory=list)

    def run(self, request: RunRequest) -> AsyncIterator[RunEvent]:
        prompt = str(self.tokenizer.decode(list(request.prompt_ids)))
        self.script = self.then if "<|im_start|>tool\n" in prompt else self.first if "river.txt" in prompt else "River"
        return super().run(request)


@dataclass(frozen=True)
class Program:
    """How one is started, within `folder`, against a gateway at `url`; what the model says to it."""

    package: str
    command: Callable[[Path, str], list[str]]
    says: Callable[[Path], str]
    settings: Mapping[str, str]


def call(name: str, **arguments: str) -> str:
    """As the template of the tiny model writes a call."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def programs(folder: Path) -> Mapping[str, Program]:
    """By name. `URL` in settings stands for the gateway."""
    binaries = folder / "node_modules/.bin"
    provider = 'model_providers.swarm={name="swarm", base_url="URL/v1", wire_api="responses"}'
    return {
        "claude": Program(
            "@anthropic-ai/claude-code",
            lambda at, url: [str(binaries / "claude"), "-p", "--permission-mode", "acceptEdits", WISH],
            lambda at: call("Write", file_path=str(at / "river.txt"), content="Scheldt\n"),
            {
                "ANTHROPIC_BASE_URL": "URL",
                "ANTHROPIC_AUTH_TOKEN": "unused",
                "ANTHROPIC_MODEL": "tiny-random",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            },
        ),
        "codex": Program(
            "@openai/codex",
            lambda at, url: [
                *(str(binaries / "codex"), "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access"),
                *("-c", "model_provider=swarm", "-c", provider.replace("URL", url), "-m", "tiny-random", WISH),
            ],
            lambda at: call("exec_command", cmd="echo Scheldt > river.txt"),
            {"OPENAI_API_KEY": "unused"},
        ),
        "aider": Program(
            "aider-chat",
            lambda at, url: [
                *(str(folder / "python/bin/aider"), "--model", "openai/tiny-random", "--openai-api-base", f"{url}/v1"),
                *("--openai-api-key", "unused", "--yes-always", "--no-git", "--no-show-model-warnings"),
                *("--no-check-update", "--analytics-disable", "--message", WISH, "river.txt"),
            ],
            lambda at: "river.txt\n```\nScheldt\n```\n",
            {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        ),
    }


async def tried(program: Program, folder: Path) -> str:
    """What came of it. Raises AssertionError."""
    home, work, log = folder / "home", folder / "work", folder / "log.jsonl"
    home.mkdir()
    work.mkdir()
    backend = Player(folder, replace(TinyManifest(), context=CONTEXT), tiny_tokenizer(TEMPLATE))
    backend.first = program.says(work)
    config = replace(GatewayConfig(), access_log=log)
    async with gateway(backend, config, lambda data: {}, "127.0.0.1", 0) as (host, port):
        url = f"http://{host}:{port}"
        paths = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "TERM": "dumb"}
        paths |= {name: value.replace("URL", url) for name, value in program.settings.items()}
        running = await asyncio.create_subprocess_exec(
            *program.command(work, url),
            cwd=work,
            env=paths,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                said, _ = await running.communicate()
        finally:
            with suppress(ProcessLookupError):
                running.kill()
    written = work / "river.txt"
    told = said.decode(errors="replace")[-2000:]
    assert running.returncode == 0 and written.exists() and written.read_text() == "Scheldt\n", told
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    wrong = [each for each in requests if each["status"] >= 400]
    assert not wrong, wrong
    return f"{len(backend.requests)} answers, {max(len(run.prompt_ids) for run in backend.requests)} bytes of prompt"


def version_of(package: str) -> str:
    """The one that is pinned."""
    here = Path(__file__).parent
    pinned: Any = json.loads((here / "package.json").read_text())["dependencies"]
    pinned |= dict(line.split("==") for line in (here / "requirements.txt").read_text().split())
    return str(pinned[package])


async def main(folder: Path, names: list[str]) -> int:
    """How many failed."""
    failed = 0
    for name, program in programs(folder.absolute()).items():
        if names and name not in names:
            continue
        shown = f"{program.package} {version_of(program.package)}"
        with tempfile.TemporaryDirectory() as at:
            try:
                print(f"ok      {shown}: {await tried(program, Path(at))}", flush=True)
            except (AssertionError, TimeoutError, OSError) as error:
                failed += 1
                print(f"FAILED  {shown}: {error!r}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(Path(sys.argv[1]), sys.argv[2:])) else 0)
