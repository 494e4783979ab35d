"""One run of three stages in one process, message by message: the ring does the same over its links."""

from __future__ import annotations

import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

from nacl.signing import SigningKey

from receipts import (
    Author,
    Hardware,
    Model,
    PlannedStage,
    RequesterRecord,
    Sampler,
    Secret,
    Software,
    StageRecord,
    WitnessRecord,
    opening_untrusted,
)

MANIFEST = "5a" * 32
LAYERS = [(0, 10), (10, 20), (20, 30)]


def author() -> Author:
    key = SigningKey.generate()
    return Author(bytes(key.verify_key), lambda data: key.sign(data).signature)


def unix_us() -> int:
    return time.time_ns() // 1000


def test_a_run_of_three_stages_in_one_process() -> None:
    hasher = ThreadPoolExecutor(1)  # one per node: hashes large frames beside the compute
    me, witness_node, nodes = author(), author(), [author(), author(), author()]

    # ---- the requester orders (before `open`) --------------------------------------------------------------------
    run = RequesterRecord(
        me,
        model=Model("smollm2-135m-instruct", MANIFEST, 30),
        dtype="float32",
        wire="float32",
        sampler=Sampler(temperature_ppm=0, seed=f"{42:016x}"),
        prompt=[1, 2, 3, 4],
        max_tokens=3,
        plan=[PlannedStage(node.id, a, b) for node, (a, b) in zip(nodes, LAYERS, strict=True)],
        time_us=unix_us(),
        random=secrets.token_bytes,
        executor=hasher,
    )
    witness = WitnessRecord(witness_node, run.order.to_bytes(), unix_us(), "203.0.113.5:9000", secrets.token_bytes(32))
    run.witnessed_untrusted(witness.sign_order(), "order")

    # ---- `open` travels the ring; every stage appends its ACCEPT; the tail returns the header to the requester ----
    header = run.open_header()
    stages = []
    for node in nodes:
        opening = opening_untrusted(header)
        stage = StageRecord(node, opening, manifest=MANIFEST, executor=hasher)
        uuid = Secret("uuid", secrets.token_bytes(32), "GPU-3f1c")
        header = stage.accept(
            header,
            nonce=secrets.token_bytes(32),
            time_us=unix_us(),
            weights="77" * 32,  # manifest.weights_digest(stage.part.first, stage.part.last)
            software=Software("wanswarm", "0.1.0", "11" * 32),
            hardware=Hardware("EPYC", "cpu", 8 << 30, "", "EPYC", 2, uuid.digest, {"1": 900, "8": 1200}),
            secrets=[uuid],
        )
        stages.append(stage)
    run.opened_untrusted(header)

    # ---- pings, at both ends of every edge; addresses as seen -----------------------------------------------------
    edges = [run.outbound, *(stage.outbound for stage in stages)]
    far = [*(stage.inbound for stage in stages), run.inbound]
    for upstream, downstream in zip(edges, far, strict=True):
        for sample in (51_400, 51_200, 53_000):
            upstream.ping(sample)
            downstream.ping(sample + 90)
        upstream.see("198.51.100.7:4100", secrets.token_bytes(32))

    # ---- passes: each edge hashes the bytes that cross, at both ends ----------------------------------------------
    for seq, (position, token) in enumerate([(4, 100), (5, 101), (6, 102)]):
        for upstream, downstream in zip(edges, far, strict=True):
            head, body = b"frame head %d" % seq, b"hidden rows" * 4000
            upstream.frame(seq, head, body)
            downstream.frame(seq, head, body)
        for stage in stages:
            stage.computed(rows=1, first=position - 1, last=position, compute_us=12_000)
        assert stages[-1].tail is not None
        if position == 6:  # the last token was drawn after a drafted row in scratch slot 9
            stages[-1].tail.answered(6, token, margin=0.25, slot=9, now_us=time.monotonic_ns() // 1000)
            stages[-1].tail.committed(9, 5)  # a later frame's commits, or the final ones in the `close` message
        else:
            stages[-1].tail.answered(position, token, margin=1.5, slot=None, now_us=time.monotonic_ns() // 1000)

    # ---- `close` goes round: each hop is a call whose reply carries the other end's half ---------------------------
    header = run.close_header(until=7)
    answer_to = run.closed_untrusted
    for stage in stages:
        answer_to(stage.closing_untrusted(header))
        header, answer_to = stage.close_header(), stage.closed_untrusted
    answer_to(run.closing_untrusted(header))

    # ---- `collect` goes round: every stage appends its EDGEs and END, the tail its TAIL ----------------------------
    header = run.collect_header()
    for stage in stages:
        header = stage.collect(header)
    run.collected_untrusted(header)

    # ---- CLOSE, countersigned, assembled ---------------------------------------------------------------------------
    close = run.close(
        tokens=[100, 101, 102],
        text="Hello there.",
        finish_reason="length",
        time_us=unix_us(),
        first_token_us=160_000,
        last_token_us=480_000,
        elapsed_us=490_000,
        draft={"passes": 3, "rows_sent": 3, "drafted": 0, "accepted": 0},
        drafter="none",
        speculation="plain",
        witnesses=[witness_node.id],
    )
    run.witnessed_untrusted(witness.sign_close(close.to_bytes(), unix_us()), "close")
    receipt = run.receipt()
    hasher.shutdown()

    assert len(json.loads(receipt)["envelopes"]) == 1 + 1 + 3 + 8 + 3 + 1 + 1 + 1
    assert json.loads(receipt)["disclosed"][1]["value"]["tokens"] == [100, 101, 102]
    print(len(receipt))
