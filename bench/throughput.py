"""How fast and how large a generator is: latency of one image, best throughput over batch sizes, memory, parameters.

Timed is `sample`: from latents on the device to uint8 pixels on the device. Drawing the latents is not included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bench.memory import peak_memory_bytes
from bench.timing import Timing, TimingSpec, time_calls
from bench.verify import Verification, draw_batch, verify_generator
from models.spec import ImageGenerator


@dataclass(frozen=True, slots=True)
class Throughput:
    """Images per second at one batch size, from the median call."""

    batch_size: int
    images_per_s: float
    timing: Timing


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """Everything measured of one generator on one device."""

    verification: Verification
    latency: Timing  # batch 1
    offline: tuple[Throughput, ...]  # every batch size tried
    peak_memory_bytes: int | None  # of the fastest batch size, weights included
    num_parameters: int

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


def _sampler(generator: ImageGenerator, batch_size: int, device: torch.device) -> Callable[[], object]:
    latents, condition = draw_batch(generator, batch_size, device)
    return lambda: generator.sample(latents, condition)


def _throughputs(
    generator: ImageGenerator, timing: TimingSpec, max_batch_size: int, device: torch.device
) -> Iterator[Throughput]:
    """Double the batch until memory ends, the limit is reached, or a larger batch is no faster."""
    batch_size, best = 1, 0.0
    while batch_size <= max_batch_size:
        try:
            taken = time_calls(_sampler(generator, batch_size, device), timing, device)
        except torch.OutOfMemoryError:
            return
        images_per_s = 1000 * batch_size / taken.quantile_ms(0.5)
        yield Throughput(batch_size, images_per_s, taken)
        if images_per_s < 0.95 * best:
            return
        best = max(best, images_per_s)
        batch_size *= 2


def measure_speed(
    generator: ImageGenerator, timing: TimingSpec, max_batch_size: int, device: torch.device
) -> SpeedReport:
    """Verify, then time a generator. Raises `VerificationError` when the output is wrong."""
    verification = verify_generator(generator, device)
    latency = time_calls(_sampler(generator, 1, device), timing, device)
    per_batch = TimingSpec(num_calls=20, budget_s=timing.budget_s / 4, min_calls=3, num_warmups=1)
    offline = tuple(_throughputs(generator, per_batch, max_batch_size, device))
    best = max(offline, key=lambda throughput: throughput.images_per_s)
    memory = peak_memory_bytes(_sampler(generator, best.batch_size, device), device)
    if memory is not None and device.type == "cpu":
        memory += weight_bytes(generator)
    return SpeedReport(verification, latency, offline, memory, num_parameters(generator))
