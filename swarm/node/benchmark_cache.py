"""What this machine measured of itself, kept in the state folder: a node that starts again need not measure again.

A measurement holds for one device, precision, number of threads, model and version of the software; any other of these
and it is made anew. One that was made while other programs had the CPU is used and not kept.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from swarm import __version__
from swarm.base.files import write_whole
from swarm.model.device import describe
from swarm.model.dtype import dtype_name
from swarm.model.files.manifest import Manifest
from swarm.model.probe import ROWS, Probe
from swarm.model.ways import Ways
from swarm.node.bandwidth import Rates
from swarm.planner.fleet import Speed

log = logging.getLogger(__name__)

FILE = "probe.json"
MOST_KEPT = 32
KEEP_S = 30 * 86_400.0
RATES_KEEP_S = 7 * 86_400.0
BUSY_CPU = 0.7


@dataclass(frozen=True)
class CachedBenchmark:
    """A probe as it is kept. `ms`: of one layer for 1, 8 and 64 rows; `at`: Unix seconds.

    name         of the model, whose manifest digest is `model`
    free_bytes   of the device, with the block loaded; cpu_load: share of the host's CPU in use before
    """

    device: str
    dtype: str
    threads: int
    model: str
    software: str
    ms: tuple[float, float, float]
    free_bytes: int
    cpu_load: float
    at: float
    name: str = ""

    @property
    def speed(self) -> Speed:
        """For the planner."""
        return Speed(*self.ms)


@dataclass(frozen=True)
class MeasuredWays:
    """One layer with its weights as stored and expanded, as it is kept; the fields as in `CachedBenchmark`."""

    threads: int
    model: str
    software: str
    ways: Ways
    at: float
    name: str


class ProbeCache:
    """The file of one state folder. A file that cannot be read counts as empty, one that cannot be written is told."""

    def __init__(self, state: Path) -> None:
        self._path = state / FILE

    def find(
        self, device: torch.device, dtype: torch.dtype, threads: int, model: str, weights: str = "expanded"
    ) -> CachedBenchmark | None:
        """The measurement of this device for the model with this manifest digest, if there is one that still holds."""
        wanted = _name(device, dtype, threads, model, weights)
        return next((m for m in self.all() if (m.device, m.dtype, m.threads, m.model, m.software) == wanted), None)

    def all(self) -> list[CachedBenchmark]:
        """Everything that still holds, the newest first."""
        now = time.time()
        found = [_measured(entry) for entry in _list(self._read().get("probes"))]
        return sorted((m for m in found if m is not None and now - KEEP_S < m.at <= now), key=lambda m: -m.at)

    def keep(
        self,
        device: torch.device,
        dtype: torch.dtype,
        threads: int,
        manifest: Manifest,
        probe: Probe,
        weights: str = "expanded",
    ) -> CachedBenchmark:
        """The probe as a measurement; kept unless the machine was busy."""
        one, few, many = (round(probe.ms_per_layer[rows], 4) for rows in ROWS)
        name = _name(device, dtype, threads, manifest.digest, weights)
        load, now = round(probe.cpu_load, 2), float(int(time.time()))
        measured = CachedBenchmark(*name, (one, few, many), probe.free_bytes, load, now, manifest.model)
        if probe.cpu_load < BUSY_CPU:
            others = [m for m in self.all() if (m.device, m.dtype, m.threads, m.model, m.software) != name]
            self._write({**self._read(), "probes": [asdict(m) for m in [measured, *others][:MOST_KEPT]]})
        return measured

    def ways(self, threads: int, model: str) -> Ways | None:
        """How fast this CPU computes a layer of a model with weights as stored and expanded, if that was measured."""
        now, software = time.time(), _software()
        for entry in _list(self._read().get("ways")):
            found = _ways(entry)
            if found is not None and (found.threads, found.model, found.software) == (threads, model, software):
                return found.ways if now - KEEP_S < found.at <= now else None
        return None

    def all_ways(self) -> list[MeasuredWays]:
        """Every such measurement, the newest first."""
        found = [_ways(entry) for entry in _list(self._read().get("ways"))]
        return [item for item in found if item is not None]

    def keep_ways(self, threads: int, manifest: Manifest, ways: Ways) -> None:
        """Remember it."""
        entry = MeasuredWays(threads, manifest.digest, _software(), ways, float(int(time.time())), manifest.model)
        others = [m for m in self.all_ways() if (m.threads, m.model) != (threads, manifest.digest)]
        self._write({**self._read(), "ways": [asdict(m) for m in [entry, *others][:MOST_KEPT]]})

    def rates(self) -> Rates | None:
        """Bandwidths measured lately."""
        entry = self._read().get("rates")
        if not isinstance(entry, dict):
            return None
        up, down, at = entry.get("up_kbps"), entry.get("down_kbps"), entry.get("at")
        if type(up) is not int or type(down) is not int or not isinstance(at, int | float):
            return None
        fresh = 0 <= time.time() - at < RATES_KEEP_S
        return Rates(up, down) if fresh and up >= 0 and down >= 0 else None

    def keep_rates(self, rates: Rates) -> None:
        """Remember what was measured to peers."""
        entry = {"up_kbps": rates.up_kbps, "down_kbps": rates.down_kbps, "at": float(int(time.time()))}
        self._write({**self._read(), "rates": entry})

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}

    def _write(self, data: Mapping[str, Any]) -> None:
        try:
            write_whole(self._path, json.dumps(data, indent=1).encode())
        except OSError as error:
            log.warning("what was measured could not be kept in %s: %s", self._path, error)


def _name(
    device: torch.device, dtype: torch.dtype, threads: int, model: str, weights: str
) -> tuple[str, str, int, str, str]:
    # A GPU's speed does not hang on the threads of the CPU beside it.
    counted = threads if device.type == "cpu" else 0
    kind = dtype_name(dtype) if weights == "expanded" else f"{dtype_name(dtype)} {weights}"
    return f"{device.type} {describe(device).name}", kind, counted, model, _software()


def _software() -> str:
    return f"wanswarm {__version__}, torch {torch.__version__}"


def _ways(entry: Any) -> MeasuredWays | None:
    """An entry of the file; None for what no version of this program wrote."""
    try:
        stored, expanded = (tuple(float(ms) for ms in entry["ways"][way]) for way in ("stored", "expanded"))
        if not all(len(way) == 2 and all(0 < ms < 1e6 for ms in way) for way in (stored, expanded)):
            return None
        ways = Ways((stored[0], stored[1]), (expanded[0], expanded[1]))
        named = (str(entry["model"]), str(entry["software"]))
        return MeasuredWays(int(entry["threads"]), *named, ways, float(entry["at"]), str(entry["name"]))
    except (TypeError, ValueError, KeyError, IndexError):
        return None


def _measured(entry: Any) -> CachedBenchmark | None:
    """An entry of the file; None for what no version of this program wrote."""
    if not isinstance(entry, dict):
        return None
    try:
        found = CachedBenchmark(
            **{**entry, "ms": tuple(float(ms) for ms in entry["ms"]), "name": str(entry.get("name", ""))}
        )
        sound = len(found.ms) == len(ROWS) and all(0 < ms < 1e6 for ms in found.ms)
        return found if sound and found.at > 0 and found.free_bytes >= 0 and found.cpu_load >= 0 else None
    except (TypeError, ValueError, KeyError):
        return None


def _list(value: Any) -> list[Any]:
    return value[:MOST_KEPT] if isinstance(value, list) else []
