"""docs/protocol.md is enough: an implementation written from it talks to a node, and its example is true."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from swarm.net.channel.handshake import CONTEXT, MAGIC, PREAMBLE, VERSION, ChannelKeys, Handshake
from swarm.net.channel.message import Message
from swarm.net.channel.noise import NoiseXX
from swarm.net.channel.record import Opener
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from tests.swarm.net.second import SecondNode

PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"


async def test_a_second_implementation_talks_to_a_node() -> None:
    async def echo(peer: Peer, message: Message) -> Message:
        series = await peer.ping(2)
        return Message("echoed", {"was": message.header, "peer_min_us": series.peer_min_us}, message.body)

    node = Identity.generate()
    second = SecondNode(bytes([9]) * 32, bytes([8]) * 32, bytes([7]) * 32, b"12345678")
    async with Switchboard(node, {"echo": echo}) as board:
        address = await board.listen("127.0.0.1", 0)

        def talk() -> None:
            second.dial(address)
            for number, size in enumerate((0, 100, 300_000), 1):
                body = bytes([number]) * size
                second.send("echo", 1, number, {"n": number}, body)
                (kind, mode, call, values), back = second.receive()
                assert (kind, mode, call, back) == ("echoed", 2, number, body)
                assert values == {"was": {"n": number}, "peer_min_us": 7}
            second.send("unknown", 1, 9, {}, b"")
            assert second.receive()[0][:3] == ["error", 3, 9]
            second.sock.sendall(second.record(b"\x04\x00bye now"))
            record = b"\0"
            while record[0] == 0:
                record = second.next_record()
            assert record == b"\x04\x00bye now"
            second.sock.close()

        await asyncio.to_thread(talk)
        assert second.remote == node.id


def example() -> dict[str, bytes]:
    """The hex blocks of the worked example: `name: hex`."""
    text = PAGE.read_text().split("## A worked example")[1]
    return {name: bytes.fromhex(value) for name, value in re.findall(r"^([a-z][a-z ]+?) +: ([0-9a-f ]+)$", text, re.M)}


def test_the_worked_example_is_true() -> None:
    given = example()
    ends = []
    for role in ("initiator", "responder"):
        identity = Identity.from_seed(given[f"{role} seed"])
        static = given[f"{role} static"]
        public = X25519PrivateKey.from_private_bytes(static).public_key().public_bytes_raw()
        keys = ChannelKeys(identity.id, static, identity.sign(CONTEXT + public), given[f"{role} instance"], 1 << 26)
        end = Handshake(keys, role == "initiator")
        end._noise = NoiseXX(role == "initiator", static, PREAMBLE.pack(MAGIC, VERSION), given[f"{role} ephemeral"])
        ends.append(end)
    left, right = ends
    for writer, reader, name in (
        (left, right, "message one"),
        (right, left, "message two"),
        (left, right, "message three"),
    ):
        message = writer.write()
        assert message == given[name]
        reader.read_untrusted(message)
    assert left.established is not None and right.established is not None
    assert left.established.hash == given["handshake hash"]
    assert left.established.send_key == given["initiator key"]
    assert left.established.receive_key == given["responder key"]
    record = given["record"]
    assert int.from_bytes(record[:2], "big") == len(record) - 2
    assert Opener(left.established.send_key).open_untrusted(record[2:]) == given["plaintext"]
    second = SecondNode(*(given[f"initiator {name}"] for name in ("seed", "static", "ephemeral", "instance")))
    assert second.first() == given["message one"]
    second.second(given["message two"])
    assert second.third() == given["message three"]
    assert second.record(given["plaintext"]) == given["record"]
