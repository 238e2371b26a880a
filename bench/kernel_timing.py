"""How fast the modulated convolution is against its grouped formulation, on this machine's CPU.

The baseline is the formulation of the paper's reference code: one weight per sample, one grouped convolution. Both
run in float32 on the same numbers, without noise, bias and activation, and each gets its input in the layout in
which it hands its own output to the next layer: contiguous for the baseline, channels_last for ours.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.errors import UserError
from bench.timing import Timing
from bench.verify import VerificationError
from kernels.costs import LayerShape, modulated_conv_flops
from kernels.modulated_conv import ModulatedConv, modulated_conv2d, modulated_conv2d_grouped
from kernels.registry import KERNELS
from kernels.upfirdn2d import setup_filter

RESOLUTION, CHANNEL_BASE, CHANNEL_MAX = 256, 16384, 512  # StyleGAN2-ADA's configuration "paper256"
MIN_PAIRS = 4  # two blocks of baseline, ours, ours, baseline
MAX_IDLE_LOAD = 0.7  # above it other work takes part of the cores, and threads wait for each other
MAX_FLOPS_IN_FLOAT64 = 3e9  # larger layers are checked against the baseline only


@dataclass(frozen=True, slots=True)
class LayerTiming:
    """One layer; times are medians, `ratio` is the median of paired ratios (above 1: ours is faster)."""

    layer: str
    shape: LayerShape
    baseline_ms: float
    optimised_ms: float
    ratio: float
    error: float  # ||out - ref|| / ||ref||, the larger one of those against the baseline and against float64
    num_pairs: int
    interval_ms: tuple[float, float]  # 95 % interval of `optimised_ms`


@dataclass(frozen=True, slots=True)
class KernelTiming:
    """All layers of one run, and what the machine did meanwhile."""

    rows: tuple[LayerTiming, ...]
    num_threads: int
    load_before: float  # 1-minute load average
    load_after: float

    @property
    def total_ratio(self) -> float:
        """Sum of the baseline's times over the sum of ours: what a whole network gains."""
        return sum(row.baseline_ms for row in self.rows) / sum(row.optimised_ms for row in self.rows)

    @property
    def geometric_mean_ratio(self) -> float:
        """Geometric mean of the layers' ratios: every layer counts the same."""
        return statistics.geometric_mean(row.ratio for row in self.rows)


def run_kernel_timing(budget_s: float, batch_size: int) -> KernelTiming:
    """Check and time every layer of the StyleGAN2 generator for 256x256; `budget_s` is shared out evenly."""
    if batch_size < 1:
        raise UserError(f"batch size: got {batch_size}; allowed are whole numbers from 1 up")
    layers = stylegan2_layers(RESOLUTION, CHANNEL_BASE, batch_size)
    load_before = os.getloadavg()[0]
    rows = tuple(time_modulated_conv(label, shape, budget_s / len(layers)) for label, shape in layers.items())
    return KernelTiming(rows, torch.get_num_threads(), load_before, os.getloadavg()[0])


