from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import trend
from bench.cli import main
from bench.records import Record, append_records
from bench.trend import draw, format_changes, list_series
from tests.bench.fake_records import PROVENANCE, record

H100, A100 = "nvidia-h100-80gb-hbm3", "nvidia-a100-80gb"


def run(
    number: int, value: float, machine: str = H100, environment: dict[str, Any] | None = None, **fields: Any
) -> Record:
    """The row of one kernel in run `number`; its commit is the number."""
    defaults: dict[str, Any] = {
        "kind": "kernel",
        "subject": "upfirdn2d",
        "case": {"batch_size": 4, "dtype": "float16"},
        "protocol": "latency@abba-pairs",
        "metric": "Latency",
        "unit": "ms",
        "interval": (0.99 * value, 1.01 * value),
    }
    provenance = dataclasses.replace(
        PROVENANCE,
        machine=machine,
        commit=f"{number:07d}" + "0" * 33,
        environment=environment or PROVENANCE.environment,
    )
    row = record(value=value, **(defaults | fields))
    return dataclasses.replace(row, provenance=provenance, timestamp_utc=f"2026-01-01T{number:02d}:00:00+00:00")


def times(count: int, step_at: int | None = None, factor: float = 1.1, seed: int = 0) -> Iterable[tuple[int, float]]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        slower = step_at is not None and number >= step_at
        yield number, float(2.0 * np.exp(0.005 * rng.normal()) * (factor if slower else 1.0))


def test_change_is_found_with_its_commits() -> None:
    (series,) = list_series([run(i, value) for i, value in times(20, step_at=12)])
    (change,) = series.changes
    assert change.index == 12
    assert change.relative == pytest.approx(0.1, abs=0.01)
    last = format_changes([series]).splitlines()[-1]
    assert "2026-01-01T12:00:00  0000011..0000012" in last
    assert re.search(r"\+(9|10)\.\d%  upfirdn2d, Latency \(ms\), latency@abba-pairs, batch_size=4", last)


def test_latest_change_comes_first() -> None:
    early = [run(i, value) for i, value in times(20, step_at=6)]
    late = [run(i, value, subject="bias_act") for i, value in times(20, step_at=14, factor=0.8)]
    lines = format_changes(list_series([*early, *late])).splitlines()
    assert lines[0] == "40 rows in 2 series, 2 changes"
    assert "bias_act" in lines[2]
    assert "-2" in lines[2]
    assert "upfirdn2d" in lines[3]


def test_machines_environments_cases_and_protocols_are_never_joined() -> None:
    newer = dict(PROVENANCE.environment) | {"packages": {"torch": "2.16.0"}}
    rows = [
        *(run(i, 2.0) for i in range(4)),
        *(run(i, 2.0, machine=A100) for i in range(4)),
        *(run(i, 2.0, environment=newer) for i in range(4)),
        *(run(i, 2.0, case={"batch_size": 8}) for i in range(4)),
        *(run(i, 2.0, protocol="latency@graph") for i in range(4)),
        *(run(i, 2.0, subject="bias_act") for i in range(4)),
    ]
    assert [len(series.records) for series in list_series(rows)] == [4] * 6


def test_clocks_of_the_moment_break_no_line() -> None:
    def at(mhz: int) -> dict[str, Any]:
        return dict(PROVENANCE.environment) | {"gpu": {"name": "NVIDIA H100 80GB HBM3", "sm_clock_mhz": mhz}}

    assert len(list_series([run(i, 2.0, environment=at(1000 + i)) for i in range(4)])) == 1


def curves(figure: dict[str, bytes]) -> int:
    """Lines that join measurements; each has its bars, which are collections beside those of the levels."""
    return len(re.findall(rb'id="LineCollection_\d+"', figure["svg"]))


def test_figure_has_a_panel_for_each_case_and_a_line_for_each_environment() -> None:
    newer = dict(PROVENANCE.environment) | {"packages": {"torch": "2.16.0"}}
    one = [run(i, value) for i, value in times(8)]
    two = [*one, *(run(8 + i, value, environment=newer) for i, value in times(8))]
    assert curves(draw(list_series(one))) == 2  # bars, and one level
    assert curves(draw(list_series(two))) == 4
    stepped = draw(list_series([run(i, value) for i, value in times(20, step_at=12)]))
    assert curves(stepped) == 3  # bars, and two levels
    assert draw(list_series(two)) == draw(list_series(two))


def test_dirty_trees_are_marked() -> None:
    row = run(3, 2.0)
    assert trend.commit_name(row) == "0000003"
    changed = dataclasses.replace(row, provenance=dataclasses.replace(row.provenance, dirty=True))
    assert trend.commit_name(changed) == "0000003+"


def test_command_draws_each_machine_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trend, "HISTORY", tmp_path)
    for machine in (H100, A100):
        append_records(tmp_path / machine / "kernels.jsonl", [run(i, v, machine) for i, v in times(20, step_at=12)])
    assert main(["trend", "--output", str(tmp_path / "plots")]) == 0
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(
        f"trend-{machine}.{kind}" for machine in (H100, A100) for kind in ("png", "svg")
    )
    assert capsys.readouterr().out.startswith("40 rows in 2 series, 2 changes")
    assert main(["trend", "--machine", "nvidia-a*", "--output", str(tmp_path / "one")]) == 0
    assert [path.suffix for path in sorted((tmp_path / "one").iterdir())] == [".png", ".svg"]
    assert main(["trend", "--kernel", "nosuch"]) == 1
    assert "no row of a machine '*' and a kernel or model 'nosuch'" in capsys.readouterr().err
