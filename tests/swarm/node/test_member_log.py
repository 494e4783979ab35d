"""What a node's log says of the others."""

from __future__ import annotations

from swarm.node.member_log import MemberStanding, changes

A, B = bytes.fromhex("aa" * 32), bytes.fromhex("bb" * 32)
LOADING, SERVING = MemberStanding("up", "loading", (0, 0)), MemberStanding("up", "serving", (0, 10))


def test_one_line_for_each_change_and_none_without() -> None:
    assert changes({}, {A: SERVING}) == ["node aaaaaaaa joined: serving layers 0-9"]
    assert changes({A: SERVING}, {A: SERVING}) == []
    assert changes({A: LOADING}, {A: SERVING, B: LOADING}) == [
        "node aaaaaaaa now: serving layers 0-9",
        "node bbbbbbbb joined: loading",
    ]


def test_who_is_lost_and_who_comes_back() -> None:
    lost, left = MemberStanding("down", "serving", (0, 10)), MemberStanding("left", "draining", (0, 10))
    assert changes({A: SERVING}, {A: lost}) == ["node aaaaaaaa is lost"]
    assert changes({A: lost}, {A: SERVING}) == ["node aaaaaaaa is back: serving layers 0-9"]
    assert changes({A: SERVING}, {A: left}) == ["node aaaaaaaa has left"]
    assert changes({A: SERVING}, {}) == ["node aaaaaaaa is gone"]
    assert changes({A: lost}, {}) == []  # told already
    assert changes({}, {A: lost}) == []  # gone before this node came
