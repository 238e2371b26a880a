"""Each kernel at the gate's sizes: right in every test run, timed with `--benchmark-enable`.

The developer's loop: `pytest tests/kernels/test_benchmarks.py -k upfirdn2d --benchmark-enable --benchmark-autosave`,
then the same with `--benchmark-compare` after a change.
"""

from __future__ import annotations

import pytest

from bench.kernel_calls import bind
from bench.pytest_gpu import KernelBenchmark, benchmark_device
from bench.workloads import Workload, check, draw, workloads
from kernels.registry import KERNELS

DEVICE = benchmark_device()


@pytest.mark.parametrize("workload", workloads(DEVICE.type), ids=lambda w: f"{w.kernel} {w.title}".replace(" ", "-"))
def test_kernel_is_right_and_timed(workload: Workload, kernel_benchmark: KernelBenchmark) -> None:
    inputs = draw(workload, DEVICE)
    run = bind(workload, inputs)
    exact = bind(workload, {name: tensor.double() for name, tensor in inputs.items()}, "reference")()
    check(workload, run(), exact)
    kernel_benchmark(workload, run)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_kernel_has_a_workload(device: str) -> None:
    assert {workload.kernel for workload in workloads(device)} == set(KERNELS)
