"""What survives a restart, and what a damaged file says."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.base.errors import UsageError
from swarm.mesh.membership import Ledger, Membership
from swarm.mesh.saved import PEERS_FILE, Saved, load, save
from tests.swarm.mesh.make import ANN, BOB, EVE, MEMBERSHIP, MODEL, NOW

NOTICE = MEMBERSHIP.revoke(MEMBERSHIP.issue(NOW))
SAVED = Saved(
    MEMBERSHIP,
    MODEL,
    "smollm2",
    ((BOB.id, (("203.0.113.7", 1), ("2001:db8::1", 2))), (EVE.id, (("host.example", 3),))),
    Ledger({NOTICE.id: NOTICE}, {b"u" * 8: (NOW, BOB.id)}),
    12345,
)


def test_it_comes_back_whole_and_private(tmp_path: Path) -> None:
    save(tmp_path, SAVED)
    assert load(tmp_path, ANN) == SAVED
    assert stat.S_IMODE((tmp_path / PEERS_FILE).stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == [PEERS_FILE]


def test_nothing_saved_is_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, ANN) is None


def test_the_proof_of_another_key_is_of_no_use(tmp_path: Path) -> None:
    proof = MEMBERSHIP.prove(BOB.id, "guest", NOW)
    guest = Membership.accept_untrusted(MEMBERSHIP.swarm, BOB, MEMBERSHIP.charter, False, proof)
    save(tmp_path, replace(SAVED, membership=guest))
    found = load(tmp_path, BOB)
    assert found is not None and found.membership.own.role == "guest" and not found.membership.is_member
    with pytest.raises(UsageError, match="a proof of admission for this node, found one for another"):
        load(tmp_path, EVE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.sampled_from(["swarm", "charter", "revoked", "proof", "model", "peers", "version", "used", "format", "open"]),
    st.data(),
)
def test_a_damaged_file_is_named(tmp_path: Path, field: str, data: st.DataObject) -> None:
    save(tmp_path, SAVED)
    path = tmp_path / PEERS_FILE
    entries = json.loads(path.read_text())
    entries[field] = data.draw(st.sampled_from(["zz", [1], {"a": 1}, -1.5]))
    path.write_text(json.dumps(entries))
    try:
        found = load(tmp_path, ANN)
    except UsageError as error:
        assert PEERS_FILE in str(error) and "move the file away" in str(error)
    else:
        assert field == "version" and found is not None  # -1.5 reads as a number


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "{}", "[" * 50_000])
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / PEERS_FILE).write_text(text)
    with pytest.raises(UsageError, match="expected the swarm used last in .*move the file away"):
        load(tmp_path, ANN)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write .*choose another --state"):
        save(tmp_path / "absent", SAVED)
    (tmp_path / PEERS_FILE).mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path, ANN)
