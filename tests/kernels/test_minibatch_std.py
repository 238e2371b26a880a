from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from kernels.minibatch_std import minibatch_std


def test_minibatch_std_of_one_sample_is_almost_zero() -> None:
    y = minibatch_std(torch.randn(1, 3, 4, 4), 4)
    torch.testing.assert_close(y[:, 3:], torch.full((1, 1, 4, 4), 1e-4))  # sqrt of the epsilon 1e-8


def test_minibatch_std_groups_are_strided() -> None:
    x = torch.randn(2, 4, 3, 3).repeat_interleave(2, dim=0)[[0, 2, 1, 3]]  # samples 0 and 2 are equal, 1 and 3 too
    std = minibatch_std(x, 2)[:, 4]
    torch.testing.assert_close(std, torch.full_like(std, 1e-4))
    assert (minibatch_std(x, None)[:, 4] > 0.1).all()


def test_minibatch_std_is_twice_differentiable() -> None:
    x = torch.randn(4, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: minibatch_std(x, 2, 2), x)
    assert gradgradcheck(lambda x: minibatch_std(x, 2, 2), x)


@pytest.mark.parametrize(("group_size", "num_channels"), [(3, 1), (2, 3)])
def test_minibatch_std_names_what_does_not_divide(group_size: int, num_channels: int) -> None:
    with pytest.raises(ValueError, match=f"batch 4 with group_size {group_size}, 4 channels with num_channels"):
        minibatch_std(torch.zeros(4, 4, 2, 2), group_size, num_channels)
