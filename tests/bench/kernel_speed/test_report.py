from __future__ import annotations

import dataclasses
import os
from collections import Counter
from typing import Any

import pytest

from bench.kernel_speed import report as kernel_report
from bench.kernel_speed.plan import check_cases
from bench.kernel_speed.report import (
    Group,
    baseline_times,
    checked_kernels,
    format_row,
    groups,
    heading,
    judged_memory,
    kind_of_row,
    markdown,
    speed_up,
    summary,
    targets,
)
from bench.records import Measurement
from kernels.registry import KERNELS
from tests.bench.kernel_speed.rows import bench_of, row


def memory_bound(value: float, **changes: Any) -> Measurement:
    return row(layer="b1024.conv1", value=value, detail_moved_bytes=2.1e9, detail_floor_us=700.0, **changes)


def generator(name: str, ours_ms: float, best_ms: float) -> Measurement:
    made = row(kernel="generator", value=ours_ms, kind="speed", subject=name, detail_compiled_eager_graph_ms=best_ms)
    case = {key: value for key, value in made.case.items() if key not in ("channels", "size")}
    return dataclasses.replace(made, case=case | {"resolution": 1024})


def check(kernel: str, dtype: str, error: str | None = None) -> Measurement:
    status: dict[str, Any] = {"status": "error", "error": error} if error else {}
    made = row(
        *(kernel, "", None if error else 1e-4),
        case_dtype=dtype,
        case_size="2x8->8 @8",
        case_against="float64",
        subject=f"check/{kernel}",
        **status,
    )
    case = {name: value for name, value in made.case.items() if name != "channels"}
    return dataclasses.replace(made, metric="Relative error", case=case)


def line_of(lines: list[str], title: str) -> str:
    (found,) = (line for line in lines if title in line)
    return found


def test_speed_up_is_the_fastest_baseline_over_ours() -> None:
    measured = row(value=0.5)
    assert baseline_times(measured) == {"eager": 3.0, "compiled_eager_graph": 2.0}
    assert speed_up(measured) == 4.0
    assert speed_up(measured, ["eager"]) == 6.0
    assert speed_up(dataclasses.replace(measured, details={"eager_ms": 3.0, "grouped_ms": 9.0}), ["grouped"]) == 18.0
    assert speed_up(measured, ["grouped"]) is None
    assert speed_up(row(value=None, status="error", error="wrong")) is None


def test_kind_of_a_layer_goes_by_the_ceilings_of_its_run() -> None:
    assert kind_of_row(row()) == "compute-bound convolution"
    assert kind_of_row(memory_bound(1.0)) == "memory-bound convolution"
    assert kind_of_row(row(case_up=2)) == "up-convolution"
    assert kind_of_row(row(kernel="filtered_lrelu")) == "filtered_lrelu"
    assert kind_of_row(row(detail_copy_bytes_per_s=1e11)) == "memory-bound convolution"


def test_group_has_geometric_mean_total_and_worst_layer() -> None:
    fast, slow = row(value=0.25), row(layer="b8.conv1", value=4.0)  # 8 times as fast, and half as fast
    group = Group.of("layers", [fast, slow])
    assert group.ratio == pytest.approx(2.0)
    assert group.by_total_time == pytest.approx(4.0 / 4.25)
    assert group.worst is slow
    assert group.roofline == pytest.approx(((0.388 / 0.25) * (0.388 / 4)) ** 0.5)
    assert "2.00x geometric mean" in str(group)
    assert "worst 0.50x (modulated_conv2d/stylegan2-ffhq-1024/b8.conv1, 16x 512->512 @64 h)" in str(group)


def test_groups_are_of_a_kind_and_a_direction_and_leave_out_failures() -> None:
    rows = [row(), row(case_up=2), row(case_direction="forward+backward"), row(value=None, status="error", error="x")]
    titles = [group.title for group in groups(rows)]
    assert titles == [
        "compute-bound convolution, forward (1)",
        "up-convolution, forward (1)",
        "compute-bound convolution, forward+backward (1)",
        "all rows (3)",
    ]
    assert [group.title for group in groups(rows[:1])] == ["compute-bound convolution, forward (1)"]


def test_targets_are_met_missed_or_unmeasured() -> None:
    rows = [
        memory_bound(0.8, detail_roofline_fraction=0.9),  # 2.5 times
        row(case_up=2, value=1.6),  # 1.25 times, and 1.5 is wanted
        row(value=1.9, detail_roofline_fraction=0.6),  # fast enough, and too far from the ceiling
        row(kernel="filtered_lrelu", value=0.25),  # 12 times its PyTorch form, though 8 times the compiled one
        generator("stylegan2-ffhq-1024", 1.0, 1.6),
        generator("stylegan3-r-ffhq-1024", 1.0, 1.6),
    ]
    lines = targets(rows)
    assert line_of(lines, "memory-bound layers").startswith("met")
    assert "2.50x and 90% over 1 rows" in line_of(lines, "memory-bound layers")
    assert line_of(lines, "up-convolutions").startswith("missed")
    assert line_of(lines, "compute-bound layers").startswith("missed")
    assert line_of(lines, "filtered_lrelu").startswith("met")
    assert line_of(lines, "StyleGAN2-1024").startswith("met")
    assert line_of(lines, "StyleGAN3-R").startswith("missed")
    for title in ("demodulation", "CIFAR-32", "StyleGAN-XL and -T", "peak memory"):
        assert line_of(lines, title).startswith("unmeasured")


