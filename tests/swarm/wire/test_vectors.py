"""What crosses between nodes is, byte for byte, what earlier versions sent: `vectors.txt` was written by their code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.swarm.wire.messages import MESSAGES

VECTORS = Path(__file__).with_name("vectors.txt")


def pinned() -> dict[str, bytes]:
    lines = VECTORS.read_text().splitlines()
    return {name: bytes.fromhex(text) for name, text in (line.split(": ") for line in lines)}


@pytest.mark.parametrize("name", MESSAGES)
def test_bytes_on_the_wire_have_not_changed(name: str) -> None:
    assert MESSAGES[name]().hex() == pinned()[name].hex()


def test_every_pinned_message_is_made() -> None:
    assert set(pinned()) == set(MESSAGES)
