"""What keeps a machine out of a swarm, made real between hosts: the command says which cause it is."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from swarm.base.address import Address
from swarm.mesh.invite import make_invite
from swarm.mesh.membership import Membership
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from tests.lab.lab import HostSpec, Lab, lab
from tests.lab.test_reach import NODE, PORT, identity, start
from tests.swarm.model.tiny import random_model, tiny_config

pytestmark = pytest.mark.lab
OLD = "import socket; s = socket.create_server(('0.0.0.0', 7001))\nprint('{\"event\": \"ready\"}', flush=True)\n" + (
    "while True: c, _ = s.accept(); c.recv(8); c.sendall(b'\\x8fswarm\\0\\x63'); c.close()"
)

DOOR = str(Path(__file__).with_name("door_node.py"))
POOR = "import swarm.model.device as d; d.free_bytes = lambda device: 1000\n"
"""A machine with a kilobyte to spare; the command is the real one."""


def invite(*addresses: Address) -> str:
    """To the swarm of the node on host "s", which is told to be at these addresses."""
    home = identity("s")
    made = make_invite(Membership.found(home), b"m" * 32, "tiny", [(home.id, addresses)], time.time())
    return made.text()


async def said(net: Lab, folder: Path, name: str, *command: str) -> str:
    """The last line of a command on h1, which fails."""
    words = (sys.executable, "-m", "swarm", *command, "--state", str(folder / name), "--no-lan")
    with pytest.raises(RuntimeError) as error:
        await net.run("h1", *words, seconds=90)
    return str(error.value)


@pytest.mark.timeout(240)
async def test_the_command_says_what_is_in_the_way(tmp_path: Path) -> None:
    async with lab(HostSpec(delay_ms=5), HostSpec("full", delay_ms=5), HostSpec(delay_ms=5)) as net:
        server = net.address("s")
        await start(net, "s")
        await (await net.start("s", sys.executable, "-c", OLD)).event("ready", 20)
        for words in ("add table ip f", "add chain ip f in { type filter hook input priority 0; }"):
            await net.run("h3", "nft", words)
        await net.run("h3", "nft", "add rule ip f in tcp dport 7000 drop")
        ways = {
            "firewall": (net.address("h3"), PORT),
            "down": (server, 7999),
            "version": (server, 7001),
            "advertise": ("10.2.0.2", PORT),
            "dns": ("nobody.invalid", PORT),
            "network": ("2001:db8::1", PORT),
        }
        tries = [said(net, tmp_path, cause, "status", "--swarm", invite(at)) for cause, at in ways.items()]
        for cause, found in zip(ways, await asyncio.gather(*tries), strict=True):
            assert f"cause: {cause}" in found, (cause, found)


async def ends(net: Lab, folder: Path, name: str, *command: str, first: str = "") -> str:
    """What a command on h1 says before it fails."""
    words = [*command, "--state", str(folder / name), "--no-lan", "--models", str(folder / "models")]
    with pytest.raises(RuntimeError) as error:
        await net.run("h1", sys.executable, "-c", f"{first}from swarm.cli.main import main\nexit(main({words!r}))")
    return str(error.value)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("loading", [False, pytest.param(True, marks=pytest.mark.soak)])
async def test_the_command_says_why_a_member_does_not_let_it_in(tmp_path: Path, loading: bool) -> None:
    """`loading`: what is found by a node that knows its model; in the normal run `tests/ring/test_misuse.py` has it."""
    for name, kind in (("tiny", "llama"), ("other", "qwen2")) if loading else ():
        random_model(tiny_config(kind)).save_pretrained(tmp_path / name)
    digest = open_model(str(tmp_path / "tiny"), ModelStore(tmp_path)).manifest.digest if loading else "00" * 32
    join = ("join", "--cpu", "--threads", "1", "--model")
    async with lab(HostSpec(delay_ms=5)) as net:
        door = await net.start("s", sys.executable, DOOR, net.address("s"), digest)
        found = await door.event("ready", 30)
        if loading:
            tiny, other, swarm = str(tmp_path / "tiny"), str(tmp_path / "other"), ("--swarm", found["open"])
            tries = {
                "model": ends(net, tmp_path, "model", *join, other, *swarm),
                "memory": ends(net, tmp_path, "memory", *join, tiny, *swarm, first=POOR),
            }
        else:
            tries = {
                cause: ends(net, tmp_path, cause, "status", "--swarm", found[cause]) for cause in ("revoked", "full")
            }
        for cause, said in zip(tries, await asyncio.gather(*tries.values()), strict=True):
            assert f"(cause: {cause}" in said and "Traceback" not in said, (cause, said)


@pytest.mark.timeout(240)
async def test_two_nodes_behind_nats_without_a_relay_say_that_they_need_one() -> None:
    async with lab(HostSpec("sym"), HostSpec("sym")) as net:
        home = await net.start("s", sys.executable, NODE, "0", f"{net.address('s')}:{PORT}", "alone", stdin=True)
        await home.event("ready", 60)
        nodes = {host: await start(net, host) for host in net.hosts}
        nodes["h1"].say(f"reach {identity('h2').text} {net.address('h2')}:{PORT} 4")
        found = await nodes["h1"].event("reached-1", 30)
        assert found["edge"] == "none" and "with --relay (cause: nat)" in str(found["why"])


@pytest.mark.timeout(240)
async def test_the_doctor_goes_the_way_step_by_step(tmp_path: Path) -> None:
    async with lab(HostSpec(delay_ms=5)) as net:
        words = ("doctor", "--wan", "--json", "--models", str(tmp_path / "m"), "--state", str(tmp_path / "state"))
        asked = ("--swarm", invite((net.address("s"), 7999), ("10.7.0.2", PORT)), "--no-lan")
        script = f"import sys; from swarm.cli.main import main; main({[*words, *asked]!r})"
        out = await net.run("h1", sys.executable, "-c", script, seconds=90)
        assert "and nothing listens at the port" in out and '"cause", "standing": "wrong", "found": "down: ' in out
