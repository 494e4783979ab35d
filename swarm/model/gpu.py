"""What computing on a GPU needs besides tensors: the right current device, graphs, true times, and an eye on faults.

Everything runs on the device's default stream, which orders what the threads of a process do there; only a capture has
a stream of its own, one for each device (a capture on another device's stream is empty, and an empty graph answers
with stale rows for ever). The rules that captures follow are those of torch/cuda/graphs.py and of CUDA's stream capture
(https://docs.nvidia.com/cuda/cuda-programming-guide, "CUDA Graphs"):

- Mode "thread_local": in mode "global" memory that any other thread takes meanwhile ends the capture.
- One capture at a time in a process, and nobody waits for a whole device meanwhile: both end it in any mode.
- A pool of memory lives as long as a graph of it does; one that died cannot be captured into. Hence the anchor.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

T = TypeVar("T")


class Stream(Protocol):
    """A queue of work on a device."""

    def wait_stream(self, stream: Any) -> None: ...
    def synchronize(self) -> None: ...


class Event(Protocol):
    """A mark in a stream. `elapsed_time(later)`: milliseconds, once both were passed."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end_event: Any) -> float: ...


class Graph(Protocol):
    """Work that was captured."""

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None: ...
    def capture_end(self) -> None: ...
    def replay(self) -> None: ...


