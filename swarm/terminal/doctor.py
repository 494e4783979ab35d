"""`swarm doctor`: what this machine brings, what is wrong with it, and what to do. Findings are plain data."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from swarm.base.config import MemberConfig
from swarm.base.errors import ModelError, PeerError, SwarmError
from swarm.base.events import Report, silent
from swarm.base.nodeid import NodeId
from swarm.discovery.bootstrap import enter_as_guest
from swarm.discovery.state_dir import requester_folder
from swarm.mesh.gossip import Gossip
from swarm.mesh.view import MemberView
from swarm.model.block import load_block
from swarm.model.device import choose_device, describe, free_bytes
from swarm.model.dtype import choose_dtype, computes_bfloat16
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.store import ModelStore
from swarm.model.fingerprint import fingerprint_of
from swarm.model.probe import ROWS, probe
from swarm.model.quant.native import ISAS, library, why_none
from swarm.model.weights_as import PACKED, choose_weights
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.rendezvous import check_port
from swarm.node.bandwidth import Rates, measure_rates
from swarm.node.benchmark_cache import ProbeCache

SLOW_LAYER_MS = 30.0
LITTLE_MEMORY = 2 << 30
LITTLE_DISK = 1 << 30
BUSY_CPU = 0.7
SKEW_S = 60.0
THIN_KBPS = 5000
LINK_WAIT_S = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `standing`: "ok", "warning" or "wrong"; `advice` is empty where all is well."""

    what: str
    standing: str
    found: str
    advice: str = ""


AskRelays = Callable[[Sequence[Peer], NodeId, bool | None], Awaitable[Finding]]


def judge(what: str, good: bool, found: str, advice: str, standing: str = "warning") -> Finding:
    """A finding that is fine, or has an advice."""
    return Finding(what, "ok" if good else standing, found, "" if good else advice)


def look_at_machine(config: MemberConfig, gpu: int | None) -> list[Finding]:
    """Device, memory, disk and folders; nothing is loaded."""
    device = choose_device(gpu)
    hardware, free = describe(device), free_bytes(device)
    disk = shutil.disk_usage(existing(config.models)).free
    load = psutil.cpu_percent(interval=0.3) / 100.0
    return [
        Finding("software", "ok", f"Python {sys.version.split()[0]}, torch {torch.__version__}"),
        Finding("device", "ok", f"{hardware.name}, {hardware.cores} cores, {hardware.memory_bytes / 1e9:.1f} GB"),
        judge(
            "bfloat16",
            computes_bfloat16(device),
            "native" if computes_bfloat16(device) else "not native",
            "layers run in float32 here and take twice the memory; hold fewer",
        ),
        *([] if device.type != "cpu" else [_kernels()]),
        judge(
            "free memory",
            free > LITTLE_MEMORY,
            f"{free / 1e9:.1f} GB",
            "little: close other programs, or hold few layers with --capacity",
        ),
        judge(
            "disk for models",
            disk > LITTLE_DISK,
            f"{disk / 1e9:.1f} GB free" if disk > 1e8 else f"{disk / 1e6:.1f} MB free",
            f"free some, or give --models; {config.models}",
        ),
        judge("cpu load", load < BUSY_CPU, f"{load:.0%}", "other programs compete with this node; frames will wait"),
    ]


def _kernels() -> Finding:
    lib = library()
    said = "expanded when loaded" if lib is None else f"multiplied as stored ({ISAS[lib.best_isa]})"
    if lib is not None and lib.set_aside:
        return judge("4-bit weights", False, said, f"{lib.set_aside}; please report it with this processor's name")
    return judge(
        "4-bit weights", lib is not None, said, f"{why_none()}; quantised files then take their own size in memory"
    )


def _computing(name: str) -> str:
    return "weights as stored" if name == PACKED else name


def look_at_speed(config: MemberConfig, ref: str, gpu: int | None, report: Report = silent) -> list[Finding]:
    """Milliseconds of one layer of the model, and the kernels' fingerprint. Loads two layers. Raises ModelError."""
    device = choose_device(gpu)
    dtype = choose_dtype("auto", device)
    weights = choose_weights("auto", "auto", device)
    checkpoint = open_model(ref, ModelStore(config.models), (0, 2), report)
    block = load_block(checkpoint, 0, 2, device, dtype, report, weights=weights)
    measured = probe(block, report=report)
    spent = "  ".join(f"{rows} rows {ms:.2f} ms" for rows, ms in sorted(measured.ms_per_layer.items()))
    slow = measured.ms_per_layer[1] > SLOW_LAYER_MS
    speed = judge(
        "speed",
        not slow,
        f"one layer of {checkpoint.manifest.model} in {_computing(block.computes_in)}: {spent}",
        "slow: hold few layers, so that no pass waits long here",
    )
    return [speed, look_at_kernels(checkpoint, device, dtype, weights, block.computes_in)]


def look_at_kernels(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, weights: str, computing: str
) -> Finding:
    """The fingerprint that nodes of this machine have: those with the same one compute a model alike, bit for bit."""
    try:
        started = time.monotonic()
        found = fingerprint_of(checkpoint.manifest, checkpoint.config, device, dtype, weights)
        spent = (time.monotonic() - started) * 1e3
    except ModelError as error:
        return Finding("kernels", "warning", f"no fingerprint: {error}", "runs here are audited within limits only")
    rows = "rows keep their bits in any company"
    if found.why_not is not None:
        rows = f"rows in company may differ in the last bits: {found.why_not}"
    text = f"{found.digest[:16]} for {checkpoint.manifest.model} in {_computing(computing)} ({spent:.0f} ms); {rows}"
    return Finding("kernels", "ok", text)


