"""The compiled kernels: found beside this file, called through ctypes, optional.

`pip install` builds them where there is a C++ compiler and goes on without them where there is none (the extension is
declared optional); then `library()` is None and weights are expanded when they are loaded. They are plain C functions
over buffers and know nothing of Python, so calls run without the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.events import Notice, Report

VERSION = 11
"""Of the interface and the packed layout; a library that says another is not used."""
ISAS = ("plain", "avx2", "avx512-vnni", "avx512-bf16", "amx")
"""Instruction sets by number. All give the same bits."""

AMX = ISAS.index("amx")


_MOST_KEPT = 16 << 20
"""Numbers of a scratch that a thread keeps."""
_AS_USUAL = 1000
"""Added to the number of a plain type: the matrix lies as usual, not in panels."""


@dataclass(frozen=True, eq=False)
class Operand:
    """One matrix of a call: ggml's number of its type, its panels (uint8), its rows, and a float32 bias or None."""

    kind: int
    packed: torch.Tensor
    out_features: int
    bias: torch.Tensor | None


class Library:
    """The functions of the shared library, with tensors for pointers. Tensors are contiguous and on the CPU."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lib = lib = ctypes.CDLL(str(path))
        pointer, whole, wide = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        lib.swarm_quant_bytes.restype = wide
        lib.swarm_quant_bytes.argtypes = [whole, wide, wide]
        lib.swarm_quant_pack.argtypes = [whole, pointer, pointer, wide, wide, pointer, wide, wide, whole]
        lib.swarm_quant_numbers.argtypes = [whole, pointer, wide, pointer, wide, pointer, whole]
        lib.swarm_quant_products.argtypes = [whole, pointer, wide, wide, pointer, wide, whole, whole, pointer]
        lib.swarm_quant_grouped.argtypes = [
            whole, pointer, wide, wide, pointer, wide, pointer, wide, whole, whole, pointer
        ]  # fmt: skip
        lib.swarm_layer_before.argtypes = [whole, *[pointer] * 2, wide, *[pointer] * 5, whole, whole, pointer]
        lib.swarm_layer_after.argtypes = [whole, *[pointer] * 3, wide, pointer, whole, whole, pointer]
        lib.swarm_layers_whole.argtypes = [
            whole, pointer, wide, pointer, wide, *[pointer] * 4, wide, pointer, whole, whole, pointer
        ]  # fmt: skip
        lib.swarm_batched.argtypes = [whole, pointer, *[wide] * 4, *[whole] * 3, pointer]
        lib.swarm_attend.argtypes = [whole, pointer, pointer, wide, whole, whole, pointer]
        lib.swarm_rule.argtypes = lib.swarm_scan.argtypes = [whole, pointer, pointer, whole, pointer]
        self.version = int(lib.swarm_quant_version())
        self.best_isa = int(lib.swarm_quant_isa())
        self.set_aside = ""  # why a better one is not used (trial.py)
        self._local = threading.local()
        self._gomp = _openmp()

    @property
    def threads(self) -> int:
        """Threads that a call of this thread uses: those of torch, or all of them within `undivided`."""
        return getattr(self._local, "threads", 0) or torch.get_num_threads()

    @contextlib.contextmanager
    def undivided(self) -> Iterator[None]:
        """Leave the processors to the kernels: torch works with one thread meanwhile. For passes of few rows, whose
        products are all that is worth dividing. The kernels then have helpers of their own, who are not waited for
        when other programs hold the processors; torch's would look out for work on the processors that those need.
        Without this, products are divided among torch's."""
        threads = self.threads
        if threads == 1:
            yield
            return
        self._local.threads = threads
        torch.set_num_threads(1)
        try:
            yield
        finally:
            self._local.threads = 0
            torch.set_num_threads(threads)

    def packed_bytes(self, kind: int, rows: int, columns: int) -> int:
        """Bytes of a packed matrix [rows, columns]; 0 where ggml's type `kind` or the shape has no kernel."""
        return int(self._lib.swarm_quant_bytes(kind, rows, columns))

    def pack(
        self,
        kind: int,
        stored: int,
        order: torch.Tensor | None,
        shape: tuple[int, int],
        packed: torch.Tensor,
        some: range | None = None,
    ) -> None:
        """Bring stored blocks (at the address `stored`) of a matrix into panels. order: int32 [rows], the stored row of
        each. some: these rows alone, from a multiple of 16 to another or the last; the first ones first."""
        where = 0 if order is None else order.data_ptr()
        some = range(shape[0]) if some is None else some
        places = (stored, where, *shape, packed.data_ptr(), some.start, some.stop)
        self._check(self._lib.swarm_quant_pack(kind, *places, self.threads))

    def numbers(self, kind: int, packed: torch.Tensor, columns: int, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Rows (int64 [n], within the matrix) as float32 into `out` [n, columns]: what `gguf.dequantize` gives."""
        self._check(
            self._lib.swarm_quant_numbers(
                kind, packed.data_ptr(), columns, rows.data_ptr(), len(rows), out.data_ptr(), self.threads
            )
        )

    def product(
        self,
        kind: int,
        packed: torch.Tensor,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        isa: int | None = None,
    ) -> None:
        """out [n, rows] = x [n, columns] W^T + bias. x and out both float32 or both bfloat16, bias float32. isa:
        another instruction set than the best."""
        self._products([Operand(kind, packed, out.shape[1], bias)], x, [out], self.best_isa if isa is None else isa)

    def products(self, operands: Sequence[Operand], x: torch.Tensor, isa: int | None = None) -> list[torch.Tensor]:
        """x [n, columns] times each of up to eight matrices of the same columns, in one call: [n, out_features] each,
        of the dtype of x, which is float32 or bfloat16. The same bits as one by one. isa: another instruction set than
        the best."""
        outs = [x.new_empty(x.shape[0], operand.out_features) for operand in operands]
        self._products(operands, x, outs, self.best_isa if isa is None else isa)
        return outs

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [n, columns] times weight [out_features, columns] as it lies, both float32 or both bfloat16 (columns then
        even), bias float32: [n, out_features]. The bits that a product with the packed matrix has."""
        kind = _AS_USUAL + (30 if weight.dtype == torch.bfloat16 else 0)
        return self.products([Operand(kind, weight.contiguous(), weight.shape[0], bias)], x)[0]

    def batched(self, x: torch.Tensor, matrices: NDArray[np.int64], outs: int, usual: bool) -> torch.Tensor:
        """x [n, rows, columns], contiguous, times n matrices [outs, columns] of the same dtype at these addresses, as
        they lie (`usual`) or in panels: [n, rows, outs], with the bits of `linear`. ValueError where bfloat16 has odd
        columns."""
        many, rows, columns = x.shape
        out = x.new_empty(many, rows, outs)
        table = np.empty((many, 3), np.int64)
        table[:, 0] = x.data_ptr() + np.arange(many) * (rows * columns * x.itemsize)
        table[:, 1] = matrices
        table[:, 2] = out.data_ptr() + np.arange(many) * (rows * outs * x.itemsize)
        crew = self._crew(x.dtype)
        if many and rows:
            self._check(
                self._lib.swarm_batched(self.best_isa, table.ctypes.data, many, columns, rows, outs, usual, *crew)
            )
        return out

    def scratch(self, numbers: int) -> torch.Tensor:
        """float32 [numbers] for what a call is given: this thread's own memory, which the next asker overwrites. To
        get fresh pages costs several times what it costs to fill them."""
        kept: torch.Tensor | None = getattr(self._local, "scratch", None)
        if kept is None or len(kept) < numbers:
            with torch.inference_mode(False):  # else nobody could write to it outside of that mode
                kept = torch.empty(numbers)
            if numbers <= _MOST_KEPT:
                self._local.scratch = kept
        return kept[:numbers]

    def _products(self, operands: Sequence[Operand], x: torch.Tensor, outs: Sequence[torch.Tensor], isa: int) -> None:
        words: list[int] = []
        for operand, out in zip(operands, outs, strict=True):
            bias = 0 if operand.bias is None else operand.bias.data_ptr()
            words += (operand.packed.data_ptr(), bias, out.data_ptr(), operand.out_features, operand.kind)
        items = (ctypes.c_int64 * len(words))(*words)
        self._check(
            self._lib.swarm_quant_products(
                isa, items, len(operands), x.shape[1], x.data_ptr(), x.shape[0], *self._crew(x.dtype)
            )
        )

    def grouped(self, parts: NDArray[np.int64], x: torch.Tensor, picks: NDArray[np.int64] | None, picked: int) -> None:
        """Matrices that multiply some of the rows each: experts. The same bits as `products`.

        parts: [n, 8], the kernels' `struct Part`: addresses of panels, bias (or 0) and results, then rows of the
        matrix, ggml's number of its type, numbers from one line of results to the next, and which of the `picked` rows
        it multiplies: the first, how many. picks: the row of x [n, columns] that each of them is; None: they are x.
        """
        where = 0 if picks is None else picks.ctypes.data
        self._check(
            self._lib.swarm_quant_grouped(
                self.best_isa, parts.ctypes.data, len(parts), x.shape[1], x.data_ptr(), x.shape[0], where, picked,
                *self._crew(x.dtype),
            )
        )  # fmt: skip

    def layer_before(
        self,
        layer: bytes,
        x: torch.Tensor,
        rows: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        isa: int | None = None,
    ) -> None:
        """What stands before attention in a decoder layer (native/layer.h; `layer`: its struct Layer).

        x [rows, hidden], cos and sin [rows, dim]; fills query, key and value. All bfloat16 or all float32.
        """
        places = [tensor.data_ptr() for tensor in (cos, sin, query, key, value)]
        isa = self.best_isa if isa is None else isa
        self._check(self._lib.swarm_layer_before(isa, layer, x.data_ptr(), rows, *places, *self._crew(x.dtype)))

    def layer_after(
        self,
        layer: bytes,
        x: torch.Tensor,
        seen: torch.Tensor,
        rows: int,
        out: torch.Tensor,
        isa: int | None = None,
    ) -> None:
        """What stands behind attention. seen: what it gave, [rows, heads * dim]; fills out [rows, hidden]."""
        isa = self.best_isa if isa is None else isa
        places = (x.data_ptr(), seen.data_ptr(), rows, out.data_ptr())
        self._check(self._lib.swarm_layer_after(isa, layer, *places, *self._crew(x.dtype)))

    def layers_whole(
        self,
        layers: bytes,
        x: torch.Tensor,
        rows: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        calls: bytes,
        jobs: NDArray[np.int64],
        outs: Sequence[torch.Tensor],
    ) -> None:
        """Layers that follow each other, whole: of each `layer_before`, `attend` and `layer_after`, the same bits.

        layers: of each the struct Layer; calls: of each the struct AttendCall, of which scale, cap and sinks count.
        jobs: int64 [layers, sessions, 15], contiguous, the struct AttendJob of each; no session is there twice, and
        their rows are all the rows. Fills outs, what each layer gives: [rows, hidden]. Raises ValueError for heads that
        it cannot divide.
        """
        places = (x.data_ptr(), rows, cos.data_ptr(), sin.data_ptr())
        given = (calls, jobs.ctypes.data, jobs.shape[1])
        to = (ctypes.c_int64 * len(outs))(*[out.data_ptr() for out in outs])
        self._check(
            self._lib.swarm_layers_whole(self.best_isa, layers, len(outs), *places, *given, to, *self._crew(x.dtype))
        )

    def attend(self, call: bytes, jobs: bytes, many: int, dtype: torch.dtype) -> None:
        """Attention over slots (native/attend.h) of `many` sessions. call: its struct AttendCall; jobs: their struct
        AttendJob. Raises ValueError for heads that it cannot divide."""
        self._check(self._lib.swarm_attend(self.best_isa, call, jobs, many, *self._crew(dtype)))

    def rule(self, call: bytes, rows: bytes) -> None:
        """Rows of a session through a rule (native/states.h). call: its struct RuleCall; rows: its struct StateRows.
        Raises ValueError for heads that it cannot divide."""
        self._check(self._lib.swarm_rule(self.best_isa, call, rows, *self._crew(torch.float32)[1:]))

    def scan(self, call: bytes, rows: bytes) -> None:
        """Rows of a session through a scan. call: the struct ScanCall; rows: the struct StateRows."""
        self._check(self._lib.swarm_scan(self.best_isa, call, rows, *self._crew(torch.float32)[1:]))

    def _crew(self, dtype: torch.dtype) -> tuple[bool, int, int | None]:
        """Whether numbers are bfloat16, how many threads, and whose: None for the kernels' own helpers."""
        own = getattr(self._local, "threads", 0)
        return dtype == torch.bfloat16, self.threads, None if own else self._gomp

    @staticmethod
    def _check(code: int) -> None:
        if code == -2:
            raise MemoryError("no memory for rounded rows")
        if code:
            raise ValueError("a format or a shape without a kernel")


def library() -> Library | None:
    """The kernels of this installation; None where there are none to use, and `why_none` says why."""
    return _found()[0]


def why_none() -> str:
    """What keeps this installation from having kernels, and what to do; "" where it has them."""
    return _found()[1]


def warn_of_none(report: Report) -> None:
    """Say so where this process computes without them: nothing else about it looks wrong."""
    if why := why_none():
        said = "computing without compiled kernels, which takes longer, holds 4-bit weights expanded and is not exact"
        report(Notice(f"{said}: {why}", "warning"))


INSTALL = "install wanswarm again where there is a C++ compiler (pip install --force-reinstall --no-deps)"


@functools.cache
def _found() -> tuple[Library | None, str]:
    path = next((path for suffix in EXTENSION_SUFFIXES if (path := _built(suffix)).is_file()), None)
    if path is None:
        return None, f"none were built when this was installed: {INSTALL}"
    try:
        found = Library(path)
    except (OSError, AttributeError) as error:  # built for another machine, or before a function was added
        return None, f"{path.name} cannot be used here ({error}): {INSTALL}"
    if found.version != VERSION:
        return None, f"{path.name} has interface {found.version}, this version of wanswarm needs {VERSION}: {INSTALL}"
    if found.best_isa == AMX:  # late: the trial multiplies with this module
        from swarm.model.quant.trial import choose_isa

        choose_isa(found)
    return found, ""


def _built(suffix: str) -> Path:
    return Path(__file__).with_name("_kernels" + suffix)


def _openmp() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that torch computes with, so that both share its threads; None
    where it cannot be found."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for path in dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6):
        if path.rpartition("/")[2].startswith(("libgomp", "libiomp5", "libomp")):
            try:
                return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
            except (OSError, AttributeError):
                continue
    return None
