from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import kernel_timing
from bench.errors import UserError
from bench.kernel_timing import (
    KernelTiming,
    LayerTiming,
    format_rows,
    stylegan2_layers,
    time_modulated_conv,
    time_pairs,
)
from bench.verify import VerificationError
from kernels.costs import LayerShape, conv_flops, fir_flops
from kernels.modulated_conv import modulated_conv2d

SHAPES = {
    "conv1": LayerShape(2, 6, 5, 4, 4),
    "conv0": LayerShape(2, 6, 5, 4, 4, up=2),
    "torgb": LayerShape(2, 6, 3, 4, 4, kernel=1),
}


def test_stylegan2_layers_are_those_of_the_256_generator() -> None:
    layers = stylegan2_layers(256, 16384, 1)
    assert list(layers)[:4] == ["b4.conv1", "b4.torgb", "b8.conv0", "b8.conv1"]
    assert len(layers) == 20
    assert layers["b256.conv0"] == LayerShape(1, 128, 64, 128, 128, up=2)
    filters = sum(fir_flops(shape) for shape in layers.values() if shape.up > 1)
    assert (sum(map(conv_flops, layers.values())) - filters) / 1e9 == pytest.approx(29.8, abs=0.05)


@pytest.mark.parametrize("label", SHAPES)
def test_time_modulated_conv_checks_and_times(label: str) -> None:
    row = time_modulated_conv(label, SHAPES[label], budget_s=0.0)
    assert (row.layer, row.shape, row.num_pairs) == (label, SHAPES[label], kernel_timing.MIN_PAIRS)
    assert 0 < row.error < 1e-5
    assert min(row.baseline_ms, row.optimised_ms, row.ratio) > 0
    assert row.interval_ms[0] <= row.optimised_ms <= row.interval_ms[1]


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_time_modulated_conv_times_nothing_that_is_wrong(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    monkeypatch.setattr(
        kernel_timing, "modulated_conv2d", lambda *args, **kwargs: modulated_conv2d(*args, **kwargs) * wrong
    )
    monkeypatch.setattr(kernel_timing, "time_pairs", lambda *_: pytest.fail("a wrong output was timed"))
    with pytest.raises(VerificationError, match=r"conv1: the output \[2, 5, 4, 4\] differs .* not timed"):
        time_modulated_conv("conv1", SHAPES["conv1"], budget_s=0.0)


def test_time_pairs_mirrors_every_second_pair() -> None:
    calls: list[str] = []
    pairs = time_pairs(lambda: calls.append("a"), lambda: calls.append("b"), budget_s=0.0)
    assert "".join(calls) == "abba" * (kernel_timing.MIN_PAIRS // 2)
    assert len(pairs) == kernel_timing.MIN_PAIRS


def test_time_pairs_uses_its_budget() -> None:
    assert len(time_pairs(lambda: None, lambda: None, budget_s=0.01)) > kernel_timing.MIN_PAIRS


def test_kernel_timing_totals_and_table() -> None:
    rows = tuple(
        LayerTiming(label, SHAPES[label], baseline_ms, optimised_ms, baseline_ms / optimised_ms, 2e-7, 6, (0.9, 1.1))
        for label, baseline_ms, optimised_ms in (("conv1", 8.0, 1.0), ("conv0", 20.0, 10.0))
    )
    timing = KernelTiming(rows, num_threads=2, load_before=0.5, load_after=1.25)
    assert timing.total_ratio == pytest.approx(28 / 11)
    assert timing.geometric_mean_ratio == pytest.approx(4.0)
    text = format_rows(timing)
    assert "paper256, channel_base 16384" in text
    assert "batch 2, float32, CPU, 2 threads, load 0.50 to 1.25" in text
    assert "conv0        6->5 3x3 @4->8              20.000    10.000   2.00x      6  2.0e-07" in text
    assert text.endswith("all layers: 2.55x by total time, 4.00x geometric mean")
    assert "The machine was busy" in format_rows(replace(timing, load_before=2.0))


def test_run_kernel_timing_covers_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_timing, "stylegan2_layers", lambda *_: SHAPES)
    timing = kernel_timing.run_kernel_timing(0.0, batch_size=2)
    assert [row.layer for row in timing.rows] == list(SHAPES)
    assert timing.num_threads == torch.get_num_threads()


def test_run_kernel_timing_refuses_an_empty_batch() -> None:
    with pytest.raises(UserError, match="batch size: got 0; allowed are"):
        kernel_timing.run_kernel_timing(0.0, batch_size=0)
