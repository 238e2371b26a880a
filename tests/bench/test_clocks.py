from __future__ import annotations

import time
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from bench.clocks import Call, EventClock, ThreadClock, WallClock, clock_for


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def waiting(log: list[str]) -> AbstractContextManager[None]:
    @contextmanager
    def context() -> Any:
        spin(0.05)
        log.append("in")
        yield
        log.append("out")

    return context()


def test_thread_clock_counts_work_and_no_waiting() -> None:
    slept, worked = ThreadClock().durations_ms([Call(lambda: time.sleep(0.05)), Call(lambda: spin(0.02))])
    assert slept < 10
    assert 20 <= worked < 40


def test_wall_clock_counts_waiting_and_no_context() -> None:
    log: list[str] = []
    (slept,) = WallClock().durations_ms([Call(lambda: time.sleep(0.05), lambda: waiting(log))])
    assert 50 <= slept < 95
    assert log == ["in", "out"]


def test_context_of_a_call_is_not_timed() -> None:
    log: list[str] = []
    (duration_ms,) = ThreadClock().durations_ms([Call(lambda: log.append("call"), lambda: waiting(log))])
    assert log == ["in", "call", "out"]
    assert duration_ms < 10


class FakeEvent:
    """An event of a device whose time is the number of things that it has done."""

    device: list[str]

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = len(self.device)
        self.device.append("event")

    def synchronize(self) -> None:
        self.device.append("wait")

    def elapsed_time(self, end: FakeEvent) -> float:
        return float(end.time - self.time)


def test_event_clock_flushes_the_cache_before_each_call_and_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device: list[str] = []
    monkeypatch.setattr(FakeEvent, "device", device, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.Tensor, "zero_", lambda _: device.append("flush"))
    monkeypatch.setattr("bench.clocks.FLUSH_BYTES", 8)
    clock = EventClock(torch.device("cpu"))
    assert clock.durations_ms([Call(lambda: device.append("a")), Call(lambda: device.extend("bb"))]) == [2.0, 3.0]
    assert device == ["flush", "event", "a", "event", "flush", "event", "b", "b", "event", "wait"]


def test_cpu_is_timed_in_one_thread() -> None:
    assert isinstance(clock_for(torch.device("cpu")), ThreadClock)
    assert torch.get_num_threads() == 1
