from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import commands, history
from bench.cli import main
from bench.environment import machine_slug
from bench.errors import UserError
from bench.generator_timing import GeneratorTiming
from bench.history import History, generator_measurement, kernel_measurements, read_history
from bench.kernel_timing import KernelTiming, LayerTiming
from bench.records import read_records
from kernels.costs import LayerShape

CPU = torch.device("cpu")
LAYER = LayerTiming("b8.conv0", LayerShape(4, 6, 5, 4, 4, up=2), 20.0, 10.0, 2.0, 2e-7, 8, (9.0, 12.0))
KERNELS = KernelTiming((LAYER,), num_threads=2, load_before=0.5, load_after=1.5)
GENERATOR = GeneratorTiming("stylegan2-f-32", "stylegan2", 32, 4, 1000, 40.0, 20.0, (19.0, 21.0), 2.0, 6, 1)


def test_layer_becomes_one_row_with_everything_about_it(tmp_path: Path) -> None:
    path = History(CPU, tmp_path).append("kernels", kernel_measurements(KERNELS))
    assert path == tmp_path / machine_slug(CPU) / "kernels.jsonl"
    (row,) = read_records(path)
    measured = row.measurement
    assert (measured.kind, measured.subject, measured.metric, measured.unit) == (
        *("kernel", "modulated_conv2d/b8.conv0", "Latency", "ms"),
    )
    assert (measured.value, measured.interval, measured.n) == (10.0, (9.0, 12.0), 8)
    assert measured.case["channels"] == "6->5"
    assert (measured.case["up"], measured.case["device"], measured.case["direction"]) == (2, "cpu", "forward")
    assert measured.details["baseline_ms"] == 20.0
    assert measured.details["ratio"] == 2.0
    assert measured.details["relative_error"] == 2e-7
    assert row.provenance.machine == machine_slug(CPU)
    assert row.provenance.environment["packages"]["torch"]


def test_generator_becomes_one_row() -> None:
    measured = generator_measurement(GENERATOR)
    assert (measured.kind, measured.subject, measured.value, measured.interval) == (
        *("speed", "stylegan2-f-32", 20.0, (19.0, 21.0)),
    )
    assert measured.details == {"baseline_ms": 40.0, "ratio": 2.0, "max_grey_levels": 1}
    assert (GENERATOR.baseline_images_per_s, GENERATOR.images_per_s) == (100.0, 200.0)


def test_history_only_grows(tmp_path: Path) -> None:
    for _ in range(3):
        path = History(CPU, tmp_path).append("kernels", kernel_measurements(KERNELS))
    rows = path.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3
    assert len({json.loads(row)["run_id"] for row in rows}) == 3


def test_history_is_read_over_machines_and_files_oldest_first(tmp_path: Path) -> None:
    for _ in range(2):
        History(CPU, tmp_path).append("kernels", kernel_measurements(KERNELS))
        History(CPU, tmp_path).append("generators", [generator_measurement(GENERATOR)])
    (tmp_path / machine_slug(CPU)).rename(tmp_path / "another-machine")
    History(CPU, tmp_path).append("kernels", kernel_measurements(KERNELS))
    rows = read_history(tmp_path)
    assert len(rows) == 5
    assert [row.timestamp_utc for row in rows] == sorted(row.timestamp_utc for row in rows)


def test_empty_history_says_what_fills_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`python -m bench kernels` adds to it"):
        read_history(tmp_path)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(history, "HISTORY", tmp_path / "history")
    monkeypatch.setattr(commands, "run_kernel_timing", lambda *_: KERNELS)
    monkeypatch.setattr("bench.generator_timing.time_generators", lambda *_: iter([GENERATOR, GENERATOR]))
    return tmp_path / "history"


@pytest.mark.parametrize(("command", "name", "rows"), [("kernels", "kernels", 1), ("speed", "generators", 2)])
def test_commands_record_unless_told_not_to(
    quick: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, rows: int
) -> None:
    assert main([command, "--no-record"]) == 0
    assert not quick.exists()
    first = capsys.readouterr().out
    assert "ratio" in first
    assert main([command]) == 0
    assert capsys.readouterr().out.startswith(first.partition(", load")[0])
    assert len(read_records(quick / machine_slug(CPU) / f"{name}.jsonl")) == rows
