from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from kernels.bias_act import Activation, bias_act

NAMES = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"gain": 1.7, "clamp": 0.8}, {"gain": -0.5}])
def test_bias_act_is_twice_differentiable(name: str, options: dict[str, float]) -> None:
    # away from zero, and from where the clamp begins, there is no kink
    x = torch.tensor([[-2.1, -0.3, 0.2, 3.0], [0.25, -1.7, 2.2, -0.15]], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([0.01, -0.02, 0.03, 0.04], dtype=torch.float64, requires_grad=True)
    activation = Activation(name, **options)
    assert gradcheck(lambda x, b: bias_act(x, b, activation), (x, bias))
    assert gradgradcheck(lambda x, b: bias_act(x, b, activation), (x, bias))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gain", [None, 0.0, -2.0, 3.0])
def test_bias_act_gives_the_same_without_autograd(name: str, gain: float | None) -> None:
    x, bias = torch.randn(3, 5, 4, 2), torch.randn(5)
    activation = Activation(name, gain=gain, clamp=1.0)
    kept = x.clone()
    with torch.no_grad():
        fast = [bias_act(x, b, activation) for b in (bias, None)]
    assert torch.equal(x, kept), "the input was overwritten"
    torch.testing.assert_close(fast, [bias_act(x, b, activation) for b in (bias, None)])


@pytest.mark.parametrize("gain", [-2.0, 0.0, 3.0])
def test_bias_act_gain_comes_after_the_activation(gain: float) -> None:
    x = torch.tensor([[-1.0, 2.0]])
    want = torch.tensor([[-0.2 * gain, 2.0 * gain]])
    torch.testing.assert_close(bias_act(x, torch.zeros(2), Activation("lrelu", gain=gain)), want)


def test_bias_act_takes_any_layout() -> None:
    x, bias = torch.randn(3, 5, 4, 2), torch.randn(4)
    want = bias_act(x, bias, Activation("lrelu"), dim=2)
    for other in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        torch.testing.assert_close(bias_act(other, bias, Activation("lrelu"), dim=2), want)


def test_bias_act_names_a_wrong_bias() -> None:
    with pytest.raises(ValueError, match=r"bias of shape \[4\] for x of shape \[2, 3\]; allowed is \[3\]"):
        bias_act(torch.zeros(2, 3), torch.zeros(4))


def test_activation_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown activation 'leaky_relu'\. Did you mean 'lrelu'\? Allowed: elu, "):
        Activation("leaky_relu")


def test_activation_refuses_options_without_effect() -> None:
    with pytest.raises(ValueError, match="only 'lrelu' has one"):
        Activation("relu", alpha=0.1)
    with pytest.raises(ValueError, match=r"clamp -1\.0; allowed is 0 or more"):
        Activation("relu", clamp=-1.0)
