#!/usr/bin/env bash
# triton 3.9.0, torch 2.13.0, numpy 2, on a CPU with TRITON_INTERPRET=1, seen on 2026-11-28.
#
# Under the interpreter `tl.dot` of two bfloat16 tiles multiplies their bit patterns as whole numbers: the product of two
# unit matrices has 264257536 (0x3F80 squared, 0x3F80 being the pattern of 1.0) on its diagonal. float16 and float32 tiles
# give 1.0. No warning is given.
#
# A good guess: the interpreter, which is how kernels are debugged and tested without a GPU, computes what the kernel
# means, for every type that the language has; where it cannot, it says so. NumPy has no bfloat16, which is where the
# patterns come from.
#
# Whom it hurts: whoever holds bfloat16 kernels (most kernels of language models) against a reference in CI on machines
# without GPUs. They look wrong though they are right; one that only compares two paths through the interpreter looks
# right whatever it does. Casting tiles to float32 before the product gives true values.
#
# Output seen:
#   float16 1.0
#   bfloat16 264257536.0
#   bfloat16 tiles cast to float32 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 triton==3.9.0 numpy setuptools
cat > "$folder/unit.py" <<'PY'
import torch
import triton
import triton.language as tl


@triton.jit
def dot(a, b, c, WIDEN: tl.constexpr):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    if WIDEN:
        x, y = x.to(tl.float32), y.to(tl.float32)
    tl.store(c + at, tl.dot(x, y))


def first(kind: torch.dtype, widen: bool = False) -> float:
    unit, out = torch.eye(16, dtype=kind), torch.empty(16, 16)
    dot[(1,)](unit, unit, out, WIDEN=widen)
    return out[0, 0].item()


found = [first(torch.float16), first(torch.bfloat16), first(torch.bfloat16, True)]
for name, value in zip(("float16", "bfloat16", "bfloat16 tiles cast to float32"), found, strict=True):
    print(name, value)
assert found == [1.0, float(0x3F80**2), 1.0], "the interpreter has changed"
PY
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/unit.py" 2>/dev/null
