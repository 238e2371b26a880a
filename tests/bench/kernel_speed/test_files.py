from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bench.environment import machine_slug, provenance
from bench.kernel_speed.files import pytest_benchmark_json, write_files
from bench.kernel_speed.plots import kernel_plots
from bench.kernel_speed.run import KernelRun
from tests.bench.kernel_speed.rows import CEILINGS, CPU, row

ROWS = (
    row(),
    row(layer="b1024.conv1", detail_moved_bytes=2.1e9, value=0.5),
    row(layer="b8.conv1", case_up=2, value=3.0),
    row(layer="b4.conv1", value=None, status="error", error="wrong"),
)


def test_files_are_page_figures_and_rows(tmp_path: Path) -> None:
    run = KernelRun(ROWS, CEILINGS, left=3)
    machine = machine_slug(CPU)
    paths = list(write_files(run, provenance("run", CPU), tmp_path))
    names = {f"kernels-{machine}-{name}.{kind}" for name in ("roofline", "speed-up") for kind in ("png", "svg")}
    assert {path.name for path in paths} == {f"kernels-{machine}.md", "kernels-pytest-benchmark.json", *names}
    page = (tmp_path / f"kernels-{machine}.md").read_text(encoding="utf-8")
    assert "4, and 3 left to measure" in page
    assert "copy 3000 GB/s" in page


def test_rows_can_be_compared_by_pytest_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "0001_kernels.json"
    path.write_text(pytest_benchmark_json(ROWS, provenance("run", CPU)), encoding="utf-8")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert len(content["benchmarks"]) == 3
    assert content["machine_info"]["device"] == machine_slug(CPU)
    first = content["benchmarks"][0]
    assert first["stats"]["median"] == pytest.approx(1e-3)
    assert first["stats"]["rounds"] == 12
    wanted = {"floor_us", "roofline_fraction", "error", "device", "torch", "triton"}
    assert wanted <= first["extra_info"].keys()
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(path), "--columns=median,rounds"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "b64.conv1 16x 512->512 @64 h" in shown
    assert "up-convolution" in shown


def test_figures_are_drawn_and_the_same_each_time() -> None:
    plots = kernel_plots(ROWS, "Kernels")
    assert plots.keys() == {"roofline.png", "roofline.svg", "speed-up.png", "speed-up.svg"}
    assert Image.open(io.BytesIO(plots["roofline.png"])).size == Image.open(io.BytesIO(plots["speed-up.png"])).size
    assert plots == kernel_plots(ROWS, "Kernels")


def test_nothing_is_drawn_of_what_was_not_timed() -> None:
    assert kernel_plots(ROWS[3:], "Kernels") == {}
    without_floor = [row(kernel="generator", kind="speed")]
    without_floor[0].details.pop("flops")  # type: ignore[attr-defined]
    assert kernel_plots(without_floor, "Kernels")["roofline.png"]
