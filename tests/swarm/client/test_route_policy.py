"""Whom requests may pass through: what the command line takes, and whom it bars."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.base.errors import CoverageError, UsageError
from swarm.client.route_policy import RouteRules, read_rules
from swarm.planner.fleet import Member

A, B, C = "a" * 64, "ab" * 32, "c" * 64
MEMBERS = [Member(A, owner="ann"), Member(B, owner="abababab"), Member(C)]


def test_a_node_is_barred_by_its_id_by_its_beginning_and_by_its_owner() -> None:
    assert RouteRules().excluded(MEMBERS) == frozenset()
    assert read_rules([A], [], 1).excluded(MEMBERS) == {A}
    assert read_rules(["c" * 8], [], 1).excluded(MEMBERS) == {C}
    assert read_rules(["ann", "abababab"], [], 1).excluded(MEMBERS) == {A, B}
    assert read_rules(["aaaaaaa", "an", "x"], [], 1).excluded(MEMBERS) == frozenset()


def test_a_trust_list_bars_all_others_whatever_they_call_themselves(tmp_path: Path) -> None:
    path = tmp_path / "friends.txt"
    path.write_text(f"# friends\n{A}  # ann's\n\n")
    assert read_rules([], [str(path)], 1).excluded(MEMBERS) == {B, C}
    rules = read_rules([], [str(path), C], 2)
    assert rules.excluded(MEMBERS) == {B} and rules.owners == 2
    assert read_rules([A], [str(path), C], 1).excluded(MEMBERS) == {A, B}


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ("ann", "a node id or a file of node ids"),
        ("a" * 8, "full node ids of 64"),
        ("A" * 64, "a node id or a file"),
        ("/nowhere/list", "a node id or a file"),
        ("\0", "a node id or a file"),
    ],
)
def test_what_names_no_key_is_no_trust_list(only: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_rules([], [only], 1)


def test_an_empty_list_trusts_nobody_and_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none"
    path.write_text("# nobody\n")
    with pytest.raises(UsageError, match="at least one node id"):
        read_rules([], [str(path)], 1)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="a node id or a file"):
        read_rules([], [str(path)], 1)
    with pytest.raises(UsageError, match="--exclude"):
        read_rules([" "], [], 1)


ALIKE = [Member(A, 0, 2, kernels="11" * 32), Member(B, 2, 4, kernels="22" * 32), Member(C, 0, 4)]


def test_which_fingerprints_a_route_may_have() -> None:
    def found(rule: str, own: str = "", lost: str = "") -> list[str]:
        rules = read_rules([], [], 1, rule)
        return [f[:2] for f in rules.fingerprints(ALIKE, lambda: frozenset({own * 32}), frozenset({lost * 32} - {""}))]

    assert found("same") == ["11", "22"]
    assert found("own", own="22") == found("2" * 8) == found("22" * 32) == ["22"]
    assert found("same", lost="11") == ["11"]  # what was begun with them
    for rule in ("own", "3" * 8):
        with pytest.raises(CoverageError, match="found 11111111, 22222222; wait for such nodes"):
            found(rule, own="33")
    with pytest.raises(CoverageError, match="that could be shared, found none"):
        RouteRules(kernels="same").fingerprints([Member(C, 0, 4)], frozenset)


@pytest.mark.parametrize("rule", ["any", "ab", "1234567", "x" * 8, "1" * 65])
def test_what_is_no_fingerprint(rule: str) -> None:
    with pytest.raises(UsageError, match="same, own or a fingerprint of at least 8"):
        read_rules([], [], 1, rule)
