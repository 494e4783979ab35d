"""What a node loads where: on its device, and beside it when that is full."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import swarm.node.host
from swarm.base.config import JoinConfig, MemberConfig, parse_gpus
from swarm.base.errors import ModelError, UsageError
from swarm.base.events import Notice, silent
from swarm.discovery.model_shape import model_shape
from swarm.model.block import Block, Job
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.overflow import SplitBlock
from swarm.model.quant.native import library
from swarm.model.quant.sliced import SlicedMatrix
from swarm.model.rows import Layout, no_commits
from swarm.model.ways import Ways
from swarm.model.weights_as import PACKED
from swarm.node.benchmark_cache import ProbeCache
from swarm.node.host import Host
from swarm.planner.api import Speed, choose_block
from tests.ring.conftest import tiny_folder  # noqa: F401  a fixture
from tests.swarm.model.tiny import certain

FAST, BESIDE, SECOND = torch.device("cpu"), torch.device("cpu", 0), torch.device("cpu", 1)


def host_of(tmp_path: Path, layers_that_fit: float, spare: bool = True, **changes: object) -> Host:
    """A device with room for so many layers (of 6, with the embedding) and spare RAM beside it."""
    config = JoinConfig(MemberConfig(tmp_path, tmp_path / "models"), gpu=0, **changes)  # type: ignore[arg-type]

    class Full(Host):
        def free(self, device: torch.device) -> int:
            return 1 << 30 if device.index is not None else int(layers_that_fit)

    beside = BESIDE if spare else None
    return Full(config, ModelStore(tmp_path / "models"), b"n" * 32, FAST, torch.float32, 1, silent, None, beside)


def bytes_of(host: Host, folder: Path, layers: int) -> float:
    """Free memory that just holds the first `layers` layers with their KV."""
    manifest = host.store.open(str(folder), (0, 1), silent).manifest
    shape = model_shape(manifest, host.dtype)
    need = shape.head_bytes + layers * (shape.layer_bytes[0] + host.room(manifest).context_tokens * shape.kv_bytes)
    return need / 0.8 + 16


def test_what_the_device_has_no_room_for_goes_beside_it(tiny_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    fits = bytes_of(host_of(tmp_path, 0), tiny_folder, 4)
    host = host_of(tmp_path, fits)
    manifest = host.store.open(str(tiny_folder), (0, 6), silent).manifest
    block = choose_block(model_shape(manifest, host.dtype), host.room(manifest), [])
    assert (block.first, block.last, block.overflow) == (0, 6, 2)
    hosting = host.load(str(tiny_folder), (0, 6))
    split = hosting.hosted.block
    assert isinstance(split, SplitBlock) and (split.front.last, split.back.device) == (4, BESIDE)
    assert hosting.layers == (0, 6) and hosting.overflow == 2
    assert all(us > 0 for us in (*hosting.speed_us, *hosting.overflow_us))
    assert host.fits(manifest, (0, 6)) and not host_of(tmp_path, fits, spare=False).fits(manifest, (0, 6))


def test_nothing_goes_beside_what_fits(tiny_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    host = host_of(tmp_path, 1 << 30)
    hosting = host.load(str(tiny_folder), (1, 5))
    assert hosting.overflow == 0 and hosting.overflow_us == (0, 0, 0) and hosting.hosted.block.device == FAST


def test_memory_for_sessions_is_shared_by_layers(tiny_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    fits = bytes_of(host_of(tmp_path, 0), tiny_folder, 4)
    hosting = host_of(tmp_path, fits, kv_bytes=6_000_000).load(str(tiny_folder), (0, 6))
    pool = hosting.hosted.pool
    assert (pool.front.budget_bytes, pool.back.budget_bytes) == (4_000_000, 2_000_000)


@pytest.mark.parametrize(
    ("free", "spare", "limit", "says"),
    [
        (1000, False, None, r"layers 0-5 need 0\.0 GB, 0\.0 GB are free; take fewer"),
        (1000, True, 1, r"0\.0 GB are free and 1\.1 GB beside; take fewer"),
        (1000, True, None, "not one layer fits the device"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers(
    tiny_folder: Path,  # noqa: F811
    tmp_path: Path,
    free: int,
    spare: bool,
    limit: int | None,
    says: str,
) -> None:
    with pytest.raises(ModelError, match=says):
        host_of(tmp_path, free, spare, overflow_bytes=limit).load(str(tiny_folder), (0, 6))


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (1 << 30, r"layers 0-5 were loaded; 0\.9 GB may be taken now, room for 5 of these layers: take --capacity 5"),
        (1000, r"room for 0 of these layers; close other programs, or use --cpu"),
    ],
)
def test_a_device_whose_memory_runs_out_while_loading_says_what_fits(
    tiny_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: int,
    says: str,
) -> None:
    """Another program was quicker: what was free when it was planned is not when the layers go to the device."""
    host = host_of(tmp_path, 1 << 30, spare=False)
    monkeypatch.setattr(Host, "_laid", lambda self, manifest, layers, most: [(FAST, layers[1] - layers[0])])
    monkeypatch.setattr(type(host), "free", lambda self, device: left)

    def full(*args: object, **more: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(swarm.node.host, "load_block", full)
    with pytest.raises(ModelError, match=says):
        host.load(str(tiny_folder), (0, 6))


@pytest.mark.parametrize(("room", "takes"), [(2, (2, 4)), (5, (5, 1)), (0, None)])
def test_where_memory_runs_out_fewer_layers_go_there_and_the_others_beside(
    tiny_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    takes: tuple[int, int] | None,
) -> None:
    """The device says that six layers fit, and has memory for `room` of them."""
    load, said = swarm.node.host.load_block, list[object]()
    host = replace(host_of(tmp_path, 1 << 30), report=said.append)

    def full(checkpoint: Any, first: int, last: int, device: torch.device, *others: Any, **more: Any) -> Block:
        if device is FAST and last - first > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return load(checkpoint, first, last, device, *others, **more)

    monkeypatch.setattr(swarm.node.host, "load_block", full)
    monkeypatch.setattr(Host, "_fingerprint", lambda *given: "")
    if takes is None:
        with pytest.raises(ModelError, match="not one layer fits the device"):
            host.load(str(tiny_folder), (0, 6))
        return
    hosting = host.load(str(tiny_folder), (0, 6))
    split = hosting.hosted.block
    assert isinstance(split, SplitBlock) and (split.front.last, 6 - split.back.first) == takes
    assert hosting.overflow == takes[1]
    notices = [str(event.text) for event in said if isinstance(event, Notice)]
    assert any("ran out with 6 layers: 5 are tried there, the others elsewhere" in line for line in notices)
    assert any(line.startswith(f"6 layers: {takes[0]} on cpu") for line in notices)


def test_memory_that_runs_out_beside_is_told(
    tiny_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits = bytes_of(host_of(tmp_path, 0), tiny_folder, 4)
    host, load = host_of(tmp_path, fits), swarm.node.host.load_block

    def full(checkpoint: Any, first: int, last: int, device: torch.device, *others: Any, **more: Any) -> Block:
        if device is BESIDE:
            torch.empty(1 << 60)  # what torch says of main memory
        return load(checkpoint, first, last, device, *others, **more)

    monkeypatch.setattr(swarm.node.host, "load_block", full)
    with pytest.raises(ModelError, match="memory ran out while layers 4-5 were loaded"):
        host.load(str(tiny_folder), (0, 6))


@pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")
def test_auto_expands_where_memory_allows_it_and_a_layer_was_faster_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured once; what there is too little memory for is not even measured."""
    tries: list[int] = []
    answers = [Ways((2.0, 4.0), (1.0, 2.0)), Ways((1.0, 2.0), (2.0, 4.0))]

    def measured(checkpoint: object, layer: int, dtype: torch.dtype) -> Ways:
        tries.append(layer)
        return answers[len(tries) - 1]

    monkeypatch.setattr(swarm.node.host, "measure_ways", measured)
    free = 8 << 20  # of 10.6 MB expanded, 2.5 as stored

    class Roomy(Host):
        def free(self, device: torch.device) -> int:
            return free

    def computes_in(state: str) -> str:
        config = JoinConfig(MemberConfig(tmp_path, tmp_path / "models"), kv_bytes=1 << 20)
        (tmp_path / state).mkdir(exist_ok=True)
        kept = ProbeCache(tmp_path / state)
        store = ModelStore(tmp_path / "models")
        host = Roomy(config, store, b"n" * 32, FAST, torch.bfloat16, 1, silent, kept, None, "auto")
        return host.load(DEFAULT_MODEL, (4, 5)).hosted.block.computes_in

    assert computes_in("a") == PACKED and tries == []
    free = 1 << 30
    assert computes_in("a") == "bfloat16" and tries == [(4, 5)]
    assert computes_in("a") == "bfloat16" and tries == [(4, 5)]
    assert computes_in("b") == PACKED and tries == [(4, 5), (4, 5)]


