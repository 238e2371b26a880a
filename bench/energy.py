"""Energy of a piece of work, where the driver counts it (NVIDIA from Volta on, through nvidia-ml-py)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import torch

MEASURED_S = 2.0  # the counter moves some ten times a second


class NoEnergyCounterError(Exception):
    """Nothing counts energy here; the message says why."""


def joules_per_call(call: Callable[[], object], device: torch.device, measured_s: float = MEASURED_S) -> float:
    """Joules that the GPU took for one call, all of it, over calls of about `measured_s` seconds.

    Raises:
        NoEnergyCounterError: there is no GPU, no nvidia-ml-py (the extra `gpu`), or no counter.
    """
    nvml, handle = _counter(device)
    call()
    torch.cuda.synchronize(device)
    before, started, calls = nvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < measured_s:
        call()
        torch.cuda.synchronize(device)
        calls += 1
    spent_millijoules = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before
    return float(spent_millijoules) / 1000 / calls


def _counter(device: torch.device) -> tuple[Any, Any]:
    if device.type != "cuda":
        raise NoEnergyCounterError("energy is counted on NVIDIA GPUs only")
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise NoEnergyCounterError("nvidia-ml-py is not installed: pip install 'stylebench[gpu]'") from error
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        raise NoEnergyCounterError(f"the driver counts no energy: {error}") from error
    return nvml, handle
