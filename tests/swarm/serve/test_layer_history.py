"""Who held which layers when: nothing overlaps, nothing is told that was not seen, and memory is bounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import UsageError
from swarm.base.swarm_state import NodeState, SwarmState
from swarm.serve import layer_history
from swarm.serve.layer_history import KEPT_S, MOST_SPANS, LayerHistory, coverage
from tests.swarm.serve import scenes
from tests.swarm.serve.conftest import Serve
from tests.swarm.serve.tiny import TinyBackend

LAYERS, DIGEST = 6, "0f" * 32
SPANS = [(0, 2), (2, 4), (4, 6), (0, 6), (1, 5)]

nodes = st.builds(
    NodeState,
    id=st.sampled_from("abcdef"),
    standing=st.sampled_from(["up", "up", "suspect", "down"]),
    says=st.sampled_from(["serving", "serving", "joining", "draining"]),
    layers=st.sampled_from([None, *SPANS]),
    claim=st.sampled_from([None, *SPANS]),
)
looks = st.lists(
    st.tuples(st.floats(-5, 4000), st.lists(nodes, max_size=4, unique_by=lambda node: node.id)), max_size=12
)


def swarm(*found: NodeState) -> SwarmState:
    return SwarmState("", n_layers=LAYERS, nodes=found)


def holder(name: str, first: int, last: int) -> NodeState:
    return NodeState(name, layers=(first, last))


@settings(max_examples=80, deadline=None)
@given(looks)
def test_spans_of_a_node_never_overlap_and_coverage_fills_the_time(seen: list[tuple[float, list[NodeState]]]) -> None:
    history, now = LayerHistory(DIGEST, LAYERS), 1_000_000.0
    for step, found in seen:
        now += step
        history.observe(now, swarm(*found))
        held = swarm(*found)
        assert {span.node for span in history.spans if span.end_ms is None} <= {node.id for node in held.nodes}
    for node in {span.node for span in history.spans}:
        mine = [span for span in history.spans if span.node == node]
        assert all((a.end_ms or 0) <= b.begin_ms for a, b in zip(mine, mine[1:], strict=False))
        assert all(span.end_ms is None or (span.end_ms >= span.begin_ms and span.why) for span in mine)
    parts = coverage(history.spans, LAYERS, history.since_ms, history.seen_ms)
    assert [part.begin_ms for part in parts[1:]] == [part.end_ms for part in parts[:-1]]
    if parts:
        assert (parts[0].begin_ms, parts[-1].end_ms) == (history.since_ms, history.seen_ms)
        assert all(sum(last - first for first, last, _ in part.held) == LAYERS for part in parts)
    again = LayerHistory(DIGEST, LAYERS)
    again.restore(history.to_bytes())
    assert again.spans == history.spans and again.to_bytes() == history.to_bytes()


def test_a_join_a_move_a_loss_and_a_leave_are_told_apart() -> None:
    history = LayerHistory(DIGEST, LAYERS)
    first, taking = holder("a", 0, 6), replace(holder("b", 0, 0), says="joining", layers=None, claim=(3, 6))
    history.observe(10, swarm(first))
    history.observe(20, swarm(first, taking))
    history.observe(30, swarm(first, holder("b", 3, 6)))
    history.observe(40, swarm(holder("a", 0, 3), holder("b", 3, 6)))
    history.observe(50, swarm(holder("a", 0, 3), replace(holder("b", 3, 6), standing="suspect")))
    history.observe(60, swarm(holder("a", 0, 3), replace(holder("b", 3, 6), standing="down")))
    history.observe(70, swarm())
    told = [(s.node, s.first, s.last, s.how, s.begin_ms // 1000, (s.end_ms or 0) // 1000, s.why) for s in history.spans]
    assert told == [
        ("a", 0, 6, "held", 10, 40, "moved"),
        ("b", 3, 6, "taking", 20, 30, "moved"),
        ("b", 3, 6, "held", 30, 60, "lost"),
        ("a", 0, 3, "held", 40, 70, "left"),
    ]
    missing = [
        (p.begin_ms // 1000, p.end_ms // 1000, p.missing) for p in coverage(history.spans, LAYERS, 10_000, 70_000)
    ]
    assert missing[-1] == (60, 70, ((3, 6),)) and all(not gone for _, _, gone in missing[:-1])


def test_it_goes_on_after_a_restart_and_says_when_nobody_watched() -> None:
    history = LayerHistory(DIGEST, LAYERS)
    history.observe(10, swarm(holder("a", 0, 3), holder("b", 3, 6)))
    history.observe(20, swarm(holder("a", 0, 3), holder("b", 3, 6)))
    later = LayerHistory(DIGEST, LAYERS)
    later.restore(history.to_bytes())
    later.observe(100, swarm(holder("a", 0, 3), holder("c", 3, 6)))
    assert [(gap.begin_ms, gap.end_ms) for gap in later.gaps] == [(20_000, 100_000)]
    ends = {span.node: (span.begin_ms, span.end_ms, span.why) for span in later.spans}
    assert ends == {"a": (10_000, None, ""), "b": (10_000, 20_000, "unseen"), "c": (100_000, None, "")}
    for data in (b"", b"{}", history.to_bytes().replace(b'"version":1', b'"version":2')):
        with pytest.raises(UsageError, match="expected a history"):
            later.restore(data)
    with pytest.raises(UsageError, match="another model's"):
        LayerHistory(DIGEST, LAYERS + 1).restore(history.to_bytes())


def test_it_stays_small_however_long_and_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_history, "MOST_SPANS", 40)
    history = LayerHistory(DIGEST, LAYERS)
    for step in range(400):
        history.observe(1000 + step, swarm(*(holder(f"{n}", (step + n) % 5, (step + n) % 5 + 1) for n in range(4))))
        assert len(history.spans) <= 40
    assert history.since_ms > 1_000_000 + 300_000  # it tells of no time of which it forgot something
    assert all((span.end_ms or history.seen_ms) >= history.since_ms for span in history.spans)
    monkeypatch.undo()
    history.observe(1400 + KEPT_S + 10, swarm())
    assert not [span for span in history.spans if (span.end_ms or 0) < (1400 + 10) * 1000]
    history.observe(1500 + 2 * KEPT_S, swarm(*(holder(f"{n}", 0, 6) for n in range(2 * MOST_SPANS))))
    assert len(history.spans) <= MOST_SPANS and len(history.to_bytes()) < 300_000


async def test_the_gateway_tells_it_and_keeps_it(serve: Serve, backend: TinyBackend, tmp_path: Path) -> None:
    backend.manifest = scenes.MANIFEST
    backend.state_dir = tmp_path  # type: ignore[attr-defined]
    backend.state = scenes.SERVING
    async with serve() as served:
        told = await _layers(served.http)
        assert {span["node"] for span in told["spans"]} == set(scenes.IDS)
        backend.state = scenes.LOST
        told = await _layers(served.http)
        assert [span["node"] for span in told["spans"] if span["why"] == "lost"] == [scenes.IDS[2]]
    async with serve() as served:
        told = await _layers(served.http)
        assert len(told["gaps"]) == 1 and len(told["spans"]) >= 4
    (kept,) = tmp_path.glob("layers-*.json")
    kept.write_text("{")
    async with serve() as served:
        assert (await _layers(served.http))["gaps"] == []


async def _layers(http: aiohttp.ClientSession) -> dict[str, list[dict[str, object]]]:
    async with http.get("/api/layers") as answer:
        assert answer.status == 200
        told: dict[str, list[dict[str, object]]] = await answer.json()
        return told
