from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import arguments, history, speed_commands
from bench.cli import main
from bench.history import History
from bench.kernel_speed.ceilings import DTYPES
from bench.kernel_speed.contenders import GROUPS
from bench.kernel_speed.plan import KernelOptions
from bench.kernel_speed.run import Budget, KernelRun
from bench.records import Measurement
from tests.bench.kernel_speed.rows import CEILINGS, row


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `run_kernels` was asked for; it answers with `asked.rows`."""
    found: list[Any] = []

    def run(options: KernelOptions, budget: Budget, kept: History, *, record: bool, fresh: bool) -> KernelRun:
        found.append((options, budget, record, fresh))
        rows: tuple[Measurement, ...] = (row(case_device="cpu"),)
        failed = row(value=None, status="error", error="wrong", case_device="cpu")
        return KernelRun((*rows, failed) if "b8" in options.only else rows, CEILINGS, left=2)

    monkeypatch.setattr(history, "HISTORY", tmp_path / "history")
    monkeypatch.setattr(speed_commands, "run_kernels", run)
    return found


def test_kernels_prints_a_summary_and_what_is_left(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "compute-bound convolution, forward (1): 2.00x by total time" in out
    assert "2 rows are left: the same command goes on with them" in out
    options, budget, record, fresh = asked[0]
    assert (options.batches, options.dtypes, options.groups, options.only) == ((), (), (), "*")
    assert (budget, record, fresh) == (Budget(60.0, is_limit=False), True, False)


def test_kernels_takes_what_it_is_given(asked: list[Any], tmp_path: Path) -> None:
    given = ["--batch-size", "1", "4", "--dtype", "tf32", "--against", "eager", "compiled", "--budget", "30", "--fresh"]
    folder = tmp_path / "out"
    status = main(["kernels", "--device", "cpu", *given, "--only", "*/b8.*", "--no-record", "-o", str(folder)])
    assert status == 1  # a row failed
    options, budget, record, fresh = asked[0]
    assert (options.batches, options.dtypes, options.groups) == ((1, 4), ("tf32",), ("eager", "compiled"))
    assert (budget, record, fresh) == (Budget(30.0), False, True)
    assert {path.suffix for path in folder.iterdir()} == {".md", ".json", ".png", ".svg"}


@pytest.mark.parametrize("given", [["--batch-size", "0"], ["--against", "naive"], ["--dtype", "float64"]])
def test_kernels_refuses_what_it_does_not_know(asked: list[Any], given: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["kernels", *given])
    assert asked == []


def test_choices_are_those_of_the_modules_that_are_slow_to_import() -> None:
    assert arguments.KERNEL_BASELINES == GROUPS
    assert arguments.KERNEL_DTYPES == DTYPES
