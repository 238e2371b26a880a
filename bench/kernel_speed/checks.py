"""A kernel call of a layer with numbers in place, and whether what comes out is what float64 gives."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.kernel_speed.ceilings import multiplying, torch_dtype
from bench.kernel_speed.contenders import IMPLEMENTATIONS, Form, Outputs, Run
from bench.kernel_speed.layers import FILTERS, KernelCall
from bench.kernel_speed.resources import resources
from bench.verify import VerificationError
from kernels.dispatch import resolve, use
from kernels.registry import KERNELS

TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "tf32": 1e-3, "float32": 1e-5}
GRADIENT_SLACK = 10.0  # sums over all pixels whose terms cancel in part lose a digit
BASELINE_SLACK = 5.0  # they round between their steps, and are not what is being shown
CHECKED_ENDS = 2  # samples at either end of a batch
FLOAT64_FLOPS = {"cuda": 4e12, "cpu": 3e9}  # beyond, float64 checks the first sample and float32 the others
CHUNK_ELEMENTS = {"cuda": 2**28, "cpu": 2**24}  # of input and output that the oracle takes at once
FLOAT32_ONLY = ("demodulation", "upfirdn2d")  # as generators run them


@dataclass(frozen=True, slots=True)
class LayerCase:
    """What one row measures."""

    call: KernelCall
    batch: int
    dtype: str
    backward: bool = False
    against: str = ""

    @property
    def kernel(self) -> str:
        """The name of the kernel."""
        return self.call.kernel

    @property
    def subject(self) -> str:
        """The name of the row."""
        return self.call.subject

    @property
    def has_grouped(self) -> bool:
        """Whether there is a formulation as in the papers' code."""
        return KERNELS[self.kernel].naive is not None

    def fields(self) -> dict[str, Any]:
        """What tells this row from others of the same layer, and what it is."""
        shape = self.call.shape(self.batch)
        return {
            "batch_size": self.batch,
            "dtype": self.dtype,
            "direction": "forward+backward" if self.backward else "forward",
            "channels": f"{shape.in_channels}->{shape.out_channels}",
            "kernel": shape.kernel,
            "size": f"{shape.height}x{shape.width}",
            "up": shape.up,
            "down": shape.down,
        }

    def work(self, device: torch.device) -> LayerWork:
        """The inputs, drawn."""
        return LayerWork(self, device)

    def resources(self, device: torch.device) -> dict[str, float]:
        """Registers and memory of its kernels, where the committed table knows them."""
        if device.type != "cuda" or self.backward:
            return {}
        major, minor = torch.cuda.get_device_capability(device)
        return resources(self.call, self.batch, self.dtype, 10 * major + minor)

    @property
    def flops(self) -> int:
        """The least arithmetic; a backward pass does twice that of the forward pass before it."""
        return self.call.flops(self.batch) * (3 if self.backward else 1)

    @property
    def moved_bytes(self) -> int:
        """The least traffic; a backward pass reads its inputs and a gradient, and writes a gradient of each input."""
        image, rest, written = self.call.elements(self.batch)
        size = torch_dtype(self.dtype).itemsize
        forward = size * (image + written) + 4 * rest
        return 2 * forward + size * image + 4 * rest if self.backward else forward


