from __future__ import annotations

from swarm.base.nodeid import id_text
from swarm.base.swarm_state import SwarmState
from swarm.mesh.record import NodeRecord
from swarm.mesh.status import state_of
from swarm.mesh.view import MemberView
from swarm.serve.snapshot import state_from
from tests.swarm.serve.tiny import TinyManifest

A, B, C, ME = (bytes([n]) * 32 for n in (1, 2, 3, 9))
MANIFEST = TinyManifest(n_layers=10)


def view(
    node: bytes, layers: tuple[int, int], state: str = "serving", standing: str = "up", **facts: object
) -> MemberView:
    rtt = facts.pop("rtt_ms", None)
    record = NodeRecord(node, b"s" * 10, 1, 0, 60, state=state, layers=layers, **facts)  # type: ignore[arg-type]
    return MemberView(record, standing, rtt, 1.0, True)  # type: ignore[arg-type]


def look(*views: MemberView, own: bytes = ME) -> SwarmState:
    return state_of(views, own, b"s" * 10, False, lambda node: "punched" if node == A else None)


def test_phases() -> None:
    assert state_from(look(), MANIFEST, "gateway").phase == "empty"
    forming = state_from(look(view(A, (0, 6)), view(B, (0, 0), "joining", claim=(6, 10))), MANIFEST, "gateway")
    assert forming.phase == "forming" and forming.swarm.missing == ((6, 10),)
    assert forming.as_json()["nodes"][1]["layers"] == [6, 10] and forming.missing_bytes == 4 * MANIFEST.layer_bytes(0)
    serving = state_from(look(view(A, (0, 6)), view(B, (4, 10))), MANIFEST, "gateway")
    assert serving.phase == "serving" and serving.swarm.held == (1, 1, 1, 1, 2, 2, 1, 1, 1, 1)


def test_a_silent_node_is_lost_and_covers_nothing() -> None:
    state = state_from(look(view(A, (0, 6)), view(B, (6, 10), standing="down")), MANIFEST, "gateway")
    assert [node["state"] for node in state.as_json()["nodes"]] == ["serving", "lost"] and state.phase == "forming"
    assert state_from(look(view(A, (0, 6), "left", standing="left")), MANIFEST, "gateway").swarm.nodes == ()


def test_edges_come_from_members_and_from_own_measurements() -> None:
    a = view(A, (0, 5), rtts=((B[:8], 40_000), (b"unknown!", 1)), edges=("relay", "direct"), rtt_ms=18.0)
    b = view(B, (5, 10), rtts=((A[:8], 42_000),))
    edges = state_from(look(a, b), MANIFEST, "gateway").swarm.edges
    found = {frozenset((edge.a, edge.b)): (edge.rtt_ms, edge.kind) for edge in edges}
    assert found == {
        frozenset((id_text(A), id_text(B))): (42.0, "relay"),
        frozenset((id_text(ME), id_text(A))): (18.0, "punched"),
    }


def test_what_is_secret_or_private_stays_out() -> None:
    seen = look(view(A, (0, 5), addresses=(("10.1.2.3", 4444),), proof=b"p" * 16))
    text = repr(state_from(seen, MANIFEST, "node").as_json())
    assert "pppp" not in repr(seen) and "10.1.2.3" not in text and "pppp" not in text


def test_kv_and_speed() -> None:
    told = view(A, (0, 5), kv_capacity=100, kv_free=30, speed_us=(500, 900, 4000), queue_us=1500, sessions=2)
    node = state_from(look(told, own=A), MANIFEST, "node").as_json()["nodes"][0]
    wanted = {"kv_used": 70, "kv_budget": 100, "layer_ms": 0.5, "queue_ms": 1.5, "sessions": 2, "here": True}
    assert wanted.items() <= node.items()
