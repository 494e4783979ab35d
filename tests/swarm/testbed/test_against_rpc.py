"""What the comparison with llama.cpp makes of its events and of its runs."""

from __future__ import annotations

import re

import pytest

from swarm.base.errors import RunError
from swarm.testbed.bench import BenchRun
from tests.bench.against_rpc import LONG, RPC, main, summarise, told


def run(kind: str, prompt: int, way: str, tokens_per_second: float, first_s: float) -> BenchRun:
    seconds = first_s + 8 / tokens_per_second
    result = {"new_tokens": 9, "seconds": seconds, "ttft_seconds": first_s}
    return BenchRun(50.0, kind, prompt, way, "none", result)


def test_an_answer_begins_with_its_first_token_and_ends_with_its_end() -> None:
    events = [
        (0.4, {"tokens": [], "stop": False}),  # half a character, held back
        (0.5, {"tokens": [7, 8], "stop": False}),
        (0.7, {"tokens": [9], "stop": False}),
        (0.8, {"tokens": [], "stop": True}),
    ]
    assert told(events) == {"token_ids": [7, 8, 9], "new_tokens": 3, "seconds": 0.8, "ttft_seconds": 0.5}


@pytest.mark.parametrize("events", [[], [(0.1, {"tokens": [3], "stop": False})], [(0.1, {"tokens": [], "stop": True})]])
def test_an_answer_without_tokens_or_end_is_no_result(events: list[tuple[float, dict[str, object]]]) -> None:
    with pytest.raises(RunError, match="expected tokens and an end from llama-server"):
        told(events)


def test_ratios_are_medians_over_prompts_of_the_same_prompt() -> None:
    runs = [run("prose", n, RPC, speed, 1.0) for n, speed in enumerate((4.0, 5.0, 8.0))]
    runs += [run("prose", n, "plain", speed, 0.5) for n, speed in enumerate((8.0, 5.0, 24.0))]
    runs += [run("prose", 3, "plain", 100.0, 0.01)]  # llama.cpp did not come to this prompt
    runs += [run(LONG, 0, RPC, 4.0, 12.0), run(LONG, 0, "stream", 8.0, 2.0)]
    lines = {(line.kind, line.way): line for line in summarise(runs)}
    assert list(lines) == [("prose", RPC), ("prose", "plain"), (LONG, RPC), (LONG, "stream")]
    assert lines["prose", RPC].over_rpc == lines["prose", RPC].sooner == 1.0
    plain = lines["prose", "plain"]
    assert (plain.prompts, plain.over_rpc, plain.sooner) == (4, pytest.approx(2.0), pytest.approx(2.0))
    assert plain.tokens_per_second == pytest.approx(16.0)
    assert lines[LONG, "stream"].sooner == pytest.approx(6.0)


def test_a_way_that_stands_alone_has_no_ratio() -> None:
    (line,) = summarise([run("code", 0, "plain", 8.0, 0.5)])
    assert (line.over_rpc, line.sooner) == (0.0, 0.0)


def test_programs_that_are_not_there_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["against_rpc", "--rpc-server", "/nowhere/rpc", "--llama-server", "/nowhere/server"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        main()
    assert re.search("found nothing at /nowhere/rpc; build it with -DGGML_RPC=ON", capsys.readouterr().err)
