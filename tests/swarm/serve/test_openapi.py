"""Requests generated from our own description: each gets an answer that the description foresees."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.serve.openapi import describe
from tests.swarm.serve.conftest import fake_verify
from tests.swarm.serve.tiny import TinyBackend

CONFIG = GatewayConfig(default_temperature=0.0, default_max_tokens=4)
REFUSED = [
    path for path, item in describe(CONFIG)["paths"].items() if "501" in item.get("post", {}).get("responses", {})
]
"""Refused by name, with a status that is a server's error to the checks."""


def plain() -> list[str]:
    """Paths that take nothing, and second names of others: what is drawn for them is drawn again and again."""
    found, seen = [], list[Any]()
    for path, item in describe(CONFIG)["paths"].items():
        takes = any("requestBody" in operation or operation.get("parameters") for operation in item.values())
        said = [{name: part for name, part in each.items() if name != "operationId"} for each in item.values()]
        if not takes or said in seen:
            found.append(path)
        seen.append(said)
    return found


WHOLE = schemathesis.openapi.from_dict(describe(CONFIG)).exclude(path=REFUSED)
SCHEMA, PLAIN = WHOLE.exclude(path=plain()), WHOLE.include(path=plain())
few = settings(
    max_examples=2, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway in a thread of its own: schemathesis is not asynchronous."""
    folder: Path = tmp_path_factory.mktemp("receipts")
    loop = asyncio.new_event_loop()
    ready: list[tuple[str, int]] = []
    started, stop = threading.Event(), asyncio.Event()

    async def run() -> None:
        backend = TinyBackend(folder)
        backend.script = "Hello."
        async with gateway(backend, CONFIG, fake_verify, "127.0.0.1", 0) as address:
            ready.append(address)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert started.wait(60)
    yield f"http://{ready[0][0]}:{ready[0][1]}"
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def check(case: schemathesis.Case, url: str) -> None:
    case.validate_response(case.call(base_url=url), checks=CHECKS)


@SCHEMA.parametrize()
@settings(few, max_examples=10)
def test_generated_requests(case: schemathesis.Case, url: str) -> None:
    check(case, url)


@PLAIN.parametrize()
@few
def test_what_takes_nothing_and_second_names(case: schemathesis.Case, url: str) -> None:
    check(case, url)


def test_the_document_is_served_as_described(url: str) -> None:
    import json
    import urllib.request

    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        assert json.load(answer) == describe(CONFIG)