def look_at_kept(config: MemberConfig, now_wall: float) -> list[Finding]:
    """What the node of this state folder measured when it began to serve."""
    kept = ProbeCache(config.state)
    findings = []
    for found in kept.all():
        beside = f"{found.free_bytes / 1e9:.1f} GB free beside it, CPU {found.cpu_load:.0%} busy"
        spent = ", ".join(f"{rows} rows {ms:.2f} ms" for rows, ms in zip(ROWS, found.ms, strict=True))
        where = f"{found.device.partition(' ')[2]}" + (f", {found.threads} threads" if found.threads else "")
        findings.append(
            judge(
                "node's speed",
                found.ms[0] <= SLOW_LAYER_MS,
                f"one layer of {found.name or found.model[:12]} in {found.dtype} on {where}: {spent}; "
                f"{beside}, {_ago(now_wall, found.at)}",
                "slow: hold few layers; measured while something else ran? swarm join --probe measures again",
            )
        )
    for both in kept.all_ways():
        stored, wide = both.ways.stored, both.ways.expanded
        chosen = "as stored" if both.ways.better == "auto" else "expanded where memory allows"
        findings.append(
            Finding(
                "weights",
                "ok",
                f"held {chosen}: one layer of {both.name} takes {stored[0]:.2f} ms a row stored, {wide[0]:.2f} expanded"
                f" (8 rows: {stored[1]:.2f} and {wide[1]:.2f}), {both.threads} threads, {_ago(now_wall, both.at)}",
            )
        )
    rates = kept.rates()
    if rates is not None:
        findings.append(_bandwidth("node's bandwidth", rates))
    return findings


def _ago(now_wall: float, at: float) -> str:
    hours = max(0.0, now_wall - at) / 3600
    return f"{hours / 24:.0f} days ago" if hours >= 48 else f"{hours:.0f} h ago" if hours >= 1 else "lately"


def _bandwidth(what: str, rates: Rates) -> Finding:
    found = f"up {rates.up_kbps / 1000:.0f}, down {rates.down_kbps / 1000:.0f} Mbit/s"
    return judge(what, rates.up_kbps == 0 or rates.up_kbps > THIN_KBPS, found, "thin: prompts will be slow")


def judge_clock(views: Sequence[MemberView], now_wall: float) -> Finding:
    """This clock against those of the members: the age of a record is counted without any clock's help."""
    skews = sorted(view.record.issued + view.age_s - now_wall for view in views)
    if not skews:
        return Finding("clock", "ok", "nobody to compare with")
    skew = skews[len(skews) // 2]
    return judge(
        "clock",
        abs(skew) < SKEW_S,
        f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the swarm",
        "set the clock (NTP): records and receipts carry its time",
    )


async def look_at_swarm(config: MemberConfig, port: int | None, relays: AskRelays | None = None) -> list[Finding]:
    """Distances, rates, clock, and whether others can dial this machine at `port`; `relays`: what else is asked of
    peers. Raises SwarmError."""
    with requester_folder(config.state) as folder:
        identity = Identity.load_or_create(folder)
        async with Switchboard(identity, proxy=config.http_proxy) as board:
            if port is not None:
                await board.listen("::", port)
            saved = await enter_as_guest(board, config, folder, identity, silent)
            async with Gossip(board, saved) as gossip:
                for node, _ in saved.peers[:2]:
                    with suppress(PeerError):
                        await gossip.link(node)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINK_WAIT_S):
                        await gossip.wait_change()
                others = [view for view in gossip.members() if view.record.node != board.id]
                findings = [judge_clock(others, time.time()), _distances(others)]
                findings.append(_bandwidth("bandwidth", await measure_rates(gossip, board)))
                port_found = None if port is None else await _reachable(board, others, port)
                findings += [] if port_found is None else [port_found]
                if relays is not None:
                    dialable = None if port_found is None else port_found.standing == "ok"
                    findings.append(await relays(board.peers(), board.id, dialable))
                return findings


def _distances(views: Sequence[MemberView]) -> Finding:
    known = sorted(view.rtt_ms for view in views if view.rtt_ms is not None)
    if not known:
        return Finding("distance", "warning", "no member answered a ping", "are the members up? swarm status")
    return Finding("distance", "ok", f"{len(known)} members, {known[0]:.1f} to {known[-1]:.1f} ms")


async def _reachable(board: Switchboard, views: Sequence[MemberView], port: int) -> Finding:
    for view in views:
        peer = board.get(view.record.node)
        if peer is None:
            continue
        try:
            (host, _), is_open = await check_port(peer, port)
        except SwarmError:
            continue
        return judge(
            "port",
            is_open,
            f"{host}:{port} {'can' if is_open else 'cannot'} be dialled from outside",
            f"forward port {port} on the router and give --advertise {host}:{port}, or --map-port; without it other "
            "members reach this node by hole punching or a relay",
        )
    return Finding("port", "warning", "nobody could be asked", "try again when a member is up")


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next((p for p in (path, *path.parents) if p.exists()), Path("/"))
