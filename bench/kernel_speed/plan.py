"""What `bench kernels` measures, the most telling rows first, so that a run that is cut has said the most."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.kernel_calls import bind
from bench.kernel_speed.ceilings import DTYPES, Ceilings, multiplying
from bench.kernel_speed.checks import GRADIENT_SLACK, TOLERANCE, LayerCase, dtypes_of, poisoned, relative_error
from bench.kernel_speed.contenders import GROUPS
from bench.kernel_speed.generators import GeneratorCase
from bench.kernel_speed.layers import LAYER_KERNELS, network_calls
from bench.verify import VerificationError
from bench.workloads import FLOAT32_ONLY, INPUTS, Workload, draw, workloads
from kernels.registry import KERNELS

NETWORKS = (
    "stylegan2-ffhq-1024",
    "stylegan3-r-ffhq-1024",
    "stylegan2-cifar10-32",
    "stylegan-t-full-512",
    "stylegan-xl-imagenet-256",
    "stylegan3-t-ffhq-1024",
    "stylegan2-ffhq-256",
)
BATCHES = (16, 4, 64, 1)
CPU_NETWORK, CPU_BATCHES = "stylegan2-ffhq-256", (4,)


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What is asked for; empty fields are what the device is measured with by default."""

    device: torch.device
    batches: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    only: str = "*"

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    @property
    def chosen_groups(self) -> tuple[str, ...]:
        """The baselines."""
        return self.groups or (GROUPS if self.on_gpu else ("grouped",))

    @property
    def chosen_dtypes(self) -> tuple[str, ...]:
        """The dtypes of the layers."""
        return self.dtypes or (("float16",) if self.on_gpu else ("float32",))


@dataclass(frozen=True, slots=True)
class CheckCase:
    """A kernel of the gate's workloads, held against float64 and not timed."""

    workload: Workload
    against: str = "float64"

    @property
    def kernel(self) -> str:
        """The name of the kernel."""
        return self.workload.kernel

    @property
    def subject(self) -> str:
        """The name of the row."""
        return f"check/{self.kernel}"

    @property
    def dtype(self) -> str:
        """The dtype, or "tf32"."""
        return self.workload.dtype

    def fields(self) -> dict[str, Any]:
        """What tells this row from others of the same kernel."""
        direction = "forward+backward" if self.workload.backward else "forward"
        return {
            "batch_size": self.workload.shape.batch,
            "dtype": self.dtype,
            "direction": direction,
            "size": self.workload.title,
        }

    def error(self, device: torch.device, implementation: str = "triton") -> float:
        """The largest relative error of output and gradients. Raises `VerificationError` beyond the tolerance."""
        inputs = draw(self.workload, device)
        with multiplying(self.dtype), poisoned():
            outputs = bind(self.workload, inputs, implementation)()
        exact = bind(self.workload, {name: tensor.double() for name, tensor in inputs.items()}, "reference")()
        names = ("the output", *(f"the gradient of {name}" for name in INPUTS[self.kernel]))
        worst = 0.0
        for i, (out, expected) in enumerate(zip(outputs, exact, strict=True)):
            error, allowed = relative_error(out, expected), TOLERANCE[self.dtype] * (GRADIENT_SLACK if i else 1)
            if not error <= allowed:
                raise VerificationError(f"{names[i]} differs from float64 by {error:.1e}; allowed is {allowed:.0e}")
            worst = max(worst, error)
        return worst


Planned = LayerCase | GeneratorCase | CheckCase


def plan(options: KernelOptions, ceilings: Ceilings) -> list[Planned]:
    """All rows, in the order in which they are measured."""
    if not options.on_gpu:
        calls = network_calls([CPU_NETWORK], ["modulated_conv2d"])
        batches = options.batches or CPU_BATCHES
        cases = [LayerCase(call, n, dtype) for n in batches for dtype in options.chosen_dtypes for call in calls]
        return [case for case in cases if fnmatch.fnmatch(case.subject, options.only)]
    layers = [
        LayerCase(call, batch, dtype, backward)
        for call in network_calls(NETWORKS, LAYER_KERNELS)
        for dtype in dtypes_of(call.kernel, options.chosen_dtypes)
        for batch in options.batches or BATCHES
        for backward in (False, True)
    ]
    generators = [GeneratorCase(name, batch) for batch in options.batches or BATCHES for name in NETWORKS]
    found: list[Planned] = [*check_cases(), *ordered(layers, generators, ceilings)]
    return [case for case in found if fnmatch.fnmatch(case.subject, options.only)]


def check_cases() -> list[CheckCase]:
    """Every kernel at the gate's sizes in every dtype that it is run in."""
    shapes = {(one.kernel, one.shape): one for one in workloads("cuda")}
    return [
        CheckCase(Workload(kernel, shape, dtype, backward))
        for kernel, shape in shapes
        for dtype in (("float32",) if kernel in FLOAT32_ONLY else DTYPES)
        for backward in (False, True)
        if KERNELS[kernel].triton is not None
    ]


def ordered(
    layers: Sequence[LayerCase], generators: Sequence[GeneratorCase], ceilings: Ceilings
) -> list[LayerCase | GeneratorCase]:
    """One layer of each kind of each network, whole generators, their backward passes, then all the rest.

    Of each kind it is the layer with the largest floor that tells most. The first batch size and dtype lead.
    """
    batches = list(dict.fromkeys([case.batch for case in layers] + [case.batch for case in generators]))
    dtypes = list(dict.fromkeys(case.dtype for case in layers))
    telling = _telling((case for case in layers if case.batch == batches[0] and not case.backward), ceilings)

    def rank(case: LayerCase | GeneratorCase) -> tuple[int, ...]:
        first = case.batch == batches[0]
        if isinstance(case, GeneratorCase):
            return (1 if first else 4, batches.index(case.batch), 0, 0)
        tells = case.call.signature in telling
        late = int(case.backward), dtypes.index(case.dtype)
        tier = (2 if case.backward else 0) if tells and first else 3 if first and not case.backward else 5
        return (tier, batches.index(case.batch), *late)

    return sorted([*layers, *generators], key=rank)


def _telling(layers: Iterable[LayerCase], ceilings: Ceilings) -> set[str]:
    largest: dict[tuple[str, str], LayerCase] = {}
    for case in layers:
        before = largest.setdefault((case.call.network, kind_of(case, ceilings)), case)
        if floor_of(case, ceilings) > floor_of(before, ceilings):
            largest[case.call.network, kind_of(case, ceilings)] = case
    return {case.call.signature for case in largest.values()}


def floor_of(case: LayerCase, ceilings: Ceilings) -> float:
    """Milliseconds that no implementation gets under."""
    return ceilings.floor_ms(case.flops, case.moved_bytes, case.dtype)


def kind_of(case: LayerCase, ceilings: Ceilings) -> str:
    """What bounds a layer, or which kernel it is: targets go by it."""
    bound = ceilings.is_memory_bound(case.flops, case.moved_bytes, case.dtype)
    return kind_named(case.kernel, case.call.shape(1).up, memory_bound=bound)


def kind_named(kernel: str, up: int, *, memory_bound: bool) -> str:
    """The same of a row that was measured."""
    if kernel != "modulated_conv2d":
        return kernel
    if up > 1:
        return "up-convolution"
    return "memory-bound convolution" if memory_bound else "compute-bound convolution"
