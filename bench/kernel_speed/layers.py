"""Every kernel that a generator calls, layer by layer, at its real sizes: read off the network on the meta device."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bench.model_weights import model_named
from bench.verify import draw_batch
from kernels import costs, dispatch
from kernels.costs import LayerShape
from kernels.registry import KERNELS
from kernels.upfirdn2d import setup_filter
from models.layers import FIR_TAPS
from models.registry import build
from models.stylegan3 import SynthesisLayer

LAYER_KERNELS = ("modulated_conv2d", "filtered_lrelu", "demodulation", "upfirdn2d", "conv2d_resample")
CONVOLUTIONS = ("modulated_conv2d", "conv2d_resample")
FILTERS = ("fir", "up_filter", "down_filter")
BATCH = 7  # what the networks are read at: no size of any weight, so that it tells which tensors have samples
SYNTHESIS = "synthesis."


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a kernel takes; filters come with their values."""

    shape: tuple[int, ...]
    per_sample: bool
    value: Tensor | None = None

    def sized(self, batch: int) -> tuple[int, ...]:
        """The shape at a batch size."""
        return (batch, *self.shape[1:]) if self.per_sample else self.shape


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One call of a kernel in a network, with the batch left open; `uses` are the layers that are all alike."""

    kernel: str
    uses: tuple[str, ...]  # "stylegan2-ffhq-1024/b64.conv1"
    operands: Mapping[str, Operand]  # by the name of the parameter: "x", "weight", "epilogue.bias"
    arguments: Mapping[str, Any]  # of the kernel, with None in the place of operands
    out_shape: tuple[int, ...]

    @property
    def subject(self) -> str:
        """The name of its rows."""
        return f"{self.kernel}/{self.uses[0]}"

    @property
    def network(self) -> str:
        """The first network that has it."""
        return self.uses[0].partition("/")[0]

    @property
    def signature(self) -> str:
        """The same for calls that do the same work."""
        shapes = {name: (operand.shape, _fingerprint(operand.value)) for name, operand in self.operands.items()}
        return f"{self.kernel} {shapes} {self.arguments}"

    def filled(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The kernel's arguments with these tensors, by operand, in their places."""
        filled = dict(self.arguments)
        for name, tensor in tensors.items():
            outer, _, inner = name.partition(".")
            filled[outer] = dataclasses.replace(filled[outer], **{inner: tensor}) if inner else tensor
        return filled

    def shape(self, batch: int) -> LayerShape:
        """Channels, size and resampling."""
        spec = self.arguments.get("conv") or self.arguments.get("spec") or self.arguments.get("resampling")
        up, down = (getattr(spec, name, 1) for name in ("up", "down"))
        weight = self.operands.get("weight")
        x = self.operands["x"].shape if "x" in self.operands else (BATCH, self.operands["styles"].shape[1], 1, 1)
        kernel = weight.shape[2] if weight else 1
        return LayerShape(batch, x[1], self.out_shape[1], x[2], x[3], kernel, up, down)

    def flops(self, batch: int) -> int:
        """The least arithmetic of a forward pass; of a convolution its own, as the FIR filter hides behind memory."""
        shape = self.shape(batch)
        if self.kernel in CONVOLUTIONS:
            rows, columns = self.out_shape[2:] if shape.up == 1 else (shape.height, shape.width)
            return 2 * batch * rows * columns * shape.weights
        count: Callable[[LayerShape], int] = {
            "filtered_lrelu": costs.filtered_lrelu_flops,
            "demodulation": costs.demodulation_flops,
            "upfirdn2d": costs.fir_flops,
        }[self.kernel]
        return count(shape)

    def elements(self, batch: int) -> tuple[int, int, int]:
        """Elements of the image that is read, of all else that is read, and of what is written."""
        sizes = {name: torch.Size(operand.sized(batch)).numel() for name, operand in self.operands.items()}
        written = torch.Size((batch, *self.out_shape[1:])).numel()
        image = sizes.pop("x", 0)
        return image, sum(sizes.values()), written


def _fingerprint(value: Tensor | None) -> int | None:
    return None if value is None else hash(tuple(value.flatten().tolist()))


def network_calls(names: Sequence[str], kernels: Sequence[str] = LAYER_KERNELS) -> list[KernelCall]:
    """The calls of these registered generators in the order of their layers; equal work is listed once."""
    found: dict[str, KernelCall] = {}
    for name in names:
        for call in _recorded(name):
            if call.kernel in kernels:
                same = found.setdefault(call.signature, call)
                if same is not call:
                    found[call.signature] = dataclasses.replace(same, uses=(*same.uses, *call.uses))
    return list(found.values())


