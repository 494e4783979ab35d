"""A stage computes wrongly and is gone before it signs anything: another takes over, and nobody can be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from receipts.check.verdict import Level
from receipts.format.errors import Refusal
from swarm.run.api import RunRequest
from swarm.run.ring_client import Loss, RingLink
from tests.attacks.arena import PROMPT, SPANS, arena

REQUEST = RunRequest(PROMPT, 16, speculation="plain", patience_s=20.0)


@pytest.mark.parametrize(
    "when",
    [
        "and_drop_after_twelve",
        pytest.param("and_drop_after_the_prompt", marks=pytest.mark.soak),
        pytest.param("and_drop_at_the_closing", marks=pytest.mark.soak),
    ],
)
async def test_gone_before_its_end(model: Path, tmp_path: Path, when: str) -> None:
    async with arena(model, tmp_path, [*SPANS, SPANS[1]], ["", f"tests.attacks.lies:{when}"]) as field:
        liar = field.nodes.nodes[1].id
        from swarm.base.nodeid import parse_id_untrusted

        key = parse_id_untrusted(liar)
        router = field.requester.desk.router
        plan = router.plan

        def through_the_liar(excluded: frozenset[bytes], private: int = 0):  # type: ignore[no-untyped-def]
            spare = parse_id_untrusted(field.nodes.nodes[3].id)
            return plan(excluded if key in excluded else excluded | {spare}, private)

        router.plan = through_the_liar
        result = await field.run(REQUEST)
        verdict = await field.audit(result.receipt)
        assert verdict.level is None or verdict.level < Level.SAMPLED, verdict.line
        assert verdict.exit_code == 4 or verdict.refusal is Refusal.AUDIT, verdict.line
        if when == "and_drop_after_twelve":
            assert f"{key.hex()[:8]} opened nothing" in verdict.line, verdict.line
        replayed = await field.audit(result.receipt, replay=True)
        assert replayed.refusal in (Refusal.REPLAY, Refusal.AUDIT), replayed.line


async def test_a_survivor_that_says_it_sent_nothing(model: Path, tmp_path: Path) -> None:
    async with arena(model, tmp_path, SPANS, ["", "tests.attacks.lies:silent_about_it"]) as field:

        def seen(link: RingLink, tokens: int) -> None:
            if link.opening.epoch == 0 and tokens >= 4:
                link.losses.append(Loss(0, -1, "a whim"))
                link.wake.set()

        result = await field.run(REQUEST, seen)
        assert result.recoveries == 1
        verdict = await field.audit(result.receipt)
        assert verdict.refusal is Refusal.AUDIT or verdict.exit_code == 4, verdict.line
        texts = [claim.text for claim in verdict.claims if claim.subject == "audit"]
        assert verdict.refusal or any("sent nothing in epoch 0" in text for text in texts), texts
