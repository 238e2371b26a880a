"""How fast and how large a generator is: latency of one image, best throughput over batch sizes, memory, parameters.

Timed is `sample`: from latents on the device to uint8 pixels on the device. Drawing the latents is not included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bench.energy import NoEnergyCounterError, joules_per_call
from bench.memory import peak_memory_bytes
from bench.speed_conditions import TimedSampler
from bench.timing import Timing, TimingSpec, time_calls
from models.spec import ImageGenerator

# what `ls metrics` says of the speed columns
THROUGHPUT_PROTOCOLS = {
    "latency": "Milliseconds of one image at batch 1: p50, p90 and p99, each from enough calls (MLPerf's counts) only.",
    "offline": "Images per second of one GPU at the best batch size, with the peak memory and the energy there.",
    "size": "Parameters, floating-point operations of one image, evaluations of the network for one image (NFE).",
}


@dataclass(frozen=True, slots=True)
class Throughput:
    """Images per second at one batch size, from the median call."""

    batch_size: int
    images_per_s: float
    timing: Timing


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """Everything measured of one generator under one condition on one device."""

    latency: Timing  # batch 1
    offline: tuple[Throughput, ...]  # every batch size tried
    peak_memory_bytes: int | None  # of the fastest batch size, weights included
    joules_per_image: float | None  # of the fastest batch size
    no_energy: str = ""  # why it is not known

    @property
    def best(self) -> Throughput:
        """The batch size with the most images per second."""
        return max(self.offline, key=lambda throughput: throughput.images_per_s)


def num_parameters(generator: ImageGenerator) -> int:
    """Trainable and frozen parameters, without buffers."""
    if not isinstance(generator, nn.Module):
        raise TypeError("only the parameters of a torch module can be counted")
    return sum(parameter.numel() for parameter in generator.parameters())


def weight_bytes(generator: ImageGenerator) -> int:
    """Bytes of parameters and buffers."""
    if not isinstance(generator, nn.Module):
        raise TypeError("only the weights of a torch module can be counted")
    return sum(tensor.numel() * tensor.element_size() for tensor in generator.state_dict().values())


def _throughputs(
    sampler: TimedSampler, timing: TimingSpec, max_batch_size: int, device: torch.device
) -> Iterator[Throughput]:
    """Double the batch until memory ends, the limit is reached, or a larger batch is no faster."""
    batch_size, best = 1, 0.0
    while batch_size <= max_batch_size:
        try:
            taken = time_calls(sampler.batch(batch_size, device), timing, device)
        except torch.OutOfMemoryError:
            return
        images_per_s = 1000 * batch_size / taken.quantile_ms(0.5)
        yield Throughput(batch_size, images_per_s, taken)
        if images_per_s < 0.95 * best:
            return
        best = max(best, images_per_s)
        batch_size *= 2


def measure_speed(sampler: TimedSampler, timing: TimingSpec, max_batch_size: int, device: torch.device) -> SpeedReport:
    """Time a generator whose images were verified."""
    latency = time_calls(sampler.batch(1, device), timing, device)
    per_batch = TimingSpec(num_calls=20, budget_s=timing.budget_s / 4, min_calls=3, num_warmups=1)
    offline = tuple(_throughputs(sampler, per_batch, max_batch_size, device))
    best = max(offline, key=lambda throughput: throughput.images_per_s)
    call = sampler.batch(best.batch_size, device)
    memory = peak_memory_bytes(call, device)
    if memory is not None and device.type == "cpu":
        memory += weight_bytes(sampler.generator)
    try:
        joules = joules_per_call(call, device) / best.batch_size
    except NoEnergyCounterError as error:
        return SpeedReport(latency, offline, memory, None, str(error))
    return SpeedReport(latency, offline, memory, joules)
