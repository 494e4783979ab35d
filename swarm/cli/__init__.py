"""The `swarm` command: parse, call, print. No logic."""

from swarm.cli.main import main

__all__ = ["main"]
