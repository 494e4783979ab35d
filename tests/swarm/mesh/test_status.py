from __future__ import annotations

from swarm.base.nodeid import id_text
from swarm.mesh.record import NodeRecord
from swarm.mesh.status import status_of
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


def look(*views: MemberView, own: bytes = ME) -> dict[str, object]:
    return status_of(views, own, b"s" * 10, lambda node: "punched" if node == A else "")


def test_phases() -> None:
    assert state_from(look(), MANIFEST, "gateway").phase == "empty"
    forming = state_from(look(view(A, (0, 6)), view(B, (0, 0), "joining", claim=(6, 10))), MANIFEST, "gateway")
    assert forming.phase == "forming" and forming.missing == ((6, 10),)
    assert forming.nodes[1].layers == (6, 10) and forming.missing_bytes == 4 * MANIFEST.layer_bytes(0)
    serving = state_from(look(view(A, (0, 6)), view(B, (4, 10))), MANIFEST, "gateway")
    assert serving.phase == "serving" and serving.holders == (1, 1, 1, 1, 2, 2, 1, 1, 1, 1)


def test_a_silent_node_is_lost_and_covers_nothing() -> None:
    state = state_from(look(view(A, (0, 6)), view(B, (6, 10), standing="down")), MANIFEST, "gateway")
    assert [node.state for node in state.nodes] == ["serving", "lost"] and state.phase == "forming"
    assert state_from(look(view(A, (0, 6), "left", standing="left")), MANIFEST, "gateway").nodes == ()


def test_edges_come_from_members_and_from_own_measurements() -> None:
    a = view(A, (0, 5), rtts=((B[:8], 40_000), (b"unknown!", 1)), edges=("relay", "direct"), rtt_ms=18.0)
    b = view(B, (5, 10), rtts=((A[:8], 42_000),))
    edges = state_from(look(a, b), MANIFEST, "gateway").edges
    found = {frozenset((edge.a, edge.b)): (edge.rtt_ms, edge.kind) for edge in edges}
    assert found == {
        frozenset((id_text(A), id_text(B))): (42.0, "relay"),
        frozenset((id_text(ME), id_text(A))): (18.0, "punched"),
    }


def test_what_is_secret_or_private_stays_out() -> None:
    text = repr(look(view(A, (0, 5), addresses=(("10.1.2.3", 4444),), proof=b"p" * 16)))
    assert "10.1.2.3" not in text and "pppp" not in text


def test_kv_and_speed() -> None:
    told = view(A, (0, 5), kv_capacity=100, kv_free=30, speed_us=(500, 900, 4000), queue_us=1500, sessions=2)
    node = state_from(look(told, own=A), MANIFEST, "node").nodes[0]
    assert (node.kv_used, node.kv_budget, node.layer_ms, node.queue_ms, node.sessions) == (70, 100, 0.5, 1.5, 2)
    assert node.here
