"""Requesters say what they wait for before they wait, and that there is nobody to ask before they load anything."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from swarm.base.config import MemberConfig
from swarm.cli import main
from swarm.cli.ask import AWAITED
from swarm.cli.early import check_node_invite
from swarm.discovery.bootstrap import knows_of_a_swarm
from swarm.discovery.state_dir import remember_invite, requester_folder
from swarm.mesh.invite import make_invite
from swarm.mesh.membership import InviteError, Membership
from swarm.net.identity import Identity


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [("generate", ("hi",), AWAITED + "\n"), ("generate", ("hi", "--json"), ""), ("chat", (), AWAITED + "\n")],
)
def test_what_is_awaited_is_said_before_anything_is_imported(
    command: str,
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "swarm.client.client", None)  # its import fails, as whatever comes after might
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the story of a fault is kept
    (tmp_path / "last.invite").write_text("one that was used")
    assert main([command, *words, "--no-lan", "--state", str(tmp_path)]) == 1
    assert capsys.readouterr().err.partition("swarm: fault of the program")[0] == said


@pytest.mark.parametrize("command", ["generate hi", "chat", "serve --port 0"])
@pytest.mark.parametrize("heard", [None, (), (False,)])
def test_that_there_is_nobody_to_ask_is_said_before_anything_is_imported(
    command: str, heard: tuple[bool, ...] | None, tmp_path: Path
) -> None:
    """`heard`: what the local network holds, open or not; None: it is not listened to."""
    nodes = [
        (b"s" * 16, bytes([n]) * 32, b"", is_open, (("192.0.2.7", 7700),)) for n, is_open in enumerate(heard or ())
    ]
    code = f"""
import sys
from swarm.cli import main
from swarm.discovery import bootstrap
from swarm.mesh.lan import LanNode
async def find(seconds):
    return [LanNode(*node) for node in {nodes!r}]
bootstrap.find = find
sys.argv = ["swarm", *{[*command.split(), "--state", str(tmp_path), *(["--no-lan"] if heard is None else [])]!r}]
code = main()
print("torch" in sys.modules)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    said = "by invite only" if heard else "found none used before" if heard is None else "none on the local network"
    assert done.returncode == 2 and done.stdout == "False\n" and said in done.stderr, done.stderr
    assert ("swarm invite --guest" if heard else "swarm join") in done.stderr.splitlines()[-1]
    assert ("listening for one on the local network" in done.stderr) == (heard is not None)


def test_a_guest_s_invite_makes_no_node_and_that_is_said_at_once(tmp_path: Path) -> None:
    """It was told of after the model was read."""
    home = Identity.from_seed(bytes(32))
    made = make_invite(
        Membership.found(home), b"m" * 32, "tiny", [(home.id, [("192.0.2.7", 1)])], time.time(), role="guest"
    )
    config = MemberConfig(tmp_path, tmp_path, made.text())
    with pytest.raises(InviteError, match="lets in guests, not nodes"):
        check_node_invite(config)
    words = ["join", "--swarm", made.text(), "--no-lan", "--state", str(tmp_path)]
    code = f"import sys; from swarm.cli import main; c = main({words!r}); print('torch' in sys.modules); sys.exit(c)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "False\n" and "guests, not nodes" in done.stderr
    (tmp_path / "peers.json").write_text("{}")  # who was admitted before as a node needs no invite for it
    check_node_invite(config)


def test_who_knows_of_a_swarm_listens_to_nobody_first(tmp_path: Path) -> None:
    config = MemberConfig(tmp_path, tmp_path)
    assert not knows_of_a_swarm(config)
    assert knows_of_a_swarm(replace(config, invite="swarm1abc")) and knows_of_a_swarm(replace(config, lan_swarm=b"s"))
    with requester_folder(tmp_path) as folder:
        assert not knows_of_a_swarm(config)
        (folder / "peers.json").write_text("{}")
    assert knows_of_a_swarm(config)
    (folder / "peers.json").unlink()
    remember_invite(tmp_path, "swarm1abc")
    assert knows_of_a_swarm(config)
