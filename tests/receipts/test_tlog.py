"""A transparency log's files against the specifications' own examples, an independent tree, and whoever edits them."""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from receipts.check.logged import entries_of
from receipts.check.verify import Options, verify
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.log_tiles import Tiles, bundle_untrusted, find_proof, proof_untrusted, tile_path
from receipts.format.merkle import check_consistency, consistency_proof, inclusion_proof, leaf_hash, tree_root
from receipts.format.sign import SignedEnvelope
from receipts.format.signed_note import LogCheckpoint, checkpoint_untrusted, key_id
from receipts.format.statement import payload_type
from swarm.base.errors import UsageError
from swarm.ring.transparency_log import TransparencyLog, read_file

KEY = SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)
_LEAVES: list[bytes] = []


class Keyed:
    """A node's identity, with this key."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self.id = bytes(key.verify_key)

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data).signature


sign = Keyed(KEY).sign


def opened(folder: Path) -> TransparencyLog:
    return TransparencyLog(folder, Keyed(KEY))


def grown(folder: Path, count: int) -> TransparencyLog:
    log = opened(folder)
    for number in range(log.size, count):
        assert log.append(b"entry %d" % number) == number
    return log


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)  # hundreds of entries; nothing here is about power cuts
        grown(folder, 270).close()
    return folder


def test_paths_are_those_of_the_specification() -> None:
    assert tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert tile_path(None, 0, 5) == "tile/entries/000.p/5"
    assert tile_path(2, 1000, 1) == "tile/2/x001/000.p/1"


def test_key_ids_are_those_of_the_specification() -> None:
    """The example in c2sp.org/signed-note: a key in the Go checksum database's own format has this id."""
    key = base64.b64decode("Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")
    assert key[0] == 1 and key_id("sum.golang.org", key[1:]).hex() == "033de0ae"


def specified(size: int) -> dict[str, bytes]:
    """Every hash tile of a log of this size, by the formula of the specification."""
    leaves, files = _leaves(size), {}
    for level in range(3):
        span = 256**level
        count = size // span
        for tile in range(-(-count // 256)):
            width = min(256, count - 256 * tile)
            each = range(256 * tile, 256 * tile + width)
            files[tile_path(level, tile, width)] = b"".join(tree_root(leaves[i * span : (i + 1) * span]) for i in each)
    return files


@given(size=st.integers(1, 600), data=st.data())
def test_tiles_of_any_size_give_the_trees_of_the_reference(size: int, data: st.DataObject) -> None:
    tiles, leaves = Tiles(specified(size).get, size), _leaves(size)
    index = data.draw(st.integers(0, size - 1))
    assert tiles.root() == tree_root(leaves) and tiles.inclusion(index) == inclusion_proof(leaves, index)


def test_full_tiles_stand_in_for_partial_ones_that_were_dropped() -> None:
    files = specified(300)
    full = specified(512)["tile/0/001"]
    del files["tile/0/001.p/44"]
    tiles = Tiles({**files, "tile/0/001": full}.get, 300)
    assert tiles.root() == tree_root(_leaves(300))
    with pytest.raises(ReceiptError, match="no whole tile"):
        Tiles(files.get, 300).root()


def _leaves(size: int) -> list[bytes]:
    while len(_LEAVES) < size:
        _LEAVES.append(leaf_hash(b"entry %d" % len(_LEAVES)))
    return _LEAVES[:size]


def test_every_checkpoint_continues_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    before, chooser = None, random.Random(5)
    for size in sorted(chooser.sample(range(1, 300), 12) + [255, 256, 257]):
        grown(tmp_path, size).close()  # opened anew each time
        known = checkpoint_untrusted((tmp_path / "checkpoint").read_bytes())
        assert (known.size, known.root, known.key) == (size, tree_root(_leaves(size)), PUBLIC)
        assert all(read_file(tmp_path, path) == data for path, data in specified(size).items())
        tiles = Tiles(lambda path: read_file(tmp_path, path), size)
        assert [entry for _, entry in tiles.entries()] == [b"entry %d" % number for number in range(size)]
        if before is not None:
            check_consistency(before.size, before.root, size, known.root, consistency_proof(_leaves(size), before.size))
        before = known


def test_a_proof_file_holds_by_itself_and_for_its_entry_alone(long_log: Path) -> None:
    proof = find_proof(lambda path: read_file(long_log, path), [b"none", b"entry 260"])
    again = proof_untrusted(proof.to_bytes())
    assert again == proof and again.check(b"entry 260").size == 270
    with pytest.raises(ReceiptError):
        again.check(b"entry 261")
    with pytest.raises(ReceiptError, match="none of the 270"):
        find_proof(lambda path: read_file(long_log, path), [b"none"])


def test_any_changed_byte_of_a_proof_is_refused(long_log: Path) -> None:
    data = find_proof(lambda path: read_file(long_log, path), [b"entry 7"]).to_bytes()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ (1 << at % 7)]) + data[at + 1 :]
        with pytest.raises(ReceiptError) as caught:
            proof_untrusted(changed).check(b"entry 7")
        assert caught.value.refusal is Refusal.LOG, at


