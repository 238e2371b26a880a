"""What this machine can do at best, measured here and now: bytes that a copy moves, operations of a matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.clocks import Call, Clock

DTYPES = ("float16", "bfloat16", "tf32", "float32")
COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}  # several times the last cache
MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
WARMUPS, REPEATS = 3, 10


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes read and written per second, and operations per second of each dtype (a multiply-add counts two)."""

    bytes_per_s: float
    flops_per_s: Mapping[str, float]

    def floor_ms(self, flops: float, moved_bytes: float, dtype: str) -> float:
        """The time under which no implementation gets: that of the arithmetic or that of the traffic."""
        return 1e3 * max(flops / self.flops_per_s[dtype], moved_bytes / self.bytes_per_s)

    def is_memory_bound(self, flops: float, moved_bytes: float, dtype: str) -> bool:
        """Whether the traffic takes longer."""
        return moved_bytes / self.bytes_per_s > flops / self.flops_per_s[dtype]

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e12:.4g} TFLOP/s" for name, rate in self.flops_per_s.items())
        return f"copy {self.bytes_per_s / 1e9:.4g} GB/s (read and written); matrix product {rates}"


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of tensors; TF32 is a way of multiplying float32."""
    dtype: torch.dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    return dtype


@contextmanager
def multiplying(dtype: str) -> Iterator[None]:
    """Let float32 be multiplied as TF32 inside if that is the dtype, else exactly."""
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def measure_ceilings(device: torch.device, clock: Clock, dtypes: Sequence[str]) -> Ceilings:
    """Time a large copy and large matrix products of random numbers: zeros would run faster than data does."""
    source = torch.randint(256, (COPY_BYTES[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_ms = _least_ms(clock, Call(lambda: target.copy_(source)))
    side = MATRIX_SIDE[device.type]
    rates = {}
    for name in dtypes:
        a, b = (torch.randn(side, side, device=device).to(torch_dtype(name)) for _ in range(2))
        with multiplying(name):
            product_ms = _least_ms(clock, Call(partial(torch.matmul, a, b)))
        rates[name] = 2 * side**3 / product_ms * 1e3
    return Ceilings(2 * source.numel() / copy_ms * 1e3, rates)


def _least_ms(clock: Clock, call: Call) -> float:
    """The least of some calls: a ceiling is what the machine can do, not what it does beside other work."""
    return min(clock.durations_ms([call] * (WARMUPS + REPEATS))[WARMUPS:])
