from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from bench.clocks import Call
from bench.kernel_speed import ceilings
from bench.kernel_speed.ceilings import Ceilings, measure_ceilings, multiplying, torch_dtype

CPU = torch.device("cpu")
MEASURED = Ceilings(1e12, {"float16": 1e14, "float32": 1e13})


class FakeClock:
    """A clock whose calls take 8, 7, ..., 2 and then 2 ms each; they are not run."""

    name = "fake"

    def durations_ms(self, calls: Sequence[Call]) -> list[float]:
        return [max(8.0 - i, 2.0) for i in range(len(calls))]


def test_ceilings_are_the_best_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceilings.COPY_BYTES, "cpu", 1000)
    monkeypatch.setitem(ceilings.MATRIX_SIDE, "cpu", 10)
    found = measure_ceilings(CPU, FakeClock(), ["float32", "tf32", "bfloat16"])
    assert found.bytes_per_s == pytest.approx(2 * 1000 / 2e-3)
    assert found.flops_per_s == pytest.approx(dict.fromkeys(["float32", "tf32", "bfloat16"], 2 * 10**3 / 2e-3))


def test_floor_is_the_larger_of_arithmetic_and_traffic() -> None:
    assert MEASURED.floor_ms(1e11, 1e9, "float16") == pytest.approx(1.0)
    assert MEASURED.floor_ms(1e11, 1e9, "float32") == pytest.approx(10.0)
    assert MEASURED.floor_ms(1e11, 5e9, "float16") == pytest.approx(5.0)
    assert MEASURED.is_memory_bound(1e11, 5e9, "float16")
    assert not MEASURED.is_memory_bound(1e11, 5e9, "float32")
    assert "copy 1000 GB/s" in str(MEASURED)


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_tf32_is_a_way_of_multiplying() -> None:
    assert (torch_dtype("tf32"), torch_dtype("float16")) == (torch.float32, torch.float16)
    before = flags()
    with multiplying("tf32"):
        assert flags() == (True, True)
    with multiplying("float32"):
        assert flags() == (False, False)
    assert flags() == before
