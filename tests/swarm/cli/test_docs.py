"""docs/cli.md says what the commands say."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from swarm.cli.docs import main, render
from swarm.cli.main import build_parser

PAGE = Path(__file__).parents[3] / "docs/cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(build_parser()), "run: python -m swarm.cli.docs"


def test_every_command_has_a_section() -> None:
    page = render(build_parser())
    for name in ("join", "generate", "status", "demo", "verify", "model", "bench"):
        assert f"## `swarm {name}`" in page


def test_hidden_options_stay_hidden_and_defaults_are_filled_in() -> None:
    parser = argparse.ArgumentParser(prog="x")
    parser.add_argument("--secret", help=argparse.SUPPRESS)
    parser.add_argument("--many", nargs="+", metavar="MS", default=[1], help="a | b (default: %(default)s)")
    page = render(parser)
    assert "secret" not in page and r"| `--many MS ...` | a \| b (default: [1]) |" in page


def test_check_tells_a_stale_page(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    assert main(["--check", "--path", str(page)]) == 1
    assert main(["--path", str(page)]) == 0
    assert main(["--check", "--path", str(page)]) == 0
    page.write_text(page.read_text() + "more")
    assert main(["--check", "--path", str(page)]) == 1


def test_help_answers_without_loading_torch() -> None:
    code = "import sys\nfrom swarm.cli.main import build_parser\nbuild_parser().format_help()\n"
    code += "print({'torch', 'transformers'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
