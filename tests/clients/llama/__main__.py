"""llama.cpp's own HTTP tests of its server, against our gateway: `python -m tests.clients.llama PYTHON [ARGUMENT...]`.

The tests are in the source distribution of PyPI's llama-cpp-python, which is downloaded into a temporary folder (or
found in --folder); nothing of it is kept here. One ring of two nodes stands all the while; each `llama-server` that a
test starts becomes a gateway before it, with the model's name, context, template and slots that the test wants
(`tests/clients/llama/program.py` asks for it). PYTHON runs pytest with the clients' packages; arguments are pytest's.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from receipts.check.verify import verify
from swarm.base.config import MemberConfig
from swarm.cli.serve import KEEP_S
from swarm.client.client import Requester, RequesterConfig
from swarm.model.text.template import PLAIN_CHAT, TemplateOptions, TemplateRenderer
from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.serve.keys import ApiKey
from swarm.testbed.cluster import LocalSwarm, local_ring
from tests.clients.llama.vocabulary import story_tokenizer
from tests.swarm.serve.tiny import tiny_model

PACKAGE = "llama-cpp-python==0.3.36"
INSIDE = ("vendor/llama.cpp/tools/server/tests/", "vendor/llama.cpp/models/templates/")
FILES = "basic chat_completion completion ctx_shift ignore_eos tokenize security template tool_call".split() + [
    "compat_anthropic",
    "compat_oai_responses",
]
NOT_OURS = {
    "a file of weights in their format, or more of them": [
        "server_props",
        "load_split_model",
        "slashed_model",
        "during_model_load",
    ],
    "pages and proxies of their own": ["no_ui", "static_assets", "cors_proxy", "multiple_addresses"],
    "a server without a model, that starts some": ["cors_origins"],
    "images, which are refused by name": ["vision", "with_image", "local_media", "media_error"],
    "how many tokens their vocabulary makes of a prompt, and how many of them are cached": [
        "cached_tokens",
        "prompt_cache",
    ],
    "how many pieces their --batch-size cuts a prompt into": ["return_progress[64-4-False]"],
    "a context that forgets its beginning": ["ctx_shift_enabled"],
    "samplers on a graphics card": ["backend_sampling"],
}
"""Tests that are left out, by why: by what they ask for, read in their text, and never because they fail."""
CONTEXT = 8192
HERE = Path(__file__).parent
TEMPLATES = TemplateRenderer()


def fetched(folder: Path) -> Path:
    """The folder of their tests, below `folder`."""
    if not (found := list(folder.glob("*/" + INSIDE[0]))):
        wanted = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*wanted, "--no-binary", PACKAGE.partition("=")[0], PACKAGE], check=True)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            inner = [each for each in archive if each.name.partition("/")[2].startswith(INSIDE)]
            archive.extractall(folder, inner, filter="data")
        found = list(folder.glob("*/" + INSIDE[0]))
    return found[0]


@dataclass(frozen=True)
class Named:
    """A manifest under another name and with less context."""

    inner: Any
    model: str
    context: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Dressed:
    """The requester, with the name, context and template of one test."""

    def __init__(self, inner: Requester, model: str, context: int, template: str | None) -> None:
        self._inner = inner
        self.manifest = Named(inner.manifest, model, context)
        self.tokenizer = inner.tokenizer if template is None else story_tokenizer(template)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], options: TemplateOptions = PLAIN_CHAT
    ) -> Sequence[int]:
        return TEMPLATES.encode(self.tokenizer, messages, options)


def options_of(arguments: list[str]) -> argparse.Namespace:
    """Those of llama-server that mean something here."""
    parser = argparse.ArgumentParser()
    for name in ("--alias", "--api-key", "--chat-template", "--chat-template-file", "--tags", "--reasoning"):
        parser.add_argument(name)
    for name in ("--port", "--seed", "--ctx-size", "--parallel", "--n-predict"):
        parser.add_argument(name, type=int)
    parser.add_argument("--temp", type=float)
    parser.add_argument("--slots", action="store_true")
    parser.add_argument("--kv-unified", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_known_args(arguments)[0]


BUILT_IN = {
    "llama3": "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "command-r": "{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "<|{{ {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[message['role']] }}_TOKEN|>"
    "{{ message['content'] | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
}
"""What llama-server knows by name."""


def template_of(asked: argparse.Namespace, tests: Path) -> str | None:
    """The text of the chat template that a test wants."""
    if asked.chat_template_file:
        return (tests / asked.chat_template_file).resolve().read_text()
    if asked.chat_template in BUILT_IN:
        return BUILT_IN[asked.chat_template]
    return None if asked.chat_template in (None, "chatml") else str(asked.chat_template)


def thinking(reasoning: str | None) -> dict[str, bool]:
    """llama-server tells templates to think unless it is told otherwise, on its command line."""
    return {"enable_thinking": reasoning != "off"}


@dataclass(frozen=True)
class Host:
    """Makes gateways before one ring."""

    requester: Requester
    tests: Path

    @asynccontextmanager
    async def serving(self, arguments: list[str]) -> AsyncIterator[None]:
        """A gateway as these options of llama-server want it."""
        asked = options_of(arguments)
        slots = asked.parallel or 1
        context = min(asked.ctx_size or CONTEXT, CONTEXT) // (1 if asked.kv_unified else slots)
        names = sorted((asked.alias or "tiny").split(","))
        keys = [ApiKey("test", hashlib.sha256(asked.api_key.encode()).digest())] if asked.api_key else []
        config = replace(
            GatewayConfig(),
            api_keys=tuple(keys),
            max_running=slots,
            aliases=(*((name, names[0]) for name in names[1:]), ("*", names[0])),
            default_max_tokens=asked.n_predict if (asked.n_predict or 0) > 0 else context,
            default_temperature=asked.temp,
            default_seed=asked.seed,
            slots=asked.slots,
            template_options=thinking(asked.reasoning),
            grace_s=0.2,
            verbose=asked.verbose,
            allow_origins=("*",),
        )
        backend: Any = Dressed(self.requester, names[0], context, template_of(asked, self.tests))
        async with gateway(backend, config, lambda data: verify(data).as_json(), "127.0.0.1", asked.port):
            yield

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One program that stands for llama-server."""
        try:
            async with self.serving(json.loads(await reader.readline())):
                writer.write(b"ready\n")
                await reader.read()
        except Exception as error:  # told to whoever asked; the next test has a gateway of its own
            writer.write(f"{type(error).__name__}: {error}\n".replace("\n", " ").encode() + b"\n")
        finally:
            writer.close()


