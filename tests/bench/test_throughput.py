from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench import throughput as module
from bench.energy import NoEnergyCounterError
from bench.speed_conditions import prepare
from bench.throughput import measure_speed, num_parameters
from bench.timing import Timing, TimingSpec
from tests.bench.test_sampling import Stripes

CPU = torch.device("cpu")
FEW = TimingSpec(num_calls=5, budget_s=5)


def test_speed_report_has_every_batch_size_and_the_best() -> None:
    report = measure_speed(prepare(Stripes(), "eager", CPU), FEW, 4, CPU)
    assert [throughput.batch_size for throughput in report.offline][:1] == [1]
    assert report.best.images_per_s == max(throughput.images_per_s for throughput in report.offline)
    assert report.latency.num_calls == 5
    assert num_parameters(Stripes()) == 1
    assert report.joules_per_image is None
    assert "NVIDIA GPUs only" in report.no_energy


def timed(monkeypatch: pytest.MonkeyPatch, ms_of_batch: dict[int, float]) -> list[int]:
    """Let calls take what the dictionary says; returns the batch sizes that were tried."""
    tried: list[int] = []

    def clock(call: Callable[[], torch.Tensor], _spec: TimingSpec, _device: torch.device) -> Timing:
        batch_size = len(call())
        tried.append(batch_size)
        if batch_size not in ms_of_batch:
            raise torch.OutOfMemoryError
        return Timing((ms_of_batch[batch_size],) * 3)

    monkeypatch.setattr(module, "time_calls", clock)
    return tried


def test_search_for_the_best_batch_stops_where_a_larger_one_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = timed(monkeypatch, {1: 10, 2: 12, 4: 18, 8: 60, 16: 100})
    report = measure_speed(prepare(Stripes(), "eager", CPU), FEW, 64, CPU)
    assert tried == [1, 1, 2, 4, 8]
    assert report.best.batch_size == 4
    assert report.best.images_per_s == pytest.approx(4 / 0.018)


def test_search_for_the_best_batch_stops_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {1: 10, 2: 10})
    report = measure_speed(prepare(Stripes(), "eager", CPU), FEW, 64, CPU)
    assert report.best.batch_size == 2


def test_energy_is_told_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {1: 10, 2: 10, 4: 10})
    monkeypatch.setattr(module, "joules_per_call", lambda call, _device: 2.0 * len(call()))
    report = measure_speed(prepare(Stripes(), "eager", CPU), FEW, 4, CPU)
    assert report.joules_per_image == 2.0


def test_missing_energy_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_call: Callable[[], object], _device: torch.device) -> float:
        raise NoEnergyCounterError("no counter")

    monkeypatch.setattr(module, "joules_per_call", none)
    report = measure_speed(prepare(Stripes(), "eager", CPU), FEW, 1, CPU)
    assert (report.joules_per_image, report.no_energy) == (None, "no counter")
