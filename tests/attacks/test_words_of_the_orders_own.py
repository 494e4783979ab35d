"""Have any text called the model's: the order itself dictates it, and everything else is honest, to the last bit.

Nothing here is refused, for nothing is false. It may only not be called what it is not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from receipts.check.verdict import Level, Standing, Verdict
from receipts.record.requester import RequesterRecord
from swarm.model.sampler import Sampling
from swarm.model.sampling import Shaping
from swarm.run.api import RunRequest
from tests.attacks.arena import OTHER, PROMPT, arena

BEFORE = len(PROMPT)


async def test_a_text_that_the_order_dictates(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with arena(model, tmp_path) as field:
        given = Shaping(given=OTHER[:11], after=BEFORE)
        result = await field.run(RunRequest(PROMPT, 12, Sampling(shaping=given), speculation="plain", ignore_eos=True))
        assert result.token_ids[:11] == OTHER[:11]
        verdict = await field.audit(result.receipt)
        assert (verdict.exit_code, verdict.level) == (0, Level.SAMPLED), verdict.line
        assert verdict.line.endswith("the order gave 11 of 12 tokens itself"), verdict.line
        assert any("1/12 tokens were drawn, 11/12 were given by the order" in text for text in proven(verdict))
        tokens = next(claim.text for claim in verdict.claims if claim.subject == "tokens")
        assert tokens.endswith("the first 11 given by the order and not drawn")

        biased = Shaping(bias=((OTHER[0], 100.0),), after=BEFORE)
        result = await field.run(RunRequest(PROMPT, 12, Sampling(shaping=biased), speculation="plain"))
        assert result.token_ids == OTHER[:1] * 12  # no token is given, and yet the text is the order's
        verdict = await field.audit(result.receipt)
        assert verdict.level is Level.SAMPLED and verdict.line.endswith("the order biased 1 token"), verdict.line

        # A name is the requester's word, whatever computed: the manifest is what is held against the verifier's own.
        begin = RequesterRecord.__init__

        def named(self: Any, author: Any, **said: Any) -> None:
            begin(self, author, **said | {"model": replace(said["model"], name="some-405b")})

        with monkeypatch.context() as patch:
            patch.setattr(RequesterRecord, "__init__", named)
            result = await field.run(RunRequest(PROMPT, 12, speculation="plain"))
        verdict = await field.audit(result.receipt)
        assert verdict.level is Level.SAMPLED
        assert [c.standing for c in verdict.claims if "405b" in c.text] == [Standing.CLAIMED]


def proven(verdict: Verdict) -> list[str]:
    return [claim.text for claim in verdict.claims if claim.standing is Standing.PROVEN]
