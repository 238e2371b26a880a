from __future__ import annotations

import sys
import types

import pytest
import torch

from bench.energy import NoEnergyCounterError, joules_per_call

GPU = torch.device("cuda", 0)


class FakeDriver:
    """A driver whose counter, in millijoules, grows with every call of the work."""

    class Error(Exception):
        """What the driver raises."""

    def __init__(self, *, counts: bool = True) -> None:
        self.spent, self.counts = 1000, counts
        self.module = types.ModuleType("pynvml")
        functions = {"Init": lambda: None, "DeviceGetHandleByUUID": self.handle}
        functions |= {"DeviceGetTotalEnergyConsumption": self.counter}
        for name, function in functions.items():
            setattr(self.module, f"nvml{name}", function)
        vars(self.module)["NVMLError"] = self.Error

    def handle(self, uuid: str) -> str:
        assert uuid == "GPU-1234", "the index of torch may be another than that of the driver"
        return uuid

    def counter(self, _handle: str) -> int:
        if not self.counts:
            raise self.Error("Not Supported")
        return self.spent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    properties = types.SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)


@pytest.mark.usefixtures("gpu")
def test_energy_of_a_call_is_the_growth_of_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setitem(sys.modules, "pynvml", driver.module)

    def work() -> None:
        driver.spent += 500

    assert joules_per_call(work, GPU, measured_s=0.01) == pytest.approx(0.5)


@pytest.mark.usefixtures("gpu")
def test_absent_counter_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver(counts=False).module)
    with pytest.raises(NoEnergyCounterError, match="Not Supported"):
        joules_per_call(lambda: None, GPU)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoEnergyCounterError, match="nvidia-ml-py"):
        joules_per_call(lambda: None, GPU)
    with pytest.raises(NoEnergyCounterError, match="GPUs only"):
        joules_per_call(lambda: None, torch.device("cpu"))
