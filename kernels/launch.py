"""Launching Triton kernels, and writing down what would be launched, so that it can be compiled where no GPU is.

Nothing here imports Triton: a kernel comes as what `@triton.jit` made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

ARCHITECTURES = (80, 90, 100)  # A100, H100 and H200, B200: what every kernel is compiled for ahead of time

# on which units a kernel multiplies: "any" takes the small fragments too, "warpgroup" needs the wide instructions of
# Hopper and Blackwell (wgmma, tcgen05) where the architecture has them
TensorCores = Literal["none", "any", "warpgroup"]


@dataclass(frozen=True, slots=True)
class Options:
    """How a kernel is compiled, beside its constants."""

    num_warps: int = 4
    num_stages: int = 1
    # a multiply-add rounds once; Triton's default changes between versions, and numbers and speed with it
    enable_fp_fusion: bool = True

    def keywords(self) -> dict[str, Any]:
        """The options by Triton's names."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.enable_fp_fusion,
        }


FOUR_WARPS = Options()


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of a kernel: arguments in the order of its parameters, then its constants by name."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any]
    options: Options


@dataclass(frozen=True, slots=True)
class CompileCase:
    """A configuration that is shipped: `call` runs the host code of one kernel on tensors of the device "meta".

    What it would launch is compiled ahead of time for `architectures`, so a case can't differ from what runs.
    """

    name: str  # "upfirdn2d/up2-fp16": the module without its ending, then what the case shows
    call: Callable[[], object]
    tensor_cores: TensorCores = "none"
    architectures: tuple[int, ...] = ARCHITECTURES


@dataclass(frozen=True, slots=True)
class _Recorder:
    architecture: int
    launches: list[Launch]


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def recording(architecture: int) -> Iterator[list[Launch]]:
    """Collect the launches made inside, as if for a GPU of this architecture (90: compute capability 9.0)."""
    recorder = _Recorder(architecture, [])
    token = _recorder.set(recorder)
    try:
        yield recorder.launches
    finally:
        _recorder.reset(token)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: Mapping[str, Any],
    options: Options = FOUR_WARPS,
) -> None:
    """Run a kernel on the GPU of its first tensor, or write it down under `recording`.

    `arguments` are its parameters in order, `constants` its `tl.constexpr` ones by name.
    """
    recorder = _recorder.get()
    if recorder is not None:
        recorder.launches.append(Launch(kernel, arguments, constants, options))
        return
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    # Triton launches on the current GPU, whichever its tensors are on
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        kernel[grid](*arguments, **constants, **options.keywords())


def architecture(device: torch.device) -> int:
    """The compute capability as one number (90 for 9.0), by which host code chooses a configuration."""
    recorder = _recorder.get()
    if recorder is not None:
        return recorder.architecture
    if device.type != "cuda":
        return max(ARCHITECTURES)  # the interpreter takes any configuration
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
