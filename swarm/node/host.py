"""Which block a node takes, and the block loaded and measured."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from swarm import __version__
from swarm.base.config import JoinConfig
from swarm.base.errors import ModelError
from swarm.base.events import Notice, Report, silent
from swarm.base.nodeid import id_text
from swarm.discovery.model_shape import model_shape
from swarm.discovery.planner_view import Outlook, rtts_of, speed_us
from swarm.mesh.gossip import Gossip
from swarm.model.block import Block, load_block
from swarm.model.compiling import Compiler
from swarm.model.constraint import engine
from swarm.model.device import describe, free_bytes, say_devices, tidy
from swarm.model.eagle import load_eagle
from swarm.model.eagle_folder import BESIDE, read_eagle
from swarm.model.files.checkpoint import Checkpoint, end_tokens, load_tokenizer
from swarm.model.files.manifest import Manifest
from swarm.model.files.store import ModelStore
from swarm.model.files.weights import FileCheckpoint
from swarm.model.fingerprint import LoadLayers, fingerprint_of
from swarm.model.gpu import out_of_memory
from swarm.model.graphs import graphed
from swarm.model.held import Vocabulary
from swarm.model.kvcache import KVPool
from swarm.model.mtp import load_mtp
from swarm.model.overflow import joined
from swarm.model.probe import ROWS, probe
from swarm.model.ways import measure_ways
from swarm.node.benchmark_cache import ProbeCache
from swarm.planner.api import ModelShape, Room, Speed, choose_block
from swarm.planner.block_choice import fit, lay, sliced
from swarm.planner.coverage_need import MEMORY_SHARE, PLANNED_CONTEXT
from swarm.planner.slicing import Slicing
from swarm.stage.admission import HostedModel, StageLimits
from swarm.stage.mtp_session import MTPHost

KV_SHARE = 0.4
MOST_KV = 64 << 30
CLAIM_WAIT_S = 1.0
CLAIM_ROUNDS = 5


@dataclass(frozen=True)
class Hosting:
    """A loaded block with its limits; `speed_us` microseconds per layer for 1, 8 and 64 rows.

    The last `overflow` layers lie in spare RAM and take `overflow_us` each.
    """

    hosted: HostedModel
    checkpoint: FileCheckpoint
    limits: StageLimits
    speed_us: tuple[int, int, int]
    overflow: int = 0
    overflow_us: tuple[int, int, int] = (0, 0, 0)

    @property
    def layers(self) -> tuple[int, int]:
        """[first, last)."""
        return self.hosted.block.first, self.hosted.block.last

    def close(self) -> None:
        """End the process that reads constraints for it. What is loaded goes with the last reference."""
        if self.hosted.compiler is not None:
            self.hosted.compiler.close()


@dataclass(frozen=True)
class Host:
    """What a node computes with: `node` its id, `threads` of the CPU.

    `kept`: what was measured before; None: nothing is kept. `more`: further devices, which take the layers that
    `device` has no room for, and `spare`: where those go that none of these has room for; None: nowhere. `weights`: of
    `load_block`.
    """

    config: JoinConfig
    store: ModelStore
    node: bytes
    device: torch.device
    dtype: torch.dtype
    threads: int
    report: Report
    kept: ProbeCache | None = None
    spare: torch.device | None = None
    weights: str = "expanded"
    more: tuple[torch.device, ...] = ()

    def devices(self, manifest: Manifest) -> list[torch.device]:
        """All but the spare one, in the order in which they take layers: the fastest first, once all were measured with
        this model."""
        found = [self.device, *self.more]
        known = {device: self._known(device, manifest) for device in found}
        speeds = {device: speed.ms_1 for device, speed in known.items() if speed is not None}
        return sorted(found, key=lambda device: speeds[device]) if len(speeds) == len(found) else found

    def free(self, device: torch.device) -> int:
        """Bytes that a device can still take."""
        return free_bytes(device)

    def shape(self, manifest: Manifest) -> ModelShape:
        """The model's sizes as this node would hold it."""
        return model_shape(manifest, self.dtype, self.weights)

    def room(self, manifest: Manifest, most: Mapping[torch.device, int] | None = None) -> Room:
        """What this node can give now. most: bytes of devices of which less is to be taken than is free."""
        most = most or {}
        spare = 0
        if self.spare is not None:
            spare = min(self.config.overflow_bytes or 1 << 62, int(self.free(self.spare) * MEMORY_SHARE))
        devices = self.devices(manifest)
        bytes_of = [min(int(self.free(device) * MEMORY_SHARE), most.get(device, 1 << 62)) for device in devices]
        memory, *others = bytes_of
        return Room(
            id_text(self.node),
            memory_bytes=memory,
            context_tokens=min(PLANNED_CONTEXT, manifest.context),
            max_layers=self.config.capacity,
            speed=_mean([(self._known(device, manifest), 1) for device in devices]),
            more_bytes=tuple(others),
            overflow_bytes=spare,
            overflow_speed=self._known(self.spare, manifest),
        )

    def fits(self, manifest: Manifest, layers: tuple[int, int]) -> bool:
        """Whether layers [first, last) fit beside what is loaded now."""
        return self._split(manifest, layers)[0] == layers[1] - layers[0]

    def load(self, ref: str, layers: tuple[int, int]) -> Hosting:
        """Load and measure a block. Runs in a thread. Raises ModelError when it does not fit."""
        checkpoint = self.store.open(ref, layers, self.report)
        manifest = checkpoint.manifest
        manifest.check_cut(*layers)
        torch.set_num_threads(self.threads)
        laid, name, parts = self._load_parts(checkpoint, layers)
        # After what may fail: it begins a process, which whoever gets the `Hosting` ends.
        compiler = self._compiler(ref, checkpoint) if layers[1] == manifest.n_layers else None
        block, pool = joined([(part.block, part.pool) for part in parts])
        if isinstance(block, Block) and isinstance(pool, KVPool):
            mtp = self._mtp(ref, checkpoint, block, pool)
            hosted = HostedModel(manifest.digest, block, pool, name, self.node, compiler, parts[0].kernels, mtp)
        else:
            # A block on several devices computes with several sets of kernels: no fingerprint that others could share.
            hosted = HostedModel(manifest.digest, block, pool, name, self.node, compiler)
        overflow = laid[-1][1] if laid[-1][0] is self.spare else 0
        speeds = [(part.speed, count) for part, (_, count) in zip(parts, laid, strict=True)]
        speed = _mean(speeds[:-1] if overflow and len(laid) > 1 else speeds)
        assert speed is not None
        if not overflow:
            return Hosting(hosted, checkpoint, StageLimits(), speed_us(speed))
        beside = speed_us(parts[-1].speed)
        return Hosting(hosted, checkpoint, StageLimits(), speed_us(speed), overflow, beside)

    def _load_parts(
        self, checkpoint: FileCheckpoint, layers: tuple[int, int]
    ) -> tuple[list[tuple[torch.device, int]], str, list[_Part]]:
        """The layers on their devices: which has how many, the devices in words, and what they hold.

        Where memory runs out though it was thought to be there, and layers may go elsewhere, they are laid again with
        fewer on that device, until they are loaded or do not fit. Raises ModelError then.
        """
        if (slicing := self._slicing(checkpoint.manifest, layers)) is not None:
            return self._load_sliced(checkpoint, layers, slicing)
        most: dict[torch.device, int] = {}
        elsewhere = bool(self.more) or self.spare is not None
        while True:
            laid = self._laid(checkpoint.manifest, layers, most)
            name, parts, first = self._named(laid), [], layers[0]
            for device, count in laid:
                part = self._try_part(checkpoint, first, first + count, device, layers)
                if isinstance(part, ModelError):
                    if not elsewhere or device is self.spare:
                        raise part
                    fewer = count - max(1, count // 8)
                    most[device] = self._bytes(checkpoint.manifest, first, first + fewer)
                    self.report(
                        Notice(
                            f"memory of {device} ({describe(device).name}) ran out with {count} layers: "
                            + (f"{fewer} are tried there, the others elsewhere" if fewer else "none go there")
                        )
                    )
                    break
                parts.append(part)
                first += count
            else:
                return laid, name, parts
            parts.clear()  # what was loaded makes room for what is laid otherwise
            tidy(*(device for device, _ in laid))

    def _slicing(self, manifest: Manifest, layers: tuple[int, int]) -> Slicing | None:
        """How these layers lie in slices over all devices; None where one holds a layer whole, or they do not fit."""
        room = replace(self.room(manifest), max_layers=layers[1] - layers[0])
        found = sliced(self.shape(manifest), room, layers[0])
        return found if found is not None and found.layers == layers[1] - layers[0] else None

    def _load_sliced(
        self, checkpoint: FileCheckpoint, layers: tuple[int, int], slicing: Slicing
    ) -> tuple[list[tuple[torch.device, int]], str, list[_Part]]:
        """Layers cut over all devices, measured as they lie: that tells nothing of one device, and is not kept."""
        every = self.devices(checkpoint.manifest) + ([] if self.spare is None else [self.spare])
        places = list(zip(every, slicing.shares, strict=False))
        names = ["main memory" if device is self.spare else describe(device).name for device, _ in places]
        told = ", ".join(f"{share:.0%} on {name}" for (_, share), name in zip(places, names, strict=True))
        self.report(Notice(f"no device has room for one layer: each is cut over {len(places)} ({told})"))
        home, (first, last) = every[0], layers
        weights = "auto" if home.type == "cpu" and self.weights == "auto" else self.weights
        try:
            block = load_block(checkpoint, first, last, home, self.dtype, self.report, weights=weights, places=places)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise self._no_room(checkpoint.manifest, first, last, home) from error
        budget = self.config.kv_bytes or min(MOST_KV, int(self.free(home) * KV_SHARE))
        measured = probe(block, report=self.report)
        pool = KVPool(block, budget)
        pool.hold()
        part = _Part(block, pool, Speed(*(measured.ms_per_layer[rows] for rows in ROWS)), "")
        return [(home, last - first)], say_devices(names), [part]

    def _try_part(
        self, checkpoint: FileCheckpoint, first: int, last: int, device: torch.device, whole: tuple[int, int]
    ) -> _Part | ModelError:
        """Layers on a device, or what to say where its memory ran out."""
        try:
            return self._load_part(checkpoint, first, last, device, whole)
        except (RuntimeError, MemoryError) as error:  # ends here: its traceback holds what was loaded
            if not out_of_memory(error):
                raise
            reason = error.with_traceback(None)
        full = self._no_room(checkpoint.manifest, first, last, device)
        full.__cause__ = reason
        return full

    def _bytes(self, manifest: Manifest, first: int, last: int) -> int:
        """What planning counts for layers [first, last) on a device, with the memory of their sessions."""
        if first == last:
            return 0
        shape, context = self.shape(manifest), min(PLANNED_CONTEXT, manifest.context)
        sessions = sum(shape.session_bytes(a, b, context) for a, b in shape.parts(first, last))
        return shape.every_bytes + sum(shape.layer_bytes[first:last]) + shape.end_bytes(first, last) + sessions

    def _named(self, laid: Sequence[tuple[torch.device, int]]) -> str:
        """The devices that a block lies on in words; says what lies where if they are several."""
        names = [describe(device).name for device, _ in laid]
        if len(laid) > 1:
            lies = [
                f"{count} in main memory" if device is self.spare else f"{count} on {device} ({name})"
                for (device, count), name in zip(laid, names, strict=True)
            ]
            self.report(Notice(f"{sum(count for _, count in laid)} layers: {', '.join(lies)}"))
        return say_devices(
            [name for (device, _), name in zip(laid, names, strict=True) if device is not self.spare] or names
        )

    def _mtp(self, ref: str, checkpoint: FileCheckpoint, block: Block, pool: KVPool) -> MTPHost | None:
        """The model's own head, or else an EAGLE head beside it, where the block is the model's tail: it drafts for
        runs that ask for it."""
        if not block.tail:
            return None
        weights = self.weights if block.device.type == "cpu" else "expanded"  # of a small part
        try:
            head = load_mtp(checkpoint, block, weights)
            if head is None and (folder := read_eagle(self.store.path(ref) / BESIDE)) is not None:
                head = load_eagle(folder, checkpoint, block, weights)
        except ModelError as error:
            self.report(Notice(f"this node does not draft with the model's head for it: {error}"))
            return None
        if head is None:
            return None
        return MTPHost(head, KVPool(head.block, pool.budget_bytes // (block.last - block.first)))

    def _compiler(self, ref: str, checkpoint: FileCheckpoint) -> Compiler | None:
        """What a tail holds answers to constraints with; None where the model's tokenizer cannot be had."""
        try:
            tokenizer = load_tokenizer(ref, self.store, self.report)
            ends = end_tokens(checkpoint, self.store, ref)
            vocabulary = Vocabulary(tokenizer, checkpoint.manifest.vocab_size, ends)
        except ModelError as error:
            self.report(Notice(f"answers cannot be held to schemas or grammars by this node: {error}"))
            return None
        return Compiler(lambda: vocabulary, even=True)

    def _load_part(
        self, checkpoint: FileCheckpoint, first: int, last: int, device: torch.device, whole: tuple[int, int]
    ) -> _Part:
        weights = self._ways(checkpoint, first, last, device)

        def load(source: Checkpoint, a: int, b: int, report: Report) -> Block:
            exact = self.config.exact_on_gpu
            block = load_block(source, a, b, device, self.dtype, report, weights=weights, exact_on_gpu=exact)
            return graphed(block, report)

        block = load(checkpoint, first, last, self.report)
        kernels = self._fingerprint(checkpoint, device, lambda source, a, b: load(source, a, b, silent))
        budget = min(MOST_KV, int(self.free(device) * KV_SHARE))
        if self.config.kv_bytes is not None:
            budget = self.config.kv_bytes * (last - first) // (whole[1] - whole[0])
        speed = self._known(device, checkpoint.manifest)
        if speed is None or self.config.probe:
            speed = self._measure(block, checkpoint.manifest)
        pool = KVPool(block, budget)
        pool.hold()
        return _Part(block, pool, speed, kernels)

    def _fingerprint(self, checkpoint: FileCheckpoint, device: torch.device, load: LoadLayers) -> str:
        """Of the kernels that a block is computed with on a device; "" where they could not be measured."""
        manifest, config = checkpoint.manifest, checkpoint.config
        try:
            return fingerprint_of(manifest, config, device, self.dtype, load=load).digest
        except ModelError as error:
            self.report(Notice(f"no kernel fingerprint: {error}"))
            return ""

    def _ways(self, checkpoint: FileCheckpoint, first: int, last: int, device: torch.device) -> str:
        """How layers [first, last) are held: as asked for; by "auto" as stored, unless they fit expanded too and one of
        them was faster so when it was measured here (once for a model; kept)."""
        manifest = checkpoint.manifest
        if device.type != "cpu" or self.weights != "auto":
            return self.weights  # on a GPU "expanded" or "stored": `choose_weights` knows no "auto" there
        layer = (first + last) // 2
        stored, wide = self.shape(manifest), model_shape(manifest, self.dtype)
        if stored.layer_bytes[layer] >= wide.layer_bytes[layer]:
            return "auto"  # nothing of it has a kernel
        need = sum(wide.layer_bytes[first:last]) + wide.end_bytes(first, last)
        if need > self.free(device) * (1 - KV_SHARE):
            return "auto"
        ways = None if self.kept is None or self.config.probe else self.kept.ways(self.threads, manifest.digest)
        if ways is None:
            part = next((a, b) for a, b in manifest.ties.parts(first, last) if a <= layer < b)
            ways = measure_ways(checkpoint, part, self.dtype)
            if self.kept is not None:
                self.kept.keep_ways(self.threads, manifest, ways)
        if ways.better == "expanded":
            self.report(
                Notice(
                    f"weights are expanded: a row takes {ways.expanded[0]:.2f} ms a layer, {ways.stored[0]:.2f} stored"
                )
            )
        return ways.better

    def _measure(self, block: Block, manifest: Manifest) -> Speed:
        measured = probe(block, report=self.report)
        if self.kept is not None:
            self.kept.keep(block.device, self.dtype, self.threads, manifest, measured, self.weights)
        return Speed(*(measured.ms_per_layer[rows] for rows in ROWS))

    def _known(self, device: torch.device | None, manifest: Manifest) -> Speed | None:
        """Milliseconds per layer as measured before."""
        if device is None or self.kept is None:
            return None
        found = self.kept.find(device, self.dtype, self.threads, manifest.digest, self.weights)
        return None if found is None else found.speed

    def _split(self, manifest: Manifest, layers: tuple[int, int]) -> tuple[int, int]:
        """How many of these layers fit, and how many of those in spare RAM."""
        room = replace(self.room(manifest), max_layers=layers[1] - layers[0])
        return fit(self.shape(manifest), room, layers[0])

    def _laid(
        self, manifest: Manifest, layers: tuple[int, int], most: Mapping[torch.device, int]
    ) -> list[tuple[torch.device, int]]:
        """The devices that take layers, in order, and how many each; most: as for `room`. Raises ModelError when they
        do not all fit."""
        shape, count = self.shape(manifest), layers[1] - layers[0]
        devices = self.devices(manifest)
        need = sum(shape.layer_bytes[layers[0] : layers[1]]) + shape.end_bytes(*layers)
        free = sum(self.free(device) for device in devices)
        if len(devices) == 1 and self.spare is None and need <= free:
            return [(devices[0], count)]
        several = len(devices) > 1 or self.spare is not None
        laid = lay(shape, replace(self.room(manifest, most), max_layers=count), layers[0]) if several else (0, 0)
        if sum(laid) == count and laid[-1] < count:
            every = devices if self.spare is None else [*devices, self.spare]
            return [(device, taken) for device, taken in zip(every, laid, strict=False) if taken]
        on = "the device" if len(devices) == 1 else f"any of {len(devices)} devices"
        beside = f" and {self.free(self.spare) / 1e9:.1f} GB beside" if self.spare is not None else ""
        if sum(laid) == count:
            raise ModelError(
                f"not one layer fits {on}, with {free / 1e9:.1f} GB free{beside}; use --cpu (cause: memory)"
            )
        raise ModelError(
            f"layers {layers[0]}-{layers[1] - 1} need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free{beside}; "
            "take fewer with --layers A:B or --capacity LAYERS (cause: memory)"
        )

    def _no_room(self, manifest: Manifest, first: int, last: int, device: torch.device) -> ModelError:
        """What to say when memory ran out while layers were loaded, though they were thought to fit: another program
        was quicker, or the device needs more than the weights."""
        tidy(device)
        shape, free, fitting = self.shape(manifest), int(self.free(device) * MEMORY_SHARE), 0
        while fitting < last - first:
            need = sum(shape.layer_bytes[first : first + fitting + 1]) + shape.end_bytes(first, first + fitting + 1)
            if need > free:
                break
            fitting += 1
        fitting = min(fitting, last - first - 1)
        return ModelError(
            f"memory ran out while layers {first}-{last - 1} were loaded; {free / 1e9:.1f} GB may be taken now, room "
            f"for {fitting} of these layers"
            + (
                f": take --capacity {fitting}, or give --overflow"
                if fitting
                else "; close other programs, or use --cpu"
            )
            + " (cause: memory)"
        )


@dataclass(frozen=True)
class _Part:
    """What of a block lies on one device."""

    block: Block
    pool: KVPool
    speed: Speed
    kernels: str


def _mean(parts: Sequence[tuple[Speed | None, int]]) -> Speed | None:
    """Of layers on several devices, by how many each has; None where one is unknown."""
    known = [(speed, count) for speed, count in parts if speed is not None]
    if len(known) < len(parts) or not known:
        return None
    total = sum(count for _, count in known)
    return Speed(*(sum(getattr(s, ms) * count for s, count in known) / total for ms in ("ms_1", "ms_8", "ms_64")))


def own_software(holds_answers: bool) -> str:
    """What a record says this node runs; requesters read from it whether it can hold answers to constraints."""
    return f"wanswarm {__version__}" + (f", {engine()}" if holds_answers else "")


async def settle_block(host: Host, gossip: Gossip, manifest: Manifest, room: Room) -> tuple[int, int]:
    """Choose layers together with whoever else is choosing: claim, listen, choose again until it stays."""
    shape = host.shape(manifest)
    outlook = Outlook(gossip, bytes.fromhex(manifest.digest))
    claimed: tuple[int, int] | None = None
    for _ in range(CLAIM_ROUNDS):
        others = [member for member in outlook.members() if member.node != room.node]
        block = choose_block(shape, room, others, rtts_of(gossip, host.node))
        if (block.first, block.last) == claimed:
            break
        claimed = (block.first, block.last)
        gossip.publish(state="joining", claim=claimed)
        if not others and not gossip.saved().peers:
            break
        await asyncio.sleep(CLAIM_WAIT_S)
    assert claimed is not None
    return claimed
