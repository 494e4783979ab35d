"""Everything that can be seen to be wrong in the words alone: exit code 2 and one line, before anything is asked of
anybody or loaded."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.base.errors import RunError, UsageError
from swarm.base.paths import file_to_write, folder_to_write, read_folder, read_path, stream_to_write
from swarm.cli.fault import Ending, ending_of
from swarm.cli.loop import run_loop
from swarm.cli.main import COMMANDS, build_parser, main
from swarm.cli.streams import Patient
from swarm.cli.verify import write_drawing
from tests.swarm.cli.surface import commands

main_module = sys.modules["swarm.cli.main"]
BAD_ADDRESSES = (
    "host", "host:", "host:x", ":80", "[::1]", "[::1]:1:2", "::1:80", "[zz]:80", "http://h:80", "h:70000", "h:-1",
    "my host:80", "h: 80", "h:\u0663", " ",
)  # fmt: skip
HOME_OF = ("join", "generate", "chat", "serve", "status", "verify", "invite", "model list", "plan", "probe", "doctor")


def cases() -> Iterator[tuple[str, str]]:
    """The words behind `swarm`, by spaces (_ is one inside a word, T the test's folder), and what must be said."""
    address = "expected HOST:PORT or [IPV6]:PORT with a port from {} to 65535"
    for bad in BAD_ADDRESSES:
        yield f"join --listen={bad.replace(' ', '_')}", address.format(0)
    for bad in ("h:0", *BAD_ADDRESSES[:3]):
        yield f"join --advertise={bad}", address.format(1)
        yield f"join --relay --relay-at={bad}", address.format(1)
        yield f"invite --address={bad}", address.format(1)
    for bad in ("0.0.0.0:80", "[::]:80"):
        yield f"join --advertise={bad}", "which stands for all"
    for bad in ("h", "h:80", "http://h", "http://:80", "http://h:0", "http://h:99999", "https://h:1"):
        yield f"status --http-proxy={bad}", "expected a proxy as http://HOST:PORT"
    for command in ("join", "chat", "generate hi", "serve", "status", "doctor"):
        yield f"{command} --swarm garbage", "expected an invite that begins with swarm1"
        yield f"{command} --swarm swarm1abcdef", "the invite was damaged on the way"
    for kind, says in (("--regex (((", "the regex cannot be compiled"), ("--grammar T/text.txt", "grammar")):
        yield f"generate hi {kind}", says
        yield f"demo {kind}", says
    for bad in ("", "h", "h:80", "ftp://h", "http://", "http://127.0.0.1:99999", "http://h_o:1"):
        yield f"generate hi --gateway={bad}", "expected the address of a gateway as http://HOST:PORT"
    for command in HOME_OF:
        yield f"{command} --state=", "found an empty text"
        yield (
            f"{command} --models=T/file" if command not in ("admit",) else command,
            "expected a folder, found the file",
        )
    yield from PATHS
    yield from NUMBERS
    yield from TOGETHER
    yield from WORDS


PATHS = (
    ("generate hi --receipt=", "expected a path, found an empty text"),
    ("generate hi --receipt=T/dir", "expected a file, found the folder"),
    ("generate hi --receipt=T/file/r.json", "Not a directory; name another place"),
    ("generate hi --receipt=/dev/null", "expected a file, found a device"),
    ("generate hi --receipt=/proc/r.json", "cannot write /proc/r.json"),
    ("generate hi --gateway http://127.0.0.1:1 --receipt=T/dir", "expected a file, found the folder"),
    ("generate hi --json-schema=T/nope", "No such file"),
    ("generate hi --json-schema=T/dir", "Is a directory"),
    ("generate hi --json-schema=T/empty", "expected JSON in UTF-8"),
    ("generate hi --json-schema=T/bytes", "expected JSON in UTF-8"),
    ("generate hi --json-schema=", "found an empty text"),
    ("generate hi --grammar=T/bytes", "expected a grammar in UTF-8"),
    ("generate hi --grammar=T/nope", "No such file"),
    ("generate hi --gateway http://h:1 --gateway-key=T/empty", "expected an API key"),
    ("generate hi --gateway http://h:1 --gateway-key=T/dir", "Is a directory"),
    ("generate hi --gateway http://h:1 --gateway-key=T/bytes", "no text in UTF-8"),
    ("generate hi --swarm T/dir", "Is a directory"),
    ("generate hi --swarm T/bytes", "no text in UTF-8"),
    ("generate hi --swarm T/nope.invite", "No such file"),
    ("generate hi --swarm T/text.txt", "expected an invite that begins with swarm1"),
    ("demo --receipt=T/dir", "expected a file, found the folder"),
    ("demo --json-schema=T/nope", "No such file"),
    ("join --log=T/file", "expected a folder, found the file"),
    ("join --log=T/file/x", "Not a directory"),
    ("join --state=T/file", "expected a folder, found the file"),
    ("serve --log=T/file", "expected a folder, found the file"),
    ("serve --access-log=T/dir", "expected a file, found the folder"),
    ("serve --access-log=T/file/x", "Not a directory"),
    ("serve --api-key=T/nope", "No such file"),
    ("serve --api-key=T/dir", "Is a directory"),
    ("serve --api-key=T/empty", "at least one API key"),
    ("serve --api-key=T/bytes", "text in UTF-8"),
    ("verify T/nope", "cannot read the receipt"),
    ("verify T/dir", "Is a directory"),
    ("verify --trust=T/nope", "cannot use the trust file"),
    ("verify --trust=T/bytes", "cannot use the trust file"),
    ("verify T/file --secrets=T/nope", "cannot use the secrets file"),
    ("verify T/file --beside=T/nope", "cannot read the receipt"),
    ("verify T/file --svg=T/dir", "expected a file, found the folder"),
    ("verify T/file --svg=T/file/x", "Not a directory"),
    ("verify T/file --log=T/nope", "cannot read the log"),
    ("verify T/file --log-proof=T/dir", "expected a file, found the folder"),
    ("show T/nope", "cannot read the receipt"),
    ("show T/file --svg=T/dir", "expected a file, found the folder"),
    ("plan --nodes T/nope", "cannot read the fleet file"),
    ("plan --nodes T/dir", "Is a directory"),
    ("plan --nodes T/empty", "at least one [[node]]"),
    ("plan --nodes T/bytes", "expected TOML or JSON"),
    ("draft distill --out T/file", "expected a folder, found the file"),
    ("draft learn --out T/file", "expected a folder, found the file"),
    ("model quantize x --to int8 --out T/file/x", "Not a directory"),
    ("bench speculation --out T/file", "expected a folder, found the file"),
)
NUMBERS = (
    ("join --gpu -1", "a GPU number (0 to 64)"),
    ("join --gpu=0,0", "GPUs that differ"),
    ("join --threads=0", "a number of threads (1 to 1024)"),
    ("join --kv-memory=nan", "gigabytes (0.001 to 4096)"),
    ("join --grace=inf", "seconds (0 to 3600)"),
    ("join --layers=\u0660:\u0663", "--layers A:B"),
    ("join --layers=0:99999999999999999999", "--layers A:B"),
    ("generate hi --max-tokens=1.5", "a number of tokens"),
    ("generate hi --seed=1e9", "a seed"),
    ("generate hi --min-p=2", "a share (0 to 1)"),
    ("generate hi --top-k=-1", "a number of tokens"),
    ("generate hi --patience=-1", "seconds (0 to 86400)"),
    ("generate hi --witness=x", "a number of nodes"),
    ("serve --port=65536", "a port (0 to 65535)"),
    ("serve --max-running==2", "names no model"),
    ("serve --max-running=m=0", "a number of runs"),
    ("status --watch --every=0", "seconds (0.2 to 3600)"),
    ("top --every=nan", "seconds (0.5 to 3600)"),
    ("verify --audit=0", "a number of frames"),
    ("verify --require-level=5", "a level (0 to 4)"),
    ("verify --require=witness,x", "expected some of witness,audit,replay,exact"),
    ("invite --expires=0", "a time such as 30m"),
    ("admit 12", "a code of six digits"),
    ("doctor --port=0", "a port (1 to 65535)"),
    ("demo --nodes=0", "a number of nodes (1 to 64)"),
    ("demo --dashboard=70000", "a port (0 to 65535)"),
    ("draft distill --out T/d --layers=0", "a number of layers"),
    ("draft distill --out T/d --layers=3,3", "a number of layers"),
    ("draft distill --out T/d --minutes=0", "minutes (0.01 to 100000)"),
    ("draft distill --out T/d --device=tpu", "expected cpu or cuda:N"),
    ("draft learn --minutes=0", "minutes (0.01 to 100000)"),
    ("draft learn --threads=0", "a number of threads"),
    ("generate hi --learning-space 0", "megabytes (0.1 to 1000000)"),
    ("upgrade-check --index=x", "expected an index such as"),
)
TOGETHER = (
    ("generate hi --draft none --draft-gpu 0", "expected --draft lm or auto with --draft-gpu"),
    ("generate hi --draft suffix --draft-model x", "expected --draft lm or auto with --draft-model"),
    ("generate hi --draft-model=", "found an empty text"),
    ("generate hi --draft-gpu 63", "--draft-gpu 63: this machine has"),
    ("serve --port 0 --draft-gpu 63", "--draft-gpu 63: this machine has"),
    ("chat --draft-gpu 63", "--draft-gpu 63: this machine has"),
    ("demo --draft-gpu 63", "--draft-gpu 63: this machine has"),
    ("bench speculation --gpu 63 --out T/d", "--gpu 63: this machine has"),
    ("generate hi --regex a --grammar T/text.txt", "an answer has one form"),
    ("generate hi --gateway-key T/file", "found the key alone"),
    ("join --found --swarm swarm1x", "expected either --found or --swarm"),
    ("serve --port 0 --swarm lan --no-lan", "found both; leave one out"),
    ("doctor --probe --no-speed", "expected either --probe or --no-speed"),
    ("draft distill --out T/d --gpu 0 --device cpu", "expected one device"),
    ("draft learn --forget --out T/d", "expected --forget or --out, found both"),
    ("verify T/file --via x", "expected --audit N with --via"),
    ("verify T/file --calibrate", "without a receipt"),
)
WORDS = (
    ("gen", "did you mean generate?"),
    ("statu", "did you mean status?"),
    ("models", "did you mean model?"),
    ("upgrade", "did you mean upgrade-check?"),
    ("--verion", "unrecognized arguments: --verion; did you mean --version?"),
    ("--helpp demo", "did you mean --help?"),
    ("model pul x", "did you mean pull?"),
    ("completion fish", "choose from"),
    ("generate hi there", "unrecognized arguments: there"),
    ("generate hi --stop=\udcff", "expected text in UTF-8"),
    ("generate \udcff", "expected text in UTF-8"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("misuse")
    (made / "dir").mkdir()
    for name, data in {"file": b"x", "empty": b"", "bytes": b"\xff\xfe\x00" * 9, "text.txt": b"hello\n"}.items():
        (made / name).write_bytes(data)
    return made


@pytest.mark.parametrize(("words", "says"), list(cases()))
def test_misuse_is_one_line_and_exit_code_2(
    words: str, says: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    asked = [word.replace("_", " ").replace("T/", f"{folder}/") for word in words.split(" ") if word]
    if asked[:1] and asked[0] in {"status", "chat", "generate", "join", "serve"} and "lan" not in asked:
        asked.append("--no-lan")
    try:
        code = main(asked)
    except SystemExit as end:  # argparse's own way out
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert says in err and code == 2, (asked, err)
    assert len([line for line in lines if line.startswith("swarm")]) == 1 and not out, err
    assert all(line.startswith(("usage:", "    ")) for line in lines[:-1]), err
    assert not {path.name for path in folder.iterdir()} - {"dir", "file", "empty", "bytes", "text.txt", "state"}, asked


@pytest.mark.parametrize("words", [[], ["model"], ["draft"], ["bench"], ["completion"]])
def test_nothing_asked_for_is_answered_with_what_could_be(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    if words == ["completion"]:
        assert "--help" in err and "swarm completion: error:" in err
    else:
        assert err == dict(commands(build_parser()))[" ".join(["swarm", *words])].format_help()


def test_every_command_is_misused() -> None:
    begun = {words.partition(" ")[0] for words, _ in cases()}
    assert set(COMMANDS) - begun == {"revoke"}  # its only word is an invite, as --swarm is


def test_a_drawing_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_drawing(tmp_path / "a.svg", "<svg/>")
    assert (tmp_path / "a.svg").read_text() == "<svg/>"

    def full(handle: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for name in ("a.svg", "b.svg"):
        with pytest.raises(UsageError, match="cannot write the drawing .*: No space left on device"):
            write_drawing(tmp_path / name, "<svg></svg>")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.svg", "<svg/>")]


def test_paths_are_tried_and_left_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    assert file_to_write(str(tmp_path / "kept")).read_text() == "kept"
    assert file_to_write(str(tmp_path / "a/b/new")) == tmp_path / "a/b/new"
    assert folder_to_write(str(tmp_path / "c/d")) == read_folder(str(tmp_path / "c/d"))
    assert stream_to_write("/dev/stdout") == Path("/dev/stdout")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    for read in (read_path, read_folder, folder_to_write, file_to_write, stream_to_write):
        with pytest.raises(UsageError, match="empty"):
            read("")
    with pytest.raises(UsageError, match="cannot write"):
        file_to_write(str(tmp_path / "kept/x"))


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("expected x, found y"), 2, "expected x, found y"),
        (RunError("the run ended"), 1, "the run ended"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, None),
        (FULL, 1, "cannot write the output: No space left on device; free space, or send it elsewhere"),
        (OSError(errno.ENOSPC, "full", "/a/b"), 1, "cannot write /a/b: full; free space, or choose another folder"),
        (OSError(errno.EBADF, "Bad file descriptor"), 1, "it is closed"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "ulimit -n"),
        (MemoryError(), 1, "no memory is left"),
        (ExceptionGroup("two", [KeyError("x"), ExceptionGroup("one", [UsageError("u")])]), 2, "u"),
        (BaseExceptionGroup("pipe", [BrokenPipeError(), RunError("r")]), 1, "r"),
    ],
)
def test_what_an_exception_means(error: BaseException, code: int, says: str | None) -> None:
    ending = ending_of(error)
    assert ending.code == code and not ending.fault
    assert ending.line is None if says is None else says in (ending.line or "")


def test_a_fault_of_ours_is_named_as_one() -> None:
    assert ending_of(KeyError("x\ny")) == Ending(1, "fault of the program: KeyError: 'x\\ny'", fault=True)
    assert ending_of(ExceptionGroup("g", [ZeroDivisionError()])).fault


def test_what_cannot_be_said_to_people_ends_nothing() -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stream = Patient(io.BufferedWriter(Full()), encoding="utf-8", line_buffering=True)
    for _ in range(3000):
        assert stream.write("a line\n") == 7
    stream.flush()


def test_ctrl_c_is_known_though_an_import_swallows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing(words: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            pass
        raise ImportError("what a library in C makes of it")

    left: list[int] = []
    monkeypatch.setattr(main_module, "_run", importing)
    monkeypatch.setattr(main_module, "prepare", lambda: None)
    monkeypatch.setattr(main_module, "leave_now", left.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main() == 130 and left == [130] and capsys.readouterr().err == "swarm: interrupted\n"
        seen = run_loop(asyncio.sleep(0, "done"))
        assert seen == "done" and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
