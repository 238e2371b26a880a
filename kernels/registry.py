"""All kernels, in one explicit dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kernels import costs
from kernels.costs import LayerShape


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """What there is of one kernel; targets are "module:function" and are imported when first called.

    `naive` is the formulation that speed-ups divide by; None where it is the reference. `is_proven` says that a GPU
    has held the Triton kernel against the reference; "auto" leaves it alone until then, and it runs when asked by name.
    `tolerance` bounds `||out - ref|| / ||ref||` against the float64 reference, by dtype name. `cases` are small
    sizes for tests. `flops(shape)` and `bytes_moved(shape, element_size)` are the least that the work needs.
    """

    name: str
    summary: str
    reference: str
    triton: str | None
    tolerance: Mapping[str, float]
    cases: tuple[LayerShape, ...]
    flops: Callable[[LayerShape], int]
    bytes_moved: Callable[[LayerShape, int], int]
    naive: str | None = None
    is_proven: bool = False


_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
_CONV_CASES = (
    LayerShape(2, 8, 16, 8, 8),
    LayerShape(3, 5, 7, 13, 11),
    LayerShape(2, 6, 3, 16, 16, kernel=1),
    LayerShape(2, 8, 4, 5, 9, up=2),
    LayerShape(2, 4, 8, 12, 10, down=2),
)

KERNELS: dict[str, KernelSpec] = {
    "modulated_conv2d": KernelSpec(
        name="modulated_conv2d",
        summary="modulation, convolution, demodulation, noise, bias and activation of a StyleGAN2 layer",
        reference="kernels.modulated_conv:modulated_conv2d_reference",
        triton="kernels.modulated_conv_triton:modulated_conv2d_triton",
        tolerance={"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2},
        cases=_CONV_CASES,
        flops=costs.modulated_conv_flops,
        bytes_moved=costs.modulated_conv_bytes,
        naive="kernels.modulated_conv:modulated_conv2d_grouped",
    ),
    "demodulation": KernelSpec(
        name="demodulation",
        summary="factors that give each output channel of a modulated convolution unit weight norm",
        reference="kernels.demodulation:demodulation_reference",
        triton="kernels.demodulation_triton:demodulation_triton",
        tolerance=_TOLERANCE,
        cases=_CONV_CASES[:3],
        flops=costs.demodulation_flops,
        bytes_moved=costs.demodulation_bytes,
        naive="kernels.demodulation:demodulation_naive",
    ),
    "conv2d_resample": KernelSpec(
        name="conv2d_resample",
        summary="convolution with FIR-filtered up- or downsampling",
        reference="kernels.conv2d_resample:conv2d_resample_reference",
        naive="kernels.conv2d_resample:conv2d_resample_naive",
        triton="kernels.conv2d_resample_triton:conv2d_resample_triton",
        tolerance=_TOLERANCE,
        cases=_CONV_CASES,
        flops=costs.conv_flops,
        bytes_moved=costs.conv_bytes,
    ),
    "upfirdn2d": KernelSpec(
        name="upfirdn2d",
        summary="zero-stuffing, padding, FIR filter and decimation of every channel",
        reference="kernels.upfirdn2d:upfirdn2d_reference",
        triton="kernels.upfirdn2d_triton:upfirdn2d_triton",
        tolerance=_TOLERANCE,
        cases=(LayerShape(2, 3, 3, 9, 7, up=2), LayerShape(3, 4, 4, 10, 8, down=2), LayerShape(1, 5, 5, 8, 8)),
        flops=costs.fir_flops,
        bytes_moved=costs.pointwise_bytes,
        naive="kernels.upfirdn2d:upfirdn2d_naive",
    ),
    "filtered_lrelu": KernelSpec(
        name="filtered_lrelu",
        summary="bias, upsampling, leaky ReLU and downsampling of a StyleGAN3 layer",
        reference="kernels.filtered_lrelu:filtered_lrelu_reference",
        triton="kernels.filtered_lrelu_triton:filtered_lrelu_triton",
        tolerance=_TOLERANCE,
        cases=(
            LayerShape(2, 3, 3, 9, 7, up=2, down=2),
            LayerShape(1, 5, 5, 8, 10, up=4, down=2),
            LayerShape(2, 4, 4, 10, 12, up=2, down=4),
            LayerShape(2, 4, 4, 6, 6),
        ),
        flops=costs.filtered_lrelu_flops,
        bytes_moved=costs.pointwise_bytes,
        naive="kernels.filtered_lrelu:filtered_lrelu_naive",
    ),
    "bias_act": KernelSpec(
        name="bias_act",
        summary="bias, activation, gain and clamp",
        reference="kernels.bias_act:bias_act_reference",
        triton="kernels.bias_act_triton:bias_act_triton",
        tolerance=_TOLERANCE,
        cases=(LayerShape(2, 5, 5, 7, 3), LayerShape(1, 16, 16, 8, 8)),
        flops=costs.pointwise_flops,
        bytes_moved=costs.pointwise_bytes,
    ),
    "minibatch_std": KernelSpec(
        name="minibatch_std",
        summary="standard deviation over groups of samples, appended as channels",
        reference="kernels.minibatch_std:minibatch_std_reference",
        triton=None,
        tolerance=_TOLERANCE,
        cases=(LayerShape(4, 6, 7, 4, 4), LayerShape(8, 4, 5, 4, 4)),
        flops=costs.minibatch_std_flops,
        bytes_moved=costs.pointwise_bytes,
    ),
}