class LayerWork:
    """A layer's call with its inputs on a device; keeps the protocol `Work`."""

    def __init__(self, case: LayerCase, device: torch.device, seed: int = 0) -> None:
        self.case, self.device = case, device
        self._rng = torch.Generator(device).manual_seed(seed)
        self.inputs = {name: self._drawn(name) for name in case.call.operands}
        self.wanted = [name for name in self.inputs if name not in FILTERS] if case.backward else []
        out_shape = (case.batch, *case.call.out_shape[1:])
        self.cotangent = self._normal(out_shape if case.backward else (0,), torch_dtype(case.dtype))
        pixels = max(self.cotangent.numel() // case.call.out_shape[1], 1)
        self.cotangent *= pixels**-0.25  # neither it nor sums of it leave the range of float16

    def _normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(tuple(shape), generator=self._rng, device=self.device, dtype=dtype)

    def _drawn(self, name: str) -> Tensor:
        """Numbers as trained networks have them: weights that keep the variance, styles around one."""
        operand = self.case.call.operands[name]
        if operand.value is not None:
            return operand.value.to(self.device)
        shape = operand.sized(self.case.batch)
        if name == "x":
            return self._normal(shape, torch_dtype(self.case.dtype)).contiguous(memory_format=torch.channels_last)
        tensor = self._normal(shape)
        if name == "weight":
            tensor /= tensor[0].numel() ** 0.5
        if name == "styles":
            tensor += 1
        return tensor

    def tensors(self, form: Form) -> Sequence[Tensor]:
        """The inputs; the grouped form gets the layout in which it hands on its own output."""
        return [_laid_out(name, tensor, form) for name, tensor in self.inputs.items()]

    def prepared(self, form: Form, tensors: Sequence[Tensor]) -> Run:
        """A call that returns the output, then the gradients of all inputs that have one."""
        return self._call(form, dict(zip(self.inputs, tensors, strict=True)), self.cotangent)

    def _call(self, form: Form, inputs: Mapping[str, Tensor], cotangent: Tensor) -> Run:
        leaves = {name: tensor.detach().requires_grad_(name in self.wanted) for name, tensor in inputs.items()}
        wanted = [leaves[name] for name in self.wanted]
        arguments, spec = self.case.call.filled(leaves), KERNELS[self.case.kernel]
        targets = {
            "triton": f"{spec.reference.partition(':')[0]}:{spec.name}",  # the public function, which dispatches
            "eager": spec.reference,
            "grouped": spec.naive or spec.reference,
        }
        function = resolve(targets[form])

        def run() -> Outputs:
            with use(IMPLEMENTATIONS[form]), torch.set_grad_enabled(bool(wanted)):
                out = function(**arguments)
                return [out.detach(), *torch.autograd.grad(out, wanted, cotangent)] if wanted else [out]

        return run

    @cached_property
    def checked(self) -> list[int]:
        """The samples that are looked at: the first and the last, where an index that overflows would show."""
        ends = range(CHECKED_ENDS), range(self.case.batch - CHECKED_ENDS, self.case.batch)
        return sorted({i for end in ends for i in end if 0 <= i < self.case.batch})

    @cached_property
    def expected(self) -> Outputs:
        """What another formulation gives: of `checked` samples, and for gradients of weights the sum over all."""
        # on a CPU, where the eager form is ours, the grouped one is another
        form: Form = "eager" if self.device.type == "cuda" else "grouped"
        shared = [not self.case.call.operands[name].per_sample for name in self.wanted]
        parts: list[list[Tensor]] = [[] for _ in range(1 + len(shared))]
        with multiplying("float32"), _without_trials():
            for samples, dtype in self._chunks():
                outputs = self._call(form, *self._part(samples, dtype))()
                for kept, out, is_shared in zip(parts, outputs, [False, *shared], strict=True):
                    if is_shared:  # a sum over all samples
                        kept[:] = [out.double() + (kept[0] if kept else 0)]
                    elif samples[0] in self.checked:
                        kept.append(out.double())
        return [torch.cat(kept) for kept in parts]

    def _chunks(self) -> Iterator[tuple[list[int], torch.dtype]]:
        """Samples, a few at a time, and the dtype to use: float64 for the first, and as far as it can be afforded."""
        image, _, written = self.case.call.elements(1)
        step = max(1, CHUNK_ELEMENTS[self.device.type] // (image + written))
        rest = [i for i in range(self.case.batch) if i not in self.checked] if self.case.backward else []
        chunks = [[i] for i in self.checked] + [rest[i : i + step] for i in range(0, len(rest), step)]
        done = 0
        for chunk in chunks:
            done += len(chunk)
            exact = chunk == [0] or done * self.case.flops / self.case.batch <= FLOAT64_FLOPS[self.device.type]
            yield chunk, torch.float64 if exact else torch.float32

    def _part(self, samples: list[int], dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
        operands = self.case.call.operands
        inputs = {
            name: (tensor[samples] if operands[name].per_sample else tensor).to(dtype)
            for name, tensor in self.inputs.items()
        }
        return inputs, self.cotangent[samples].to(dtype) if self.wanted else self.cotangent

    def check(self, outputs: Sequence[Tensor], form: Form) -> float:
        """The largest relative error. Raises `VerificationError` where one is beyond its tolerance."""
        slack, worst = 1.0 if form == "triton" or self.device.type == "cpu" else BASELINE_SLACK, 0.0
        titles = ["the output", *(f"the gradient of {name}" for name in self.wanted)]
        per_sample = [True, *(self.case.call.operands[name].per_sample for name in self.wanted)]
        for i, (title, out, exact) in enumerate(zip(titles, outputs, self.expected, strict=True)):
            wanted = [self.case.batch, *exact.shape[1:]] if per_sample[i] else list(exact.shape)
            if list(out.shape) != wanted:
                raise VerificationError(f"{title} is {list(out.shape)}; expected is {wanted}")
            error = relative_error(out[self.checked] if per_sample[i] else out, exact)
            allowed = TOLERANCE[self.case.dtype] * slack * (GRADIENT_SLACK if i else 1)
            if not error <= allowed:
                raise VerificationError(f"{title} differs from float64 by {error:.1e}; allowed is {allowed:.0e}")
            worst = max(worst, error)
        return worst


def _laid_out(name: str, tensor: Tensor, form: Form) -> Tensor:
    if form == "grouped":
        return tensor.contiguous()
    # as the image is, so that cuDNN needn't turn it around at each call
    is_turned = form == "eager" and name == "weight" and tensor.is_cuda
    return tensor.contiguous(memory_format=torch.channels_last) if is_turned else tensor


@contextmanager
def _without_trials() -> Iterator[None]:
    """Let cuDNN take its first choice: the oracle runs once, and trying algorithms would take longer than that."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def relative_error(out: Tensor, exact: Tensor) -> float:
    """`||out - exact|| / ||exact||`."""
    size = float(exact.double().norm())
    error = float((out.double() - exact.double()).norm())
    return error / size if size else error


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every new tensor with NaN, so that what a kernel leaves unwritten shows."""
    was_on, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that have no deterministic form
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_on, warn_only=warned)


def dtypes_of(kernel: str, dtypes: Sequence[str]) -> list[str]:
    """Those in which a kernel is measured."""
    return ["float32"] if kernel in FLOAT32_ONLY else list(dtypes)
