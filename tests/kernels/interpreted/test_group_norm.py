from __future__ import annotations

import pytest
import torch

from kernels.group_norm import GroupNorm, group_norm
from tests.kernels.interpreted.agreement import DTYPES, TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (3, 68, 9, 8)], ids=str)
def test_group_norm_of_known_moments_agrees(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    normal = torch.Generator().manual_seed(5)
    x = (torch.randn(shape, generator=normal) + 30).to(dtype).to(memory_format=torch.channels_last)
    weight, bias = (torch.randn(shape[1], generator=normal) for _ in range(2))
    exact = x.double()
    moments = torch.stack([exact.mean((2, 3)), exact.var((2, 3), correction=0)]).float()
    y = group_norm(x, GroupNorm(4, weight, bias, 1e-5), moments)
    want = torch.nn.functional.group_norm(exact, 4, weight.double(), bias.double(), 1e-5)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (y.double() - want).norm() / want.norm() < TOLERANCE[dtype]


def test_group_norm_of_nothing_is_nothing() -> None:
    norm = GroupNorm(2, torch.ones(4), torch.zeros(4), 1e-5)
    assert group_norm(torch.ones(0, 4, 3, 3), norm, torch.zeros(2, 0, 4)).shape == (0, 4, 3, 3)
