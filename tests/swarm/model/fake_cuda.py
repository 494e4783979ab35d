"""CUDA's rules without a GPU: current devices, streams, events, and graphs that really replay.

Tensors lie on the CPU and count as lying on device `home`. A graph records what the dispatcher is told between the
beginning of its capture and the end, computes nothing that anybody could read, and on replay does the same again with
the same tensors: what was not read from fixed addresses comes out wrong, as on a GPU. The rules, with their sources:

- An operator runs on the current stream of its tensors' device; only the capturing stream's are recorded
  (c10/cuda/CUDAStream.h).
- A capture begins on a stream that is not the default one; there is one at a time (torch/cuda/graphs.py).
- A pool lives while a graph of it does; one that died cannot be used again (CUDACachingAllocator.cpp,
  `create_or_incref_pool`: INTERNAL ASSERT use_count > 0).
- Reading on the host, and waiting for the device from any thread, end a capture; taking memory from another thread
  does so in mode "global" (CUDA runtime API, cudaStreamBeginCapture).
- A capture that failed says so again when it is ended, and leaves the current stream as it is.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::unique")
REFUSED = "CUDA error: operation not permitted when stream is capturing"


class FakeStream:
    def __init__(self, cuda: FakeCuda, device: int, name: str) -> None:
        self.cuda, self.device, self.name, self.waited = cuda, device, name, list[FakeStream]()

    def wait_stream(self, stream: FakeStream) -> None:
        self.waited.append(stream)

    def synchronize(self) -> None:
        self.cuda.check()


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.at = cuda, None

    at: float | None

    def record(self) -> None:
        self.cuda.device_ms += self.cuda.tick_ms
        self.at = self.cuda.device_ms

    def synchronize(self) -> None:
        self.cuda.check()
        self.cuda.waits += 1

    def elapsed_time(self, end_event: FakeEvent) -> float:
        assert self.at is not None and end_event.at is not None
        return end_event.at - self.at


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.recorder: Recorder | None = None
        self.replays = 0
        self.ended = False

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        cuda = self.cuda
        stream = cuda.current_stream(torch.device("cuda", cuda.current))
        if stream.name == "default":
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        if cuda.capturing is not None:
            raise RuntimeError("only one capture may be underway at a time in the process")
        if cuda.pools.setdefault(pool, 0) == 0 and pool in cuda.used:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp")
        cuda.used.add(pool)
        cuda.pools[pool] += 1
        weakref.finalize(self, cuda.drop, pool)
        cuda.capturing, cuda.invalid = self, ""
        self.mode, self.stream = capture_error_mode, stream
        self.recorder = Recorder(self)
        self.recorder.__enter__()
        cuda.captures += 1

    def capture_end(self) -> None:
        assert self.recorder is not None and self.cuda.capturing is self
        self.recorder.__exit__(None, None, None)
        self.cuda.capturing = None
        if self.cuda.invalid:
            raise RuntimeError(f"CUDA error: operation failed due to a previous error during capture ({REFUSED})")
        self.recorder.poison()
        self.ended = True

    def replay(self) -> None:
        assert self.ended and self.recorder is not None
        self.cuda.check()
        self.replays += 1
        self.cuda.replays += 1
        self.recorder.replay()


class Recorder(TorchDispatchMode):
    """What a capture records: calls with their tensors."""

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph
        self.calls: list[tuple[Callable[..., Any], Any, Any, list[torch.Tensor | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cuda, kwargs = self.graph.cuda, kwargs or {}
        cuda.on_operator()
        if func._schema.name in HOST_READS:
            cuda.invalid = REFUSED
            raise RuntimeError(f"{REFUSED}\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.")
        recorded = cuda.current_stream(torch.device("cuda", cuda.home)) is self.graph.stream
        if func._schema.is_mutable:
            if recorded:
                self.calls.append((func, args, kwargs, []))
            written = [
                kwargs.get(a.name, args[i] if i < len(args) else None)
                for i, a in enumerate(func._schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write
            ]
            return written[0] if len(written) == 1 else tuple(written)
        out = func(*args, **kwargs)
        given = {storage(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)}
        made = [t if isinstance(t, torch.Tensor) else None for t in tree_flatten(out)[0]]
        fresh = [None if t is None or storage(t) in given else t for t in made]
        if recorded and any(t is not None for t in fresh):
            self.calls.append((func, args, kwargs, fresh))
        return out

    def poison(self) -> None:
        """Nothing was computed: whoever reads a result before a replay is to see that."""
        with torch.inference_mode():
            for tensor in (t for *_, made in self.calls for t in made if t is not None):
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0)

    @torch.inference_mode()
    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            again = tree_flatten(func(*args, **kwargs))[0]
            for old, new in zip(made, again, strict=False):
                if old is not None:
                    old.copy_(new)


def storage(tensor: torch.Tensor) -> int:
    """Which memory a tensor lies in; packed weights have none that can be told."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:
        return -id(tensor)


class FakeCuda:
    """In the place of `swarm.model.gpu.TorchCuda`.

    has_graphs, has_float64: as `Cuda` says. home: the device that tensors count as lying on. device_ms: the device's
    clock, which every mark of an event sets forward by tick_ms. fault: raised by all that talks to the device.
    fail: raised by the next operator of a capture. capturing, captures, replays, waits: what happened.
    """

    has_graphs = has_float64 = True

    def __init__(self, home: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        self.home, self._capability = home, capability
        self._local = threading.local()
        self._defaults = {i: FakeStream(self, i, "default") for i in range(4)}
        self.pools: dict[Any, int] = {}
        self.used: set[Any] = set()
        self.capturing: FakeGraph | None = None
        self.invalid = ""
        self.fault: Exception | None = None
        self.fail: Exception | None = None
        self.meanwhile: Callable[[], None] | None = None
        self.captures = self.replays = self.waits = 0
        self.device_ms = self.tick_ms = 0.0
        self.free = 1 << 40

    @property
    def current(self) -> int:
        return getattr(self._local, "device", 0)

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self._local.device = self.current, device.index
        try:
            yield
        finally:
            self._local.device = before

    def _streams(self) -> dict[int, FakeStream]:
        if not hasattr(self._local, "streams"):
            self._local.streams = dict(self._defaults)
        return self._local.streams  # type: ignore[no-any-return]

    def stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self, device.index, "side")

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def graph(self) -> FakeGraph:
        return FakeGraph(self)

    def pool(self) -> object:
        return object()

    def current_stream(self, device: torch.device) -> FakeStream:
        return self._streams()[device.index]

    def set_stream(self, stream: Any) -> None:
        self._streams()[stream.device] = stream

    def synchronize(self, device: torch.device) -> None:
        if self.capturing is not None:
            self.invalid = REFUSED
            raise RuntimeError(REFUSED)
        self.check()

    def free_bytes(self, device: torch.device) -> int:
        return self.free

    def capability(self, device: torch.device) -> tuple[int, int]:
        return self._capability

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def moved(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
        assert device.index == self.home
        return staged.clone()

    def check(self) -> None:
        if self.fault is not None:
            raise self.fault

    def take_memory(self) -> None:
        """As cudaMalloc by this thread."""
        if self.capturing is not None and self.capturing.mode == "global":
            self.invalid = REFUSED

    def on_operator(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()
        if self.fail is not None:
            fail, self.fail = self.fail, None
            self.invalid = REFUSED
            raise fail

    def drop(self, pool: Any) -> None:
        self.pools[pool] -= 1
