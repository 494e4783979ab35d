"""The `swarm` command: parse, call, print. No logic."""

try:
    from swarm.cli.main import main
except KeyboardInterrupt:  # before there is anything that could say so
    raise SystemExit(130) from None

__all__ = ["main"]
