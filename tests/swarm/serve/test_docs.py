"""docs/api.md and docs/grafana.json name what there is, and all of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from swarm.serve.config import GatewayConfig
from swarm.serve.keys import ApiKey
from swarm.serve.nodeview import make_view
from swarm.serve.openapi import describe
from tests.clients.llama.known import KNOWN
from tests.swarm.serve import scenes
from tests.swarm.serve.conftest import Serve, Served

DOCS = Path(__file__).parents[3] / "docs"
SECRET = "ann-0123456789abcdef"
SUFFIXES = re.compile(r"_(bucket|count|sum)$")


def named(text: str) -> set[str]:
    names = re.findall(r"^(wanswarm_\w+)", text, re.M)
    return {SUFFIXES.sub("", name) for name in names if not name.endswith("_created")}


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    """With a key, since some metrics are of keys."""
    async with serve(api_keys=(ApiKey("ann", hashlib.sha256(SECRET.encode()).digest()),), key=SECRET) as running:
        yield running


async def exposed(served: Served) -> set[str]:
    """Names of all metrics once every part of a gateway and of a node has something to tell."""
    view = make_view(scenes.FirstNode(), scenes.MANIFEST)
    async with TestClient(TestServer(view)) as client:
        node = await (await client.get("/metrics")).text()
    served.backend.state = scenes.SERVING
    await served.openai.chat.completions.create(
        model=served.model, messages=[{"role": "user", "content": "x"}], max_tokens=2
    )
    async with served.http.get("/metrics", headers={"X-Api-Key": SECRET}) as answer:
        text = await answer.text()
    return named(text) | named(node)


async def test_metrics_are_written_down(served: Served) -> None:
    written = set(re.findall(r"`(wanswarm_\w+)`", (DOCS / "api.md").read_text()))
    assert written == await exposed(served)


async def test_grafana_asks_for_metrics_that_exist(served: Served) -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    asked = {
        SUFFIXES.sub("", name)
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"wanswarm_\w+", target["expr"])
    }
    assert asked and asked <= await exposed(served)


def test_addresses_are_written_down() -> None:
    text = (DOCS / "api.md").read_text()
    assert [path for path in describe(GatewayConfig())["paths"] if not re.search(f"[ `]{re.escape(path)}`", text)] == []


def test_limits_are_written_down() -> None:
    text, config = (DOCS / "api.md").read_text(), GatewayConfig()
    for told in (
        f"at most {config.default_max_tokens} tokens",
        f"more than {config.body_timeout_s:g} s",
        f"more than {config.max_body_bytes >> 20} MiB",
        f"{config.max_waiting_per_user} of your own",
        f"{config.max_waiting} waiting, or {config.max_wait_s:g} s",
    ):
        assert told in text, told
    assert config.max_running == 8 and "Eight runs" in text


ROOT = Path(__file__).parents[3]
_ROW = re.compile(r"^\| ([@\w/.-]+)[^|]*\| (\d+\.[\d., ]+) \|", re.MULTILINE)
PLUMBING = {"filelock", "numpy", "pytest", "requests", "wget", "zod"}
"""What llama.cpp's tests and clients need beside, and is no client."""


def test_versions_in_the_table_of_clients_are_those_that_run() -> None:
    page = (ROOT / "docs/integrations.md").read_text()
    told = {(name.lower(), version.split(",")[0].strip()) for name, version in _ROW.findall(page)}
    files = [ROOT / "tests/clients" / name for name in ("requirements.txt", "programs/requirements.txt")]
    pinned = [line.partition("==") for file in files for line in file.read_text().split()]
    wanted = {(name.partition("[")[0], version) for name, _, version in pinned}
    for folder in ("node", "programs"):
        package = json.loads((ROOT / "tests/clients" / folder / "package.json").read_text())
        wanted |= set(package["dependencies"].items())
    wanted = {one for one in wanted if one[0] not in PLUMBING and one[0] != "@ai-sdk/openai-compatible"}
    assert wanted <= told
    names = {name for name, _ in told}
    ours = [line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    known = wanted | {(name.lower(), version.strip()) for name, _, version in ours if name.lower() in names}
    assert told == known
    compatible = json.loads((ROOT / "tests/clients/node/package.json").read_text())["dependencies"]
    assert f", {compatible['@ai-sdk/openai-compatible']} |" in page


def test_known_failures_of_llama_servers_tests_are_written_down() -> None:
    page = (ROOT / "docs/integrations.md").read_text()
    assert dict(re.findall(r"^\| `(test_[^`]+)` \| (.*) \|$", page, re.M)) == KNOWN
    counted = re.search(r"^Of the (\d+) that apply (\d+) pass, ([\d.]+)%", page, re.M)
    assert counted is not None and int(counted[1]) - int(counted[2]) == len(KNOWN)
    assert f"{100 * int(counted[2]) / int(counted[1]):.1f}" == counted[3]
