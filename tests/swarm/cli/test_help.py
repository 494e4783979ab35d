"""Help on terminals of several widths, and what answering quickly asks of imports."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from swarm.cli.main import COMMANDS, build_parser
from swarm.cli.parser import Parser
from tests.swarm.cli.surface import commands

SCREEN = 40
"""Lines of help that are still read without scrolling."""
HEAVY = {"torch", "transformers", "aiohttp", "numpy", "rich", "zeroconf", "asyncio", "prometheus_client", "tokenizers"}


@pytest.fixture(scope="module")
def parsers() -> list[Parser]:
    return [parser for _, parser in commands(build_parser()) if isinstance(parser, Parser)]


def test_every_command_is_read_by_our_parser(parsers: list[Parser]) -> None:
    assert len(parsers) == len(list(commands(build_parser()))) > len(COMMANDS)


@pytest.mark.parametrize("columns", [40, 50, 60, 80, 120])
def test_help_fits_the_terminal(parsers: list[Parser], monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for parser in parsers:
        for text in (parser.format_help(), parser.format_help_all()):
            assert [line for line in text.splitlines() if len(line) > columns] == [], parser.prog


def test_everyday_help_fits_a_screen(parsers: list[Parser], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for parser in parsers:
        assert len(parser.format_help().splitlines()) <= SCREEN, parser.prog


def test_on_a_narrow_terminal_an_option_s_help_stands_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    text = dict(commands(build_parser("join")))["swarm join"].format_help()
    assert "  --layers A:B\n      host layers A up to and without B\n" in text


def test_choices_that_do_not_fit_stand_in_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = " ".join(dict(commands(build_parser("generate")))["swarm generate"].format_help_all().split())  # type: ignore[attr-defined]
    assert "--wire WIRE format of activations" in text and "one of model, auto, float32, bfloat16, int8, fp8" in text
    assert "--speculation SPECULATION how drafts travel (default: stream); one of plain, chain, tree, stream" in text
    monkeypatch.setenv("COLUMNS", "80")
    text = dict(commands(build_parser("generate")))["swarm generate"].format_help_all()  # type: ignore[attr-defined]
    assert "--wire {model,auto,float32,bfloat16,int8,fp8}" in text and "one of" not in text.partition("--wire")[2][:200]


def test_what_a_command_takes_is_named_as_its_help_names_it(parsers: list[Parser]) -> None:
    for parser in parsers:
        words = parser.format_usage().split()
        for action in parser._actions:
            if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
                name = str(action.metavar or action.dest)
                assert name.isupper() and any(name in word for word in words), (parser.prog, name)


def test_everything_is_told_of_in_one_depth_or_the_other(parsers: list[Parser]) -> None:
    for parser in parsers:
        whole = parser.format_help_all()
        for action in parser._actions:
            assert all(name in whole for name in action.option_strings), parser.prog
            assert action.help or isinstance(action, argparse._SubParsersAction), (parser.prog, action.dest)


def loaded_by(*words: str) -> set[str]:
    """Top-level packages that a command has loaded when it ends."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr))\n"
        f"from swarm.cli import main\nsys.exit(main({list(words)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_no_library_that_computes_or_serves(words: list[str]) -> None:
    spared = HEAVY - ({"asyncio"} if words[0] == "bench" else set())
    assert loaded_by(*words) & spared == set()


def test_verifying_a_receipt_loads_neither_a_model_library_nor_a_server(tmp_path: object) -> None:
    assert loaded_by("verify", "/nowhere/receipt.json") & HEAVY == set()


def test_looking_at_a_swarm_loads_no_model_library() -> None:
    loaded = loaded_by("status", "--no-lan", "--state", "/nowhere/state", "--swarm", "swarm1nonsense")
    assert loaded & {"torch", "transformers", "tokenizers"} == set()


def test_one_command_is_built_when_one_is_asked_for() -> None:
    code = "import sys; from swarm.cli.main import build_parser; build_parser('status'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("swarm.cli.")}
    assert "swarm.cli.status" in ours and ours.isdisjoint({f"swarm.cli.{name}" for name in set(COMMANDS) - {"status"}})
