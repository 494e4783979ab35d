from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base import files as disk
from swarm.base.errors import PeerError, SwarmError
from swarm.net.identity import KEY_FILE, Identity, IdentityError, id_text, parse_id_untrusted, short_id, verify


def test_the_key_is_kept_private_and_comes_back(tmp_path: Path) -> None:
    first = Identity.load_or_create(tmp_path / "state")
    again = Identity.load_or_create(tmp_path / "state")
    assert first.id == again.id and len(first.id) == 32
    path = tmp_path / "state" / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == [KEY_FILE]
    assert Identity.load_or_create(tmp_path / "other").id != first.id


def test_signatures(tmp_path: Path) -> None:
    node = Identity.from_seed(bytes(range(32)))
    # RFC 8032: the public key is a function of the seed alone
    assert node.id.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    signature = node.sign(b"statement")
    assert verify(node.id, signature, b"statement")
    assert not verify(node.id, signature, b"another")
    assert not verify(Identity.generate().id, signature, b"statement")
    assert not verify(node.id, signature[:-1], b"statement")
    assert not verify(node.id[:-1], signature, b"statement")
    assert "03a107" not in repr(node).replace(repr(node.id), "") and "_key" not in repr(node)


@given(st.binary(min_size=32, max_size=32))
def test_text_form_is_one_to_one(node: bytes) -> None:
    text = id_text(node)
    assert len(text) == 64 and text == text.lower()
    assert parse_id_untrusted(text) == node
    assert text.startswith(short_id(node)) and len(short_id(node)) == 8


@given(st.one_of(st.text(max_size=80), st.text("0123456789abcdefAF", min_size=64, max_size=64), st.binary()))
def test_other_text_is_refused_or_canonical(text: Any) -> None:
    try:
        node = parse_id_untrusted(text)
    except PeerError:
        return
    assert id_text(node) == text


@pytest.mark.parametrize("content", [b"", b"garbage\n", b"wanswarm-ed25519-seed-1 00ff\n", bytes(300)])
def test_a_damaged_key_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=KEY_FILE):
        Identity.load_or_create(tmp_path)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        Identity.load_or_create(tmp_path)


@pytest.mark.parametrize("step", ["open", "fsync", "link"])
def test_a_full_disk_at_any_step_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "link":
        monkeypatch.setattr(disk.os, "replace", full)
    monkeypatch.setattr(disk.os, step, full)
    with pytest.raises(SwarmError, match="No space left"):
        Identity.load_or_create(tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from swarm.net.identity import Identity;"
        "print(Identity.load_or_create(Path(sys.argv[1])).text)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    texts = {child.communicate(timeout=60)[0] for child in children}
    assert len(texts) == 1 and len(texts.pop().strip()) == 64
