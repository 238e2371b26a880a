"""A pytest plugin that makes pytest-benchmark aware of GPUs: the developer's loop for one kernel.

Results are stored for each machine, a comparison with another machine is an error, and the fixture `kernel_benchmark`
times with the events of the GPU where there is one. `tests/conftest.py` loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.clocks import Call, Clock, clock_for
from bench.environment import machine_slug, package_versions
from bench.workloads import Workload

DEFAULT_STORAGE = "file://./.benchmarks"
ROUNDS, WARMUP_ROUNDS = 100, 10


def benchmark_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


class DeviceTimer:
    """The time that wrapped calls have taken, to be read as a clock: pytest-benchmark takes differences of it."""

    __name__ = "DeviceTimer"  # pytest-benchmark prints the names of timers

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._elapsed_s = 0.0

    def __call__(self) -> float:
        """Seconds, of wrapped calls only."""
        return self._elapsed_s

    def wrap(self, run: Callable[[], object]) -> Callable[[], None]:
        """A call that moves this clock on."""

        def timed() -> None:
            self._elapsed_s += self._clock.durations_ms([Call(run)])[0] / 1e3

        return timed


KernelBenchmark = Callable[[Workload, Callable[[], object]], None]


@pytest.fixture
def kernel_benchmark(request: pytest.FixtureRequest) -> KernelBenchmark:
    """Time `run` and store what it was; with benchmarks disabled `run` is called once."""
    device = benchmark_device()
    timer = DeviceTimer(clock_for(device))
    request.node.add_marker(pytest.mark.benchmark(timer=timer))
    benchmark = request.getfixturevalue("benchmark")

    def measure(workload: Workload, run: Callable[[], object]) -> None:
        versions = package_versions()
        benchmark.group = workload.kernel
        benchmark.extra_info.update(
            kernel=workload.kernel,
            case=workload.title,
            device=machine_slug(device),
            torch=versions["torch"],
            triton=versions["triton"],
        )
        benchmark.pedantic(timer.wrap(run), rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)

    return measure


def pytest_configure(config: pytest.Config) -> None:
    """Store results of each machine in a folder of its own; pytest-benchmark itself looks at Python and system only."""
    if config.getoption("benchmark_storage", None) == DEFAULT_STORAGE:
        config.option.benchmark_storage = f"{DEFAULT_STORAGE}/{machine_slug(benchmark_device())}"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Say which machine it is, and leave out what changes from one minute to the next."""
    cpu = machine_info.get("cpu", {})
    machine_info["cpu"] = {name: value for name, value in cpu.items() if not name.startswith("hz_")}
    machine_info["device"] = machine_slug(benchmark_device())


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_compare_machine_info(machine_info: dict[str, Any], compared_benchmark: dict[str, Any]) -> None:
    """Refuse to compare with another machine."""
    theirs = compared_benchmark["machine_info"].get("device", "an unknown machine")
    if theirs != machine_info["device"]:
        raise pytest.UsageError(
            f"--benchmark-compare: those results are of {theirs} and this is {machine_info['device']}; "
            "times of different machines say nothing about the code. Run the benchmarks of the other version here."
        )
