"""Captures, clocks and faults, by CUDA's rules and without a GPU; the same on one where there is one."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from swarm.model.capturing import FIRST_PAUSE_S, MOST_REFUSALS, CaptureTrust, can_capture
from swarm.model.gpu import Cuda, EventClock, Gpu, GraphPool, WallClock, gpu_of, out_of_memory
from tests.swarm.model.fake_cuda import FakeCuda, FakeGraph
from tests.swarm.model.tiny import CPU, random_model, tiny_config

SECOND = torch.device("cuda", 1)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda(home=1)


@pytest.fixture
def pool(cuda: FakeCuda) -> GraphPool:
    return GraphPool(Gpu(SECOND, cuda))


def test_what_was_captured_reads_and_writes_fixed_addresses(pool: GraphPool) -> None:
    given = torch.arange(3.0)
    attempt = pool.capture(lambda: (given * 2).cumsum(0))
    assert attempt.error is None and attempt.graph is not None and attempt.out is not None
    assert attempt.value is not None and attempt.value.tolist() == [0.0, 2.0, 6.0]
    given.copy_(torch.tensor([5.0, 1.0, 1.0]))
    attempt.graph.replay()
    assert attempt.out.tolist() == [10.0, 12.0, 14.0]


def test_a_capture_is_on_a_stream_of_the_tensors_device(cuda: FakeCuda, pool: GraphPool) -> None:
    cuda.home = 1
    attempt = pool.capture(lambda: torch.ones(2) + 1)
    graph = attempt.graph
    assert isinstance(graph, FakeGraph) and graph.stream.device == 1
    assert graph.recorder is not None and graph.recorder.calls  # an empty one would answer with stale rows for ever
    assert cuda.current == 0 and cuda.current_stream(SECOND).name == "default"


def test_a_pool_outlives_its_last_graph(cuda: FakeCuda, pool: GraphPool) -> None:
    for _ in range(3):
        attempt = pool.capture(lambda: torch.ones(2) + 1)
        assert attempt.error is None
        del attempt
        gc.collect()
    assert [count for count in cuda.pools.values()] == [1]  # the anchor


def test_memory_that_another_thread_takes_ends_no_capture(cuda: FakeCuda, pool: GraphPool) -> None:
    pool.capture(lambda: torch.ones(2) + 1)
    cuda.meanwhile = cuda.take_memory
    assert pool.capture(lambda: torch.ones(2) + 1).error is None


def test_who_waits_for_the_device_waits_for_the_capture_first(cuda: FakeCuda) -> None:
    gpu = Gpu(SECOND, cuda)
    done, began = [], threading.Event()

    def wait() -> None:
        began.set()
        gpu.wait()
        done.append(cuda.capturing)

    waiter = threading.Thread(target=wait)

    def meanwhile() -> None:
        waiter.start()
        began.wait(5)

    pool = GraphPool(gpu)
    cuda.meanwhile = meanwhile
    assert pool.capture(lambda: torch.ones(2) + 1).error is None
    waiter.join(5)
    assert done == [None]


@pytest.mark.parametrize("error", [FULL, RuntimeError("CUDA error: operation not permitted when stream is capturing")])
def test_a_failed_capture_leaves_the_stream_as_it_was(cuda: FakeCuda, pool: GraphPool, error: Exception) -> None:
    pool.capture(lambda: torch.ones(2) + 1)
    before = cuda.current_stream(SECOND)
    cuda.fail = error
    attempt = pool.capture(lambda: torch.ones(2) + 1)
    assert attempt.error is error and attempt.graph is None
    assert attempt.value is not None and attempt.value.tolist() == [2.0, 2.0]  # computed on the way: not lost
    assert cuda.current_stream(SECOND) is before and cuda.capturing is None and gc.isenabled()
    assert pool.capture(lambda: torch.ones(2) + 1).error is None


def test_a_read_on_the_host_cannot_be_captured(pool: GraphPool) -> None:
    attempt = pool.capture(lambda: torch.ones(3) + torch.ones(3).sum().item())
    assert attempt.graph is None and "not permitted" in str(attempt.error)


def test_only_what_lacks_memory_is_tried_again_for_ever() -> None:
    trust, now = CaptureTrust(), 1000.0
    for turn in range(20):
        assert trust.may(now) and not trust.given_up
        trust.failed(now, FULL)
        assert not trust.may(now + FIRST_PAUSE_S - 1 if turn == 0 else now)
        now = trust.until
    trust.worked()
    for _ in range(MOST_REFUSALS):
        assert trust.may(now)
        trust.failed(now, RuntimeError("host read"))
        now += 1e4
    assert trust.given_up and not trust.may(1e12)


def test_lack_of_memory_is_known_by_its_kind_and_by_libraries_words() -> None:
    assert out_of_memory(FULL) and out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not out_of_memory(ValueError("out of memory"))


def test_a_device_is_lost_when_it_answers_nothing_any_more(cuda: FakeCuda) -> None:
    gpu = Gpu(SECOND, cuda)
    assert not gpu.lost()
    cuda.fault = FULL
    assert not gpu.lost()
    cuda.fault = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert gpu.lost()


def test_a_clock_tells_the_devices_time(cuda: FakeCuda) -> None:
    clock = EventClock(Gpu(SECOND, cuda))
    cuda.device_ms = 7.25
    clock.stop()
    cuda.device_ms = 900.0
    assert clock.us() == 7250
    wall = WallClock()
    wall.stop()
    assert 0 <= wall.us() < 1_000_000
    assert gpu_of(CPU) is None


@pytest.mark.parametrize(
    ("family", "how", "dtype", "capability", "able"),
    [
        ("llama", "grouped_mm", torch.float32, (7, 5), True),
        ("qwen3-moe", "grouped_mm", torch.bfloat16, (9, 0), True),
        ("qwen3-moe", "grouped_mm", torch.bfloat16, (10, 0), True),
        ("qwen3-moe", "grouped_mm", torch.bfloat16, (8, 9), False),
        ("qwen3-moe", "grouped_mm", torch.bfloat16, (12, 0), False),
        ("qwen3-moe", "grouped_mm", torch.float32, (9, 0), False),
        ("qwen3-moe", "batched_mm", torch.float32, (8, 0), True),
        ("mixtral", "eager", torch.bfloat16, (9, 0), False),
    ],
)
def test_experts_are_captured_where_their_offsets_stay_on_the_device(
    family: str, how: str, dtype: torch.dtype, capability: tuple[int, int], able: bool
) -> None:
    model = random_model(tiny_config(family))
    model.config._experts_implementation = how
    assert can_capture(model, Gpu(SECOND, FakeCuda(capability=capability)), dtype) == able


def _protocol(cuda: FakeCuda) -> Cuda:
    """mypy holds the fake against what is used."""
    return cuda


@pytest.mark.gpu
def test_a_pool_outlives_its_last_graph_on_a_gpu() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    pool = GraphPool(Gpu(device))
    for _ in range(3):
        given = torch.arange(3.0, device=device)
        attempt = pool.capture(lambda given=given: given * 2)  # type: ignore[misc]
        assert attempt.error is None and attempt.graph is not None and attempt.out is not None
        given.fill_(4.0)
        attempt.graph.replay()
        assert attempt.out.tolist() == [8.0, 8.0, 8.0]
        del attempt
        gc.collect()


@pytest.mark.gpu
def test_a_failed_capture_harms_nothing_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    pool = GraphPool(Gpu(device))
    before = torch.cuda.current_stream(device)
    given = torch.ones(3, device=device)
    assert pool.capture(lambda: given * given.sum().item()).graph is None
    assert torch.cuda.current_stream(device) == before and not Gpu(device).lost()
    assert pool.capture(lambda: given * 2).error is None


@pytest.mark.gpu
def test_a_clock_on_a_gpu_waits_for_the_work() -> None:
    gpu = Gpu(torch.device("cuda", 0))
    big = torch.ones(4096, 4096, device=gpu.device)
    clock = EventClock(gpu)
    for _ in range(20):
        big = big @ big
    clock.stop()
    launched = WallClock()
    launched.stop()
    assert clock.us() > launched.us()
