"""Clocks for calls that are compared: the CPU time of this thread, and the events of a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch

FLUSH_BYTES = 256 * 2**20  # more than the second-level cache of any GPU


@dataclass(frozen=True, slots=True)
class Call:
    """What is timed; it runs inside a context whose cost does not count."""

    run: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]] = nullcontext


class Clock(Protocol):
    """Times calls in the order given."""

    name: str  # what a duration means

    def durations_ms(self, calls: Sequence[Call]) -> list[float]:
        """Run every call once."""


class ThreadClock:
    """The CPU time of this thread: what other processes take is not counted. Nor is what other threads do."""

    name = "CPU time of one thread"

    def durations_ms(self, calls: Sequence[Call]) -> list[float]:
        """Run every call once."""
        return [_thread_time_ms(call) for call in calls]


class WallClock:
    """Wall-clock time on the CPU, all threads at work: what a user waits for."""

    name = "wall clock"

    def durations_ms(self, calls: Sequence[Call]) -> list[float]:
        """Run every call once."""
        return [_wall_time_ms(call) for call in calls]


class EventClock:
    """Device time between two events, each call with a cold second-level cache.

    The host waits once, after the last call, so the cost of launching shows only where the GPU runs out of work.
    """

    name = "GPU events, cold L2"

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def durations_ms(self, calls: Sequence[Call]) -> list[float]:
        """Run every call once."""
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in calls]
        for call, (start, end) in zip(calls, events, strict=True):
            with call.context():
                self._flush.zero_()
                start.record()
                call.run()
                end.record()
        events[-1][1].synchronize()
        return [float(start.elapsed_time(end)) for start, end in events]


def clock_for(device: torch.device) -> Clock:
    """Events on a GPU, else CPU time; torch then runs in one thread, as the clock sees no other."""
    if device.type == "cuda":
        return EventClock(device)
    torch.set_num_threads(1)
    return ThreadClock()


def _wall_time_ms(call: Call) -> float:
    with call.context():
        start = time.perf_counter_ns()
        result = call.run()  # kept until the clock has stopped: freeing it is not the kernel's work
        duration_ms = (time.perf_counter_ns() - start) / 1e6
    del result
    return duration_ms


def _thread_time_ms(call: Call) -> float:
    with call.context():
        start = time.thread_time_ns()
        result = call.run()  # kept until the clock has stopped: freeing it is not the kernel's work
        duration_ms = (time.thread_time_ns() - start) / 1e6
    del result
    return duration_ms
