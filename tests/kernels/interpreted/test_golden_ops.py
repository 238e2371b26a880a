"""Golden cases of the operators that have a Triton kernel: values, gradients and gradients of gradients."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.dispatch import KernelUnavailableError
from kernels.registry import KERNELS
from tests.conftest import golden_root
from tests.golden_cases import golden_meta, load_golden
from tests.golden_operators import check_operator

OPERATORS = {
    "torch_utils.ops.bias_act.bias_act": "bias_act",
    "torch_utils.ops.upfirdn2d.*": "upfirdn2d",
    "torch_utils.ops.conv2d_resample.conv2d_resample": "conv2d_resample",
    "torch_utils.ops.filtered_lrelu.filtered_lrelu": "filtered_lrelu",
    "training.networks.modulated_conv2d": "modulated_conv2d",
    "training.networks.MinibatchStdLayer": "minibatch_std",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "sub_case" in metafunc.fixturenames:
        files = {path: golden_meta(path) for path in sorted(golden_root(metafunc.config).rglob("op_*.safetensors"))}
        found = [
            pytest.param(path, index, id=f"{path.stem}-{index:03d}")
            for path, meta in files.items()
            if meta["class"] in OPERATORS and KERNELS[OPERATORS[meta["class"]]].triton is not None
            for index in range(len(meta["cases"]))
        ]
        metafunc.parametrize(("golden_path", "sub_case"), found)


def test_triton_matches_golden(golden_path: Path, sub_case: int) -> None:
    case = load_golden(golden_path)
    # the grouped formulation of a modulated convolution is no kernel's
    changed = {"fused_modconv": False} if case.meta["class"].endswith("modulated_conv2d") else {}
    if case.meta["cases"][sub_case].get("groups", 1) > 1:
        with pytest.raises(KernelUnavailableError, match="all channels as one group, and not 2 groups"):
            check_operator(case, sub_case, **changed)
    else:
        check_operator(case, sub_case, **changed)
