"""A download that is killed goes on where it was, in another process; what is left behind is removed in time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tqdm import tqdm  # type: ignore[import-untyped]

from swarm.base.locks import OPEN, lock_now
from swarm.model.files.blobs import CHUNK, Blob, TensorSink
from swarm.model.files.resume import DAY_S, PART, HubFile, bring, remove_old
from tests.swarm.model.files.test_hub import REPO, Handler, Hub

CONTENT = hashlib.shake_256(b"weights").digest(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = "model.safetensors"

CHILD = """
import json, sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE, huggingface_hub.constants.HF_HUB_OFFLINE = 1000, False
from pathlib import Path
from tqdm import tqdm
from swarm.model.files.resume import HubFile, bring
file, endpoint, cache = json.loads(sys.argv[1])
bring(HubFile(**file), endpoint, Path(cache), tqdm)
"""


class Stalling(Handler):
    """Sends the first `stall_at` bytes of what is asked for and then nothing, while that is set."""

    def file(self, name: str) -> None:
        stall = getattr(self.server, "stall_at", None)
        if self.command != "GET" or stall is None:
            super().file(name)
            return
        start = int((re.match(r"bytes=(\d+)", self.headers.get("Range", "")) or ["", "0"])[1])
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[:stall])
        self.wfile.flush()
        self.server.stalled.set()  # type: ignore[attr-defined]
        self.server.go_on.wait(60)  # type: ignore[attr-defined]
        self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    huggingface_hub.utils.close_session()
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    server: Any = Hub(folder)
    server.RequestHandlerClass = Stalling
    server.stall_at, server.stalled, server.go_on = None, threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()
    huggingface_hub.utils.close_session()


def wanted(hub: Hub) -> HubFile:
    return HubFile(REPO, hub.commit, NAME, DIGEST, len(CONTENT))


def blobs(cache: Path) -> Path:
    return cache / f"models--{REPO.replace('/', '--')}" / "blobs"


def fetch(hub: Hub, cache: Path) -> None:
    class Quiet(tqdm):  # type: ignore[misc]
        def display(self, *args: object, **kwargs: object) -> None:
            pass

    bring(wanted(hub), hub.endpoint, cache, Quiet)


def test_a_killed_process_leaves_a_part_that_the_next_one_goes_on_with(hub: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    part = blobs(cache) / f"{DIGEST}{PART}"
    had = 0
    for stall in (70_000, 60_001):
        hub.stall_at = stall
        hub.stalled.clear()
        words = json.dumps([wanted(hub).__dict__, hub.endpoint, str(cache)])
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, words],
            stderr=subprocess.DEVNULL,
        )
        try:
            assert hub.stalled.wait(60)
            deadline = time.monotonic() + 60
            while not part.is_file() or part.stat().st_size < had + stall - 1000:
                assert time.monotonic() < deadline and child.poll() is None
                time.sleep(0.01)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        had = part.stat().st_size
        assert CONTENT.startswith(part.read_bytes())
    assert had > 120_000
    hub.stall_at = None
    fetch(hub, cache)
    assert (blobs(cache) / DIGEST).read_bytes() == CONTENT and not part.exists()
    assert hub.sent[NAME] == len(CONTENT) - had, "what was here is not fetched again"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(have=st.integers(0, len(CONTENT) + 5), torn=st.booleans())
def test_whatever_a_kill_left_the_file_comes_out_whole(hub: Any, tmp_path: Path, have: int, torn: bool) -> None:
    """Any length, and a part whose last bytes never reached the disk (a crash of the machine)."""
    cache = tmp_path / f"cache-{have}-{torn}"
    blobs(cache).mkdir(parents=True, exist_ok=True)
    left = (CONTENT + b"extra")[:have]
    part = blobs(cache) / f"{DIGEST}{PART}"
    part.write_bytes(left[: have // 2] + bytes(have - have // 2) if torn else left)
    (blobs(cache) / DIGEST).unlink(missing_ok=True)
    hub.sent.clear()
    fetch(hub, cache)
    assert (blobs(cache) / DIGEST).read_bytes() == CONTENT
    if not torn and have <= len(CONTENT):
        assert hub.sent.get(NAME, 0) == len(CONTENT) - have


def test_a_part_that_another_process_writes_is_left_to_it(hub: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    blobs(cache).mkdir(parents=True)
    part = blobs(cache) / f"{DIGEST}{PART}"
    part.write_bytes(CONTENT[:100])
    handle = os.open(part, OPEN)
    try:
        assert lock_now(handle)
        fetch(hub, cache)
        assert part.read_bytes() == CONTENT[:100] and not (blobs(cache) / DIGEST).exists()
    finally:
        os.close(handle)


def test_old_parts_are_removed_and_others_stay(tmp_path: Path) -> None:
    now = 1_700_000_000.0
    ages = {
        "a.1234.incomplete": 2 * DAY_S,
        "b.1234.incomplete": DAY_S / 2,
        f"c{PART}": 20 * DAY_S,
        f"d{PART}": 2 * DAY_S,
        "e.part": 20 * DAY_S,
        "whole": 900 * DAY_S,
    }
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (now - age, now - age))
    gone = {path.name for path in remove_old(tmp_path, now)}
    assert gone == {"a.1234.incomplete", f"c{PART}", "e.part"}
    assert {path.name for path in tmp_path.iterdir()} == set(ages) - gone
    assert remove_old(tmp_path / "none", now) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(have=st.integers(0, 2 * CHUNK + 77))
def test_blobs_of_peers_go_on_after_a_kill_at_any_byte(tmp_path: Path, have: int) -> None:
    content = CONTENT[:1] * CHUNK + CONTENT[1:2] * CHUNK + CONTENT[:77]
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
    chunks = [hashlib.sha256(content[at : at + CHUNK]).hexdigest() for at in range(0, len(content), CHUNK)]
    sink = TensorSink(tmp_path / f"sink-{have}")
    (sink.folder / f"{blob.digest}.part").write_bytes(content[:have])
    (sink.folder / blob.digest).unlink(missing_ok=True)
    fetched = 0
    while (at := TensorSink(sink.folder).resume(blob)) < blob.nbytes:  # each time as a new process would
        sink.write(blob, at, content[at : at + CHUNK], chunks)
        fetched += len(content[at : at + CHUNK])
    sink.finish(blob)
    assert (sink.folder / blob.digest).read_bytes() == content
    assert fetched == len(content) - (have if have == len(content) else have - have % CHUNK)
