"""Rows held against the same kernels: what equal bits prove, what other bits convict, and when they say nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from receipts.check.replay import Replayed
from receipts.check.samples import Bits, RowSample, TokenSample
from receipts.check.verdict import Level
from receipts.check.verify import Options, verify
from receipts.format.errors import Refusal
from receipts.format.opening import Accept
from tests.receipts.check.test_audit import LIMIT, Nodes, audit, bodies

Choose = Callable[[int, int], Bits]
"""(place of a stage, number of a frame) -> how its row compares."""


def compared(ring: Any, folder: Path, bits: Choose, gap: float = 0.0) -> Nodes:
    nodes = Nodes(ring, folder)
    honest = nodes.recompute

    def recompute(order: Any, stage: Any, *frames: Any) -> list[Any]:
        found = honest(order, stage, *frames)
        place = nodes.places[stage.node]
        far = [replace(s, gap=gap) if isinstance(s, TokenSample) else s for s in found]
        return [replace(s, bits=bits(place, s.position)) for s in far if isinstance(s, RowSample | TokenSample)]

    nodes.recompute = recompute  # type: ignore[method-assign]
    return nodes


def texts(verdict: Any) -> list[str]:
    return [claim.text.split(":")[0] for claim in verdict.claims if claim.subject == "audit" and claim.about]


def test_equal_bits_are_exact_and_meet_what_was_required(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    verdict = audit(ring, compared(ring, tmp_path, lambda place, frame: Bits.EQUAL))
    assert texts(verdict) == ["EXACT"] * 3 and verdict.met == {"audit", "exact"}
    assert verdict.level is Level.SAMPLED


def test_bits_that_may_differ_leave_it_to_the_limits(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    verdict = audit(ring, compared(ring, tmp_path, lambda place, _: Bits.OTHER if place == 1 else Bits.EQUAL))
    assert texts(verdict) == ["EXACT", "WITHIN CALIBRATION", "EXACT"] and verdict.met == {"audit"}
    lying = make_ring(body_of=bodies(lambda position, values, output: values))
    assert audit(lying, compared(lying, tmp_path / "lie", lambda *_: Bits.OTHER)).refusal is Refusal.AUDIT


@pytest.mark.parametrize("places", [[0], [-1], [3, 1, 2]])
def test_one_row_of_other_bits_convicts_and_the_first_is_named(
    make_ring: Any, tmp_path: Path, places: list[int]
) -> None:
    ring = make_ring(body_of=bodies())
    seen: set[int] = set()
    wrong: set[int] = set()

    def bits(place: int, frame: int) -> Bits:
        seen.update({frame} if place == 1 else ())
        return Bits.WRONG if place == 1 and frame in wrong else Bits.EQUAL

    assert audit(ring, compared(ring, tmp_path / "before", bits), rows=4000).refusal is None
    wrong |= {sorted(seen)[place] for place in places}
    verdict = audit(ring, compared(ring, tmp_path / "after", bits), rows=4000)
    assert verdict.refusal is Refusal.AUDIT
    assert f"{ring.stages[1].author.id[:8]} layers [" in verdict.line
    assert f"position {min(wrong)} (frame " in verdict.line and f"first of {len(wrong)} opened rows" in verdict.line


def test_a_tail_of_equal_bits_drew_right_whatever_float32_draws(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    assert audit(ring, compared(ring, tmp_path / "a", lambda *_: Bits.OTHER, gap=2.5)).refusal is Refusal.AUDIT
    assert audit(ring, compared(ring, tmp_path / "b", lambda *_: Bits.EQUAL, gap=2.5)).met == {"audit", "exact"}


def test_exact_can_be_required(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies())
    for bits, code in ((Bits.EQUAL, 0), (Bits.NOT_COMPARED, 3)):
        nodes = compared(ring, tmp_path / bits.value, lambda place, frame, bits=bits: bits)
        options = Options(
            auditor=nodes, audit_rows=9, limit=lambda dtype, wire: LIMIT,
            requirements=frozenset({"exact"}),
            secrets=tuple(secret for secret in ring.record.secrets if secret.name == "prompt"),
        )  # fmt: skip
        verdict = verify(ring.receipt, options)
        assert verdict.exit_code == code, verdict.line
        assert code == 0 or "required and not met: exact" in verdict.line


class _Replays:
    def __init__(self, exact: bool, wrong: int | None = None) -> None:
        self.exact, self.wrong = exact, wrong

    def replay(self, order: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Replayed:
        best = [token + (place == self.wrong) for place, token in enumerate(tokens)]
        return Replayed(best, [1e-6 * (place == self.wrong) for place in range(len(tokens))], exact=self.exact)


def test_an_exact_replay_lets_no_near_tie_pass(make_ring: Any) -> None:
    ring = make_ring()
    secrets = tuple(ring.record.secrets)

    def replayed(one: _Replays) -> Any:
        return verify(ring.receipt, Options(replayer=one, secrets=secrets))

    assert replayed(_Replays(False, wrong=2)).met == {"replay"}
    assert replayed(_Replays(True)).met == {"replay", "exact"}
    assert replayed(_Replays(True, wrong=2)).refusal is Refusal.REPLAY


@pytest.mark.parametrize("bits", [Bits.EQUAL, Bits.OTHER, Bits.NOT_COMPARED])
@pytest.mark.parametrize("whole", [True, False], ids=["all opened", "one part kept shut"])
def test_no_exact_replay_makes_up_for_an_opened_part_that_is_not(
    make_ring: Any, tmp_path: Path, bits: Bits, whole: bool
) -> None:
    ring = make_ring(body_of=bodies())
    nodes = compared(ring, tmp_path, lambda place, frame: bits if place == 1 else Bits.EQUAL)
    if not whole:
        shut, fetch = ring.stages[0].author.id, nodes.fetch
        nodes.fetch = lambda node, *rest: None if node == shut else fetch(node, *rest)  # type: ignore[method-assign]
    options = Options(
        auditor=nodes, audit_rows=9, limit=lambda dtype, wire: LIMIT, replayer=_Replays(True),
        secrets=tuple(ring.record.secrets),
    )  # fmt: skip
    verdict = verify(ring.receipt, options)
    assert verdict.met == {"replay", *(["audit"] * whole), *(["exact"] * (bits is Bits.EQUAL))}, verdict.line


def test_an_accept_without_a_fingerprint_is_signed_as_it_always_was() -> None:
    from receipts.format.codec import decode_untrusted, encode

    fields = {
        "epoch": 0, "plan": "11" * 32, "first": 0, "last": 2, "nonce": "22" * 32, "time_us": 1, "weights": "33" * 32,
        "software": {"name": "a", "version": "b", "digest": "44" * 32},
        "hardware": {
            "device": "d", "type": "cpu", "memory_bytes": 1, "driver": "", "cpu": "c", "cores": 1, "uuid": None,
            "us_per_layer": {},
        },
    }  # fmt: skip
    before = decode_untrusted(Accept, fields, "accept")
    assert before.fingerprint is None and encode(before) == fields
    assert decode_untrusted(Accept, {**fields, "fingerprint": "55" * 32}, "accept").fingerprint == "55" * 32
