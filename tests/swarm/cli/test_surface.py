"""Nothing of the command line changes unless it is meant to: scripts are written against it."""

from __future__ import annotations

from swarm.cli.main import build_parser
from tests.swarm.cli.surface import saved, surface


def test_every_option_is_what_it_was() -> None:
    now, before = surface(build_parser()), saved()
    assert list(now) == list(before)
    for command, options in now.items():
        assert options == before[command], f"{command} changed; if it is meant: python -m tests.swarm.cli.surface"