class Cuda(Protocol):
    """The part of `torch.cuda` that is used here; tests have another that follows its rules without a GPU.

    has_graphs: without them `stream`, `graph`, `pool` and the streams are not asked for.
    has_float64: which drawing tokens needs.
    capability: NVIDIA's compute capability; (0, 0) for another maker's device.
    """

    has_graphs: bool
    has_float64: bool

    def device(self, device: torch.device) -> contextlib.AbstractContextManager[Any]: ...
    def stream(self, device: torch.device) -> Stream: ...
    def event(self) -> Event: ...
    def graph(self) -> Graph: ...
    def pool(self) -> Any: ...
    def current_stream(self, device: torch.device) -> Stream: ...
    def set_stream(self, stream: Stream) -> None: ...
    def synchronize(self, device: torch.device) -> None: ...
    def free_bytes(self, device: torch.device) -> int: ...
    def capability(self, device: torch.device) -> tuple[int, int]: ...
    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor: ...
    def moved(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor: ...


class TorchCuda:
    """The real one."""

    has_graphs = has_float64 = True

    def device(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(device)

    def stream(self, device: torch.device) -> Stream:
        return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def event(self) -> Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def graph(self) -> Graph:
        return torch.cuda.CUDAGraph()

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def current_stream(self, device: torch.device) -> Stream:
        return torch.cuda.current_stream(device)

    def set_stream(self, stream: Any) -> None:
        torch.cuda.set_stream(stream)

    def synchronize(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)

    def free_bytes(self, device: torch.device) -> int:
        return int(torch.cuda.mem_get_info(device)[0])

    def capability(self, device: torch.device) -> tuple[int, int]:
        return (0, 0) if torch.version.hip else torch.cuda.get_device_capability(device)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def moved(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
        return staged.to(device, non_blocking=True)


class TorchMps:
    """Apple's, by the same path: no graphs, one stream, memory that the host shares. Never run."""

    has_graphs = has_float64 = False

    def device(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def stream(self, device: torch.device) -> Stream:
        raise NotImplementedError("mps has no streams")

    current_stream = stream

    def event(self) -> Event:
        return torch.mps.Event(enable_timing=True)

    def graph(self) -> Graph:
        raise NotImplementedError("mps has no graphs")

    def pool(self) -> Any:
        raise NotImplementedError("mps has no graphs")

    def set_stream(self, stream: Any) -> None:
        raise NotImplementedError("mps has no streams")

    def synchronize(self, device: torch.device) -> None:
        torch.mps.synchronize()

    def free_bytes(self, device: torch.device) -> int:
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())

    def capability(self, device: torch.device) -> tuple[int, int]:
        return 0, 0

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def moved(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
        return staged.to(device)


_FULL = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Invalid buffer size",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, which passes. cuBLAS, cuDNN, mps and main memory say it in words of
    their own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(word in text for word in _FULL)


def first_line(error: BaseException) -> str:
    """An error in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class Gpu:
    """One device, for whoever computes on it.

    turn: held during a capture and while somebody waits for the whole device; one for all devices of a process, so
    whoever makes a second `Gpu` in it hands the first one's over.
    """

    def __init__(self, device: torch.device, cuda: Cuda | None = None, turn: threading.Lock | None = None) -> None:
        self.device = device
        self.cuda: Cuda = cuda or (TorchMps() if device.type == "mps" else TorchCuda())
        self.turn = turn or threading.Lock()
        self._stream: Stream | None = None

    def entered(self) -> contextlib.AbstractContextManager[Any]:
        """This device is the current one within."""
        return self.cuda.device(self.device)

    def capture_stream(self) -> Stream:
        """This device's stream for captures; made at the first one."""
        if self._stream is None:
            self._stream = self.cuda.stream(self.device)
        return self._stream

    def wait(self) -> None:
        """Until the device has done all that it was told. Raises what went wrong on it since."""
        with self.turn, self.entered():
            self.cuda.synchronize(self.device)

    def lost(self) -> bool:
        """Whether the device answers this process no more: after some faults every call fails for good."""
        try:
            self.wait()
        except RuntimeError as error:
            return not out_of_memory(error)
        return False

    def to_device(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of the host on the device, by one copy out of pinned memory that nobody waits for."""
        staged = self.cuda.pinned(tuple(rows.shape), dtype)
        staged.copy_(rows)
        return self.cuda.moved(staged, self.device)

    def to_host(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the device in pinned memory of the host, all of them there when this returns."""
        staged = self.cuda.pinned(tuple(rows.shape), rows.dtype)
        staged.copy_(rows, non_blocking=self.cuda.has_graphs)
        done = self.cuda.event()
        with self.entered():
            done.record()
            done.synchronize()
        return staged


def gpu_of(device: torch.device) -> Gpu | None:
    """The device's `Gpu`; None where it is none that CUDA (or ROCm, which calls itself so) or mps computes on."""
    return Gpu(device) if device.type in ("cuda", "mps") else None


def entered(gpu: Gpu | None) -> contextlib.AbstractContextManager[Any]:
    """`Gpu.entered` where there is one."""
    return contextlib.nullcontext() if gpu is None else gpu.entered()


class Clock(Protocol):
    """How long something took; it began when the clock was made. `stop` may come before the device has done its part,
    `us` waits for that: asked after the results were read, it waits for nothing."""

    def stop(self) -> None: ...
    def us(self) -> int: ...


class WallClock:
    """For work that is done when a call returns."""

    def __init__(self) -> None:
        self._began = self._ended = time.perf_counter()

    def stop(self) -> None:
        self._ended = time.perf_counter()

    def us(self) -> int:
        """Microseconds."""
        return int((self._ended - self._began) * 1e6)


class EventClock:
    """For work that a device is told to do: marks before and behind it in its stream."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._began, self._ended = gpu, gpu.cuda.event(), gpu.cuda.event()
        with gpu.entered():
            self._began.record()

    def stop(self) -> None:
        with self._gpu.entered():
            self._ended.record()

    def us(self) -> int:
        """Microseconds."""
        self._ended.synchronize()
        return int(self._began.elapsed_time(self._ended) * 1e3)


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What became of a capture.

    value   what `run` gave when it was computed on the way; None where that failed already
    graph   computes the same again into `out`; None where it could not be captured, with the `error`
    """

    value: T | None
    graph: Graph | None = None
    out: T | None = None
    error: Exception | None = None


class GraphPool:
    """Graphs that share memory. They are replayed by one thread, and what one gives is copied before the next."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._handle: Any = None
        self._anchor: tuple[Graph, torch.Tensor] | None = None

    def capture(self, run: Callable[[], T]) -> Attempt[T]:
        """Compute `run` once, which loads kernels and gives a result, then capture it. Nothing is raised that `run` or
        the capture raised, and the thread is on the stream afterwards that it was on before."""
        gpu, value = self.gpu, None
        with gpu.turn, gpu.entered():
            before, own = gpu.cuda.current_stream(gpu.device), gpu.capture_stream()
            try:
                own.wait_stream(before)
                gpu.cuda.set_stream(own)
                value = run()
                own.synchronize()  # a fault of the work itself is not one of the capture
                if self._anchor is None:
                    self._handle = gpu.cuda.pool()
                    seed = torch.zeros(1, device=self._place(value))
                    graph, held = self._captured(lambda: seed + 1)
                    self._anchor = graph, held
                return Attempt(value, *self._captured(run))
            except (RuntimeError, NotImplementedError, AssertionError) as error:
                return Attempt(value, error=error)
            finally:
                gpu.cuda.set_stream(before)
                before.wait_stream(own)

    def _captured(self, run: Callable[[], T]) -> tuple[Graph, T]:
        graph = self.gpu.cuda.graph()
        collecting = gc.isenabled()
        gc.disable()  # what is collected in a capture may give memory back to the driver, which ends it
        try:
            graph.capture_begin(self._handle, "thread_local")
            try:
                out = run()
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()  # says again that it failed
                raise
            graph.capture_end()
        finally:
            if collecting:
                gc.enable()
        return graph, out

    def _place(self, value: object) -> torch.device:
        return value.device if isinstance(value, torch.Tensor) else self.gpu.device
