"""How long a call takes: warmed up, one sample a call, device events on a GPU, quantiles instead of means."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

# A quantile is stated only from this many calls on (the floors of MLPerf's load generator).
CALLS_FOR_QUANTILE = {0.5: 1, 0.9: 64, 0.99: 662}


@dataclass(frozen=True, slots=True)
class TimingSpec:
    """How often to call: `num_calls` unless the budget ends first, never fewer than `min_calls`."""

    num_calls: int
    budget_s: float
    min_calls: int = 5
    num_warmups: int = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """The durations of single calls in milliseconds, in the order of the calls."""

    durations_ms: tuple[float, ...]

    @property
    def num_calls(self) -> int:
        """How many calls were timed."""
        return len(self.durations_ms)

    def quantile_ms(self, q: float) -> float:
        """The duration that a fraction `q` of the calls did not exceed."""
        return float(np.quantile(self.durations_ms, q))

    def supports(self, q: float) -> bool:
        """Whether there are enough calls to state quantile `q`."""
        return self.num_calls >= CALLS_FOR_QUANTILE[q]

    def summary_ms(self) -> dict[str, float]:
        """Extremes, mean, standard deviation and quartiles."""
        names = {"min": 0.0, "q1": 0.25, "median": 0.5, "q3": 0.75, "max": 1.0}
        spread = float(np.std(self.durations_ms, ddof=1)) if self.num_calls > 1 else 0.0
        return {name: self.quantile_ms(q) for name, q in names.items()} | {
            "mean": float(np.mean(self.durations_ms)),
            "stddev": spread,
        }

    def quantile_interval_ms(self, q: float) -> tuple[float, float]:
        """A 95 % interval of a quantile by order statistics (binomial, normal approximation)."""
        ordered, n = sorted(self.durations_ms), self.num_calls
        half_width = 1.96 * math.sqrt(n * q * (1 - q))
        low = max(math.floor(n * q - half_width), 0)
        high = min(math.ceil(n * q + half_width), n - 1)
        return ordered[low], ordered[high]

    def median_interval_ms(self) -> tuple[float, float]:
        """A 95 % interval of the median."""
        return self.quantile_interval_ms(0.5)


def _wall_clock_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _device_clock_ms(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def time_calls(call: Callable[[], object], spec: TimingSpec, device: torch.device) -> Timing:
    """Time single calls one after the other."""
    clock = _device_clock_ms if device.type == "cuda" else _wall_clock_ms
    for _ in range(spec.num_warmups):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    durations_ms: list[float] = []
    end = time.perf_counter() + spec.budget_s
    while len(durations_ms) < spec.num_calls and (len(durations_ms) < spec.min_calls or time.perf_counter() < end):
        durations_ms.append(clock(call))
    return Timing(tuple(durations_ms))
