"""Every parser of strangers' bytes as one function of bytes, with honest inputs to start from.

A target may return, or raise the one error type of its kind; anything else is a finding.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgpack
import numpy as np
import torch

from receipts.check.verify import verify as verify_receipt
from receipts.format.errors import ReceiptError
from swarm.base.address import parse_address_untrusted
from swarm.base.errors import PeerError
from swarm.mesh.action import SendDelta
from swarm.mesh.hello import Hello, hello_message, parse_hello_untrusted, parse_welcome_untrusted
from swarm.mesh.invite import make_invite, parse_invite_untrusted
from swarm.mesh.membership import Membership
from swarm.mesh.messages import (
    delta_message,
    names_message,
    parse_delta_untrusted,
    parse_digest_untrusted,
    parse_hints_untrusted,
    parse_want_untrusted,
)
from swarm.mesh.record import NodeRecord, parse_record_untrusted, peek_record_untrusted, sign_record
from swarm.model.rows import Commits, Layout, Rows, check_untrusted
from swarm.model.sampler import Sampling
from swarm.net.channel.handshake import MAGIC, PREAMBLE, VERSION, ChannelKeys, Handshake, check_preamble_untrusted
from swarm.net.channel.lanes import FIRST_HEAD, WHOLE_HEAD, Chunk, Inbox
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Envelope, Message, pack_header, unpack_untrusted
from swarm.net.channel.ping import PingRun
from swarm.net.channel.record import Sealer
from swarm.net.channel.wire import decode_tensor_untrusted, encode_tensor
from swarm.net.identity import Identity
from swarm.net.traversal.inbound import dial_back_addresses
from swarm.net.traversal.messages import Knock, parse_knock_untrusted
from swarm.net.traversal.natpmp import parse_mapping_answer_untrusted
from swarm.ring.frame import Answer, Frame, encode_answer, encode_frame, parse_answer_untrusted, parse_frame_untrusted
from swarm.ring.opening import (
    TAIL,
    OpenRun,
    RingSignal,
    StagePlan,
    encode_open,
    encode_word,
    parse_word_untrusted,
)
from swarm.ring.taps import Taps, encode_taps, parse_taps_untrusted
from swarm.ring.words import (
    AcceptedHome,
    ClosedHome,
    CloseRun,
    CollectRun,
    KeepRun,
    encode_down,
    encode_tail,
    parse_down_untrusted,
    parse_tail_untrusted,
)
from swarm.serve.body import parse_json_untrusted
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError
from swarm.serve.parse import parse_chat_untrusted, parse_completion_untrusted, parse_generate_untrusted
from tests.receipts.conftest import run_ring
from tests.swarm.net.memory import joined

NOW = 1_790_000_000.0
LAYOUT = Layout(64, 256)
LIMITS = ChannelLimits(message_bytes=1 << 20)
NAT_PMP = bytes((0, 130, 0, 0, 0, 0, 3, 232, 0, 7, 0, 8, 0, 0, 14, 16))


@dataclass(frozen=True)
class Target:
    """`run` may raise `refusal` and nothing else. `seeds`: inputs that it takes. `dear`: slow, so tried less often."""

    run: Callable[[bytes], object]
    refusal: type[Exception]
    seeds: tuple[bytes, ...]
    dear: bool = False


def flatten(message: Message) -> bytes:
    """A message as one run of bytes: length of the header, header, body."""
    header = pack_header(Envelope(message))
    return len(header).to_bytes(3, "big") + header + bytes(message.body)


def message_of(data: bytes) -> Message:
    split = 3 + int.from_bytes(data[:3], "big")
    return unpack_untrusted(data[3:split], data[split:], LIMITS).message


def of_messages(parse: Callable[[Message], object], *seeds: Message) -> Target:
    """A parser of messages, behind the message reader that stands before it in life."""
    return Target(lambda data: parse(message_of(data)), PeerError, tuple(flatten(seed) for seed in seeds))


def frame_and_rows(message: Message) -> None:
    frame = parse_frame_untrusted(message)
    check_untrusted(frame.rows, frame.commits, LAYOUT)
    if frame.hidden is not None:
        decode_tensor_untrusted(*frame.hidden, max_bytes=1 << 20)


def honest_rows() -> tuple[Rows, Commits]:
    ancestors = np.zeros((3, LAYOUT.scratch // 8), np.uint8)
    ancestors[2, 0] = 1
    rows = Rows(
        slot=np.array([64 + 5, 64 + 6, 0], np.uint32),
        position=np.array([5, 6, 7], np.uint32),
        prefix=np.array([6, 7, 7], np.uint32),
        ancestors=ancestors,
        token=np.array([9, 8, 7], np.int32),
        want=np.array([False, True, True]),
    )
    return rows, Commits(np.array([3], np.uint32), np.array([4], np.uint32))


def honest_frames() -> list[Message]:
    rows, commits = honest_rows()
    head = Frame(bytes(16), 0, 1, commits, rows)
    hidden = encode_tensor(torch.ones(3, 8), "bfloat16")
    later = Frame(bytes(16), 1, 2, commits, rows, ((10, 20),), 1, (hidden[0], bytes(hidden[1])))
    return [encode_frame(head), encode_frame(later)]


def honest_answer() -> Message:
    two = np.array([1, 2])
    floats, tops = two.astype(np.float32), np.ones((2, 3), np.int32)
    answer = Answer(bytes(16), 0, 1, two.astype(np.uint32), two.astype(np.int32), floats, floats, tops, tops * 0.5)
    return encode_answer(answer)


def honest_opening() -> Message:
    stages = (StagePlan(bytes(32), (("127.0.0.1", 7700),), 0, 3), StagePlan(b"x" * 32, (("::1", 1),), 3, 6))
    return encode_open(OpenRun(bytes(16), 0, b"r" * 32, "ab" * 32, "bfloat16", LAYOUT, Sampling(seed=3), stages))


def tensor(data: bytes) -> None:
    split = 1 + data[0] if data else 1
    try:
        header = msgpack.unpackb(data[1:split], strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as exc:
        raise PeerError("not this parser's business") from exc
    if isinstance(header, dict):
        decode_tensor_untrusted(header, data[split:], max_bytes=1 << 20)


def honest_tensors() -> tuple[bytes, ...]:
    seeds = []
    for wire in ("float32", "bfloat16", "int8"):
        header, body = encode_tensor(torch.arange(12.0).reshape(3, 4), wire)
        packed = msgpack.packb(header)
        seeds.append(bytes([len(packed)]) + packed + bytes(body))
    return tuple(seeds)


def handshake(keys: ChannelKeys) -> Callable[[bytes], None]:
    """A listener that hears `data`: preamble, first message, and what may follow."""

    def listen(data: bytes) -> None:
        check_preamble_untrusted(data[:8].ljust(8, b"\0"))
        side, at = Handshake(keys, initiator=False), 8
        while side.established is None and at < len(data):
            size = side.next_bytes
            side.read_untrusted(data[at : at + size])
            at += size
            if side.established is None:
                side.write()

    return listen


def lanes(data: bytes) -> None:
    """Records of one connection, each behind its length."""
    inbox = Inbox(LIMITS)
    while len(data) > 2:
        size = 1 + int.from_bytes(data[:2], "big") % 2048
        record, data = data[2 : 2 + size], data[2 + size :]
        if record and (whole := inbox.take_untrusted(record)):
            unpack_untrusted(whole[0], whole[1], LIMITS)


def honest_records() -> bytes:
    header, body = pack_header(Envelope(Message("x", {"a": 1}))), b"body"
    whole = WHOLE_HEAD.pack(Chunk.WHOLE, len(header)) + header + body
    first = FIRST_HEAD.pack(Chunk.FIRST, 1, len(header), len(body)) + header
    more = bytes([Chunk.MORE, 1]) + body
    return b"".join((len(r) - 1).to_bytes(2, "big") + r for r in (whole, first, more))


def channel(data: bytes) -> None:
    """What an authenticated peer may seal: records of one channel, each behind its length, up to its close."""

    async def hear() -> str | None:
        left, right = joined(LIMITS)
        rest, records = data, []
        while len(rest) > 2 and len(records) < 50:
            size = 1 + int.from_bytes(rest[:2], "big") % 2048
            records.append(rest[2 : 2 + size])
            rest = rest[2 + size :]
        sealer = Sealer(bytes(range(32)))
        sealed = [sealer.seal(record) for record in records if record]
        right.feed(b"".join(len(one).to_bytes(2, "big") + one for one in sealed))
        reason = right.channel.closed_reason
        left.channel.close("done")
        right.channel.close("done")
        return reason

    reason = asyncio.run(hear())
    if reason is not None:
        raise PeerError(reason)


def honest_probe() -> bytes:
    return PingRun(Chunk.PROBE).start(3, 1000)


def honest_talk() -> bytes:
    """A ping, a pad, the records of a message each way of cutting, and a goodbye."""
    rest = [honest_probe(), bytes(40), bytes([Chunk.BYE, 1]) + b"both dialled"]
    return honest_records() + b"".join((len(r) - 1).to_bytes(2, "big") + r for r in rest)


def receipt(data: bytes) -> None:
    verdict = verify_receipt(data)
    if verdict.refusal is not None:
        assert verdict.exit_code != 0
        raise ReceiptError(verdict.refusal, "refused")


def body_of(parse: Callable[[Any, GatewayConfig], object], *seeds: Mapping[str, Any]) -> Target:
    config = GatewayConfig()
    packed = tuple(json.dumps(seed).encode() for seed in seeds)
    return Target(lambda data: parse(parse_json_untrusted(data), config), ApiError, packed)


def text_of(parse: Callable[[str], object], *seeds: str) -> Target:
    return Target(lambda data: parse(data.decode("utf-8", "replace")), PeerError, tuple(s.encode() for s in seeds))


@cache
def targets() -> dict[str, Target]:
    """All of them by name; made once, since honest inputs need keys and signatures."""
    here, there = Identity.from_seed(bytes(32)), Identity.from_seed(b"1" * 32)
    ours = Membership.found(here)
    record = NodeRecord(
        here.id, ours.swarm, 3, int(NOW), 600, proof=ours.prove(here.id), addresses=(("203.0.113.7", 7700),),
        model=bytes(32), n_layers=30, layers=(0, 10), device="cpu", rtts=((there.id[:8], 25_000),),
    )  # fmt: skip
    signed = sign_record(record, here.sign)
    invite = make_invite(ours, bytes(32), "tiny", [(here.id, [("203.0.113.7", 7700), ("::1", 9)])], NOW)
    hello = hello_message(Hello(ours.swarm, bytes(16), "node", None, invite.token))
    welcome = Message("mesh.hello", {
        "charter": ours.charter, "proof": ours.prove(there.id), "open": False, "model": bytes(32), "ref": "tiny",
        "welcome": ours.prove(here.id),
    })  # fmt: skip
    keys = ChannelKeys.make(here, 1 << 20)
    caller = Handshake(ChannelKeys.make(there, 1 << 20), initiator=True)
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stop": ["x"], "temperature": 0.5, "n": 2}
    return {
        "message": of_messages(lambda message: message, Message("a.b", {"x": [1, {"y": b"z"}]}, b"body")),
        "frame": of_messages(frame_and_rows, *honest_frames()),
        "answer": of_messages(parse_answer_untrusted, honest_answer()),
        "opening": of_messages(
            lambda m: parse_down_untrusted(m.header),
            honest_opening(),
            encode_down(KeepRun(bytes(16))),
            encode_down(CloseRun(bytes(16), bytes(8), {"until": 9, "half": {"count": 0}}, 1, 1500)),
            encode_down(CollectRun(bytes(16), {"envelopes": [b"x"], "drawn": [], "starts": [5]})),
        ),
        "taps": of_messages(
            lambda message: parse_taps_untrusted(message, torch.bfloat16),
            encode_taps(Taps(bytes(16), 0, 1, 2, (1, 3), torch.zeros(2, 3, 4)), "bfloat16"),
        ),
        "word": of_messages(
            lambda m: parse_tail_untrusted(m.header) if m.kind == TAIL else parse_word_untrusted(m.header),
            encode_word(RingSignal("opened", bytes(16), 0, ({"device": "cpu"},))),
            encode_word(RingSignal("lost", bytes(16), 1, stage=1, reason="gone")),
            encode_tail(AcceptedHome(bytes(16), 1, {"accepts": [b"x"]})),
            encode_tail(ClosedHome(bytes(16), 1, None)),
        ),
        "tensor": Target(tensor, PeerError, honest_tensors()),
        "handshake": Target(handshake(keys), PeerError, (PREAMBLE.pack(MAGIC, VERSION) + caller.write(),), dear=True),
        "lanes": Target(lanes, PeerError, (honest_records(),)),
        "channel": Target(channel, PeerError, (honest_talk(),), dear=True),
        "probe": Target(lambda data: PingRun(Chunk.PROBE).take_untrusted(data, 5), PeerError, (honest_probe(),)),
        "knock": of_messages(
            lambda m: dial_back_addresses(parse_knock_untrusted(m.header)),
            Message("reach.knocked", Knock(here.id, ("203.0.113.7", 1), ("::1", 2), (("0.0.0.0", 9),), 3.5).header()),
        ),
        "router's answer": Target(lambda data: parse_mapping_answer_untrusted(data, 7), PeerError, (NAT_PMP,)),
        "hello": of_messages(lambda m: parse_hello_untrusted(m.header), hello),
        "welcome": of_messages(
            lambda m: parse_welcome_untrusted(m.header, ours.swarm, there, here.id), welcome
        ),
        "record": Target(lambda data: parse_record_untrusted(data, ours.swarm, NOW), PeerError, (signed.wire,)),
        "record, unsigned": Target(peek_record_untrusted, PeerError, (signed.wire,)),
        "hints": of_messages(parse_hints_untrusted, names_message("mesh.hints", [(1, 2), (3, 4)], [(1, 2, 3)])),
        "want": of_messages(parse_want_untrusted, names_message("mesh.want", [1, 2], [(1, 2, 3)])),
        "digest": of_messages(parse_digest_untrusted, Message("mesh.digest", {}, bytes(2048))),
        "delta": of_messages(lambda m: parse_delta_untrusted(m, ours), delta_message(SendDelta(there.id, ()), 0)),
        "invite": text_of(parse_invite_untrusted, invite.text()),
        "address": text_of(parse_address_untrusted, "host.example:7700", "[::1]:80", "203.0.113.7:1"),
        "chat body": body_of(parse_chat_untrusted, chat),
        "completion body": body_of(parse_completion_untrusted, {"model": "m", "prompt": ["a", "b"], "max_tokens": 5}),
        "generate body": body_of(parse_generate_untrusted, {"prompt": "a", "temperature": 0.1}),
        "receipt": Target(receipt, ReceiptError, (run_ring(stages=2, tokens=(5, 6)).receipt,), dear=True),
    }  # fmt: skip
