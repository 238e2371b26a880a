from __future__ import annotations

import pytest
import torch

from kernels.group_norm import GroupNorm, group_norm


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_group_norm_keeps_its_digits_where_the_mean_is_large(memory_format: torch.memory_format) -> None:
    normal = torch.Generator().manual_seed(5)
    x = (torch.randn(2, 6, 5, 7, generator=normal) + 3000).to(memory_format=memory_format)
    weight, bias = (torch.randn(6, generator=normal) for _ in range(2))
    y = group_norm(x, GroupNorm(3, weight, bias, 1e-5))
    exact = x.double().reshape(2, 3, -1)
    unit = (exact - exact.mean(2, keepdim=True)) / (exact.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    want = unit.view(x.shape) * weight[:, None, None] + bias[:, None, None]
    assert (y - want).abs().max() < 1e-3


def test_group_norm_computes_in_the_precision_of_its_weight() -> None:
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(5)).half() * 500
    norm = GroupNorm(2, torch.ones(4), torch.zeros(4), 1e-5)
    y = group_norm(x, norm)
    assert y.dtype == torch.float16
    assert torch.allclose(y.float(), group_norm(x.float(), norm), atol=2e-3)
