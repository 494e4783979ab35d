"""Drafts by a checkpoint's own head, against transformers' computation of that head over the whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swarm.model.block import Block, Job, load_block
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.mtp import load_mtp
from swarm.model.rows import Commits, Layout, Rows, no_commits
from swarm.model.sampler import Sampling
from swarm.ring.frame import Drafts
from swarm.stage.mtp_session import MTPHost, MTPSession
from tests.swarm.model.mtp_models import APART, APPENDED, expected, save_with_head, their_head
from tests.swarm.model.tiny import CPU, certain, drafted

LAYOUT = Layout(scratch=16, context=64)
PROMPT = [5, 17, 3, 88, 41, 2, 9]


class Tail:
    """A whole model in one block and its head, drawing greedily."""

    def __init__(self, folder: Path) -> None:
        checkpoint = open_model(str(folder / "m"), ModelStore(folder / "s"))
        n = checkpoint.manifest.n_layers
        self.block: Block = load_block(checkpoint, 0, n, CPU, torch.float32)
        self.kv = KVPool(self.block, 1 << 30).open(LAYOUT, 0, n)
        head = load_mtp(checkpoint, self.block, "expanded")
        assert head is not None
        self.host = MTPHost(head, KVPool(head.block, 1 << 30))
        self.mtp = MTPSession(self.host, LAYOUT, Sampling())

    def frame(
        self, rows: Rows, commits: Commits | None = None, levels: int = 3
    ) -> tuple[dict[int, int], Drafts | None]:
        commits = commits or no_commits()
        (logits,), (given,) = self.block.forward_to_head([Job(self.kv, commits, rows, None)])
        wanted = [int(row) for row in np.flatnonzero(rows.want)]
        drawn = {row: int(scores.argmax()) for row, scores in zip(wanted, logits, strict=True)}
        return drawn, self.mtp.follow(rows, commits, given, drawn, levels)


@pytest.fixture(scope="module", params=[*APPENDED, *APART])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp(str(request.param))
    model = save_with_head(str(request.param), folder / "m")
    return model, their_head(model), folder


def unwanted(rows: Rows, but: int = 0) -> Rows:
    rows.want[: len(rows) - but] = False
    return rows


def check(found: Drafts | None, row: int, scores: list[torch.Tensor]) -> None:
    """The drafts are these scores' best tokens and their shares."""
    assert found is not None and found.row == row and found.token.shape == (len(scores), 4)
    for level, expected_scores in enumerate(scores):
        shares, tokens = torch.softmax(expected_scores, -1).topk(4)
        assert found.token[level].tolist() == tokens.tolist()
        np.testing.assert_allclose(found.share[level], shares.numpy(), atol=2e-4)


def test_drafts_are_what_transformers_computes(made: tuple[Any, Any, Path]) -> None:
    """A prompt in two parts, a token, a tree with a right and a wrong branch, and a commit of the right one."""
    model, head, folder = made
    tail = Tail(folder)
    _, nothing = tail.frame(unwanted(certain(PROMPT[:4], 0, LAYOUT)))
    assert nothing is None
    drawn, drafts = tail.frame(unwanted(certain(PROMPT[4:], 4, LAYOUT), 1))
    text = [*PROMPT, drawn[2]]
    check(drafts, 2, expected(model, head, text, 3))

    # Rows: the drawn token, then drafted ones: what will be drawn, beside it something else with a child of its own.
    _, probe = tail.frame(certain(text[-1:], len(PROMPT), LAYOUT))
    with torch.inference_mode():
        right = int(model(torch.tensor([text])).logits[0, -1].argmax())
    check(probe, 0, expected(model, head, [*text, right], 3))
    wrong = (right + 1) % 97
    rows = drafted([right, wrong, 7], [-1, -1, 1], [3, 9, 1], len(text), LAYOUT)
    drawn, drafts = tail.frame(rows)
    text += [right, drawn[0]]
    check(drafts, 0, expected(model, head, text, 3))  # the wrong branch is deeper, and nothing is drafted for it

    # The right one is committed; another token follows as certain, and the head sees neither wrong row.
    commit = Commits(np.array([3], np.uint32), np.array([len(text) - 2], np.uint32))
    drawn, drafts = tail.frame(certain(text[-1:], len(text) - 1, LAYOUT), commit, 2)
    check(drafts, 0, expected(model, head, [*text, drawn[0]], 2))
    assert tail.frame(certain([drawn[0]], len(text), LAYOUT), levels=0)[1] is None


def test_a_second_run_begins_from_the_first(made: tuple[Any, Any, Path]) -> None:
    model, head, folder = made
    tail = Tail(folder)
    drawn, _ = tail.frame(unwanted(certain(PROMPT, 0, LAYOUT), 1))
    keep = len(PROMPT) - 1
    other = MTPSession(tail.host, LAYOUT, Sampling())
    assert other.begin_from(tail.mtp, keep)
    tail.mtp = other
    drawn, drafts = tail.frame(certain(PROMPT[keep:], keep, LAYOUT))
    check(drafts, 0, expected(model, head, [*PROMPT, drawn[0]], 3))
