"""What a user meets who gets something wrong: one line on stderr, the right exit code, never a traceback."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from swarm.cli.main import main
from swarm.discovery.state_dir import locked

INVITE = "swarm1" + "a" * 40


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    try:
        code = main(words)
    except SystemExit as end:  # argparse's own way out
        code = int(end.code or 0)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate", ""], "found an empty one"),
        (["generate", "   "], "found an empty one"),
        (["generate", "hi", "--temperature", "-1"], "--temperature: expected a temperature (0 to 100), found '-1'"),
        (["generate", "hi", "--temperature", "nan"], "expected a temperature"),
        (["generate", "hi", "--top-p", "0"], "--top-p: expected a probability (above 0 and at most 1), found '0'"),
        (["generate", "hi", "--top-p", "1.5"], "--top-p: expected"),
        (["generate", "hi", "--seed", "x"], "argument --seed: expected a seed (0 to 9223372036854775807), found 'x'"),
        (["generate", "hi", "--max-tokens", "0"], "a number of tokens"),
        (["generate", "hi", "--speculation", "wild"], "invalid choice"),
        (["generate", "hi", "--draft", "none", "--draft-model", "x"], "--draft lm or auto with --draft-model"),
        (["generate", "hi", "--receipt", "a.json", "--no-receipt"], "found both"),
        (["generate", "hi", "--no-lan", "--regex", "("], "the regex cannot be compiled"),
        (["generate", "hi", "--no-lan", "--regex", ""], "expected a constraint of 1 to"),
        (["generate", "hi", "--swarm", "nonsense"], "expected an invite that begins with swarm1"),
        (["generate", "hi", "--swarm", INVITE], "damaged on the way"),
        (["generate", "hi", "--swarm", "/nowhere/my.invite"], "a file that holds one"),
        (["generate", "hi", "--only", "ann"], "expected a node id or a file of node ids after --only"),
        (["generate", "hi", "--only", "aaaaaaaa"], "expected full node ids of 64"),
        (["generate", "hi", "--owners", "0"], "a number of owners"),
        (["join", "--layers", "9:3"], "--layers A:B with A < B"),
        (["join", "--layers", "x"], "--layers A:B"),
        (["join", "--layers", "0:2", "--capacity", "2"], "not allowed with"),
        (["join", "--gpu", "0", "--cpu"], "not allowed with"),
        (["join", "--overflow"], "expected --gpu N with --overflow"),
        (["join", "--cpu", "--overflow", "8"], "expected --gpu N with --overflow"),
        (["join", "--listen", "here"], "expected HOST:PORT"),
        (["join", "--advertise", "host:99999"], "expected HOST:PORT"),
        (["join", "--dtype", "int4"], "invalid choice"),
        (["invite", "--expires", "soon"], "expected"),
        (["model", "show", "no/such/model/here"], "no model"),
        (["draft", "distill", "--out", "x", "--layers", "many"], "expected a number of layers"),
        (["draft", "distill", "--out", "x", "--device", "tpu"], "cpu or cuda:N"),
        (["verify", "/nowhere/receipt.json"], "cannot read the receipt"),
        (["plan", "--nodes", "/nowhere/fleet.toml"], "fleet.toml"),
        (["nonsense"], "invalid choice"),
    ],
)  # fmt: skip
def test_misuse_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], says: str
) -> None:
    folders = ["--state", str(tmp_path / "state"), "--models", str(tmp_path / "models")]
    takes_folders = words and words[0] in ("generate", "join", "invite", "model", "draft", "plan")
    code, said = run(capsys, *words, *(folders if takes_folders else []))
    assert says in said
    assert code == (1 if words[:1] == ["model"] else 2)
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1 or said.startswith("usage:")


def test_a_gpu_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["join", "--gpu", "63", "--no-lan", "--state", str(tmp_path / "s"), "--models", str(tmp_path / "m")]
    code, said = run(capsys, *words)
    assert code == 2 and "--gpu 63" in said and "use --cpu" in said


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["join", "--listen", f"127.0.0.1:{port}", "--no-lan", "--state", str(tmp_path / "s")]
        code, said = run(capsys, *words, "--models", str(tmp_path / "m"))
    assert code == 2 and str(port) in said and len(said.strip().splitlines()) == 1


def test_what_is_taken_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """A folder in use was told of after 54 s, a busy port after 102."""
    with socket.socket() as taken, locked(tmp_path / "held"):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, said in (
            (["join", "--state", str(tmp_path / "held")], "is in use by process"),
            (["join", "--state", str(tmp_path / "s"), "--listen", f"127.0.0.1:{port}"], "Address already in use"),
            (["serve", "--state", str(tmp_path / "t"), "--port", str(port)], "Address already in use"),
        ):
            code = f"import sys; from swarm.cli import main; c = main({words!r}); "
            code += "print('torch' in sys.modules); sys.exit(c)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
            assert done.returncode == 2 and said in done.stderr and done.stdout == "False\n"


def test_an_unknown_model_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["join", "--model", "./not-there", "--no-lan", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "s")]
    code, said = run(capsys, *words, "--models", str(tmp_path / "m"))
    assert code == 1 and "no model './not-there'" in said and len(said.strip().splitlines()) == 1


def test_nobody_to_ask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, said = run(capsys, "generate", "hi", "--no-lan", "--state", str(tmp_path / "s"))
    assert code == 2 and "give --swarm INVITE" in said


def test_two_processes_cannot_share_a_state_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from swarm.discovery.state_dir import locked

    with locked(tmp_path / "s"):
        words = ["join", "--no-lan", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "s")]
        code, said = run(capsys, *words, "--models", str(tmp_path / "m"))
    assert code == 2 and "is in use by process" in said


def test_an_empty_or_broken_receipt_never_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"{}", b'{"envelopes": []}', b"\xff\xfe", b"[" * 100_000)):
        path = tmp_path / f"{number}.json"
        path.write_bytes(data)
        code, _ = run(capsys, "verify", str(path))
        assert code not in (0, 1, 3)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    names = "join generate chat serve status demo verify model invite revoke plan doctor draft bench completion"
    for command in names.split():
        assert command in out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["generat", "hi"], "generate"),
        (["generate", "hi", "--max-toknes", "3"], "--max-tokens"),
        (["generate", "--speculation", "tre", "hi"], "tree"),
        (["join", "--lissten=x"], "--listen"),
        (["verify", "--frobnicate"], ""),
    ],
)
def test_a_misspelt_word_is_guessed(capsys: pytest.CaptureFixture[str], words: list[str], meant: str) -> None:
    code, said = run(capsys, *words)
    assert code == 2 and said.strip().endswith(f"; did you mean {meant}?" if meant else "--frobnicate")


def test_help_is_short_first_and_whole_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for depth in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            main(["join", depth])
        assert end.value.code == 0
        shown.append(capsys.readouterr().out)
    short, whole = shown
    assert "--layers" in short and "--relay-at" not in short and "--help-all" in short
    assert "--layers" in whole and "--relay-at" in whole and len(short) < 0.6 * len(whole)
    with pytest.raises(SystemExit):
        main(["revoke", "--help"])
    assert "--http-proxy" in capsys.readouterr().out  # a command with few options has one depth


@pytest.mark.parametrize("command", ["serve", "draft distill"])
def test_an_unknown_option_is_an_error_of_its_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--target", "x", "--out", "y"] if command == "draft distill" else []
    with pytest.raises(SystemExit):
        main([*command.split(), *needed, "--listens", "999"])
    said = capsys.readouterr().err
    assert said.startswith(f"usage: swarm {command} ") and f"swarm {command}: error: unrecognized" in said
