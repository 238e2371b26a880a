from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from bench.compile_gate import Compiled
from bench.kernel_speed import resources as kernel_resources
from bench.kernel_speed.layers import KernelCall, network_calls
from bench.kernel_speed.resources import resources
from kernels.dispatch import INTERPRETED, resolve
from kernels.launch import CompileCase, launch, recording
from kernels.registry import KERNELS

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter compiles nothing")


def resources_of(layer: str, batch: int = 16, dtype: str = "float16") -> dict[str, float]:
    calls = network_calls(["stylegan2-ffhq-1024"], ["modulated_conv2d"])
    (call,) = (call for call in calls if call.uses[0].endswith(layer))
    return resources(call, batch, dtype, 90)


def compiled(case: str, registers: int) -> Compiled:
    numbers = dict.fromkeys((field.name for field in dataclasses.fields(Compiled)), 0)
    known = {"case": case, "architecture": 90, "triton": triton.__version__, "registers": registers, "shared_bytes": 99}
    return Compiled(**{**numbers, **known})


def test_layer_has_what_its_launches_were_compiled_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its demodulation and its convolution are two cases of the table."""
    (call,) = (
        c for c in network_calls(["stylegan2-ffhq-1024"], ["modulated_conv2d"]) if c.uses[0].endswith("b64.conv1")
    )
    empty = {name: torch.empty(operand.sized(16), device="meta") for name, operand in call.operands.items()}
    empty["x"] = empty["x"].half()

    def whole(index: int) -> CompileCase:
        return CompileCase(f"case-{index}", lambda: _only(index, call, empty))

    with recording(90) as launches:
        _run(call, empty)
    cases = {f"case-{i}": whole(i) for i in range(len(launches))}
    monkeypatch.setattr(kernel_resources, "compile_cases", lambda: cases)
    monkeypatch.setattr(
        kernel_resources, "read_table", lambda: [compiled(name, 100 + i) for i, name in enumerate(cases)]
    )
    kernel_resources._known.cache_clear()
    found = resources(call, 16, "float16", 90)
    assert found == {"registers": 99.0 + len(launches), "spilled_bytes": 0.0, "shared_bytes": 99.0}
    assert resources(call, 16, "float32", 90) == {}
    kernel_resources._known.cache_clear()


def _run(call: KernelCall, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        resolve(KERNELS[call.kernel].triton or "")(**call.filled(tensors))


def _only(index: int, call: KernelCall, tensors: dict[str, Tensor]) -> None:
    """Make one of the launches of a call."""
    with recording(90) as launches:
        _run(call, tensors)
    one = launches[index]
    launch(one.kernel, (1,), one.arguments, one.constants, one.options)


def test_what_the_table_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_resources, "read_table", list)
    kernel_resources._known.cache_clear()
    assert resources_of("b64.conv1") == {}
    kernel_resources._known.cache_clear()


def test_a_kernel_without_a_triton_form_has_none() -> None:
    (call,) = network_calls(["stylegan2-ffhq-1024"], ["upfirdn2d"])[:1]
    assert resources(call, 1, "float64", 90) == {}