@given(st.binary(max_size=300))
def test_proofs_and_checkpoints_of_strangers_raise_the_one_error(data: bytes) -> None:
    for read in (checkpoint_untrusted, proof_untrusted, lambda d: proof_untrusted(b"c2sp.org/tlog-proof@v1\n" + d)):
        with pytest.raises(ReceiptError):
            read(data)
    with pytest.raises(ReceiptError):
        bundle_untrusted(data, 300)


def test_a_checkpoint_may_have_cosignatures_and_extension_lines(tmp_path: Path) -> None:
    """Of unknown keys, which are passed over; the log's own must be there and fit."""
    plain = LogCheckpoint(PUBLIC, 0, tree_root([]))
    data = plain.signed(sign)
    other = "\u2014 witness.example/w1 " + base64.b64encode(bytes(76)).decode() + "\n"
    assert checkpoint_untrusted(data + other.encode()) == plain
    for wrong in (data.replace(b"\n0\n", b"\n00\n"), data.replace(b"\n0\n", b"\n1\n"), data[: data.index(b"\n\n") + 2]):
        with pytest.raises(ReceiptError):
            checkpoint_untrusted(wrong)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    log = opened(tmp_path)
    with pytest.raises(UsageError, match="another process"):
        opened(tmp_path)
    log.close()
    opened(tmp_path).close()


def test_a_log_of_another_key_and_a_damaged_one_are_not_gone_on_with(tmp_path: Path) -> None:
    grown(tmp_path, 3).close()
    with pytest.raises(UsageError, match="another key"):
        TransparencyLog(tmp_path, Keyed(SigningKey(bytes(32))))
    (tmp_path / tile_path(None, 0, 3)).write_bytes(b"\x00\x01x" * 3)
    with pytest.raises(UsageError, match="not those of its checkpoint"):
        opened(tmp_path)


APPENDING = """
import sys
from pathlib import Path
from tests.receipts.test_tlog import opened
log = opened(Path(sys.argv[1]))
print(log.size, flush=True)
for number in range(log.size, 100000):
    log.append(b"entry %d" % number)
"""


def test_killed_at_any_moment_a_log_goes_on_where_its_checkpoint_says(tmp_path: Path) -> None:
    chooser, sizes = random.Random(2), [0]
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", APPENDING, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and int(process.stdout.readline()) == sizes[-1]
        time.sleep(0.1 + chooser.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        known = checkpoint_untrusted((tmp_path / "checkpoint").read_bytes())
        assert known.size > sizes[-1] and known.root == tree_root(_leaves(known.size))
        sizes.append(known.size)
        assert Tiles(lambda path: read_file(tmp_path, path), known.size).root() == known.root


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swarm.ring import transparency_log

    log, real = grown(tmp_path, 4), transparency_log.write_whole
    for failing in range(4):  # bundle, tile, checkpoint
        left = [failing]

        def full(*args: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            real(*args)

        with monkeypatch.context() as patched:
            patched.setattr(transparency_log, "write_whole", full)
            if failing < 3:
                with pytest.raises(OSError):
                    log.append(b"lost")
        assert log.size == 4
    assert log.append(b"entry 4") == 4
    log.close()
    assert opened(tmp_path).size == 5
    assert checkpoint_untrusted((tmp_path / "checkpoint").read_bytes()).root == tree_root(_leaves(5))


def test_a_receipt_is_checked_against_a_log(tmp_path: Path, make_ring: Any) -> None:
    ring, stranger = make_ring(), make_ring(names="other ", salt="other")
    run = verify(ring.receipt).run
    assert run is not None
    log = grown(tmp_path, 3)
    for kind, entry in [("edge", None), ("close", next(iter(entries_of(run))))]:
        (statement,) = [s for s in run.statements if s.body.kind == kind][:1]
        payload = next(e.payload for e in _envelopes(ring.receipt) if e.digest == statement.digest)
        log.publish(SignedEnvelope(payload_type(kind), payload, PUBLIC, bytes(64)))
        assert entry is None or entry.decode().endswith(statement.digest)
    log.close()
    proof = find_proof(lambda path: read_file(tmp_path, path), list(entries_of(run)))
    assert proof.index == 3
    verdict = verify(ring.receipt, Options(log=proof))
    (claim,) = [claim for claim in verdict.claims if claim.subject == "log"]
    assert verdict.exit_code == 0 and claim.text.startswith("the close is entry 3 of 4") and "stranger" in claim.text
    other = verify(stranger.receipt, Options(log=proof))
    assert other.refusal is Refusal.LOG and other.exit_code == 60


def _envelopes(data: bytes) -> Any:
    from receipts.format.document import document_untrusted

    return document_untrusted(data).envelopes
