"""Every kernel that has a Triton target: the sizes of its registry entry, within its tolerance."""

from __future__ import annotations

import pytest
import torch

from kernels.costs import LayerShape
from kernels.dispatch import KernelUnavailableError, explain, resolve, select, use
from kernels.registry import KERNELS
from tests.kernels.test_registry import ARGUMENTS, in_dtype

WITH_TRITON = [name for name, spec in KERNELS.items() if spec.triton is not None]
CASES = [(name, shape) for name in WITH_TRITON for shape in KERNELS[name].cases]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_kernel_agrees_with_its_float64_reference(name: str, shape: LayerShape, dtype: str) -> None:
    spec = KERNELS[name]
    arguments, options = ARGUMENTS[name](shape)
    arguments = [in_dtype(value, getattr(torch, dtype)) for value in arguments]
    options = {key: in_dtype(value, getattr(torch, dtype)) for key, value in options.items()}
    exact = [in_dtype(value, torch.float64) for value in arguments]
    with use("reference"):
        want = resolve(spec.reference)(
            *exact, **{key: in_dtype(value, torch.float64) for key, value in options.items()}
        )
    assert spec.triton is not None
    got = resolve(spec.triton)(*arguments, **options)
    assert got.dtype == getattr(torch, dtype)
    assert ((got.double() - want).norm() / want.norm()).item() < spec.tolerance[dtype]


@pytest.mark.parametrize("name", WITH_TRITON)
def test_interpreter_refuses_what_it_would_get_wrong(name: str) -> None:
    assert select(name, torch.zeros(1)) is resolve(KERNELS[name].triton or "")
    assert explain(name) == f"{name}: triton, because it can run here"
    with pytest.raises(KernelUnavailableError, match="bfloat16, for which Triton's interpreter silently gives wrong"):
        select(name, torch.zeros(1, dtype=torch.bfloat16))
    with pytest.raises(KernelUnavailableError, match=r"torch\.float64 and the Triton kernels take float32"):
        select(name, torch.zeros(1, dtype=torch.float64))