@functools.cache
def _recorded(name: str) -> tuple[KernelCall, ...]:
    """The calls of one synthesis network."""
    spec = model_named(name)
    generator: Any = build(name, num_classes=spec.num_classes, device="meta")
    values = _filters(generator)
    calls: list[KernelCall] = []
    latents, condition = draw_batch(generator, BATCH, torch.device("meta"))

    def seen(kernel: str, arguments: Mapping[str, Any], out: Tensor) -> None:
        if kernel in LAYER_KERNELS and stack[-1].startswith(SYNTHESIS):
            calls.append(_call(kernel, f"{name}/{stack[-1].removeprefix(SYNTHESIS)}", arguments, out))

    with _layer_names(generator) as stack, _watched(seen), dispatch.use("reference"):
        generator.sample(latents, condition)
    return tuple(dataclasses.replace(call, operands=_with_values(call.operands, values)) for call in calls)


Seen = Callable[[str, Mapping[str, Any], Tensor], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Watched:
    """A kernel's reference that tells of its calls; equal to the function itself, since generators compare."""

    kernel: str
    function: dispatch.Kernel
    seen: Seen

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        out = self.function(*args, **kwargs)
        self.seen(self.kernel, inspect.signature(self.function).bind(*args, **kwargs).arguments, out)
        return out

    def __eq__(self, other: object) -> bool:
        return other is self.function

    def __hash__(self) -> int:
        return hash(self.function)


@contextmanager
def _watched(seen: Seen) -> Iterator[None]:
    """Tell `seen` of every call of a kernel's reference inside: its name, its arguments and what it returns."""
    kernel_of = {spec.reference: name for name, spec in KERNELS.items()}
    found = dispatch.resolve

    def resolve(target: str) -> dispatch.Kernel:
        function = found(target)
        return _Watched(kernel_of[target], function, seen) if target in kernel_of else function

    with patch.object(dispatch, "resolve", resolve):
        yield


@contextmanager
def _layer_names(generator: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are running, the innermost last."""
    stack: list[str] = [""]
    handles = []

    def leave(*_: object) -> None:
        stack.pop()

    for name, module in generator.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _call(kernel: str, use: str, arguments: Mapping[str, Any], out: Tensor) -> KernelCall:
    operands: dict[str, Operand] = {}
    rest: dict[str, Any] = {}
    for name, value in arguments.items():
        rest[name] = _without_tensors(name, value, operands)
    return KernelCall(kernel, (use,), operands, rest, tuple(out.shape))


def _without_tensors(name: str, value: Any, operands: dict[str, Operand]) -> Any:
    """Take the tensors out of an argument, or of the fields of one."""
    if isinstance(value, Tensor):
        # the tensor itself stands for its value, until that is looked up
        operands[name] = Operand(tuple(value.shape), value.shape[:1] == (BATCH,), value if name in FILTERS else None)
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        tensors = {key: inner for key, inner in fields.items() if isinstance(inner, Tensor)}
        for key, inner in tensors.items():
            _without_tensors(f"{name}.{key}", inner, operands)
        return dataclasses.replace(value, **dict.fromkeys(tensors)) if tensors else value
    return value


def _filters(generator: nn.Module) -> dict[int, Tensor]:
    """The values of all filters, by the identity of their tensors on the meta device."""
    values: dict[int, Tensor] = {}
    for module in generator.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("_filter"):
                continue
            if isinstance(module, SynthesisLayer):
                narrow = dataclasses.replace(module.spec, in_channels=1, out_channels=1)
                values[id(buffer)] = getattr(SynthesisLayer(narrow, 1), name)
            else:
                values[id(buffer)] = setup_filter(FIR_TAPS)
    return values


def _with_values(operands: Mapping[str, Operand], values: Mapping[int, Tensor]) -> dict[str, Operand]:
    known = {}
    for name, operand in operands.items():
        value = None if operand.value is None else values[id(operand.value)]
        if value is not None and tuple(value.shape) != operand.shape:
            raise ValueError(f"{name}: the network has a filter {operand.shape}, and {tuple(value.shape)} was designed")
        known[name] = dataclasses.replace(operand, value=value)
    return known
