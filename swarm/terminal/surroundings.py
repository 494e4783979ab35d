"""What `swarm doctor` finds around this machine's program: its folders, its limits, and whether there is a network."""

from __future__ import annotations

import ipaddress
import shutil
from collections.abc import Iterable
from pathlib import Path

import psutil

from swarm.base.config import MemberConfig
from swarm.base.errors import UsageError
from swarm.base.paths import folder_to_write
from swarm.terminal.doctor import Finding, existing

STATE_BYTES = 16 << 20
"""What a node keeps of its swarm, its runs and receipts in its first days."""
FEW_FILES = 1024
"""Open files that a node of a small swarm gets by with; a connection takes one, and each file of weights."""


def look_at_surroundings(config: MemberConfig) -> list[Finding]:
    """Nothing is loaded, nobody is asked, and nothing stays on the disk."""
    addresses = (each.address.partition("%")[0] for name in _links_up() for each in psutil.net_if_addrs()[name])
    return [
        look_at_state(config.state),
        _models_can_be_written(config.models),
        judge_network(addresses),
        *judge_open_files(_open_files()),
    ]


def look_at_state(folder: Path) -> Finding:
    """Whether a process can keep its key, its swarm and its receipts."""
    free = shutil.disk_usage(existing(folder)).free
    try:
        folder_to_write(str(folder))
    except UsageError as error:
        return Finding("state folder", "wrong", str(error), "no command can keep its key there; give --state")
    if free < STATE_BYTES:
        advice = "no command can keep its key or its receipts there; free some, or give --state"
        return Finding("state folder", "wrong", f"{folder}, {free / 1e6:.1f} MB free", advice)
    return Finding("state folder", "ok", str(folder))


def _models_can_be_written(folder: Path) -> Finding:
    try:
        folder_to_write(str(folder))
    except UsageError as error:
        return Finding("model folder", "warning", str(error), "models that are there are used, none is fetched")
    return Finding("model folder", "ok", str(folder))


def judge_network(addresses: Iterable[str]) -> Finding:
    """Whether another machine could reach any of this machine's addresses."""
    found = [address for address in addresses if _reaches_out(address)]
    if not found:
        advice = "connect it: here only a swarm of this machine's own processes will work (swarm demo)"
        return Finding("network", "warning", "no address but those of this machine itself", advice)
    shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return Finding("network", "ok", shown)


def _reaches_out(address: str) -> bool:
    try:
        read = ipaddress.ip_address(address)
    except ValueError:  # a hardware address
        return False
    return not (read.is_loopback or read.is_link_local or read.is_unspecified)


def _links_up() -> list[str]:
    return [name for name, stats in psutil.net_if_stats().items() if stats.isup and name in psutil.net_if_addrs()]


def judge_open_files(most: int | None) -> list[Finding]:
    """How many files a process may open; None: unknown or without limit."""
    if most is None or most >= FEW_FILES:
        return []
    return [Finding("open files", "warning", f"at most {most}", "few for a node with many peers: ulimit -n 65536")]


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
