"""What every test runs under: no hub, one compute thread, no timing in property tests, honest skips."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; the default model does not come from a hub

# The same examples every time: what passed once passes on a fresh clone. `--hypothesis-profile search` draws others.
_SLOW = [HealthCheck.too_slow]
settings.register_profile("search", deadline=None, print_blob=True, suppress_health_check=_SLOW)
settings.register_profile("tests", settings.get_profile("search"), derandomize=True)
settings.load_profile("tests")


def lab_is_missing() -> str:
    """Why the network lab cannot run here; empty when it can."""
    if sys.platform != "linux":
        return f"needs Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    absent = [tool for tool in ("ip", "nft", "cc") if shutil.which(tool, path=os.defpath + ":/usr/sbin:/sbin") is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: iproute2, nftables, gcc)"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    return ""


def gpu_is_missing() -> str:
    """Why tests on a GPU cannot run here; empty when they can."""
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device"


LONGEST = ("ring", "attacks", "models", "swarm/serve", "swarm/model", "draft", "swarm/cli", "swarm/net")
"""Folders of files that take long, the longest first: what begins last decides how long one process waits for the
other."""


def _rank(item: pytest.Item) -> int:
    place = item.path.parent.relative_to(Path(__file__).parent).as_posix() + "/"
    return next((rank for rank, folder in enumerate(LONGEST) if place.startswith(folder + "/")), len(LONGEST))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(str(item.path)))  # a file stays in one process, with its fixtures
        if item.get_closest_marker("lab"):
            item.add_marker(pytest.mark.alone)
    for marker, check in (("lab", lab_is_missing), ("gpu", gpu_is_missing)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := check()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def one_compute_thread() -> Iterator[None]:
    """Two cores and several processes: threads of one matrix product would only fight."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What failed once and passed when it was run again, with its error: it is a fault to look into."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"failed once: {report.nodeid}")
        terminalreporter.write_line(str(report.longrepr))
