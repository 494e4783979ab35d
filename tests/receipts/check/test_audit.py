"""Opened rows: kept on disk, proved under the co-signed roots, recomputed, judged; and replay of whole runs."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from receipts.check.audit import _fetched, check_audit
from receipts.check.content import check_tokens
from receipts.check.context import Drew, Followed
from receipts.check.outcome import Outcome
from receipts.check.parts import Part, choose_rows
from receipts.check.recompute import Limit
from receipts.check.replay import Replayed
from receipts.check.samples import RowSample, TokenSample
from receipts.check.verdict import Disclosed, Level, Standing
from receipts.check.verify import Options, verify
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.merkle import leaf_hash, tree_root
from receipts.record.edge import frame_leaf
from receipts.record.row_opening import MAGIC, CrossedFrame, OpeningRequest, opened_untrusted, with_known_untrusted
from receipts.record.rows import RowStore
from receipts.record.tail import Drawn

WIDTH = 48
LIMIT = Limit(median_ppm=18_000, row_ppm=26_000, tie_ppm=1_000, samples=1)


def embed(position: int) -> list[float]:
    chooser = random.Random(position)
    return [chooser.gauss(0, 1) for _ in range(WIDTH)]


def block(index: int, values: Sequence[float]) -> list[float]:
    """An honest stage: adds a delta that depends on every input value."""
    shift = sum(values) / WIDTH
    return [value + 0.3 * ((index + 2) * value**2 % 1.7 - shift) for value in values]


def bf16ish(value: float, chooser: random.Random) -> float:
    return value * (1 + chooser.uniform(-0.0005, 0.0005))


def bodies(cheat: Callable[[int, list[float], list[float]], list[float]] | None = None) -> Callable[[int, int], bytes]:
    """What crosses each edge of a ring of three, stage 1 answering what `cheat` makes of its honest output."""

    def body(position: int, edge: int) -> bytes:
        values = embed(position)
        chooser = random.Random(position)
        for index in range(min(edge, 2)):
            honest = block(index, values)
            output = [bf16ish(value, chooser) for value in honest]
            values = cheat(position, values, output) if cheat is not None and index == 1 else output
        return struct.pack(f"{WIDTH}f", *values)

    return body


class Nodes:
    """Auditor over the row stores of a ring that ran in this process."""

    def __init__(self, ring: Any, folder: Path, edit: Callable[[bytes], bytes | None] = lambda data: data) -> None:
        self.edit = edit
        self.stores: dict[str, RowStore] = {}
        self.places = {stage.author.id: index for index, stage in enumerate(ring.stages)}
        for index, stage in enumerate(ring.stages):
            store = self.stores[stage.author.id] = RowStore(folder / str(index))
            record = stage
            while record is not None:
                opening, record = record.opening, record.earlier
                kept = store.begin(opening.order_digest, opening.epoch, opening.salt_leaves(stage.author.id), 1_000_000)
                for frame in ring.heard[opening.epoch, index]:
                    kept.inbound(frame.seq, frame.head, frame.body)
                for frame in ring.traffic[opening.epoch, index + 1]:
                    kept.outbound(frame.seq, frame.head, frame.body)
                kept.close()

    def fetch(self, node: str, request: OpeningRequest, known: Sequence[CrossedFrame] = ()) -> bytes | None:
        return self.edit(self.stores[node].answer(request.to_bytes()).whole())

    def recompute(
        self,
        order: Any,
        stage: Any,
        before: Sequence[CrossedFrame],
        inbound: Sequence[CrossedFrame],
        outbound: CrossedFrame,
    ) -> list[Any]:
        assert inbound[-1].seq == outbound.seq
        index = self.places[stage.node]
        if index == 2:
            return [TokenSample(outbound.seq, 0.0)]
        inputs = struct.unpack(f"{WIDTH}f", inbound[-1].body)
        return [RowSample(outbound.seq, inputs, struct.unpack(f"{WIDTH}f", outbound.body), block(index, inputs))]

    def follow(
        self, order: Any, stage: Any, before: Any, inbound: Sequence[CrossedFrame], outbound: Any, text: Sequence[int]
    ) -> Followed:
        """One row a frame; the frame of this number draws the token after position `seq`."""
        drew = [
            Drew(number, text[number], place, 0)
            for place, frame in enumerate(inbound)
            if (number := self.position(frame)) < len(text)
        ]
        right = tuple((self.right(frame),) for frame in inbound)
        return Followed(tuple(self.said(frame) for frame in inbound), right, tuple(drew))

    def said(self, frame: CrossedFrame) -> bytes:
        return b"%d" % frame.seq

    def position(self, frame: CrossedFrame) -> int:
        return frame.seq

    def right(self, frame: CrossedFrame) -> bool:
        return True

    def handed(self, order: Any, giving: Any, taking: Any) -> list[RowSample]:
        return []


def audit(ring: Any, nodes: Nodes, rows: int = 9) -> Any:
    chooser = random.Random(7)
    options = Options(
        auditor=nodes, audit_rows=rows, limit=lambda dtype, wire: LIMIT, chooser=chooser,
        secrets=tuple(secret for secret in ring.record.secrets if secret.name == "prompt"),
    )  # fmt: skip
    return verify(ring.receipt, options)


def test_an_honest_ring_reaches_level_three(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    verdict = audit(ring, Nodes(ring, tmp_path))
    assert (verdict.level, verdict.exit_code, verdict.refusal) == (Level.SAMPLED, 0, None)
    for stage in ring.stages:
        assert verdict.standing_of("audit", stage.author.id) is Standing.PROVEN


def _scaled(values: list[float], output: list[float], by: float) -> list[float]:
    return [a + (b - a) * by for a, b in zip(values, output, strict=True)]


@pytest.mark.parametrize(
    "cheat",
    [
        lambda position, values, output: values,
        lambda position, values, output: _scaled(values, output, 0.95),
        lambda position, values, output: [round(value, 1) for value in output],
        lambda position, values, output: [float("nan")] * WIDTH,
        lambda position, values, output: output if position % 2 else values,
    ],
    ids=["no compute", "wrong weights", "quantised", "NaN", "every second row"],
)
def test_a_lying_stage_is_named(make_ring: Any, tmp_path: Path, cheat: Any) -> None:
    ring = make_ring(body_of=bodies(cheat))
    verdict = audit(ring, Nodes(ring, tmp_path), rows=15)
    assert (verdict.refusal, verdict.exit_code) == (Refusal.AUDIT, Refusal.AUDIT.exit_code)
    assert ring.stages[1].author.id[:8] in verdict.line


def test_a_tail_that_drew_a_worse_token(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    nodes = Nodes(ring, tmp_path)

    def recompute(*args: Any) -> list[Any]:
        found = Nodes.recompute(nodes, *args)
        return [TokenSample(s.position, 2.5) if isinstance(s, TokenSample) else s for s in found]

    nodes.recompute = recompute  # type: ignore[method-assign]
    assert audit(ring, nodes).refusal is Refusal.AUDIT


@pytest.mark.parametrize(("gap", "wanted"), [(0.0005, None), (0.05, Refusal.AUDIT)])
def test_a_tail_is_held_to_the_near_ties_of_its_type(
    make_ring: Any, tmp_path: Path, gap: float, wanted: Refusal | None
) -> None:
    """A coarse wire format disturbs what a tail takes in, which is opened, and not what it draws from that."""
    ring = make_ring(body_of=bodies(), wire="int8")
    nodes = Nodes(ring, tmp_path)
    honest = nodes.recompute

    def recompute(*args: Any) -> list[Any]:
        return [TokenSample(s.position, gap) if isinstance(s, TokenSample) else s for s in honest(*args)]

    nodes.recompute = recompute  # type: ignore[method-assign]

    def limit(dtype: str, wire: str) -> Limit:
        return LIMIT if wire == dtype else replace(LIMIT, tie_ppm=2_000_000)

    assert verify(ring.receipt, Options(auditor=nodes, audit_rows=9, limit=limit)).refusal is wanted


def test_other_rows_than_those_that_crossed(make_ring: Any, tmp_path: Path) -> None:
    """A stage that recomputes honestly for the auditor what it did not send: not under the co-signed root."""
    ring = make_ring(body_of=bodies(lambda position, values, output: values))
    honest = make_ring(body_of=bodies())
    nodes = Nodes(ring, tmp_path)
    ring_traffic, ring.traffic = ring.traffic, honest.traffic
    nodes.stores = Nodes(ring, tmp_path / "again").stores
    ring.traffic = ring_traffic
    assert audit(ring, nodes).refusal is Refusal.PROOF


def test_a_node_that_does_not_answer_is_not_conclusive(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    verdict = audit(ring, Nodes(ring, tmp_path, lambda data: None))
    assert (verdict.level, verdict.exit_code, verdict.refusal) == (Level.SIGNED, 4, None)


def test_opened_frames_without_a_row_prove_nothing(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    nodes = Nodes(ring, tmp_path)
    nodes.recompute = lambda *args: []  # type: ignore[method-assign]
    verdict = audit(ring, nodes)
    assert (verdict.level, verdict.exit_code) == (Level.SIGNED, 4)
    assert verdict.standing_of("audit", ring.stages[0].author.id) is Standing.NOT_CHECKED


def test_every_epoch_of_a_recovered_run_is_audited(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies(), fail_at=2)
    verdict = audit(ring, Nodes(ring, tmp_path), rows=20)
    # The lost node drew nothing itself, but tokens 4 and 5 came out of its rows, which nobody opens.
    assert (verdict.level, verdict.exit_code) == (Level.SIGNED, 4), verdict.line
    assert "positions 4-5 were drawn in epoch 0" in verdict.line
    audits = [(claim.about, claim.standing, claim.text) for claim in verdict.claims if claim.subject == "audit"]
    assert audits.pop() == (
        "",
        Standing.PROVEN,
        "3/5 tokens were drawn after the published prompt and the tokens before",
    )
    assert [about for about, standing, _ in audits if standing is Standing.PROVEN] == [
        *(stage.author.id for stage in ring.stages), ring.stages[0].author.id, ring.stages[2].author.id
    ]  # fmt: skip
    assert all("its own word" in text for _, standing, text in audits[3:] if standing is Standing.PROVEN)
    (lost,) = [(about, text) for about, standing, text in audits if standing is Standing.NOT_CHECKED]
    assert lost == (ring.parties["node 1"].id, "lost in epoch 0 and signed no root to open")


@pytest.mark.parametrize("position", [0, 20, 30, 200, -1])
def test_answers_with_one_byte_changed(make_ring: Any, tmp_path: Path, position: int) -> None:
    ring = make_ring(body_of=bodies())

    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 0x11
        return bytes(changed)

    verdict = audit(ring, Nodes(ring, tmp_path, flip))
    assert verdict.refusal is not None and verdict.exit_code >= 10


def test_malformed_answers(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    whole = Nodes(ring, tmp_path).fetch(
        ring.stages[0].author.id, OpeningRequest(ring.stages[0].opening.order_digest, 0, (2,))
    )
    assert whole is not None
    log = ring.stages[0]
    ends = (log.inbound.root(), log.inbound.frames), (log.outbound.root(), log.outbound.frames)
    assert len(opened_untrusted(whole, [2], *ends).inbound) == 2
    for data in (b"", MAGIC, MAGIC + b"\xff" * 4, whole[:-1], whole + b"x", whole[: len(MAGIC) + 4] + b"{}" * 50):
        with pytest.raises(ReceiptError):
            opened_untrusted(data, [2], *ends)
    for leaves in ([1], [2, 2], []):
        with pytest.raises(ReceiptError):
            opened_untrusted(whole, leaves, *ends)


def test_rows_are_chosen_by_the_verifier(ring: Any) -> None:
    run = verify(ring.receipt).run
    assert run is not None
    asked: list[int] = []

    class Chooser:
        def randrange(self, n: int, /) -> int:
            asked.append(n)
            return len(asked) % n

    requests = [leaves for _, leaves in choose_rows(run, 7, Chooser())]
    # The tail opens all, the others their last besides.
    assert asked and all(5 in leaves for leaves in requests) and len(requests[-1]) == 5
    assert all(len(leaves) <= 4 for leaves in requests[:-1])
    assert all(1 <= leaf <= 5 for leaves in requests for leaf in leaves)
    assert [len(leaves) for _, leaves in choose_rows(run, 10_000, Chooser())] == [5, 5, 5]


class Replay:
    """Recomputation with the true tokens 100 to 104, and a given gap where the receipt differs."""

    def __init__(self, gap: float = 0.0, wrong: Sequence[int] = (), text: str | None = None) -> None:
        self.gap, self.wrong, self.text = gap, wrong, text

    def replay(self, order: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Replayed:
        assert list(prompt) == [11, 12, 13, 14]
        best = [token + 1 if index in self.wrong else token for index, token in enumerate(tokens)]
        return Replayed(best, [self.gap if index in self.wrong else 0.0 for index in range(len(tokens))], self.text)


@pytest.mark.parametrize(
    ("replayer", "level", "code", "wanted"),
    [
        (Replay(), Level.REPLAYED, 0, None),
        (Replay(text="Hello there, Wörld 🌍."), Level.REPLAYED, 0, None),
        (Replay(text="Something else."), Level.SIGNED, Refusal.TEXT.exit_code, Refusal.TEXT),
        (Replay(0.0005, [3]), Level.REPLAYED, 0, None),
        (Replay(0.5, [3]), Level.SIGNED, Refusal.REPLAY.exit_code, Refusal.REPLAY),
        (Replay(float("nan"), [3]), Level.SIGNED, Refusal.REPLAY.exit_code, Refusal.REPLAY),
        (Replay(0.0005, [1, 2, 3]), Level.SIGNED, 4, None),
    ],
)
def test_replay(rings: Any, replayer: Replay, level: Level, code: int, wanted: Refusal | None) -> None:
    verdict = verify(rings("open").receipt, Options(replayer=replayer, limit=lambda dtype, wire: LIMIT))
    assert (verdict.level, verdict.exit_code, verdict.refusal) == (level, code, wanted)


WHOLE = "Hello there, Wörld 🌍."


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("shown", ["", "Hello", WHOLE[:-1], WHOLE, WHOLE + "!", "hello"])
def test_a_text_is_all_that_its_tokens_say(make_ring: Any, finish: str, shown: str) -> None:
    """Where a run was stopped the requester alone says where its text ends, and no order holds it to that."""
    ring = make_ring(text=shown, finish=finish, show=("prompt", "tokens", "text"))
    verdict = verify(ring.receipt, Options(replayer=Replay(text=WHOLE), limit=lambda dtype, wire: LIMIT))
    decoded = [claim.standing for claim in verdict.claims if claim.subject == "output"]
    if shown == WHOLE:
        assert (verdict.level, verdict.exit_code, decoded) == (Level.REPLAYED, 0, [Standing.PROVEN])
    elif finish == "stop" and WHOLE.startswith(shown):  # as older programs left it, or anybody who cuts a text
        assert (verdict.level, verdict.exit_code, verdict.met) == (Level.SIGNED, 4, frozenset())
        assert "text shown ends before its tokens do" in verdict.line and decoded == [Standing.CLAIMED]
    else:
        assert verdict.refusal is Refusal.TEXT


def test_replay_without_the_prompt_is_not_conclusive(rings: Any) -> None:
    ring = rings("private")
    verdict = verify(ring.receipt, Options(replayer=Replay()))
    assert (verdict.level, verdict.exit_code) == (Level.SIGNED, 4)
    secrets = tuple(secret for secret in ring.record.secrets if secret.name in ("prompt", "tokens", "text"))
    assert verify(ring.receipt, Options(replayer=Replay(), secrets=secrets)).level is Level.REPLAYED


def test_a_failed_run_has_nothing_to_replay(make_ring: Any) -> None:
    ring = make_ring(tokens=[], show=("prompt", "tokens", "text"))
    verdict = verify(ring.receipt, Options(replayer=Replay()))
    assert (verdict.level, verdict.exit_code) == (Level.SIGNED, 4)


def test_nothing_is_shown_by_a_run_without_a_token(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    run = verify(ring.receipt).run
    assert run is not None
    empty = replace(run, close=replace(run.close, new_tokens=0))
    said = Disclosed((1,), Drawn(1, (), ()))
    outcome: Outcome = check_audit(empty, said, Nodes(ring, tmp_path), LIMIT, 1, 9, random.Random(0))
    assert not outcome.conclusive and "no token" in outcome.why


def test_more_frames_than_an_audit_opens_cost_the_verifier_nothing(make_ring: Any, tmp_path: Path) -> None:
    """Anybody can sign a number under fresh keys; it may not become a list of that many leaves."""
    ring = make_ring(body_of=bodies())
    run = verify(ring.receipt).run
    assert run is not None
    node = run.last.plan[-1].node
    run.last.ends[node] = replace(run.last.ends[node], sent=2**52)
    outcome = check_audit(run, Disclosed(), Nodes(ring, tmp_path), LIMIT, 1, 9, random.Random(0))
    assert not outcome.conclusive and "more frames" in outcome.why


def _kept(folder: Path, count: int) -> tuple[RowStore, tuple[tuple[str, int], tuple[str, int]]]:
    salts = leaf_hash(b"in"), leaf_hash(b"out")
    store, trees = RowStore(folder), ([salts[0]], [salts[1]])
    rows = store.begin("ab" * 32, 0, salts, 1_790_000_000)
    for seq in range(count):
        for tree, take, size in zip(trees, (rows.inbound, rows.outbound), (300, 30), strict=True):
            tree.append(frame_leaf(seq, b"head", bytes([seq % 251]) * size))
            take(seq, b"head", bytes([seq % 251]) * size)
    rows.close()
    came, went = (tree_root(tree).hex() for tree in trees)
    return store, ((came, count), (went, count))


def test_a_tree_of_another_size_than_signed_is_refused(tmp_path: Path) -> None:
    """Both ends of an edge sign other numbers than crossed: the last frame they open hashes to no such root."""
    store, (came, went) = _kept(tmp_path, 11)
    last = store.answer(OpeningRequest("ab" * 32, 0, (11,)).to_bytes()).whole()
    assert len(opened_untrusted(last, (11,), came, went).inbound) == 11
    for signed in (9, 10, 12, 13):
        leaves = (min(signed, 11),)
        data = store.answer(OpeningRequest("ab" * 32, 0, leaves).to_bytes()).whole()
        with pytest.raises(ReceiptError):
            opened_untrusted(data, leaves, (came[0], signed), (went[0], signed))


def test_inbound_frames_cross_once_however_many_answers_are_opened(make_ring: Any, tmp_path: Path) -> None:
    """A tail of 1,100 answers opens them in three requests; only the first sends what came in."""
    store, (came, went) = _kept(tmp_path, 1100)
    run = verify(make_ring().receipt).run
    assert run is not None
    sent: list[int] = []

    class Counting:
        def fetch(self, node: str, request: OpeningRequest, known: Sequence[CrossedFrame] = ()) -> bytes:
            whole = store.answer(request.to_bytes()).whole()
            header = len(MAGIC) + 4 + struct.unpack_from(">I", whole, len(MAGIC))[0]
            begun = with_known_untrusted(whole[:header], known)  # as `swarm.recheck.dial` goes on where that ends
            sent.append(len(whole) - (len(begun) - header))
            return begun + whole[len(begun) :]

    stage = run.last.plan[-1].node
    end = replace(run.last.ends[stage], inbound=came[0], came=came[1], outbound=went[0], sent=went[1])
    part = Part(run.last, len(run.last.plan) - 1, end)
    opened = _fetched(replace(run, order_digest="ab" * 32), part, tuple(range(1, 1101)), Counting())  # type: ignore[arg-type]
    assert opened is not None and [leaf for leaf, _ in opened.outbound] == list(range(1, 1101))
    assert len(opened.inbound) == 1100 and len(sent) == 3
    first, *others = (store.answer(OpeningRequest("ab" * 32, 0, tuple(range(low, high))).to_bytes()).size
                      for low, high in ((1025, 1101), (513, 1025), (1, 513)))  # fmt: skip
    assert sent[0] == first and [whole - part for whole, part in zip(others, sent[1:], strict=True)] == [
        1024 * 304, 512 * 304
    ]  # fmt: skip


def test_known_frames_that_did_not_cross_are_refused(tmp_path: Path) -> None:
    store, (came, went) = _kept(tmp_path, 20)
    whole = store.answer(OpeningRequest("ab" * 32, 0, (20,)).to_bytes()).whole()
    header = len(MAGIC) + 4 + struct.unpack_from(">I", whole, len(MAGIC))[0]
    known = [CrossedFrame(seq, b"head", b"x" * 300) for seq in range(20)]
    begun = with_known_untrusted(whole[:header], known)
    assert len(begun) == header + 20 * 304
    with pytest.raises(ReceiptError):
        opened_untrusted(begun + whole[len(begun) :], (20,), came, went)
    for cut in (0, 10, header - 1):
        assert with_known_untrusted(whole[:cut], known) == whole[:cut]


def test_positions_beyond_what_a_leaf_holds_are_refused(rings: Any) -> None:
    """A verdict, where packing such a position would raise: whoever signs an order chooses its numbers."""
    run = verify(rings("open").receipt).run
    assert run is not None
    far = 2**32 - 2
    order, close = replace(run.order, prompt_tokens=far), replace(run.close, first_position=far)
    with pytest.raises(ReceiptError, match="position"):
        check_tokens(replace(run, order=order, close=close), Disclosed(), bytes(32))
