from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels import dispatch
from kernels.bias_act import bias_act, bias_act_reference
from kernels.dispatch import KernelUnavailableError, explain, implementation, select, use
from kernels.registry import KERNELS
from kernels.upfirdn2d import upfirdn2d_naive, upfirdn2d_reference

# targets that stand for Triton kernels: nothing is launched, so that this runs on a CPU
WITH_TRITON = dataclasses.replace(KERNELS["bias_act"], triton="kernels.bias_act:bias_act", is_proven=True)
WITHOUT_TRITON = dataclasses.replace(KERNELS["bias_act"], triton=None)


@pytest.mark.parametrize("name", KERNELS)
def test_select_auto_is_the_reference_on_a_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert select(name, torch.zeros(1)) is dispatch.resolve(KERNELS[name].reference)
    monkeypatch.setitem(KERNELS, name, dataclasses.replace(KERNELS[name], triton=None))
    assert select(name, torch.zeros(1)) is dispatch.resolve(KERNELS[name].reference)
    assert explain(name) == f"{name}: reference, because no Triton kernel exists for it yet"


def test_use_triton_is_an_error_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "bias_act", WITHOUT_TRITON)
    with (
        use("triton"),
        pytest.raises(KernelUnavailableError, match=r"bias_act: .*'triton' was asked for, but no Triton"),
    ):
        bias_act(torch.zeros(2, 3))
    with use("triton"):
        assert explain("bias_act") == "bias_act: none, because no Triton kernel exists for it yet"


def test_use_naive_runs_the_baseline_or_else_the_reference() -> None:
    with use("naive"):
        assert select("upfirdn2d") is upfirdn2d_naive
        assert select(dataclasses.replace(KERNELS["upfirdn2d"], naive=None)) is upfirdn2d_reference
        assert explain("upfirdn2d") == "upfirdn2d: naive, because it was asked for"


def test_use_nests_and_ends() -> None:
    with use("triton"), use("reference"):
        assert select("bias_act") is bias_act_reference
        assert explain("bias_act") == "bias_act: reference, because it was asked for"
    with pytest.raises(RuntimeError, match="body"), use("triton"):
        raise RuntimeError("body")
    assert select("bias_act") is bias_act_reference


def test_select_never_falls_back_from_a_named_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_triton_missing", lambda: False)
    on_cpu = torch.zeros(1)
    assert select(WITH_TRITON, on_cpu) is bias_act_reference
    with use("triton"), pytest.raises(KernelUnavailableError, match="a tensor is on the device cpu"):
        select(WITH_TRITON, on_cpu)


def test_select_auto_takes_triton_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_triton_missing", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(KERNELS, "bias_act", WITH_TRITON)
    assert select("bias_act") is bias_act
    assert explain("bias_act") == "bias_act: triton, because it can run here"
    with use("reference"):
        assert select("bias_act") is bias_act_reference
    monkeypatch.setattr(dispatch, "_triton_missing", lambda: True)
    assert select("bias_act") is bias_act_reference
    assert explain("bias_act") == "bias_act: reference, because the package triton is not installed"
    monkeypatch.setattr(dispatch, "_triton_missing", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert explain("bias_act") == "bias_act: reference, because no GPU is visible"


def test_select_auto_leaves_a_kernel_alone_that_no_gpu_has_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_triton_missing", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(KERNELS, "bias_act", dataclasses.replace(WITH_TRITON, is_proven=False))
    assert select("bias_act") is bias_act_reference
    assert explain("bias_act").startswith("bias_act: reference, because no GPU has held its Triton kernel")
    with use("triton"):
        assert select("bias_act") is bias_act


def test_select_wants_all_tensors_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_triton_missing", lambda: False)
    tensors: list[Any] = [
        SimpleNamespace(is_cuda=True, device=torch.device("cuda", index), dtype=torch.float32) for index in (1, 0)
    ]
    assert select(WITH_TRITON, tensors[0], tensors[0]) is bias_act
    assert select(WITH_TRITON, *tensors) is bias_act_reference
    with use("triton"), pytest.raises(KernelUnavailableError, match="on the devices cuda:0 and cuda:1 and Triton"):
        select(WITH_TRITON, *tensors)


def test_select_heeds_the_limits_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_triton_missing", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select(WITH_TRITON) is bias_act
    assert select(WITH_TRITON, limit="it takes no odd sizes") is bias_act_reference
    with (
        use("triton"),
        pytest.raises(KernelUnavailableError, match="'triton' was asked for, but it takes no odd sizes"),
    ):
        select(WITH_TRITON, limit="it takes no odd sizes")


def test_select_runs_the_interpreter_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_triton_missing", lambda: False)
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    monkeypatch.setitem(KERNELS, "bias_act", WITH_TRITON)
    on_cpu = torch.zeros(1)
    assert select("bias_act", on_cpu) is bias_act_reference
    assert explain("bias_act").endswith("reference, because Triton's interpreter runs only what is asked for by name")
    with use("triton"):
        assert select("bias_act", on_cpu) is bias_act
        with pytest.raises(
            KernelUnavailableError, match="bfloat16, for which Triton's interpreter silently gives wrong"
        ):
            select("bias_act", on_cpu, on_cpu.bfloat16())
        with pytest.raises(KernelUnavailableError, match="a tensor is on the device meta"):
            select("bias_act", on_cpu.to("meta"))


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown implementation 'trition'\. Did you mean 'triton'\?"), use("trition"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match=r"unknown kernel 'modulated_conv'\. Did you mean 'modulated_conv2d'\?"):
        explain("modulated_conv")


def test_implementation_is_what_the_present_use_asks_for() -> None:
    assert implementation() == "auto"
    with use("naive"):
        assert implementation() == "naive"
    assert implementation() == "auto"
