from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.bias_act import Activation
from kernels.dispatch import use
from kernels.modulated_conv import Epilogue, ModulatedConv
from kernels.synthesis_chain import StyledBlock, StyledConv, is_chained, synthesis_chain
from kernels.upfirdn2d import setup_filter


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def styled() -> StyledConv:
    epilogue = Epilogue(bias=draw(5), activation=Activation("lrelu"), scale=draw(2, 5))
    return StyledConv(draw(5, 3, 3, 3), draw(2, 3), ModulatedConv(padding=1, demodulate=False), epilogue)


def test_widened_convolution_has_channels_of_zeros_after_its_own() -> None:
    layer, x = styled(), draw(2, 3, 4, 6)
    with torch.no_grad():
        y = layer.widened(8, 16)(torch.cat([x, torch.zeros(2, 5, 4, 6)], 1))
        torch.testing.assert_close(y[:, :5], layer(x))
    assert y.shape[1] == 16
    assert not y[:, 5:].any()


def test_widened_convolution_keeps_its_weight_until_that_changes() -> None:
    layer = styled()
    first = layer.widened(8, 8).weight
    assert layer.widened(8, 8).weight is first
    layer.weight.mul_(2)
    torch.testing.assert_close(layer.widened(8, 8).weight, 2 * first)
    assert layer.widened(3, 5) is layer
    without_bias = replace(layer, epilogue=Epilogue())
    assert without_bias.widened(8, 8).epilogue.bias is None


def test_no_chain_runs_where_gradients_or_the_reference_are_asked_for() -> None:
    ws, fir = torch.zeros(1, 2, 4), setup_filter([1, 3, 3, 1])
    assert not is_chained(ws, fir)
    for implementation in ("auto", "reference", "naive"):
        with torch.no_grad(), use(implementation):
            assert not is_chained(ws, fir)


def test_chain_names_what_it_does_not_take() -> None:
    x, layer = draw(2, 3, 4, 6), styled()
    with pytest.raises(ValueError, match="without demodulation, or with a scale"):
        synthesis_chain(x, [StyledBlock([layer], None, torch.float32)])
    layer = replace(layer, conv=ModulatedConv(padding=1), epilogue=Epilogue())
    with pytest.raises(ValueError, match="no block makes an image"):
        synthesis_chain(x, [StyledBlock([layer], None, torch.float32)])
