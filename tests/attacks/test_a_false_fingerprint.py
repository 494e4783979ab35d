"""Sign a kernel fingerprint that is not one's own: another's, to be taken for a node that computes alike; nobody's, so
that only limits can judge; one thing in the record and another in the accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from receipts.check.verdict import Level
from receipts.format.errors import Refusal
from swarm.base.errors import SwarmError
from swarm.client.client import Requester, RequesterConfig
from swarm.client.route_policy import RouteRules
from swarm.run.api import RunRequest
from tests.attacks.arena import PROMPT, SPANS, Arena, arena
from tests.attacks.exactness import ALL

REQUEST = RunRequest(PROMPT, 8, speculation="plain", draft="none", patience_s=3.0)


async def test_cheaper_weights_under_the_others_fingerprint(model: Path, tmp_path: Path) -> None:
    async with arena(model, tmp_path, lies=["", "", "tests.attacks.lies:int8_weights"]) as field:
        assert len({node.ready["fingerprint"] for node in field.nodes.nodes}) == 1
        verdict = await field.audit((await _alike(field, REQUEST, "same")), frames=ALL)
        assert verdict.refusal is Refusal.AUDIT and "layers [8, 12)" in verdict.line, verdict.line


async def test_a_fingerprint_of_nobody_is_never_exact(model: Path, tmp_path: Path) -> None:
    async with arena(model, tmp_path, lies=["", "tests.attacks.lies:under_a_fingerprint_of_nobody"]) as field:
        result = await field.run(REQUEST)
        verdict = await field.audit(result.receipt)
        assert verdict.level is Level.SAMPLED and verdict.met == {"audit"}, verdict.line
        texts = [claim.text for claim in verdict.claims if claim.subject == "audit" and claim.about]
        assert [text.split(":")[0] for text in texts] == ["EXACT", "WITHIN CALIBRATION", "EXACT"], texts
        assert "the kernels that it signed, abababab, are not this machine's" in texts[1]
        for rule in ("same", "own", "abababab"):
            with pytest.raises(SwarmError, match="compute alike .--require-fingerprint.: fingerprint"):
                await _alike(field, REQUEST, rule)
        with pytest.raises(SwarmError, match="no node has a kernel fingerprint 12345678, found"):
            await _alike(field, REQUEST, "12345678")
        # One that tells the others' fingerprint is asked, and refused for what it signs.
        await field.nodes.add(SPANS[1], lie="tests.attacks.lies:signs_another_fingerprint_than_it_tells")
        with pytest.raises(SwarmError, match="signed abababab, its record says"):
            await _alike(field, REQUEST, "same")
        # An honest node of the others' kernels makes the route whole.
        await field.nodes.add(SPANS[1])
        again = await field.audit(await _alike(field, REQUEST, "own"))
        assert again.met == {"audit", "exact"}, [claim.text for claim in again.claims if claim.subject == "audit"]


async def _alike(field: Arena, request: RunRequest, rule: str) -> str | None:
    """The receipt of a run through nodes of one fingerprint, by a requester of its own."""
    config = RequesterConfig(field.member, draft="none", rules=RouteRules(kernels=rule))
    async with await Requester.connect(config) as requester:
        return (await Arena(field.nodes, requester, field.member).run(request)).receipt
