from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from bench import pytest_gpu
from bench.clocks import ThreadClock
from bench.pytest_gpu import DeviceTimer
from bench.workloads import workloads


def test_timer_moves_by_the_time_of_wrapped_calls_only() -> None:
    timer = DeviceTimer(ThreadClock())
    calls: list[int] = []
    wrapped = timer.wrap(lambda: calls.append(sum(range(200_000))))
    assert timer() == 0
    start = time.thread_time()
    wrapped()
    assert len(calls) == 1
    assert 0 < timer() <= time.thread_time() - start
    before = timer()
    sum(range(200_000))
    assert timer() == before


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("file://./.benchmarks", "file://./.benchmarks/nvidia-h100"),
        ("file:///elsewhere", "file:///elsewhere"),
    ],
)
def test_each_machine_has_its_own_storage(monkeypatch: pytest.MonkeyPatch, storage: str, expected: str) -> None:
    monkeypatch.setattr(pytest_gpu, "machine_slug", lambda _: "nvidia-h100")
    config: Any = SimpleNamespace(
        option=SimpleNamespace(benchmark_storage=storage), getoption=lambda name, default: storage
    )
    pytest_gpu.pytest_configure(config)
    assert config.option.benchmark_storage == expected


def test_machine_is_named_and_what_flickers_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_gpu, "machine_slug", lambda _: "nvidia-h100")
    info = {"cpu": {"brand_raw": "CPU", "hz_actual": [1, 0]}}
    pytest_gpu.pytest_benchmark_update_machine_info(info)
    assert info == {"cpu": {"brand_raw": "CPU"}, "device": "nvidia-h100"}


@pytest.mark.parametrize("theirs", [{"device": "nvidia-a100"}, {}])
def test_results_of_another_machine_are_refused(theirs: dict[str, str]) -> None:
    ours = {"device": "nvidia-h100"}
    pytest_gpu.pytest_benchmark_compare_machine_info(ours, {"machine_info": {"device": "nvidia-h100"}})
    with pytest.raises(pytest.UsageError, match="this is nvidia-h100; times of different machines"):
        pytest_gpu.pytest_benchmark_compare_machine_info(ours, {"machine_info": theirs})


def test_benchmark_says_what_it_measured(
    request: pytest.FixtureRequest, kernel_benchmark: pytest_gpu.KernelBenchmark
) -> None:
    calls: list[int] = []
    workload = workloads("cpu")[0]
    kernel_benchmark(workload, lambda: calls.append(1))
    assert calls
    info = request.getfixturevalue("benchmark").extra_info
    assert (info["kernel"], info["case"]) == (workload.kernel, workload.title)
    assert {"device", "torch", "triton"} <= set(info)