def several(
    tmp_path: Path, fits: dict[torch.device, float], spare: bool = False, kept: ProbeCache | None = None
) -> Host:
    """Devices with room as told, the first two of them for layers."""
    config = JoinConfig(MemberConfig(tmp_path, tmp_path / "models"), kv_bytes=1 << 22)

    class Full(Host):
        def free(self, device: torch.device) -> int:
            return int(fits[device])

    return Full(
        config, ModelStore(tmp_path / "models"), b"n" * 32, FAST, torch.float32, 1, silent, kept,
        BESIDE if spare else None, more=(SECOND,),
    )  # fmt: skip


def test_what_a_second_device_has_no_memory_for_goes_on_and_the_first_begins_anew(
    tiny_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was loaded before is gone when it is loaded again."""
    one, load = host_of(tmp_path, 1 << 30), swarm.node.host.load_block
    three, two = bytes_of(one, tiny_folder, 3), bytes_of(one, tiny_folder, 2)
    host = several(tmp_path, {FAST: three, SECOND: two, BESIDE: 1 << 30}, spare=True)
    alive: list[weakref.ref[Block]] = []

    def full(checkpoint: Any, first: int, last: int, device: torch.device, *others: Any, **more: Any) -> Block:
        if device is SECOND and last - first > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if device is FAST:
            assert not any(ref() is not None for ref in alive), "an earlier try is still in memory"
        block: Block = load(checkpoint, first, last, device, *others, **more)
        alive.append(weakref.ref(block))
        return block

    monkeypatch.setattr(swarm.node.host, "load_block", full)
    monkeypatch.setattr(Host, "_fingerprint", lambda *given: "")
    whole = host.load(str(tiny_folder), (0, 6)).hosted.block
    assert isinstance(whole, SplitBlock) and isinstance(whole.back, SplitBlock)
    assert (whole.front.last, whole.back.front.last, whole.back.last) == (3, 4, 6)


def test_layers_are_laid_over_all_devices(tiny_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    one = host_of(tmp_path, 1 << 30)
    three, two = bytes_of(one, tiny_folder, 3), bytes_of(one, tiny_folder, 2)
    host = several(tmp_path, {FAST: three, SECOND: two, BESIDE: 1 << 30}, spare=True)
    manifest = host.store.open(str(tiny_folder), (0, 6), silent).manifest
    block = choose_block(model_shape(manifest, host.dtype), host.room(manifest), [])
    assert (block.first, block.last) == (0, 6) and 0 < block.overflow <= 2
    hosting = host.load(str(tiny_folder), (0, 6))
    whole = hosting.hosted.block
    assert isinstance(whole, SplitBlock) and isinstance(whole.back, SplitBlock)
    assert whole.front.last == 3 and whole.back.back.device == BESIDE and hosting.overflow == block.overflow
    assert hosting.hosted.fingerprint == "" and all(us > 0 for us in (*hosting.speed_us, *hosting.overflow_us))

    layout = Layout(scratch=64, context=128)
    rows = certain(list(range(5, 17)), 0, layout)
    expected = one.load(str(tiny_folder), (0, 6)).hosted
    sessions = [hosted.pool.open(layout, 0, 6) for hosted in (hosting.hosted, expected)]
    logits = [
        hosted.block.forward([Job(kv, no_commits(), rows, None)])[0]
        for hosted, kv in zip((hosting.hosted, expected), sessions, strict=True)
    ]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    sessions[0].close()
    assert hosting.hosted.pool.used_bytes == 0


def test_two_devices_without_a_spare_say_what_does_not_fit(tiny_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    two = bytes_of(host_of(tmp_path, 1 << 30), tiny_folder, 2)
    host = several(tmp_path, {FAST: two, SECOND: two})
    with pytest.raises(ModelError, match="layers 0-5 need .* GB are free; take fewer"):
        host.load(str(tiny_folder), (0, 6))
    manifest = host.store.open(str(tiny_folder), (0, 6), silent).manifest
    assert not host.fits(manifest, (0, 6)) and host.fits(manifest, (0, 4))


def test_a_layer_too_large_for_any_device_is_cut_over_all(tiny_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    one = host_of(tmp_path, 1 << 30)
    layer = (bytes_of(one, tiny_folder, 2) - bytes_of(one, tiny_folder, 1)) * 0.99
    host = several(tmp_path, {FAST: layer, SECOND: layer, BESIDE: layer}, spare=True)
    told: list[str] = []
    host = replace(host, report=lambda event: told.append(event.text) if isinstance(event, Notice) else None)
    manifest = host.store.open(str(tiny_folder), (0, 6), silent).manifest
    block = choose_block(model_shape(manifest, host.dtype), host.room(manifest), [])
    assert block.layers == 1 and block.overflow == 0 and host.fits(manifest, (block.first, block.last))
    hosting = host.load(str(tiny_folder), (3, 4))
    found, expected = hosting.hosted, one.load(str(tiny_folder), (3, 4)).hosted
    cut = [m.matrix for m in found.block.loaded.model.modules() if isinstance(getattr(m, "matrix", None), SlicedMatrix)]  # type: ignore[union-attr]
    assert cut and {s.device for matrix in cut for s in matrix.slices} == {FAST, SECOND, BESIDE}
    assert "no device has room for one layer" in told[-1] and hosting.overflow == 0 and min(hosting.speed_us) > 0
    assert found.fingerprint == ""  # nobody else computes with these devices

    layout = Layout(scratch=64, context=128)
    rows, hidden = certain(list(range(5, 17)), 0, layout), torch.randn(12, found.block.hidden_size)
    outs = [
        hosted.block.forward([Job(hosted.pool.open(layout, 3, 4), no_commits(), rows, hidden)])[0]
        for hosted in (found, expected)
    ]
    assert torch.equal(*outs)
    with pytest.raises(ModelError, match="layers 0-5 need"):
        host.load(str(tiny_folder), (0, 6))


def test_the_faster_device_takes_layers_first(
    tiny_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = several(tmp_path, {FAST: 1 << 30, SECOND: 1 << 30})
    manifest = host.store.open(str(tiny_folder), (0, 6), silent).manifest
    known = {FAST: Speed(3.0, 3.0, 6.0), SECOND: Speed(1.0, 1.0, 2.0)}
    monkeypatch.setattr(Host, "_known", lambda self, device, manifest: known.get(device))
    assert host.devices(manifest) == [SECOND, FAST]
    assert host.room(manifest).speed == Speed(2.0, 2.0, 4.0)
    del known[SECOND]
    assert host.devices(manifest) == [FAST, SECOND] and host.room(manifest).speed is None


@pytest.mark.parametrize(("text", "read"), [("0", 0), ("3", 3), ("0,1", (0, 1)), ("2,0,1", (2, 0, 1))])
def test_gpus_are_read(text: str, read: object) -> None:
    assert parse_gpus(text) == read


@pytest.mark.parametrize("text", ["", ",", "0,", "0,0", "0,x", "-1", "1,65"])
def test_what_names_no_gpus_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gpus(text)
