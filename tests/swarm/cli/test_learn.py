"""`swarm draft learn` as a command: what it says before and after, what it refuses, what it forgets."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from draft.run_shelf import FOLDER, RunShelf
from swarm.base.option import declared
from swarm.cli.learn import stopped_by_interrupts
from swarm.cli.main import main
from swarm.client.config import RequesterConfig
from tests.draft.learning import Tiny, kept, make_tiny

PROMPTS = [[0, 40 + n, 60 + n % 3, 9] for n in range(20)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny")


def run(capsys: pytest.CaptureFixture[str], state: Path, *words: str) -> tuple[int, str, str]:
    code = main(["draft", "learn", "--state", str(state), "--models", str(state / "models"), *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_before_and_after_are_told_and_forgetting_deletes(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf = kept(RunShelf(tmp_path / FOLDER), tiny.runs(PROMPTS))
    code, out, err = run(capsys, tmp_path, "--target", str(tiny.folder), "--minutes", "0.05", "--threads", "1")
    assert code == 0 and "learning from 20 runs" in err and "4 of 20 runs are held out" in err
    assert "first choice  0." in err and "first eight   0." in err and "general text: first choice" in err
    assert ("the new drafter is better; --draft auto uses it" in err) == bool(out.strip())
    assert ("the one before stays" in err) != bool(out.strip())
    code, out, err = run(capsys, tmp_path, "--forget", "--target", str(tiny.folder))
    assert code == 0 and "forgotten: 20 runs of 1 models" in err and shelf.targets() == []
    code, out, err = run(capsys, tmp_path, "--forget")
    assert code == 0 and "forgotten: 0 runs of 0 models" in err


def test_without_runs_it_says_how_to_keep_them(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, tmp_path, "--target", str(tiny.folder))
    assert code == 2 and "found none; swarm generate, chat or serve with --keep-for-learning keep them" in err
    assert not (tmp_path / FOLDER).exists()


def test_the_first_interrupt_ends_the_round_and_the_second_is_one_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopped_by_interrupts() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            stop.clear()
            stop.wait(10)
    assert signal.getsignal(signal.SIGINT) is before


def test_keeping_is_off_and_help_says_what_lies_where_and_how_to_delete_it() -> None:
    options = {name: (option, default) for name, option, default in declared(RequesterConfig)}
    option, default = options["keep_for_learning"]
    assert default is False and option.name == "--keep-for-learning"
    for part in ("readable on this machine", "learning/ of the state folder", "swarm draft learn --forget deletes it"):
        assert part in option.help
