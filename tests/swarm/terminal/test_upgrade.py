"""Asking for a newer version: whom it asks and when, what it makes of the answer, and what it says to do."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import __version__
from swarm.base.errors import PeerError, RunError
from swarm.cli.main import main
from swarm.net.channel.handshake import VERSION
from swarm.terminal.upgrade import Installed, Newest, Upgrade, ask_index, how_installed, read_answer_untrusted

ROOT = Path(__file__).parents[3]


def release(python: str | None = ">=3.11", yanked: bool = False) -> list[dict[str, object]]:
    return [{"requires_python": python, "yanked": yanked}]


def answer(protocol: int | None = 1, newest: str = "0.3.0", **releases: list[dict[str, object]]) -> bytes:
    keywords = "llm" if protocol is None else f"llm, wanswarm-protocol-{protocol}"
    named = {name.removeprefix("v").replace("_", "."): files for name, files in releases.items()}
    return json.dumps({"info": {"version": newest, "keywords": keywords}, "releases": named}).encode()


OURS = answer(v0_1_0=release(), v0_2_0=release(), v0_3_0=release(), v0_4_0rc1=release(), v0_9_0=release(yanked=True))


@contextmanager
def index(body: bytes, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A package index on this machine: its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/pypi", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_command_asks_the_index_once_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--state", str(tmp_path), "--no-lan"]
    with index(OURS) as (url, asked):
        assert main(["upgrade-check", "--index", url, *state]) == 0
        assert asked == ["/pypi/wanswarm/json"]
        said = capsys.readouterr().out
        assert f"here: wanswarm {__version__}, protocol {VERSION}" in said
        assert "newest: 0.3.0, protocol 1 too: nodes of a swarm may be upgraded one by one" in said
        assert re.search(r"^upgrade: \S", said, re.M)
        assert main(["upgrade-check", "--index", url + "/", "--json", *state]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["newer"] is True and found["newest"] == "0.3.0" and found["swarm"] is None
        assert main(["upgrade-check", "--offline", *state]) == 0
        assert len(asked) == 2
        assert capsys.readouterr().out == f"here: wanswarm {__version__}, protocol {VERSION}\n"


def test_nothing_else_asks_for_versions() -> None:
    for path in (*(ROOT / "swarm").rglob("*.py"), *(ROOT / "draft").rglob("*.py"), *(ROOT / "receipts").rglob("*.py")):
        text = path.read_text()
        if path.name not in ("upgrade.py", "upgrade_check.py"):
            assert "pypi.org" not in text and "terminal.upgrade" not in text, path


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (OURS, Newest("0.3.0", "0.3.0", 1)),
        (answer(2, v0_1_0=release(), v0_3_0=release()), Newest("0.3.0", "0.3.0", 2)),
        (answer(None, v0_3_0=release(None)), Newest("0.3.0", "0.3.0", None)),
        (answer(1, "0.2.0", v0_3_0=release()), Newest("0.3.0", "0.3.0", None)),  # words of another release
        (answer(1, v0_3_0=release(">=3.14"), v0_2_0=release()), Newest("0.3.0", "0.2.0", 1)),
        (answer(1, v0_3_0=release(">=4")), Newest("0.3.0", None, 1)),
        (answer(1, "0.10.0", v0_10_0=release(), v0_9_0=release(), x=release(), v1=[]), Newest("0.10.0", "0.10.0", 1)),
    ],
)  # fmt: skip
def test_the_newest_that_may_be_installed(data: bytes, expected: Newest) -> None:
    assert read_answer_untrusted(data, "3.12.1") == expected


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[]", b"{}", b'{"releases": {}, "info": {}}', b'{"releases": [], "info": 1}',
             b'{"releases": {"1": 7}, "info": {}}', b'{"releases": {"1": ["x"]}, "info": {}}', b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_answer_of_an_index(data: bytes) -> None:
    with pytest.raises(PeerError, match="--index"):
        read_answer_untrusted(data, "3.12.1")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["1.0", "yanked", "a"]), inner, max_size=3)
    ),
)


@given(st.dictionaries(st.sampled_from(["releases", "info", "x"]), values, max_size=3))
def test_any_json_is_read_or_refused(found: dict[str, Any]) -> None:
    try:
        read_answer_untrusted(json.dumps(found).encode(), "3.12.1")
    except PeerError:
        pass


def test_an_index_that_is_not_there_or_refuses() -> None:
    with index(b"", 404) as (url, _):
        with pytest.raises(RunError, match="it knows no such package; give another --index"):
            ask_index(url, None, "3.12.1")
        gone = url
    with index(b"", 503) as (url, _), pytest.raises(RunError, match="answered 503"):
        ask_index(url, None, "3.12.1")
    with pytest.raises(RunError, match="was not reached .*--http-proxy"):
        ask_index(gone, None, "3.12.1")


def test_it_goes_through_the_proxy_that_is_given_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with index(OURS) as (proxy, asked):
        assert ask_index("http://nobody.invalid/pypi", proxy.removesuffix("/pypi"), "3.12.1").version == "0.3.0"
        assert asked == ["http://nobody.invalid/pypi/wanswarm/json"]
        assert ask_index(proxy, None, "3.12.1").version == "0.3.0"


@pytest.mark.parametrize("words", [["--index", "pypi.org"], ["--index", "file:///etc/passwd"], ["--index", ""]])
def test_what_is_no_index(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["upgrade-check", *words])
    assert "expected an index such as https://" in capsys.readouterr().err


def test_what_is_said() -> None:
    pip = Installed("pip", "/usr/bin/python3")
    same = Upgrade("0.3.0", 1, Newest("0.3.0", "0.3.0", 1), pip)
    assert same.lines()[-1] == "newest: 0.3.0: nothing to do" and not same.newer
    ahead = Upgrade("0.4.0", 1, Newest("0.3.0", "0.3.0", 1), pip, {"wanswarm 0.3.0": 2, "wanswarm 0.4.0": 1})
    assert ahead.lines()[1:] == [
        "swarm: 2 of wanswarm 0.3.0, 1 of wanswarm 0.4.0; this version talks to it", "newest: 0.3.0: nothing to do",
    ]  # fmt: skip
    other = Upgrade("0.1.0", 1, Newest("0.3.0", "0.3.0", 2), pip).lines()
    assert other[1] == "newest: 0.3.0, protocol 2: upgrade all nodes of a swarm together"
    assert other[-1] == "upgrade: /usr/bin/python3 -m pip install --upgrade wanswarm"
    old = Upgrade("0.2.0", 1, Newest("0.3.0", "0.2.0", None), pip).lines()
    assert "read its changes" in old[1] and "0.2.0 is the newest for it" in old[2] and len(old) == 3
    assert "no release is for it" in Upgrade("0.2.0", 1, Newest("0.3.0", None, 1), pip).lines()[2]


@pytest.mark.parametrize(
    ("leaves", "installer", "origin", "command"),
    [
        ("pipx_metadata.json", "pip\n", None, "pipx upgrade wanswarm"),
        ("uv-receipt.toml", "uv", None, "uv tool upgrade wanswarm"),
        ("", "uv\n", None, "uv pip install --python /p --upgrade wanswarm"),
        ("", "pip", None, "/p -m pip install --upgrade wanswarm"),
        ("", "", "not json", "/p -m pip install --upgrade wanswarm"),
        ("", "pip", '{"url": "file:///w.whl", "archive_info": {}}', "/p -m pip install --upgrade wanswarm"),
        ("pipx_metadata.json", "pip", '{"url": "file:///a%20b", "dir_info": {"editable": true}}', "git -C '/a b' pull"),
    ],
)  # fmt: skip
def test_how_to_upgrade_follows_how_it_was_installed(
    tmp_path: Path, leaves: str, installer: str, origin: str | None, command: str
) -> None:
    if leaves:
        (tmp_path / leaves).touch()
    found = how_installed(tmp_path, "/p", installer, origin).upgrade
    assert found == command or (command.startswith("git") and found.startswith(command))


def test_a_release_names_its_protocol_for_those_who_ask() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert f"wanswarm-protocol-{VERSION}" in tomllib.load(file)["project"]["keywords"]
