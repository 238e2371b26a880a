"""What a plan will cost on this machine: operations counted on a meta device, divided by a measured pace."""

from __future__ import annotations

import functools
import time

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.verify import draw_batch
from models.registry import build

PROBE_SECONDS = 0.2
EFFICIENCY = 0.5  # of the probe's pace that whole networks reach
DECODE_IMAGE_S = 0.004
LATENTS_PER_PIXEL_S = 6e-9  # drawing the noise maps of a sample


@functools.cache
def gflop_per_image(model: str, num_classes: int) -> float:
    """Floating-point operations of one image in units of 1e9 (a multiply-add counts two), without elementwise work."""
    meta = torch.device("meta")
    generator = build(model, num_classes=num_classes, device="meta")
    latents, condition = draw_batch(generator, 1, meta)
    with FlopCounterMode(display=False) as counter:
        generator.sample(latents, condition)
    return float(counter.get_total_flops()) / 1e9


@functools.cache
def gflop_per_s(device: torch.device) -> float:
    """The pace of a plain 3x3 convolution on this device, probed for a fifth of a second."""
    x = torch.randn(2, 128, 64, 64, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, device=device)
    gflop_per_call = 2 * x.numel() * 128 * 9 / 1e9
    F.conv2d(x, weight, padding=1)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < PROBE_SECONDS:
        F.conv2d(x, weight, padding=1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        calls += 1
    return calls * gflop_per_call / (time.perf_counter() - start)


def seconds(gflop: float, device: torch.device) -> float:
    """How long so many operations take."""
    return gflop / (EFFICIENCY * gflop_per_s(device))
