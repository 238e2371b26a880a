"""Rows of `bench kernels` as a GPU would give them, and a device that is no GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.clocks import Call
from bench.kernel_speed.ceilings import Ceilings
from bench.kernel_speed.layers import KernelCall, network_calls
from bench.kernel_speed.timing import Bench, latency
from bench.records import Measurement

CPU = torch.device("cpu")
CEILINGS = Ceilings(3e12, {"float16": 8e14, "bfloat16": 8e14, "tf32": 4e14, "float32": 5e13})


class CountingClock:
    """A clock by which the calls of each kind take a set time; they are run all the same."""

    name = "fake"

    def __init__(self, times_ms: Callable[[Call], float]) -> None:
        self.times_ms = times_ms
        self.order: list[Call] = []

    def durations_ms(self, calls: Sequence[Call]) -> list[float]:
        self.order += calls
        for call in calls:
            call.run()
        return [self.times_ms(call) for call in calls]


def bench_of(**changes: Any) -> Bench:
    """A bench on the CPU whose own form is the eager one."""
    fields: dict[str, Any] = {
        "device": CPU,
        "clock": CountingClock(lambda _: 1.0),
        "ceilings": CEILINGS,
        "ours": "eager",
        "groups": ("grouped",),
    }
    return Bench(**fields | changes)


@functools.cache
def small_calls() -> dict[str, KernelCall]:
    """A layer of each kernel, small enough to be checked in no time."""
    calls = {call.uses[0].partition("/")[2]: call for call in network_calls(["stylegan2-shapes-32"])}
    return {name: calls[name] for name in ("b4.conv1", "b8.conv0", "b4.torgb", "b8")}


def row(
    kernel: str = "modulated_conv2d", layer: str = "b64.conv1", value: float | None = 1.0, **changes: Any
) -> Measurement:
    """A row of a layer; `changes` of the form `case_up=2` and `detail_floor_us=3.0` go one level down."""
    case: dict[str, Any] = {
        "batch_size": 16,
        "dtype": "float16",
        "direction": "forward",
        "channels": "512->512",
        "kernel": 3,
        "size": "64x64",
        "up": 1,
        "down": 1,
        "device": "cuda",
        "kernel_name": kernel,
        "against": "eager, grouped, compiled",
    }
    details: dict[str, float] = {
        "copy_bytes_per_s": 3e12,
        "matmul_flops_per_s": 8e14,
        "flops": 3.1e11,
        "moved_bytes": 1.4e8,
        "floor_us": 388.0,
        "relative_error": 3e-4,
        "eager_ms": 3.0,
        "eager_ratio": 3.0,
        "compiled_eager_graph_ms": 2.0,
        "compiled_eager_graph_ratio": 2.0,
    }
    details |= {} if value is None else {"roofline_fraction": 0.388 / value}
    details |= {f"stat_{name}": value or 0.0 for name in ("min", "q1", "median", "q3", "max", "mean")} | {
        "stat_stddev": 0.1
    }
    case |= {name.removeprefix("case_"): changes.pop(name) for name in list(changes) if name.startswith("case_")}
    details |= {name.removeprefix("detail_"): changes.pop(name) for name in list(changes) if name.startswith("detail_")}
    fields: dict[str, Any] = {
        "kind": "kernel",
        "subject": f"{kernel}/stylegan2-ffhq-1024/{layer}",
        "value": value,
        "n": 12,
        "interval": None if value is None else (value, value),
        "details": details,
    }
    return latency(case, **fields | changes)