def test_a_target_is_never_met_by_what_failed() -> None:
    assert line_of(targets([row(value=None, status="error", error="x")]), "compute-bound").startswith("unmeasured")


def test_memory_is_held_against_the_eager_form() -> None:
    below = row(detail_peak_memory_bytes=1e9, detail_eager_peak_memory_bytes=2e9)
    above = row(layer="b8.conv1", detail_peak_memory_bytes=3e9, detail_eager_peak_memory_bytes=2e9)
    assert judged_memory([below]).startswith("met")
    assert judged_memory([below, above]).startswith("missed")
    assert "1 of 2 rows; above in modulated_conv2d/stylegan2-ffhq-1024/b8.conv1" in judged_memory([below, above])


def test_kernels_that_passed_every_check_may_be_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    proven = dataclasses.replace(KERNELS["demodulation"], is_proven=True)
    monkeypatch.setitem(kernel_report.KERNELS, "demodulation", proven)  # type: ignore[attr-defined]
    wanted = Counter(case.kernel for case in check_cases())
    rows = [
        *[check("modulated_conv2d", "float16")] * wanted["modulated_conv2d"],
        *[check("demodulation", "float32")] * wanted["demodulation"],
        *(check("upfirdn2d", "float16"), check("upfirdn2d", "float32", "wrong: by 2.0e-02")),
        check("bias_act", "tf32"),
    ]
    lines = dict(line.split(": ", 1) for line in checked_kernels(rows))
    marks = f"all {wanted['modulated_conv2d']} checks passed; it may be marked is_proven in kernels/registry.py"
    assert lines["modulated_conv2d"] == marks
    assert "it is marked is_proven" in lines["demodulation"]
    assert lines["upfirdn2d"].startswith("1 of 2 checks failed, first 16x 2x8->8 @8: wrong: by 2.0e-02")
    assert lines["bias_act"] == f"1 of {wanted['bias_act']} checks done, and passed"
    assert lines["minibatch_std"] == "no Triton kernel"
    assert lines.keys() == KERNELS.keys()


def test_rows_say_everything_in_a_line() -> None:
    line = format_row(row(value=0.5, caveats=("grouped: out of memory",)))
    assert line.split() == [
        *("stylegan2-ffhq-1024/b64.conv1", "16x", "512->512", "@64", "h"),
        *("2.000", "0.500", "4.00x", "78%", "3.0e-04", "grouped:", "out", "of", "memory"),
    ]
    missing = format_row(row(kernel="filtered_lrelu", value=None, status="missing", error="no Triton kernel"))
    assert missing.startswith("filtered_lrelu/stylegan2-ffhq-1024/b64.conv1")
    assert missing.endswith("missing: no Triton kernel")
    assert format_row(check("bias_act", "float16")).endswith("right, error 1.0e-04")
    assert "16x 1024" in format_row(generator("stylegan2-ffhq-1024", 1.0, 1.5))


def test_heading_tells_of_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    assert "The machine is busy (load 3.00)" in "\n".join(heading(bench_of(), 20, 3))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    lines = heading(bench_of(), 20, 3)
    assert "busy" not in "\n".join(lines)
    assert "20 rows, 3 done before" in lines[2]


def test_summary_has_checks_and_targets_on_a_gpu_only() -> None:
    assert any("targets" in line for line in summary([row()], on_gpu=True))
    assert not any("targets" in line for line in summary([row()], on_gpu=False))
    assert summary([], on_gpu=False) == []


def test_page_has_every_row_and_the_layers_that_are_alike() -> None:
    rows = [
        row(),
        row(layer="b8.conv1", value=None, status="error", error="wrong, so not timed"),
        check("bias_act", "tf32"),
    ]
    page = markdown(
        rows, {"machine": "nvidia"}, {rows[0].subject: ("stylegan2-ffhq-1024/b64.conv1", "other/b64.conv1")}
    )
    assert "- machine: nvidia" in page
    first = "| modulated_conv2d/stylegan2-ffhq-1024/b64.conv1 | 16x 512->512 @64 h | 1.0000 | 2.00 | 39% | 3.0e-04 |"
    assert f"{first} eager 3.0000; compiled_eager_graph 2.0000 |" in page
    assert "b8.conv1 | 16x 512->512 @64 h | error |  |  |  | wrong, so not timed |" in page
    assert "- modulated_conv2d/stylegan2-ffhq-1024/b64.conv1: other/b64.conv1" in page
