from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from bench import history
from bench.cli import main
from bench.environment import machine_slug
from bench.errors import UserError
from bench.generator_timing import GeneratorTiming, generator_measurement
from bench.history import History, read_history
from bench.records import read_records
from tests.bench.kernel_speed.rows import row

CPU = torch.device("cpu")
KERNEL = row(value=10.0, case_device="cpu")
GENERATOR = GeneratorTiming("stylegan2-f-32", "stylegan2", 32, 4, 1000, 40.0, 20.0, (19.0, 21.0), 2.0, 6, 1)


def test_row_is_kept_with_where_it_was_measured(tmp_path: Path) -> None:
    path = History(CPU, tmp_path).append("kernels", [KERNEL])
    assert path == tmp_path / machine_slug(CPU) / "kernels.jsonl"
    (kept,) = read_records(path)
    assert kept.measurement == KERNEL
    assert kept.provenance.machine == machine_slug(CPU)
    assert kept.provenance.environment["packages"]["torch"]


def test_generator_becomes_one_row() -> None:
    measured = generator_measurement(GENERATOR)
    assert (measured.kind, measured.subject, measured.value, measured.interval) == (
        *("speed", "stylegan2-f-32", 20.0, (19.0, 21.0)),
    )
    assert measured.details == {"baseline_ms": 40.0, "ratio": 2.0, "max_grey_levels": 1}
    assert measured.case == {"resolution": 32, "batch_size": 4, "dtype": "float32", "device": "cpu", "graphs": False}
    assert (GENERATOR.baseline_images_per_s, GENERATOR.images_per_s) == (100.0, 200.0)


def test_history_only_grows(tmp_path: Path) -> None:
    for _ in range(3):
        path = History(CPU, tmp_path).append("kernels", [KERNEL])
    rows = path.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3
    assert len({json.loads(row)["run_id"] for row in rows}) == 3


def test_history_is_read_over_machines_and_files_oldest_first(tmp_path: Path) -> None:
    for _ in range(2):
        History(CPU, tmp_path).append("kernels", [KERNEL])
        History(CPU, tmp_path).append("generators", [generator_measurement(GENERATOR)])
    (tmp_path / machine_slug(CPU)).rename(tmp_path / "another-machine")
    History(CPU, tmp_path).append("kernels", [KERNEL])
    rows = read_history(tmp_path)
    assert len(rows) == 5
    assert [row.timestamp_utc for row in rows] == sorted(row.timestamp_utc for row in rows)


def test_history_is_of_times_that_were_taken(tmp_path: Path) -> None:
    failed = row(value=None, status="error", error="wrong")
    error = dataclasses.replace(KERNEL, metric="Relative error", value=0.0)
    History(CPU, tmp_path).append("kernels", [KERNEL, failed, error])
    assert [kept.measurement for kept in read_history(tmp_path)] == [KERNEL]


def test_empty_history_says_what_fills_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`python -m bench kernels` adds to it"):
        read_history(tmp_path)


def test_speed_is_recorded_unless_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "history"
    monkeypatch.setattr(history, "HISTORY", kept)
    monkeypatch.setattr("bench.generator_timing.time_generators", lambda *_: iter([GENERATOR, GENERATOR]))
    assert main(["speed", "--no-record"]) == 0
    assert not kept.exists()
    first = capsys.readouterr().out
    assert "ratio" in first
    assert main(["speed"]) == 0
    assert capsys.readouterr().out.startswith(first.partition(", load")[0])
    assert len(read_records(kept / machine_slug(CPU) / "generators.jsonl")) == 2
