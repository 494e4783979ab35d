from __future__ import annotations

import pytest
import torch
from torch import nn

from draft.packed import FEW_ROWS, Int8Linear, can_pack, pack_linears, round_rows


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.bfloat16), reason="this torch has no int8 kernel")
@pytest.mark.parametrize("rows", [1, 8, FEW_ROWS, FEW_ROWS + 1, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_computes_what_its_rounded_weights_would(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    model = nn.Sequential(nn.Linear(64, 192, bias=bias), nn.Sequential(nn.Linear(192, 37, bias=False)))
    model.requires_grad_(False)
    exact = [m.weight.clone() for m in model.modules() if isinstance(m, nn.Linear)]
    for linear, weight in zip([model[0], model[1][0]], exact, strict=True):
        packed, scale = round_rows(weight)
        linear.weight.copy_(packed.float() * scale[:, None])
    x = torch.randn(2, rows, 64) if rows < FEW_ROWS // 2 else torch.randn(1, rows, 64)
    expected = model(x)
    model.to(torch.bfloat16)
    assert pack_linears(model) == 2
    found = model(x.to(torch.bfloat16))
    assert found.shape == expected.shape
    assert float((found.float() - expected).abs().max()) < 0.02 * float(expected.abs().max()) + 0.02


def test_rows_that_were_rounded_stay_as_they_are() -> None:
    packed, scale = round_rows(torch.randn(9, 40))
    again, same = round_rows(packed.float() * scale[:, None])
    assert torch.equal(again, packed) and torch.allclose(same, scale)
    assert not can_pack(torch.device("cuda"), torch.bfloat16)
    assert not can_pack(torch.device("cpu"), torch.float32)


def test_a_size_that_the_kernel_would_overrun_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(40, 9))
    assert pack_linears(model) == 0 and isinstance(model[0], nn.Linear)
    with pytest.raises(ValueError, match="steps of 64"):
        Int8Linear(*round_rows(torch.randn(9, 40)))
