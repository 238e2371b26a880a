"""How each kernel is called, for code that runs several versions of `kernels` side by side.

The gate executes this file once for every version, while `kernels` names that version. So it imports nothing of
`bench` or `models`, and each kernel only where it is bound: another version may lack some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Call = Callable[[], Tensor]
TAPS_PER_FACTOR = 6  # of StyleGAN3's filters


def bind(workload: Any, inputs: Inputs, implementation: str = "auto") -> Callable[[], list[Tensor]]:
    """A call of a `bench.workloads.Workload` that returns the output.

    With `backward` the gradients of half the output's squared norm follow, in the order of the inputs, divided by the
    square root of the pixels: sums over all of them then stay within float16.
    """
    from kernels.dispatch import use

    leaves = {name: tensor.detach().requires_grad_(workload.backward) for name, tensor in inputs.items()}
    run = CALLS[workload.kernel](workload.shape, leaves)

    def call() -> list[Tensor]:
        with use(implementation), torch.set_grad_enabled(workload.backward):  # type: ignore[arg-type]
            out = run()
            if not workload.backward:
                return [out]
            slope = out.detach() * (out.shape[1] / out.numel()) ** 0.5
            return [out.detach(), *torch.autograd.grad(out, [*leaves.values()], slope)]

    return call


def _fir(inputs: Inputs, taps: list[float]) -> Tensor:
    from kernels.upfirdn2d import setup_filter

    return setup_filter(taps).to(inputs["x"].device)


def _activation() -> Any:
    from kernels.bias_act import Activation

    return Activation("lrelu", clamp=256.0)


def _modulated_conv2d(shape: Any, inputs: Inputs) -> Call:
    from kernels.modulated_conv import Epilogue, ModulatedConv, modulated_conv2d

    conv = ModulatedConv(shape.up, shape.down, shape.kernel // 2, demodulate=shape.kernel > 1)
    operands = inputs["x"], inputs["weight"], inputs["styles"]
    fir, epilogue = _fir(inputs, [1, 3, 3, 1]), Epilogue(inputs["noise"], inputs["bias"], _activation())
    return lambda: modulated_conv2d(*operands, conv, fir=fir, epilogue=epilogue)


def _demodulation(_: Any, inputs: Inputs) -> Call:
    from kernels.demodulation import demodulation

    return lambda: demodulation(inputs["weight"], inputs["styles"])


def _conv2d_resample(shape: Any, inputs: Inputs) -> Call:
    from kernels.conv2d_resample import ResampledConv, conv2d_resample

    fir, conv = _fir(inputs, [1, 3, 3, 1]), ResampledConv(shape.up, shape.down, shape.kernel // 2)
    return lambda: conv2d_resample(inputs["x"], inputs["weight"], fir, conv)


def _upfirdn2d(shape: Any, inputs: Inputs) -> Call:
    from kernels.upfirdn2d import Resampling, upfirdn2d

    fir, resampling = _fir(inputs, [1, 3, 3, 1]), Resampling(shape.up, shape.down, 2)
    return lambda: upfirdn2d(inputs["x"], fir, resampling)


def _filtered_lrelu(shape: Any, inputs: Inputs) -> Call:
    from kernels.filtered_lrelu import FilteredLReLU, filtered_lrelu

    up, down = (_fir(inputs, [1.0] * TAPS_PER_FACTOR * factor) for factor in (shape.up, shape.down))
    spec = FilteredLReLU(shape.up, shape.down, TAPS_PER_FACTOR * shape.up // 2, _activation())
    return lambda: filtered_lrelu(inputs["x"], inputs["bias"], up, down, spec)


def _bias_act(_: Any, inputs: Inputs) -> Call:
    from kernels.bias_act import bias_act

    activation = _activation()
    return lambda: bias_act(inputs["x"], inputs["bias"], activation)


def _minibatch_std(_: Any, inputs: Inputs) -> Call:
    from kernels.minibatch_std import minibatch_std

    return lambda: minibatch_std(inputs["x"], 4)


CALLS: dict[str, Callable[[Any, Inputs], Call]] = {
    "modulated_conv2d": _modulated_conv2d,
    "demodulation": _demodulation,
    "conv2d_resample": _conv2d_resample,
    "upfirdn2d": _upfirdn2d,
    "filtered_lrelu": _filtered_lrelu,
    "bias_act": _bias_act,
    "minibatch_std": _minibatch_std,
}
