"""Into a swarm by a code on two machines, over real sockets: with honest owners, with careless ones, with somebody in
between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from swarm.base.errors import PeerError, UsageError
from swarm.base.events import Event, Notice, silent
from swarm.base.nodeid import NodeId
from swarm.base.owner import OwnerDesk, Question
from swarm.discovery.lan_admission import PairingDoor, ask_owner_there, is_near
from swarm.mesh import pairing
from swarm.mesh.lan import LanNode
from swarm.mesh.membership import InviteError, InviteToken, Membership
from swarm.mesh.pairing import ANSWERS, PAIR, STEPS, AskIn, Committed, Share, Shown, Wait, code_of, commitment
from swarm.mesh.saved import Saved
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from tests.swarm.mesh.field import MODEL, REF, Field, Node


@pytest.fixture
async def field_() -> AsyncIterator[Field]:
    async with AsyncExitStack() as stack:
        yield Field(stack)


@pytest.fixture(autouse=True)
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "POLL_S", 0.05)


async def seen(*people: Person) -> None:
    """Until each of them is asked something."""
    async with asyncio.timeout(10):
        while any(person.desk.question is None for person in people):
            await asyncio.wait([asyncio.ensure_future(person.stir.wait()) for person in people], timeout=0.1)


class Person:
    """An owner who looks at the desk and answers what `says` makes of the code; None: is not there."""

    def __init__(self, says: bool | None = True) -> None:
        self.says, self.seen = says, list[Question]()
        self.told: list[Event] = []
        self.stir = asyncio.Event()
        self.desk = OwnerDesk(self.told.append)
        self.desk.on_change = self._look

    def _look(self) -> None:
        question = self.desk.question
        self.stir.set()
        if question is not None:
            self.seen.append(question)
            if self.says is not None:
                asyncio.get_running_loop().call_soon(self.desk.answer, question.code, self.says)

    def codes(self) -> list[str]:
        return [question.code for question in self.seen]


class Member:
    """A node of the swarm that shows codes."""

    def __init__(self, node: Node, person: Person) -> None:
        self.node, self.person = node, person
        self.tokens: list[tuple[NodeId, InviteToken]] = []
        door = PairingDoor(node.board.id, node.gossip.membership, person.desk, node.board, self)
        node.board.handle(PAIR, door.handle)

    def admitted(self, node: NodeId, token: InviteToken) -> None:
        self.tokens.append((node, token))

    @property
    def heard(self) -> LanNode:
        return LanNode(self.node.gossip.membership.swarm, self.node.board.id, MODEL, False, (self.node.address,))


async def newcomer(field_: Field) -> Switchboard:
    return (await field_.board(Identity.generate()))[0]


async def test_two_people_who_see_one_code_let_a_machine_in(field_: Field) -> None:
    there, here = Person(), Person()
    member = Member(await field_.first(), there)
    board = await newcomer(field_)
    saved = await ask_owner_there(board, [member.heard], MODEL, here.desk, silent)
    assert saved is not None and saved.membership.is_member and saved.ref == REF
    assert there.codes() == here.codes() and len(there.codes()) == 1
    (node, token), *rest = member.tokens
    assert node == board.id and not rest and token.once
    assert saved.membership.own.tokens == (token.id,)  # so that it can be revoked
    member.node.gossip.revoke(token)
    await asyncio.sleep(0)
    assert token.id in member.node.gossip.saved().ledger.revoked


@pytest.mark.parametrize("who", ["there", "here"])
async def test_one_no_is_enough(field_: Field, who: str) -> None:
    there, here = Person(who != "there"), Person(who != "here" or None)
    here.says = None if who == "there" else False
    member = Member(await field_.first(), there)
    board = await newcomer(field_)
    expected = {"there": (PeerError, "said no"), "here": (UsageError, "by the word of this machine's owner")}[who]
    with pytest.raises(expected[0], match=expected[1]):
        await ask_owner_there(board, [member.heard], MODEL, here.desk, silent)
    if who == "there":
        assert not member.tokens


async def test_nobody_who_confirms(field_: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "WAITS_S", 1.2)
    there, here = Person(None), Person()
    member = Member(await field_.first(), there)
    board = await newcomer(field_)
    with pytest.raises((UsageError, PeerError), match="nobody confirmed the code|nobody said yes"):
        await ask_owner_there(board, [member.heard], MODEL, here.desk, silent)
    there.stir.clear()
    if there.desk.question is not None:  # the question goes with the newcomer
        async with asyncio.timeout(10):
            await there.stir.wait()
    assert isinstance(there.told[-1], Notice) and "of no use any more" in there.told[-1].text
    with pytest.raises(UsageError, match="nobody asks to be let in"):
        there.desk.answer(there.codes()[0], True)


async def test_the_newcomer_waits_on_though_strangers_are_cut_off(field_: Field) -> None:
    there, here = Person(None), Person()
    member = Member(await field_.first(), there)
    board = await newcomer(field_)
    asking = asyncio.create_task(ask_owner_there(board, [member.heard], MODEL, here.desk, silent))
    async with asyncio.timeout(10):
        await seen(there)
        await asyncio.sleep(0.2)
        for peer in board.peers():
            await peer.close("a stranger's time is over")
        await asyncio.sleep(0.1)
        there.desk.answer(there.codes()[0], True)
        assert await asking is not None


async def test_a_second_newcomer_is_told_to_come_later(field_: Field) -> None:
    there = Person(None)
    member = Member(await field_.first(), there)
    first, second = await newcomer(field_), await newcomer(field_)
    asking = asyncio.create_task(ask_owner_there(first, [member.heard], MODEL, Person().desk, silent))
    await seen(there)
    said: list[Event] = []
    assert await ask_owner_there(second, [member.heard], MODEL, Person().desk, said.append) is None
    assert "attends to another newcomer" in str(said)
    asking.cancel()
    await asyncio.wait({asking})


class Between:
    """Somebody on the network who answers for the member with a key of its own, and knocks at the member with another.

    It forwards what it may: nonces as it likes, the member's token when it gets one.
    """

    def __init__(self, field_: Field, member: Member) -> None:
        self.field, self.member = field_, member
        self.identity = Identity.generate()
        self.nonce = bytes(32)

    async def start(self) -> LanNode:
        self.swarm = Membership.found(self.identity)
        self.front, address = await self.field.board(self.identity)
        self.back = await newcomer(self.field)
        self.front.handle(PAIR, self.handle)
        return LanNode(self.member.heard.swarm, self.identity.id, MODEL, False, (address,))

    async def handle(self, peer: Peer, message: Message) -> Message:
        step = STEPS.read_untrusted(message.header)
        heard = self.member.heard
        if isinstance(step, AskIn):
            self.there = await self.back.peer(heard.node, heard.addresses)
            said = commitment(step.swarm, self.front.id, peer.id, self.nonce)
            answer: pairing.Answer = Committed(said)
        elif isinstance(step, Share):
            await self.there.call(Message(PAIR, STEPS.header(AskIn(heard.swarm, "node"))), 5)
            shown = await self.there.call(Message(PAIR, STEPS.header(Share(step.nonce))), 5)
            theirs = ANSWERS.read_untrusted(shown.header)
            assert isinstance(theirs, Shown)
            self.code = code_of(heard.swarm, self.front.id, peer.id, self.nonce, step.nonce)
            answer = Shown(self.nonce, theirs.seconds, True)
        else:
            got = await self.there.call(Message(PAIR, STEPS.header(Wait(heard.swarm))), 5)
            answer = ANSWERS.read_untrusted(got.header)
        return Message(PAIR, ANSWERS.header(answer))


async def test_somebody_in_between_makes_the_codes_differ(field_: Field) -> None:
    there, here = Person(None), Person(None)
    member = Member(await field_.first(), there)
    between = Between(field_, member)
    heard = await between.start()
    board = await newcomer(field_)
    asking = asyncio.create_task(ask_owner_there(board, [heard], MODEL, here.desk, silent))
    await seen(there, here)
    assert here.codes() == [between.code] and here.codes() != there.codes()
    with pytest.raises(UsageError, match="somebody is between them: say no"):
        there.desk.answer(here.codes()[0], True)  # whoever types what the newcomer shows lets nobody in
    assert there.desk.question is not None and not member.tokens
    here.desk.answer(here.codes()[0], False)
    with pytest.raises(UsageError, match="not joined"):
        await asking


async def test_a_nonce_that_was_not_committed_to_is_refused(field_: Field) -> None:
    member = Member(await field_.first(), Person())
    between = Between(field_, member)
    heard = await between.start()
    board = await newcomer(field_)

    async def chooses(peer: Peer, message: Message) -> Message:
        answer = await Between.handle(between, peer, message)
        between.nonce = b"another" + bytes(25)  # after the commitment
        return answer

    between.front._handlers[PAIR] = chooses
    with pytest.raises(PeerError, match="did not keep to what it had committed to"):
        await ask_owner_there(board, [heard], MODEL, Person().desk, silent)


async def test_a_token_of_another_role_or_for_somebody_else_opens_nothing(field_: Field) -> None:
    member = Member(await field_.first(), Person())
    board, thief = await newcomer(field_), await newcomer(field_)
    saved = await ask_owner_there(board, [member.heard], MODEL, Person().desk, silent)
    assert isinstance(saved, Saved)
    from swarm.mesh.hello import Hello, enter

    token = member.tokens[0][1]
    hello = Hello(member.heard.swarm, MODEL, "node", None, token)
    with pytest.raises((InviteError, PeerError), match="for one use and is used"):
        await enter(thief, hello, [(member.heard.node, member.heard.addresses)])


def test_open_swarms_other_models_and_several_swarms_are_not_asked(field_: Field) -> None:
    async def none_of(*heard: LanNode) -> None:
        board = await newcomer(field_)
        assert await ask_owner_there(board, heard, MODEL, Person().desk, silent) is None

    closed = LanNode(b"a" * 10, b"n" * 32, MODEL, False, (("127.0.0.1", 1),))
    asyncio.run(none_of())
    asyncio.run(none_of(LanNode(b"a" * 10, b"n" * 32, MODEL, True, (("127.0.0.1", 1),))))
    asyncio.run(none_of(LanNode(b"a" * 10, b"n" * 32, b"x" * 32, False, (("127.0.0.1", 1),))))
    asyncio.run(none_of(closed, LanNode(b"b" * 10, b"o" * 32, MODEL, False, (("127.0.0.1", 1),))))


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("192.168.1.7", True),
        ("::ffff:192.168.1.7", True),
        ("192.168.2.7", False),
        ("127.0.0.1", True),
        ("fe80::1%eth0", True),
        ("2001:db8:1::9", True),
        ("2001:db8:2::9", False),
        ("8.8.8.8", False),
        ("host.example", False),
    ],
)
def test_who_is_near(host: str, near: bool) -> None:
    assert is_near(host, ["192.168.1.2/24", "2001:db8:1::2/64"]) is near


async def test_codes_are_for_machines_of_this_network(field_: Field) -> None:
    node = Member(await field_.first(), Person()).node
    membership = node.gossip.membership
    board = await newcomer(field_)
    peer = await board.peer(node.board.id, [node.address])
    inside = node.board.get(board.id)
    assert inside is not None
    inside.edge = "http"  # came through a proxy: its address says nothing
    with pytest.raises(PeerError, match="of the same local network alone"):
        await peer.call(Message(PAIR, STEPS.header(AskIn(membership.swarm, "node"))), 5)
