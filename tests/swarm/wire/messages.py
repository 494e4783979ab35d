"""One honest message of every kind whose form is declared, as bytes: what `vectors.txt` pins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from swarm.mesh.action import SendDelta
from swarm.mesh.hello import Hello, answer_hello, hello_message
from swarm.mesh.invite import Invite
from swarm.mesh.membership import FOUNDER_PROOF, InviteToken, Ledger, Membership, Revocation, swarm_id
from swarm.mesh.messages import delta_message, digest_message, names_message, sign_suspicion
from swarm.mesh.pairing import (
    ANSWERS,
    PAIR,
    STEPS,
    Admitted,
    AskIn,
    Committed,
    Share,
    Shown,
    Wait,
    Waiting,
    commitment,
)
from swarm.mesh.record import NodeRecord, sign_record
from swarm.mesh.table import Held
from swarm.mesh.weights import (
    GET,
    GET_REQUEST,
    HAVE,
    HAVE_ANSWER,
    HAVE_REQUEST,
    LIST,
    LIST_REQUEST,
    GetRequest,
    HaveAnswer,
    HaveRequest,
    ListRequest,
)
from swarm.model.constraint import Constraint
from swarm.model.rows import Commits, Layout, Rows
from swarm.model.sampler import Sampling
from swarm.model.shaping import Shaping
from swarm.model.thought import ThoughtLimit
from swarm.net.channel.message import Envelope, Message, Mode, pack_header
from swarm.net.identity import Identity
from swarm.net.traversal.messages import (
    ASK,
    CHECK,
    JOIN,
    KNOCK,
    KNOCK_REQUEST,
    KNOWN,
    KNOWS,
    PORT_ANSWER,
    PORT_REQUEST,
    RELAY_CALL,
    RELAY_ROOM,
    SOUGHT,
    Knock,
    KnockRequest,
    KnowsAnswer,
    PortAnswer,
    PortRequest,
    RelayCall,
    RelayRoom,
    Sought,
)
from swarm.node.bandwidth import RATE, RATE_ANSWER, RateAnswer
from swarm.ring.frame import Answer, Frame, encode_answer, encode_commits, encode_frame
from swarm.ring.opening import OpenRun, RingSignal, StagePlan, encode_open, encode_release, encode_word
from swarm.ring.recomputing import RecomputeRequest, encode_request, encode_rows, with_rows
from swarm.ring.taps import Taps, encode_taps
from swarm.ring.witness_service import (
    AUDIT,
    AUDIT_ANSWER,
    AUDIT_REQUEST,
    WITNESS,
    WITNESS_ANSWER,
    WITNESS_REQUEST,
    AuditAnswer,
    AuditRequest,
    WitnessAnswer,
    WitnessRequest,
)
from swarm.ring.words import (
    AcceptedHome,
    ClosedHome,
    CloseRun,
    CollectedHome,
    CollectRun,
    HalfOfEdge,
    HaltRun,
    KeepRun,
    encode_down,
    encode_tail,
)

NOW = 1_790_000_000
ANN, BOB, EVE = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
CHARTER = ANN.id + b"salt" * 4
MEMBERSHIP = Membership(swarm_id(CHARTER), CHARTER, False, FOUNDER_PROOF, ANN)
RUN = bytes(range(16))


def flat(message: Message) -> bytes:
    """A message in one piece: length of the header, header, body."""
    header = pack_header(Envelope(message))
    return len(header).to_bytes(3, "big") + header + bytes(message.body)


def record() -> NodeRecord:
    return NodeRecord(
        BOB.id, MEMBERSHIP.swarm, NOW * 1000, NOW, 60, 7, MEMBERSHIP.prove(BOB.id), "serving",
        (("203.0.113.7", 4242), ("2001:db8::1", 4242)), True, bytes(range(32)), 30, (0, 10), (10, 20), "Ünïversal GPU",
        "bfloat16", (1000, 1200, 3000), 2, (9000, 9000, 30000), 10**9, 10**8, 40_000, 250_000,
        ((b"\x01" * 8, 20_000), (b"\x02" * 8, 41_000)), ("relay", ""), (-1000, 2000, 30_000, 500, 200), 3, 120, "bob",
        "0.1.0",
    )  # fmt: skip


def bare() -> NodeRecord:
    return NodeRecord(ANN.id, MEMBERSHIP.swarm, 1, NOW, 10)


def token(once: bool = False, role: str = "node") -> InviteToken:
    plain = InviteToken(b"tokentok", NOW + 86400, role, once, ANN.id, FOUNDER_PROOF, b"")
    return replace(plain, signature=ANN.sign(plain.signed_part(MEMBERSHIP.swarm)))


def notice(expires: int = 0) -> Revocation:
    plain = Revocation(b"tokentok", expires, ANN.id, FOUNDER_PROOF, b"")
    return replace(plain, signature=ANN.sign(plain.signed_part(MEMBERSHIP.swarm)))


def guest_proof() -> bytes:
    """A chain of two links, the second of which names an invite and an expiry."""
    member = Membership(MEMBERSHIP.swarm, CHARTER, False, MEMBERSHIP.prove(BOB.id), BOB)
    return member.prove(EVE.id, "guest", NOW + 60, token())


def invite(with_token: bool = True) -> Invite:
    members = ((BOB.id, (("203.0.113.7", 4242), ("2001:db8::1", 7700))), (ANN.id, (("host.example", 1),)))
    return Invite(MEMBERSHIP.swarm, bytes(16), "smollm2", members, token() if with_token else None)


def delta() -> Message:
    said = sign_suspicion(7, 8, ANN.id, MEMBERSHIP.swarm, ANN.sign)
    held = tuple(Held.of(sign_record(one, who.sign), 90.0) for one, who in ((record(), BOB), (bare(), ANN)))
    return delta_message(SendDelta(b"", held, (said,), (notice(), notice(NOW))), 100.0)


def opening(**changes: object) -> OpenRun:
    stages = (StagePlan(b"a" * 32, (("h", 1), ("2001:db8::1", 65535)), 0, 3), StagePlan(b"b" * 32, (), 3, 6))
    plain = OpenRun(
        RUN, 2, b"q" * 32, "ab" * 32, "bfloat16", Layout(64, 512), Sampling(0.5, 0.9, 40, 0.05, 1.1, 7, 3), stages
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def thinking() -> Sampling:
    return Sampling(shaping=Shaping(after=11, thought=ThoughtLimit(2048, (151668,), (151667,), True)))


def full_opening() -> OpenRun:
    shaping = Shaping(0.5, -0.25, ((3, -100.0), (9, 1.5)), 4, (2, 7), (), 11)
    held_to = Constraint("regex", "[ab]+", "llguidance 1.9", "cd" * 32, 11)
    sampling = Sampling(seed=2**62, constraint=held_to, shaping=shaping)
    record = {"order": b"{}", "secret": bytes(32), "accepts": [b"x", b"y"], "replan": None}
    return opening(sampling=sampling, keep=9, base=b"k" * 16, index=1, record=record, lease_s=12.3456)


def frame(hidden: bool, taps: bool = False) -> Message:
    ancestors = np.zeros((3, 8), np.uint8)
    ancestors[2, 0] = 1
    slot, position, prefix = (np.array(v, np.uint32) for v in ([69, 70, 0], [5, 6, 7], [6, 7, 7]))
    rows = Rows(slot, position, prefix, ancestors, np.array([9, 8, 7], np.int32), np.array([False, True, True]))
    commits = Commits(np.array([3], np.uint32), np.array([4], np.uint32))
    if taps:
        return encode_frame(Frame(RUN, 0, 1, commits, rows, tap_first=1, tap_rows=2))
    if not hidden:
        return encode_frame(Frame(RUN, 0, 1, commits, rows))
    tensor = {"wire": "bfloat16", "shape": [3, 4]}
    return encode_frame(Frame(RUN, 1, 2**40, commits, rows, ((10, 20), (30, 40)), 1, (tensor, bytes(range(24)))))


def answer(hidden: bool) -> Message:
    two, tops = np.array([1, 2]), np.arange(6).reshape(2, 3)
    tensor = ({"wire": "bfloat16", "shape": [2, 2]}, bytes(8)) if hidden else None
    found = Answer(
        RUN, 0, 1, two.astype(np.uint32), two.astype(np.int32), two.astype(np.float32), (-two).astype(np.float32),
        tops.astype(np.int32), (tops * -0.5).astype(np.float32), ((10, 20),), tensor,
    )  # fmt: skip
    return encode_answer(found)


HALF = {"count": 1, "min_us": 2, "median_us": 2, "samples_us": [2]}


def walking() -> dict[str, Message]:
    """What walks down a ring beside openings and frames, and from its tail home."""
    ends = {"until": 9, "half": HALF}
    committed = encode_commits(Commits(np.array([3], np.uint32), np.array([4], np.uint32)))
    return {
        "keep": encode_down(KeepRun(RUN)),
        "halt": encode_down(HaltRun(RUN, 2)),
        "close": encode_down(CloseRun(RUN, committed, ends, 2, 1500)),
        "close without a receipt": encode_down(CloseRun(RUN)),
        "half of an edge": encode_down(HalfOfEdge(RUN, {"half": HALF})),
        "collect": encode_down(CollectRun(RUN, {"envelopes": [], "drawn": [], "starts": [5, 9]})),
        "accepted": encode_tail(AcceptedHome(RUN, 1, {"accepts": [b"x"]})),
        "closed": encode_tail(ClosedHome(RUN, 1, {**ends, "disclose": True})),
        "collected": encode_tail(CollectedHome(RUN, 1, {"envelopes": [b"x"], "drawn": [], "starts": [5]})),
    }


def _recomputed() -> Frame:
    row = np.array([32], np.uint32)
    place = np.array([0], np.uint32)
    rows = Rows(row, place, place + 1, np.zeros((1, 4), np.uint8), np.array([7], np.int32), np.ones(1, bool))
    return Frame(bytes(16), 0, 3, Commits(place[:0], place[:0]), rows)


def asked() -> dict[str, Message]:
    """Calls that are no part of a run."""
    return {
        "witness of an order": Message(WITNESS, WITNESS_REQUEST.header(WitnessRequest(b"{}"))),
        "witness of a close": Message(WITNESS, WITNESS_REQUEST.header(WitnessRequest(close=b"{}", about="ab" * 32))),
        "witness, answered": Message(WITNESS, WITNESS_ANSWER.header(WitnessAnswer(b"{}"))),
        "audit of a piece": Message(AUDIT, AUDIT_REQUEST.header(AuditRequest(2**22)), b"ask"),
        "audit of a piece, answered": Message(AUDIT, AUDIT_ANSWER.header(AuditAnswer(2**23)), b"rows"),
        "recompute": encode_request(
            RecomputeRequest("ab" * 32, "cd" * 32, 4, 8, 32, 64, (1,), (1,), 0),
            [with_rows(_recomputed(), torch.ones(1, 2))],
            0,
        ),
        "recompute, answered": encode_rows(torch.ones(1, 2)),
        "rate, answered": Message(RATE, RATE_ANSWER.header(RateAnswer(250_000))),
    }


def welcome() -> Message:
    asked = Hello(MEMBERSHIP.swarm, b"", "guest", None, token())
    return answer_hello(asked, EVE.id, ANN.id, MEMBERSHIP, Ledger(), bytes(range(32)), "smollm2", NOW)[0]


def knock(**changes: object) -> Message:
    plain = Knock(BOB.id, ("203.0.113.7", 1), ("::1", 2), (("0.0.0.0", 9), ("host.example", 10)), 3.5)
    return Message("reach.knocked", replace(plain, **changes).header())  # type: ignore[arg-type]


def words() -> dict[str, Message]:
    said = ({"device": "cpu", "ms": 1.5}, {})
    return {
        "opened": encode_word(RingSignal("opened", RUN, 1, said, record={"accepts": [b"x"]})),
        "refused": encode_word(RingSignal("opened", RUN, 0, (), b"n" * 32, True, -1, "x" * 500)),
        "half": encode_word(RingSignal("half", RUN, 0, record={"count": 1, "least_us": 2})),
        "lost": encode_word(RingSignal("lost", RUN, 3, stage=1, reason="gone")),
        "leave": encode_word(RingSignal("leave", RUN, 3, stage=64)),
    }


MESSAGES: dict[str, Callable[[], bytes]] = {
    "envelope": lambda: pack_header(Envelope(Message("a.b", {"x": [1, {"y": b"z"}], "n": None}), Mode.CALL, 7)),
    "record": lambda: sign_record(record(), BOB.sign).wire,
    "record with a fingerprint": lambda: (
        sign_record(replace(record(), fingerprint=bytes(range(32, 64))), BOB.sign).wire
    ),
    "bare record": lambda: sign_record(bare(), ANN.sign).wire,
    "proof": guest_proof,
    "invite": lambda: invite().text().encode(),
    "invite of an open swarm": lambda: invite(with_token=False).text().encode(),
    "hello": lambda: flat(hello_message(Hello(MEMBERSHIP.swarm, bytes(16), "node", guest_proof(), None), NOW + 0.5)),
    "hello with a token": lambda: flat(
        hello_message(Hello(MEMBERSHIP.swarm, b"", "guest", None, token(True, "guest")))
    ),
    "welcome": lambda: flat(welcome()),
    "delta": lambda: flat(delta()),
    "hints": lambda: flat(names_message("mesh.hints", [(1, 2), (3, 2**64 - 1)], [(1, 2, 3)])),
    "want": lambda: flat(names_message("mesh.want", [1, 2], [(1, 2, 3)])),
    "pairing, asked": lambda: flat(Message(PAIR, STEPS.header(AskIn(MEMBERSHIP.swarm, "node")))),
    "pairing, shared": lambda: flat(Message(PAIR, STEPS.header(Share(bytes(range(32)))))),
    "pairing, waits": lambda: flat(Message(PAIR, STEPS.header(Wait(MEMBERSHIP.swarm)))),
    "pairing, committed": lambda: flat(
        Message(PAIR, ANSWERS.header(Committed(commitment(MEMBERSHIP.swarm, ANN.id, BOB.id, bytes(range(32))))))
    ),
    "pairing, shown": lambda: flat(Message(PAIR, ANSWERS.header(Shown(bytes(32), 120.0, True)))),
    "pairing, waiting": lambda: flat(Message(PAIR, ANSWERS.header(Waiting(1.5)))),
    "pairing, admitted": lambda: flat(Message(PAIR, ANSWERS.header(Admitted(token(True))))),
    "digest": lambda: flat(digest_message(bytes(range(256)) * 8)),
    "weights.have": lambda: flat(Message(HAVE, HAVE_REQUEST.header(HaveRequest(("ab" * 32, "cd" * 32))))),
    "weights.have, answered": lambda: flat(Message(HAVE, HAVE_ANSWER.header(HaveAnswer((-1, 2**40))))),
    "weights.list": lambda: flat(Message(LIST, LIST_REQUEST.header(ListRequest("ab" * 32)))),
    "weights.get": lambda: flat(Message(GET, GET_REQUEST.header(GetRequest("ab" * 32, 2**33, 1000)))),
    "knows": lambda: flat(Message(KNOWS, SOUGHT.header(Sought(BOB.id)))),
    "knows, answered": lambda: flat(Message(KNOWS, KNOWN.header(KnowsAnswer(True, False)))),
    "knock, asked": lambda: flat(
        Message(KNOCK, KNOCK_REQUEST.header(KnockRequest(BOB.id, (("0.0.0.0", 9), ("::1", 10)))))
    ),
    "check": lambda: flat(Message(CHECK, PORT_REQUEST.header(PortRequest(65535)))),
    "check, answered": lambda: flat(Message(CHECK, PORT_ANSWER.header(PortAnswer(("::1", 10), True)))),
    "relay asked": lambda: flat(Message(ASK, SOUGHT.header(Sought(BOB.id)))),
    "relay's room": lambda: flat(Message(ASK, RELAY_ROOM.header(RelayRoom("a" * 32, (("host.example", 1),))))),
    "relay's call": lambda: flat(Message(JOIN, RELAY_CALL.header(RelayCall(BOB.id, "b-_" * 11, ())))),
    "knock": lambda: flat(knock()),
    "knock by http": lambda: flat(knock(seen=None, addresses=(), wait_ms=0.0)),
    "opening": lambda: flat(encode_open(opening())),
    "opening with taps": lambda: flat(encode_open(opening(taps=(2, 15, 28), taps_wire="bfloat16"))),
    "full opening": lambda: flat(encode_open(full_opening())),
    "opening with a limit of thoughts": lambda: flat(encode_open(opening(sampling=thinking()))),
    "release": lambda: flat(encode_release(opening())),
    "frame": lambda: flat(frame(hidden=False)),
    "hidden frame": lambda: flat(frame(hidden=True)),
    "frame that asks for taps": lambda: flat(frame(hidden=False, taps=True)),
    "taps": lambda: flat(encode_taps(Taps(RUN, 1, 2**53, 5, (2, 31), torch.arange(6.0).view(2, 1, 3)), "bfloat16")),
    "answer": lambda: flat(answer(hidden=False)),
    "hidden answer": lambda: flat(answer(hidden=True)),
    **{name: (lambda word=word: flat(word)) for name, word in (walking() | asked()).items()},  # type: ignore[misc]
    **{f"word {name}": (lambda word=word: flat(word)) for name, word in words().items()},  # type: ignore[misc]
}
