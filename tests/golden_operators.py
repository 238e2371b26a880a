"""Runs the golden cases of operators: values, gradients and gradients of gradients, for any sub-case of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.bias_act import Activation, bias_act
from kernels.conv2d_resample import ResampledConv, conv2d_resample
from kernels.filtered_lrelu import FilteredLReLU, filtered_lrelu
from kernels.minibatch_std import minibatch_std
from kernels.modulated_conv import Epilogue, ModulatedConv, modulated_conv2d, modulated_conv2d_grouped
from kernels.upfirdn2d import Resampling, downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from tests.golden_cases import GoldenFile, assert_close_to_golden

Tensors = dict[str, Tensor]
# defaults of the official functions where ours is another dataclass field or another default
UPFIRDN2D: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "upfirdn2d": (upfirdn2d, {}),
    "filter2d": (filter2d, {}),
    "upsample2d": (upsample2d, {"up": 2}),
    "downsample2d": (downsample2d, {"down": 2}),
}


def run_bias_act(t: Tensors, *, act: str = "linear", dim: int = 1, alpha: float | None = None, **rest: float) -> Tensor:
    slope = alpha if act == "lrelu" else None  # officially the others ignore it
    return bias_act(t["x"], t.get("b"), Activation(act, slope, **rest), dim=dim)


def run_upfirdn2d(t: Tensors, *, fn: str = "upfirdn2d", **parameters: Any) -> Tensor:
    function, defaults = UPFIRDN2D[fn]
    return function(t["x"], t.get("f"), Resampling(**defaults | pairs_as_tuples(parameters)))


def run_setup_filter(t: Tensors, *, f: Any, **parameters: Any) -> Tensor:
    return setup_filter(f, **parameters)


def run_conv2d_resample(t: Tensors, **parameters: Any) -> Tensor:
    return conv2d_resample(t["x"], t["w"], t.get("f"), ResampledConv(**pairs_as_tuples(parameters)))


def run_filtered_lrelu(
    t: Tensors, *, gain: float | None = None, slope: float | None = None, clamp: float | None = None, **rest: Any
) -> Tensor:
    spec = FilteredLReLU(**pairs_as_tuples(rest), activation=Activation("lrelu", slope, gain, clamp))
    return filtered_lrelu(t["x"], t.get("b"), t.get("fu"), t.get("fd"), spec)


def run_modulated_conv2d(t: Tensors, *, fused_modconv: bool = True, **parameters: Any) -> Tensor:
    function = modulated_conv2d_grouped if fused_modconv else modulated_conv2d
    conv = ModulatedConv(**pairs_as_tuples(parameters))
    return function(t["x"], t["weight"], t["styles"], conv, fir=t.get("f"), epilogue=Epilogue(noise=t.get("noise")))


def run_minibatch_std(t: Tensors, **parameters: Any) -> Tensor:
    return minibatch_std(t["x"], **parameters)


def pairs_as_tuples(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}


# class of the file: (function, names of the inputs that it differentiates)
RUNNERS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "torch_utils.ops.bias_act.bias_act": (run_bias_act, ("x", "b")),
    "torch_utils.ops.upfirdn2d.*": (run_upfirdn2d, ("x",)),
    "torch_utils.ops.upfirdn2d.setup_filter": (run_setup_filter, ()),
    "torch_utils.ops.conv2d_resample.conv2d_resample": (run_conv2d_resample, ("x", "w")),
    "torch_utils.ops.filtered_lrelu.filtered_lrelu": (run_filtered_lrelu, ("x", "b")),
    "training.networks.modulated_conv2d": (run_modulated_conv2d, ("x", "weight", "styles")),
    "training.networks.MinibatchStdLayer": (run_minibatch_std, ("x",)),
}


def is_operator(meta: dict[str, Any]) -> bool:
    """Whether a file is of an operator, known or not."""
    return meta["class"].startswith("torch_utils.ops.") or meta["class"] in RUNNERS


def _first_order(run: Callable[[Tensors], Tensor], inputs: Tensors, names: list[str]) -> Tensors:
    y = run(inputs)
    if "gy" not in inputs:
        return {"y" if names or "x" in inputs else "f": y}
    gradients = torch.autograd.grad((y * inputs["gy"]).sum(), [inputs[name] for name in names], create_graph=True)
    return {"y": y} | {f"d{name}": gradient for name, gradient in zip(names, gradients, strict=True)}


def _second_order(outputs: Tensors, inputs: Tensors, names: list[str]) -> Tensors:
    directions = [name for name in names if f"v{name}" in inputs]
    if not directions:
        return {}
    total = torch.stack([(outputs[f"d{name}"] * inputs[f"v{name}"]).sum() for name in directions]).sum()
    wanted = ["gy", *names]
    found = torch.autograd.grad(total, [inputs[name] for name in wanted], allow_unused=True)
    keys = [f"d2/{'dgy' if name == 'gy' else 'd' + name}" for name in wanted]
    return {key: value for key, value in zip(keys, found, strict=True) if value is not None}


def _all_outputs(run: Callable[[Tensors], Tensor], inputs: Tensors, differentiated: tuple[str, ...]) -> Tensors:
    names = [name for name in differentiated if name in inputs]
    leaves = {k: v.clone().requires_grad_(k in (*names, "gy")) for k, v in inputs.items()}
    outputs = _first_order(run, leaves, names)
    return outputs | _second_order(outputs, leaves, names)


def check_operator(case: GoldenFile, index: int, **changed: Any) -> None:
    """Run one sub-case, with some of its parameters changed, and hold all that it gives against the file."""
    assert case.meta["class"] in RUNNERS, f"{case.path}: no test knows the operator {case.meta['class']!r}"
    runner, differentiated = RUNNERS[case.meta["class"]]
    parameters = case.meta["cases"][index] | changed
    outputs = _all_outputs(lambda t: runner(t, **parameters), case.group(f"in/{index:03d}/"), differentiated)
    golden = case.group(f"out/{index:03d}/")
    assert golden, f"{case.path}: sub-case {index} has no outputs"
    for name, want in golden.items():
        assert_close_to_golden(f"{index:03d}/{name}", outputs.get(name, torch.zeros_like(want)), case)
    for name in outputs.keys() - golden.keys():  # left out of the file where it was not connected
        assert name.startswith("d2/"), f"{case.path}: {name} is not in the file"
        assert not outputs[name].any(), f"{case.path}: {name} is not connected in the file, and not zero here"
