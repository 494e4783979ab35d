"""What survives a restart, and what a damaged file says."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.errors import UsageError
from swarm.mesh.membership import Ledger
from swarm.mesh.saved import PEERS_FILE, Saved, load, save
from tests.swarm.mesh.make import ANN, BOB, EVE, MEMBERSHIP, MODEL, NOW

SAVED = Saved(
    MEMBERSHIP,
    MODEL,
    "smollm2",
    ((BOB.id, (("203.0.113.7", 1), ("2001:db8::1", 2))), (EVE.id, (("host.example", 3),))),
    Ledger({b"r" * 8: NOW}, {b"u" * 8: (NOW, BOB.id)}),
    12345,
)


def test_it_comes_back_whole_and_private(tmp_path: Path) -> None:
    save(tmp_path, SAVED)
    assert load(tmp_path, ANN.id) == SAVED
    assert stat.S_IMODE((tmp_path / PEERS_FILE).stat().st_mode) == 0o600
    guest = replace(SAVED, membership=replace(MEMBERSHIP, secret=None))
    save(tmp_path, guest)
    assert load(tmp_path, ANN.id) == guest
    assert [p.name for p in tmp_path.iterdir()] == [PEERS_FILE]


def test_nothing_saved_is_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, ANN.id) is None


def test_another_key_gets_its_own_proof(tmp_path: Path) -> None:
    save(tmp_path, SAVED)
    found = load(tmp_path, BOB.id)
    assert found is not None and found.membership.proof == MEMBERSHIP.prove(BOB.id)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(["swarm", "secret", "proof", "model", "peers", "version", "used", "format", "open"]), st.data())
def test_a_damaged_file_is_named(tmp_path: Path, field: str, data: st.DataObject) -> None:
    save(tmp_path, SAVED)
    path = tmp_path / PEERS_FILE
    entries = json.loads(path.read_text())
    entries[field] = data.draw(st.sampled_from(["zz", [1], {"a": 1}, -1.5]))
    path.write_text(json.dumps(entries))
    try:
        found = load(tmp_path, ANN.id)
    except UsageError as error:
        assert PEERS_FILE in str(error) and "move the file away" in str(error)
    else:
        assert field == "version" and found is not None  # -1.5 reads as a number


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "{}", "[" * 50_000])
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / PEERS_FILE).write_text(text)
    with pytest.raises(UsageError, match="expected the swarm used last in .*move the file away"):
        load(tmp_path, ANN.id)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write .*choose another --state"):
        save(tmp_path / "absent", SAVED)
    (tmp_path / PEERS_FILE).mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path, ANN.id)
