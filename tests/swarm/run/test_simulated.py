"""Which strategy wins, in simulated time: deterministic, so that speeds can be asserted."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from draft.base import Child
from swarm.run.controller import Setting
from tests.bench.sim_speculation import (
    DRAFTS,
    MODES,
    NEAR,
    RINGS,
    SHARED,
    WIDE,
    Draft,
    Ring,
    Simulation,
    SyntheticDrafter,
    replay,
    simulate,
)

TOKENS = 100


@cache
def speed(mode: str, ring: Ring, draft: Draft) -> float:
    """Tokens per plain pass."""
    return simulate(MODES[mode], ring, draft, TOKENS).per_pass


def test_plain_decoding_makes_one_token_per_pass() -> None:
    for ring in RINGS.values():
        assert speed("plain", ring, DRAFTS["0.65; 0.90"]) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("name", "label", "over_chain", "over_tree"),
    [
        ("wide", "0.65; 0.90", 1.4, 1.15),
        ("near", "0.42; 0.72", 1.4, 1.0),
        ("near", "0.85; 0.97", 1.4, 1.15),
        ("shared", "0.42; 0.72", 1.2, 1.0),
        ("shared", "0.76; 0.95", 1.2, 1.0),
        ("thin", "0.65; 0.90", 1.2, 1.1),
    ],
)
def test_the_stream_beats_every_waiting_strategy(name: str, label: str, over_chain: float, over_tree: float) -> None:
    ring, draft = RINGS[name], DRAFTS[label]
    stream = speed("stream", ring, draft)
    assert stream > over_chain * speed("chain", ring, draft)
    assert stream > over_tree * max(speed("tree-16", ring, draft), speed("tree", ring, draft))


def test_the_table_of_strategies_has_the_known_order() -> None:
    draft = DRAFTS["0.76; 0.95"]
    order = [speed(mode, WIDE, draft) for mode in ("plain", "chain-8", "tree-64", "stream")]
    assert order == sorted(order)
    assert order[1] > 2.5 and order[3] > 5.0


def test_the_controlled_tree_is_as_good_as_a_fixed_one() -> None:
    draft = DRAFTS["0.76; 0.95"]
    fixed = max(speed(mode, NEAR, draft) for mode in ("tree-16", "tree-64"))
    assert speed("tree", NEAR, draft) > 0.95 * fixed


@pytest.mark.parametrize("name", sorted(RINGS))
@pytest.mark.parametrize("mode", ["tree", "stream"])
def test_a_drafter_that_is_sure_and_never_right_costs_next_to_nothing(name: str, mode: str) -> None:
    liar = DRAFTS["none right"]
    assert not liar.honest
    assert speed(mode, RINGS[name], liar) >= 0.98 * speed("plain", RINGS[name], liar)


def test_a_drafter_that_promises_too_much_is_seen_through() -> None:
    boaster = Draft(0.42, 0.72, honest=False)
    assert speed("stream", NEAR, boaster) > 1.3
    assert speed("stream", NEAR, boaster) >= speed("tree", NEAR, boaster)


def test_jitter_and_silent_stages_leave_the_stream_ahead() -> None:
    draft = DRAFTS["0.65; 0.90"]
    for ring in (replace(NEAR, jitter_ms=5.0), replace(NEAR, jitter_ms=5.0, tells=False), replace(SHARED, tells=False)):
        assert speed("stream", ring, draft) > speed("tree", ring, draft)


class Stumbling(SyntheticDrafter):
    """Right but for every sixth position, where it is sure of something else; goes on as before after its errors."""

    def proposals(self, position: int, right: bool, rng: random.Random) -> tuple[Child, ...]:
        return (Child(position if position % 6 else 1_000_000 + position, 0.9),)


class Resuming(Simulation):
    """After a wrong token the target goes on as after the right one."""

    def lost(self, position: int) -> int:
        return position + 1


@pytest.mark.parametrize("mode", ["tree", "stream"])
def test_what_the_target_said_on_lost_branches_saves_passes(mode: str) -> None:
    draft = Draft()

    def run(ring: type[Simulation], echo: bool) -> float:
        setting = Setting(mode, echo=echo)
        return ring(NEAR, setting, int, range(8), TOKENS, Stumbling(draft, 1), draft).run().per_pass

    assert run(Resuming, echo=True) > 1.15 * run(Resuming, echo=False)
    assert run(Simulation, echo=True) > 0.97 * run(Simulation, echo=False), "nothing to learn, nothing lost"


def test_a_thin_link_sends_fewer_rows() -> None:
    draft = DRAFTS["0.65; 0.90"]
    thick, thin = (simulate("stream", RINGS[name], draft, TOKENS) for name in ("wide", "thin"))
    assert thin.drafted / thin.tokens < 0.7 * thick.drafted / thick.tokens


def test_a_wrong_guess_of_the_costs_is_corrected() -> None:
    slow, draft = replace(NEAR, stage_ms=40.0), DRAFTS["0.65; 0.90"]
    told = Simulation(slow, Setting("stream"), int, range(8), TOKENS, SyntheticDrafter(draft, 1), draft)
    told.control.costs = NEAR.costs(draft.ms)
    assert told.run().per_pass > 0.85 * speed("stream", slow, draft)


def test_copied_text_flies(tmp_path: Path) -> None:
    passage = [7 * n % 501 for n in range(150)]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"runs": [{"prompt": [*passage, 999, *passage[:6]], "tokens": passage[6:134]}]}))
    run = json.loads(path.read_text())["runs"][0]
    assert replay(run, "stream", NEAR, 12.0).per_pass > 12.0
    assert replay(run, "tree", NEAR, 12.0).per_pass > 6.0
    assert replay(run, "stream", NEAR, 12.0, suffix=False).per_pass == pytest.approx(1.0, abs=0.05)


def test_recorded_proposals_are_replayed() -> None:
    tokens = list(range(100, 164))
    drafts = [[[token if i % 3 else 5, 0.7], [token if i % 3 == 0 else 6, 0.2]] for i, token in enumerate(tokens)]
    run = {"prompt": [1, 2], "tokens": tokens, "drafts": drafts}
    assert replay(run, "stream", NEAR, 6.0).per_pass > replay(run, "chain", NEAR, 6.0).per_pass > 1.2