def stylegan2_layers(resolution: int, channel_base: int, batch_size: int) -> dict[str, LayerShape]:
    """The modulated convolutions of a StyleGAN2 generator by their official names, in order."""
    layers: dict[str, LayerShape] = {}
    for log2 in range(2, int(math.log2(resolution)) + 1):
        size = 2**log2
        channels = min(channel_base // size, CHANNEL_MAX)
        if size > 4:
            wide = min(2 * channel_base // size, CHANNEL_MAX)
            layers[f"b{size}.conv0"] = LayerShape(batch_size, wide, channels, size // 2, size // 2, up=2)
        layers[f"b{size}.conv1"] = LayerShape(batch_size, channels, channels, size, size)
        layers[f"b{size}.torgb"] = LayerShape(batch_size, channels, 3, size, size, kernel=1)
    return layers


@torch.no_grad()
def time_modulated_conv(label: str, shape: LayerShape, budget_s: float) -> LayerTiming:
    """Check one layer, then time both formulations in turn for `budget_s` seconds, at least `MIN_PAIRS` pairs.

    Raises VerificationError, and times nothing, where the outputs differ by more than the kernel's tolerance.
    """
    x, weight, styles = _draw(shape)
    # toRGB, the only 1x1 layer, is not demodulated; upsampling layers keep their kernels mirrored
    conv = ModulatedConv(shape.up, 1, shape.kernel // 2, shape.kernel > 1, flip_weight=shape.up == 1)
    fir = setup_filter([1, 3, 3, 1])
    x_channels_last = x.contiguous(memory_format=torch.channels_last)

    def baseline() -> Tensor:
        return modulated_conv2d_grouped(x, weight, styles, conv, fir=fir)

    def optimised() -> Tensor:
        return modulated_conv2d(x_channels_last, weight, styles, conv, fir=fir)

    references = [baseline()]
    if modulated_conv_flops(shape) <= MAX_FLOPS_IN_FLOAT64:
        references.append(
            modulated_conv2d_grouped(x.double(), weight.double(), styles.double(), conv, fir=fir.double())
        )
    error = _checked_error(label, optimised(), references)
    pairs = time_pairs(baseline, optimised, budget_s)
    baseline_ms, optimised_ms = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    interval_ms = Timing(tuple(ours for _, ours in pairs)).median_interval_ms()
    return LayerTiming(label, shape, baseline_ms, optimised_ms, ratio, error, len(pairs), interval_ms)


def time_pairs(
    baseline: Callable[[], object], optimised: Callable[[], object], budget_s: float, min_pairs: int = MIN_PAIRS
) -> list[tuple[float, float]]:
    """Time both in blocks of baseline, ours, ours, baseline, so that drift and load meet both alike.

    Returns the durations in milliseconds as (baseline, ours); the number of pairs is even.
    """
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + budget_s
    while len(pairs) < min_pairs or time.perf_counter() < end:
        a1, b1, b2, a2 = (_duration_ms(call) for call in (baseline, optimised, optimised, baseline))
        pairs += [(a1, b1), (a2, b2)]
    return pairs


def format_rows(timing: KernelTiming) -> str:
    """Return a plain-text table with its conditions above and its totals below."""
    head = (
        f"Modulated convolution, StyleGAN2 {RESOLUTION}x{RESOLUTION} (paper256, channel_base {CHANNEL_BASE}), forward, "
        f"batch {timing.rows[0].shape.batch}, float32, CPU, {timing.num_threads} threads, "
        f"load {timing.load_before:.2f} to {timing.load_after:.2f}"
    )
    legend = "baseline: grouped convolution with per-sample weights; ratio: median of paired baseline/ours"
    columns = f"{'layer':<12} {'shape':<22} {'baseline ms':>11} {'ours ms':>9} {'ratio':>7} {'pairs':>6} {'error':>8}"
    totals = f"all layers: {timing.total_ratio:.2f}x by total time, {timing.geometric_mean_ratio:.2f}x geometric mean"
    lines = [head, legend, columns, *map(_format_row, timing.rows), totals]
    if timing.load_before > MAX_IDLE_LOAD:
        lines.append(
            f"The machine was busy before this began (load {timing.load_before:.2f}): run it again when it is idle."
        )
    return "\n".join(lines)


def _format_row(row: LayerTiming) -> str:
    s = row.shape
    size = f"@{s.height}" if s.up == 1 else f"@{s.height}->{s.height * s.up}"
    shape = f"{s.in_channels}->{s.out_channels} {s.kernel}x{s.kernel} {size}"
    times = f"{row.baseline_ms:>11.3f} {row.optimised_ms:>9.3f} {row.ratio:>6.2f}x"
    return f"{row.layer:<12} {shape:<22} {times} {row.num_pairs:>6} {row.error:>8.1e}"


def _draw(shape: LayerShape) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and styles as a trained network has them: unit variance, styles around 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.in_channels, shape.height, shape.width, generator=generator)
    weight = torch.randn(shape.out_channels, shape.in_channels, shape.kernel, shape.kernel, generator=generator)
    return x, weight, torch.randn(shape.batch, shape.in_channels, generator=generator) + 1


def _checked_error(label: str, out: Tensor, references: list[Tensor]) -> float:
    error = max(float((out.double() - ref.double()).norm() / ref.double().norm()) for ref in references)
    allowed = KERNELS["modulated_conv2d"].tolerance["float32"]
    if not error <= allowed or any(out.shape != ref.shape for ref in references):
        raise VerificationError(
            f"{label}: the output {list(out.shape)} differs from its reference by {error:.1e}; "
            f"allowed is {allowed:.0e}. It is not timed: mend kernels/modulated_conv.py"
        )
    return error


def _duration_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    result = call()  # kept until the clock has stopped: freeing it is not the kernel's work
    duration_ms = (time.perf_counter_ns() - start) / 1e6
    del result
    return duration_ms
