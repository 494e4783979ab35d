"""The benchmark's own arithmetic and bookkeeping, with a made-up ring in place of a real one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from swarm.base.errors import UsageError
from swarm.testbed.bench import CLASSES, BenchPlan, BenchRun, kept, load_prompts, measure, read_runs, summarise, table
from swarm.testbed.bench_plots import plot
from swarm.testbed.bench_ring import ring_state
from tests.receipts.conftest import run_ring


def result(tokens_per_second: float, tokens: tuple[int, ...] = (1, 2, 3, 4, 5)) -> dict[str, Any]:
    return {
        "token_ids": list(tokens),
        "new_tokens": len(tokens),
        "seconds": 1.0 + (len(tokens) - 1) / tokens_per_second,
        "ttft_seconds": 1.0,
        "passes": 5,
        "tokens_per_pass": 1.0,
        "rows_sent": 13,
        "prompt_tokens": 3,
        "acceptance": 0.5,
        "pass_ms": 100.0,
        "ring": [{"compute_ms": 10.0}, {"compute_ms": 20.0}],
        "bytes": 2600,
        "busiest_us": 200_000,
    }


class FakeRing:
    """Plain makes 2 tokens per second, anything else 6; counts how often it was asked and opened."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.opened: list[float] = []

    @contextlib.asynccontextmanager
    async def open(self, rtt_ms: float) -> AsyncIterator[FakeRing]:
        self.opened.append(rtt_ms)
        yield self

    async def __call__(self, prompt: str, speculation: str, draft: str, max_tokens: int) -> Mapping[str, Any]:
        self.asked.append((speculation, draft))
        return result(2.0 if speculation == "plain" else 6.0) | {"text": prompt, "prompt_token_ids": [1, 2, 3]}


PLAN = BenchPlan(rtts_ms=(20.0, 50.0), classes=("chat", "copy"), modes=("plain", "stream"), drafts=("lm",), prompts=2)


def test_prompts_are_eight_of_each_class_and_all_different() -> None:
    prompts = load_prompts()
    assert tuple(prompts) == CLASSES
    assert all(len(texts) == 8 for texts in prompts.values())
    assert len({text for texts in prompts.values() for text in texts}) == 32


def test_plain_runs_first_and_never_with_a_drafter() -> None:
    settings = BenchPlan(modes=("stream", "plain"), drafts=("none", "lm")).settings()
    assert settings == [("plain", "none"), ("stream", "lm")]


@pytest.mark.parametrize("bad", [{"classes": ("poetry",)}, {"modes": ("warp",)}, {"drafts": ("psychic",)}])
def test_a_plan_names_what_it_does_not_know(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="poetry|warp|psychic"):
        BenchPlan(**bad)


async def test_every_cell_is_measured_once_and_a_second_call_measures_nothing(tmp_path: Path) -> None:
    ring = FakeRing()
    summary = await measure(PLAN, ring.open, tmp_path)
    assert ring.opened == [20.0, 50.0]
    assert len(ring.asked) == 2 * (1 + 2 * 2 * 2)  # per distance: a warm-up, then prompts x classes x settings
    assert [cell["over_plain"] for cell in summary["cells"]] == [1.0, 3.0] * 4
    assert json.loads((tmp_path / "summary.json").read_text())["cells"] == summary["cells"]
    again = await measure(PLAN, ring.open, tmp_path)
    assert ring.opened == [20.0, 50.0] and again["cells"] == summary["cells"]


async def test_a_run_that_was_cut_off_while_writing_is_measured_again(tmp_path: Path) -> None:
    ring = FakeRing()
    await measure(PLAN, ring.open, tmp_path)
    log = tmp_path / "runs.jsonl"
    log.write_text(log.read_text()[:-40])
    asked = len(ring.asked)
    await measure(PLAN, ring.open, tmp_path)
    await measure(PLAN, ring.open, tmp_path)
    assert len(ring.asked) == asked + 2  # the warm-up and the one that was lost


def test_speed_up_compares_each_prompt_with_its_own_plain_run() -> None:
    runs = [
        BenchRun(50.0, "chat", 0, "plain", "none", result(1.0)),
        BenchRun(50.0, "chat", 1, "plain", "none", result(10.0)),
        BenchRun(50.0, "chat", 0, "stream", "lm", result(4.0)),
        BenchRun(50.0, "chat", 1, "stream", "lm", result(20.0, tokens=(1, 2, 3, 4, 6))),
    ]
    plain, stream = summarise(runs)
    assert (plain.over_plain, plain.different) == (1.0, 0)
    assert (stream.over_plain, stream.tokens_per_second, stream.different) == (3.0, 12.0, 1)
    assert stream.rows_per_token == 2.0
    assert stream.busy == pytest.approx((0.1 + 1 / 6) / 2, abs=1e-3)
    assert stream.bytes_per_token == 400.0  # 200 a row, two rows a token


def test_acceptance_by_depth_is_over_all_rows_of_a_cell() -> None:
    short = result(4.0) | {"depth_sent": (8, 4), "depth_accepted": (4, 1)}
    long = result(4.0) | {"depth_sent": (2, 4, 5), "depth_accepted": (2, 1, 0)}
    runs = [BenchRun(50.0, "chat", i, "stream", "lm", one) for i, one in enumerate((short, long))]
    assert summarise(runs)[0].by_depth == [0.6, 0.25, 0.0]


def test_bytes_and_compute_come_from_the_receipt_of_a_run(tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    receipt.write_bytes(run_ring(stages=2, tokens=(5, 6)).receipt)
    kept_of = kept({"prompt_token_ids": [1, 2], "text": "hi", "receipt": str(receipt), "seconds": 1.0})
    assert kept_of["prompt_tokens"] == 2 and kept_of["seconds"] == 1.0 and "text" not in kept_of
    assert kept_of["bytes"] > 0 and kept_of["busiest_us"] > 0


def test_runs_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_runs(tmp_path / "absent") == []


async def test_the_summary_becomes_a_table_and_pictures(tmp_path: Path) -> None:
    summary = await measure(PLAN, FakeRing().open, tmp_path)
    assert "| 50 | copy | stream | lm | 6.0 | 3.00 |" in table(summary)
    pytest.importorskip("matplotlib")
    pictures = plot(summary, tmp_path)
    assert [path.name for path in pictures] == [
        f"{what}-rtt{rtt}.png" for rtt in (20, 50) for what in ("speedup", "depth")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_rings_of_other_models_and_distances_keep_their_keys_apart() -> None:
    folders = {ring_state(Path("state"), model, rtt) for model in (None, "a/b", "qwen.gguf") for rtt in (20.0, 50.0)}
    assert len(folders) == 6 and {folder.parent for folder in folders} == {Path("state")}
    assert ring_state(Path("state"), "a/b", 50.0) == ring_state(Path("state"), "a/b", 50.0)
