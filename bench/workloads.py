"""What the gate times: each kernel at sizes of real layers, and whether its outputs are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.kernel_speed.ceilings import torch_dtype
from bench.verify import VerificationError
from kernels.costs import LayerShape
from kernels.registry import KERNELS

GRADIENT_SLACK = 10.0  # sums over all pixels whose terms cancel in part: those of styles lose a digit
FLOAT32_ONLY = frozenset({"demodulation"})  # as generators run it


@dataclass(frozen=True, slots=True)
class Workload:
    """One kernel at one size; `backward` adds the gradients of all inputs to the time."""

    kernel: str
    shape: LayerShape
    dtype: str = "float32"
    backward: bool = False

    @property
    def title(self) -> str:
        """The size, such as "2x32->16 @64 up2 float16 backward"."""
        s = self.shape
        factors = [f"{name}{factor}" for name, factor in (("up", s.up), ("down", s.down)) if factor > 1]
        words = [f"{s.batch}x{s.in_channels}->{s.out_channels}", f"@{s.height}", *factors, self.dtype]
        return " ".join([*words, "backward"] if self.backward else words)


# a call takes a tenth of a millisecond or two, so that other work on the machine seldom cuts into it
CPU_SHAPES: dict[str, tuple[LayerShape, ...]] = {
    "modulated_conv2d": (LayerShape(2, 32, 32, 16, 16), LayerShape(2, 16, 16, 8, 8, up=2)),
    "demodulation": (LayerShape(4, 128, 128, 1, 1),),
    "conv2d_resample": (LayerShape(2, 16, 16, 32, 32, down=2),),
    "upfirdn2d": (LayerShape(2, 16, 16, 32, 32, up=2), LayerShape(2, 16, 16, 64, 64, down=2)),
    "filtered_lrelu": (LayerShape(1, 8, 8, 16, 16, up=2, down=2),),
    "bias_act": (LayerShape(2, 64, 64, 32, 32),),
    "minibatch_std": (LayerShape(4, 64, 65, 8, 8),),
}
CUDA_SHAPES: dict[str, tuple[LayerShape, ...]] = {
    "modulated_conv2d": (
        LayerShape(16, 512, 512, 16, 16),
        LayerShape(16, 512, 512, 32, 32),
        LayerShape(16, 64, 64, 256, 256),
        LayerShape(16, 64, 3, 256, 256, kernel=1),
        LayerShape(16, 128, 64, 128, 128, up=2),
    ),
    "demodulation": (LayerShape(16, 512, 512, 1, 1),),
    "conv2d_resample": (LayerShape(16, 64, 128, 256, 256, down=2),),
    "upfirdn2d": (LayerShape(16, 64, 64, 128, 128, up=2), LayerShape(16, 64, 64, 256, 256, down=2)),
    "filtered_lrelu": (
        LayerShape(4, 256, 256, 148, 148, up=2, down=2),
        LayerShape(4, 128, 128, 148, 148, up=4, down=2),
    ),
    "bias_act": (LayerShape(16, 64, 64, 256, 256),),
    "minibatch_std": (LayerShape(64, 512, 513, 4, 4),),
}
INPUTS = {
    "modulated_conv2d": ("x", "weight", "styles", "noise", "bias"),
    "demodulation": ("weight", "styles"),
    "conv2d_resample": ("x", "weight"),
    "upfirdn2d": ("x",),
    "filtered_lrelu": ("x", "bias"),
    "bias_act": ("x", "bias"),
    "minibatch_std": ("x",),
}


def workloads(device_type: str) -> tuple[Workload, ...]:
    """All that is timed on "cpu" or "cuda", forward and backward."""
    shapes, dtypes = (CUDA_SHAPES, ("float16", "float32")) if device_type == "cuda" else (CPU_SHAPES, ("float32",))
    return tuple(
        Workload(kernel, shape, dtype, backward)
        for kernel, sizes in shapes.items()
        for shape in sizes
        for dtype in dtypes
        for backward in (False, True)
        if dtype == "float32" or kernel not in FLOAT32_ONLY
    )


def draw(workload: Workload, device: torch.device) -> dict[str, Tensor]:
    """The kernel's inputs by name, images in channels_last; the same at each call."""
    s, generator = workload.shape, torch.Generator().manual_seed(0)
    sizes = {
        "x": (s.batch, s.in_channels, s.height, s.width),
        "weight": (s.out_channels, s.in_channels, s.kernel, s.kernel),
        "styles": (s.batch, s.in_channels),
        "noise": (s.height * s.up // s.down, s.width * s.up // s.down),
        "bias": (s.in_channels if "weight" not in INPUTS[workload.kernel] else s.out_channels,),
    }
    dtype = torch_dtype(workload.dtype)
    tensors = {name: torch.randn(sizes[name], generator=generator) for name in INPUTS[workload.kernel]}
    if "styles" in tensors:
        tensors["styles"] += 1  # as trained networks have them
    if "x" in tensors:
        tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last)
    return {name: tensor.to(device, dtype) for name, tensor in tensors.items()}


def check(workload: Workload, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise `VerificationError` unless the output and all gradients are what float64 gives, within the tolerance."""
    tolerance = KERNELS[workload.kernel].tolerance[workload.dtype]
    names = ["the output", *(f"the gradient of {name}" for name in INPUTS[workload.kernel])]
    for name, out, exact in zip(names, outputs, expected, strict=False):
        if out.shape != exact.shape:
            raise VerificationError(f"{name} is {list(out.shape)}; expected is {list(exact.shape)}")
        allowed = tolerance if name == "the output" else GRADIENT_SLACK * tolerance
        error = float((out.double() - exact).norm() / exact.norm())
        if not error <= allowed:
            raise VerificationError(f"{name} differs from float64 by {error:.1e}; allowed is {allowed:.0e}")
