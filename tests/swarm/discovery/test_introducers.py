"""Introductions: the members that lately knew a node are the ones to ask for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from swarm.discovery.introducers import AT_ONCE, MemberIntroducer, candidates
from swarm.mesh.record import NodeRecord
from swarm.mesh.view import MemberView
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard


@dataclass
class Known:
    """What a gossip knows: members, and by whom this process came in."""

    views: dict[bytes, MemberView] = field(default_factory=dict)
    entries: list[bytes] = field(default_factory=list)
    linked: list[bytes] = field(default_factory=list)

    def add(self, node: bytes, address: Any = ("127.0.0.1", 1), rtts: Any = (), standing: str = "up") -> bytes:
        addresses = () if address is None else (address,)
        record = NodeRecord(node, b"", 1, 1, 60, addresses=addresses, rtts=rtts)
        self.views[node] = MemberView(record, standing, None, 1.0, False)
        return node

    def member(self, node: bytes) -> MemberView | None:
        return self.views.get(node)

    def members(self) -> list[MemberView]:
        return list(self.views.values())

    def saved(self) -> Any:
        return SimpleNamespace(peers=tuple((node, ()) for node in self.entries))

    async def link(self, node: bytes) -> None:
        self.linked.append(node)


def name(letter: str) -> bytes:
    return letter.encode() * 32


async def test_who_measured_it_comes_first_then_the_way_in() -> None:
    known: Any = Known(entries=[name("e"), name("n")])
    rtts = tuple((name(letter)[:8], us) for letter, us in (("f", 90_000), ("n", 9_000), ("h", 1), ("d", 2), ("x", 3)))
    wanted = known.add(name("w"), rtts=rtts)
    for letter in "nfeo":
        known.add(name(letter))
    known.add(name("h"), address=None)  # cannot be dialled
    known.add(name("d"), standing="down")
    async with Switchboard(Identity.generate()) as board:
        assert candidates(board, known, wanted) == [name("n"), name("f"), name("e")]
        assert candidates(board, known, name("q")) == [name("e"), name("n")]  # a guest has no record


async def test_an_introduction_connects_to_three_at_most_and_minds_no_failure() -> None:
    known: Any = Known()
    async with Switchboard(Identity.generate()) as board, Switchboard(Identity.generate()) as home:
        address = await home.listen("127.0.0.1", 0)
        others = [home.id, *(name(letter) for letter in "abcd")]
        wanted = known.add(name("w"), rtts=tuple((node[:8], us) for us, node in enumerate(others)))
        known.add(home.id, address)
        for node in others[1:]:
            known.add(node)  # nobody answers there
        await MemberIntroducer(board, known).introduce(wanted)
        assert [peer.id for peer in board.peers()] == [home.id] == known.linked
        assert AT_ONCE < len(others)
        await MemberIntroducer(board, known).introduce(wanted)  # the nearest is connected now: the next are tried
        assert known.linked == [home.id]
