"""Fleet files: a model and machines described in TOML or JSON, for planning before anybody joins.

    [model]    name, layers, layer_gb, hidden, kv_bytes (of one token in one layer), head_gb, tail_gb,
               together ([[first, last], ...]: layers that must stay in one stage)
    [request]  from (a node or a region), rows, context, sessions, accept, min_owners
    [[node]]   name, memory_gb, ms = [one layer at 1, 8, 64 rows]; further: count, region or regions, owner, up_mbps,
               down_mbps, more_gb = [of each further GPU], overflow_gb, overflow_ms, layers = [first, last],
               last_mile_ms, slowdown
    [rtt]      default_ms, local_ms, regions = [[region, region, ms], ...], nodes = [[node, node, ms], ...]

Memory is what is free for weights and KV. With `count` a description stands for that many nodes, and
a pair [low, high] as memory_gb, slowdown, up_mbps, down_mbps or last_mile_ms spreads evenly over them. The full page is
docs/fleets/README.md.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swarm.base.errors import UsageError
from swarm.planner.block_choice import Room
from swarm.planner.fleet import Matrix, ModelShape, Speed, lay_known

GB = 1e9
MAX_NODES = 20_000


@dataclass(frozen=True)
class FleetNode:
    """One described machine: what it can give, where it is, how it is connected."""

    room: Room
    region: str = ""
    owner: str = ""
    up_mbps: float | None = None
    down_mbps: float | None = None
    last_mile_ms: float = 0.0
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class FleetRtts:
    """Round trips between described nodes and regions; usable as `Rtts`."""

    region_of: Mapping[str, str]
    last_mile: Mapping[str, float]
    regions: Mapping[tuple[str, str], float]
    pairs: Mapping[tuple[str, str], float]
    default_ms: float
    local_ms: float

    def __call__(self, names: Sequence[str]) -> Matrix:
        regions = [self.region_of.get(name, name) for name in names]
        kinds = sorted(set(regions))
        place = {region: i for i, region in enumerate(kinds)}
        between = np.array([[self._between(a, b) for b in kinds] for a in kinds]).reshape(len(kinds), len(kinds))
        at = np.array([place[region] for region in regions], np.int64)
        mile = np.array([self.last_mile.get(name, 0.0) for name in names])
        return lay_known(between[np.ix_(at, at)] + mile[:, None] + mile[None, :], names, self.pairs)

    def _between(self, a: str, b: str) -> float:
        if (a, b) in self.regions or (b, a) in self.regions:
            return self.regions.get((a, b), self.regions.get((b, a), self.default_ms))
        return self.local_ms if a == b else self.default_ms


@dataclass(frozen=True)
class Fleet:
    """A fleet file, read and checked."""

    title: str
    model: ModelShape | None
    nodes: tuple[FleetNode, ...]
    rtts: FleetRtts
    requester: str
    rows: int
    context: int
    accept: float
    min_owners: int


def read_fleet(paths: Sequence[Path], default_ms: float | None = None) -> Fleet:
    """Read .toml or .json files as one fleet: all their nodes, and of each other table the first.

    default_ms: round trip of pairs that no file names, in the place of the files'. Raises UsageError that names the
    file and the entry; files that describe different models are refused, for their times per layer do not fit together.
    """
    files = [(path, _read(path)) for path in paths]
    whole: dict[str, Any] = {}
    for path, data in files:
        _Table(data, f"{path}: the file", _TOP)
        model, other = data.get("model"), whole.get("model")
        if model is not None and other is not None and _naming(model) != _naming(other):
            raise UsageError(
                f"expected files that describe one model, found {_naming(other)} and {_naming(model)} in {path}; "
                "swarm probe --model with the same model on every machine"
            )
        nodes = data.get("node", [])
        together = whole.get("node", []) + (nodes if isinstance(nodes, list) else [nodes])
        whole = {**data, **whole, "node": together}
    if default_ms is not None:
        named = whole.get("rtt", {})
        whole["rtt"] = {**named, "default_ms": default_ms} if isinstance(named, dict) else named
    try:
        return parse_fleet(whole)
    except UsageError as exc:
        raise UsageError(f"{', '.join(map(str, paths))}: {exc}") from exc


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as exc:
        raise UsageError(f"cannot read the fleet file {path}: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"expected TOML or JSON in {path}, found an error: {exc}") from exc
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected a table as the file, found {type(data).__name__}")
    return data


def _naming(model: object) -> str:
    """Which model a `[model]` describes, as far as times per layer hang on it."""
    if not isinstance(model, dict):
        return repr(model)
    return f"{model.get('name')} with {model.get('layers')} layers of {model.get('layer_gb')} GB"


def parse_fleet(data: object) -> Fleet:
    """A fleet from parsed TOML or JSON. Raises UsageError that names the entry."""
    top = _Table(data, "the file", _TOP)
    request = _Table(top.raw("request", {}), "[request]", _REQUEST)
    context = request.whole("context", 4096)
    sessions = request.whole("sessions", 1)
    described = top.raw("node", [])
    if not isinstance(described, list) or not described:
        raise UsageError("expected at least one [[node]], found none")
    nodes: list[FleetNode] = []
    for i, entry in enumerate(described):
        nodes += _nodes(_Table(entry, f"[[node]] number {i + 1}", _NODE), context * sessions)
        if len(nodes) > MAX_NODES:
            raise UsageError(f"expected at most {MAX_NODES} nodes, found more")
    names = [node.room.node for node in nodes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"expected names that differ, found {twice!r} twice")
    model = top.raw("model", None)
    return Fleet(
        title=top.text("title", "a fleet"),
        model=None if model is None else _model(_Table(model, "[model]", _MODEL)),
        nodes=tuple(nodes),
        rtts=_rtts(_Table(top.raw("rtt", {}), "[rtt]", _RTT), nodes),
        requester=request.text("from", names[0]),
        rows=request.whole("rows", 16),
        context=context,
        accept=request.number("accept", 0.7, 0.01, 0.99),
        min_owners=request.whole("min_owners", 1),
    )


_TOP = {"title", "model", "request", "node", "rtt"}
_REQUEST = {"from", "rows", "context", "sessions", "accept", "min_owners"}
_MODEL = {"name", "layers", "layer_gb", "hidden", "kv_bytes", "head_gb", "tail_gb", "together"}
_RTT = {"default_ms", "local_ms", "regions", "nodes"}
_NODE = {
    *(
        "name",
        "memory_gb",
        "ms",
        "count",
        "region",
        "regions",
        "owner",
        "up_mbps",
        "down_mbps",
        "overflow_gb",
        "more_gb",
    ),
    *("overflow_ms", "layers", "last_mile_ms", "slowdown"),
}


class _Table:
    """A table of the file whose entries are checked as they are read."""

    def __init__(self, data: object, where: str, known: set[str]) -> None:
        if not isinstance(data, dict):
            raise UsageError(f"expected a table as {where}, found {type(data).__name__}")
        unknown = sorted(set(data) - known)
        if unknown:
            raise UsageError(f"{where}: expected entries out of {', '.join(sorted(known))}; found {unknown[0]!r}")
        self._data, self.where = data, where

    def raw(self, name: str, default: Any) -> Any:
        return self._data.get(name, default)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._data.get(name, default)
        if not isinstance(value, str) or not value:
            raise UsageError(f"{self.where}: expected text as {name}, found {value!r}")
        return value

    def number(self, name: str, default: float | None = None, low: float = 0.0, high: float = 1e9) -> float:
        return self._number(self._data.get(name, default), name, low, high)

    def whole(self, name: str, default: int | None = None) -> int:
        value = self._data.get(name, default)
        if type(value) is not int or not 0 < value <= 10**7:
            raise UsageError(f"{self.where}: expected a whole number over 0 as {name}, found {value!r}")
        return value

    def numbers(self, name: str, count: int | None) -> list[float]:
        """`count` numbers; None: some."""
        value = self._data.get(name)
        if not isinstance(value, list) or len(value) != (len(value) if count is None else count):
            raise UsageError(f"{self.where}: expected {count or 'a list of'} numbers as {name}, found {value!r}")
        return [self._number(v, name, 0.0, 1e9) for v in value]

    def spread(self, name: str, count: int, default: float) -> list[float]:
        """One number for all of `count` nodes, or [low, high] spread evenly over them."""
        value = self._data.get(name, default)
        if isinstance(value, list):
            low, high = self.numbers(name, 2)
            return [float(v) for v in np.linspace(low, high, count)]
        return [self._number(value, name, 0.0, 1e9)] * count

    def _number(self, value: object, name: str, low: float, high: float) -> float:
        if type(value) not in (int, float) or not low <= float(value) <= high:  # type: ignore[arg-type]
            raise UsageError(f"{self.where}: expected a number from {low:g} to {high:g} as {name}, found {value!r}")
        return float(value)  # type: ignore[arg-type]

    def triples(self, name: str) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for entry in self._data.get(name, []):
            if not isinstance(entry, list) or len(entry) != 3 or not all(isinstance(end, str) for end in entry[:2]):
                raise UsageError(f"{self.where}: expected [name, name, ms] in {name}, found {entry!r}")
            found[entry[0], entry[1]] = self._number(entry[2], name, 0.0, 1e6)
        return found


def _model(table: _Table) -> ModelShape:
    return ModelShape(
        name=table.text("name"),
        layer_bytes=(round(table.number("layer_gb") * GB),) * table.whole("layers"),
        hidden_size=table.whole("hidden"),
        kv_bytes=table.whole("kv_bytes"),
        head_bytes=round(table.number("head_gb", 0.0) * GB),
        tail_bytes=round(table.number("tail_gb", 0.0) * GB),
        forbidden=_together(table),
    )


def _together(table: _Table) -> frozenset[int]:
    """Layers that no stage may begin with, by ranges [first, last) that stay together."""
    forbidden: set[int] = set()
    ranges = table.raw("together", [])
    for pair in ranges if isinstance(ranges, list) else [ranges]:
        good = isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)
        if not good or not 0 <= pair[0] < pair[1] <= table.whole("layers"):
            raise UsageError(f"{table.where}: expected ranges [first, last] of layers as together, found {pair!r}")
        forbidden.update(range(pair[0] + 1, pair[1]))
    return frozenset(forbidden)


def _nodes(table: _Table, tokens: int) -> list[FleetNode]:
    count = table.whole("count", 1)
    if count > MAX_NODES:
        raise UsageError(f"{table.where}: expected at most {MAX_NODES} nodes, found {count}")
    name = table.text("name")
    names = [name] if count == 1 else [f"{name}-{i + 1:0{len(str(count))}}" for i in range(count)]
    # Spread properties must not all grow together: each is dealt out in an order of its own.
    memory = _dealt(table.spread("memory_gb", count, 0.0), names, "memory")
    slowdown = _dealt(table.spread("slowdown", count, 1.0), names, "slowdown")
    mile = _dealt(table.spread("last_mile_ms", count, 0.0), names, "mile")
    up = _dealt(table.spread("up_mbps", count, 0.0), names, "rate")
    down = _dealt(table.spread("down_mbps", count, 0.0), names, "rate")
    regions = table.raw("regions", None) or [table.text("region", "somewhere")]
    ms = table.numbers("ms", 3)
    overflow_ms = table.numbers("overflow_ms", 3) if table.raw("overflow_ms", None) else [5 * v for v in ms]
    layers = None
    if table.raw("layers", None) is not None:
        first, last = (int(v) for v in table.numbers("layers", 2))
        layers = first, last
    more = tuple(round(gb * GB) for gb in table.numbers("more_gb", None)) if table.raw("more_gb", None) else ()
    spare = round(table.number("overflow_gb", 0.0) * GB)
    return [
        FleetNode(
            Room(
                names[i],
                round(memory[i] * GB),
                tokens,
                speed=Speed(*(v * slowdown[i] for v in ms)),
                overflow_bytes=spare,
                overflow_speed=Speed(*overflow_ms) if spare else None,
                more_bytes=more,
            ),
            str(regions[i % len(regions)]),
            str(table.raw("owner", "") or ""),
            up[i] or None,
            down[i] or None,
            mile[i],
            layers,
        )
        for i in range(count)
    ]


def _dealt(values: Sequence[float], names: Sequence[str], what: str) -> list[float]:
    order = sorted(range(len(names)), key=lambda i: hashlib.blake2b(f"{what} {names[i]}".encode()).digest())
    return [values[i] for i in order]


def _rtts(table: _Table, nodes: Sequence[FleetNode]) -> FleetRtts:
    return FleetRtts(
        {node.room.node: node.region for node in nodes},
        {node.room.node: node.last_mile_ms for node in nodes},
        table.triples("regions"),
        table.triples("nodes"),
        table.number("default_ms", 80.0),
        table.number("local_ms", 1.0),
    )
