"""What becomes of request bodies, API by API: `bodies.jsonl` has a body a line, with the status and the field at fault.

A table and not rules, so that a change of how bodies are read shows which clients meet another answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.swarm.serve.conftest import Serve

JSON = {"Content-Type": "application/json"}
TABLE = [json.loads(line) for line in Path(__file__).with_name("bodies.jsonl").read_text().splitlines()]
"""[path, body, status, field at fault, code of the refusal]"""


def refusal(path: str, answer: Any) -> tuple[str | None, str | None]:
    """Field and code. Ollama's and Anthropic's errors have neither: there it is the name that the message quotes."""
    error = answer["error"]
    if isinstance(error, str):  # Ollama
        assert set(answer) == {"error"}
        return quoted(error), None
    if "param" in error:
        assert set(answer) == {"error"} and set(error) == {"message", "type", "param", "code"}
        return error["param"], error["code"]
    assert set(answer) == {"type", "error", "request_id"} and set(error) == {"type", "message"}  # Anthropic
    return quoted(error["message"]), error["type"]


def quoted(message: str) -> str | None:
    found = re.search(r"'([^']*)'", message)
    return None if found is None else found[1]


async def test_refused_bodies_are_refused_as_ever(serve: Serve) -> None:
    await check(serve, [line for line in TABLE if line[2] >= 400])


async def test_a_choice_of_bodies_is_taken_as_ever(serve: Serve) -> None:
    await check(serve, [line for line in TABLE if line[2] < 400][::12])


@pytest.mark.soak
async def test_all_bodies_are_taken_as_ever(serve: Serve) -> None:
    await check(serve, [line for line in TABLE if line[2] < 400])


async def check(serve: Serve, lines: list[Any]) -> None:
    wrong = []
    async with serve() as served:
        served.backend.script = "yes"
        for path, body, *expected in lines:
            async with served.http.post(path, data=json.dumps(body), headers=JSON) as response:
                status, text = response.status, await response.text()
            found = [status, *(refusal(path, json.loads(text)) if status >= 400 else (None, None))]
            if found != expected:
                wrong.append(f"{path} {json.dumps(body)[:200]}: expected {expected}, found {found}: {text[:200]}")
    assert not wrong, "\n".join(wrong)


def test_the_table_has_both_kinds_for_every_address() -> None:
    kinds = Counter((line[0], line[2] < 400) for line in TABLE)
    assert all(kinds[path, fits] for path, _ in kinds for fits in (True, False))