@asynccontextmanager
async def ring(folder: Path) -> AsyncIterator[Requester]:
    """Two nodes of a tiny random model with a vocabulary of words, and a requester."""
    tokenizer = story_tokenizer()
    whole = tiny_model(len(tokenizer))
    with torch.no_grad():  # says words, as a trained model does: seldom single bytes, hardly ever the end
        whole.lm_head.weight[: tokenizer.convert_tokens_to_ids("<0xFF>") + 1] = 0
    whole.config.max_position_embeddings = CONTEXT
    whole.config.eos_token_id = whole.generation_config.eos_token_id = tokenizer.eos_token_id
    whole.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    options = ("--cpu", "--threads", "1", "--dtype", "float32")
    swarm = LocalSwarm(folder / "swarm", model=str(folder / "tiny"), arguments=options)
    async with local_ring(swarm, [(0, 1), (1, 2)]) as nodes:
        state = folder / "requester"
        member = MemberConfig(state, state / "models", nodes.invite, lan=False)
        async with await Requester.connect(RequesterConfig(member, draft="suffix", keep_s=KEEP_S)) as requester:
            yield requester


async def against(python: str, arguments: list[str], kept: Path | None) -> int:
    """Exit status of pytest."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (kept or folder).mkdir(exist_ok=True)
        tests = await asyncio.to_thread(fetched, kept or folder)
        host = Host(await stack.enter_async_context(ring(folder)), tests)
        line, program = folder / "line", folder / "llama-server"
        await stack.enter_async_context(await asyncio.start_unix_server(host.answer, line))
        script = f'exec {shlex.join([sys.executable, "-S", "-E", str(HERE / "program.py"), str(line)])} "$@"\n'
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(0o755)
        left_out = " or ".join(name for names in NOT_OURS.values() for name in names)
        files = [f"unit/test_{name}.py" for name in FILES]
        command = [
            str(Path(python).absolute()),
            "-m",
            "pytest",
            "-p",
            "plugin",
            "-p",
            "no:cacheprovider",
            "-q",
            "--tb=short",
            "-k",
        ]
        command += [f"not ({left_out})", "-m", "not slow", *(arguments or ()), *files]
        paths = {"PYTHONPATH": f"{HERE}:{tests}", "LLAMA_SERVER_BIN_PATH": str(program), "PATH": "/usr/bin:/bin"}
        running = await asyncio.create_subprocess_exec(*command, cwd=tests, env=paths)
        return await running.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="runs pytest and clients")
    parser.add_argument("--folder", type=Path, help="where the source distribution is, or is put")
    known, rest = parser.parse_known_args()
    sys.exit(asyncio.run(against(known.python, rest, known.folder)))
