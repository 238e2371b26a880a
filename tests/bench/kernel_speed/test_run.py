from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from bench.environment import machine_slug
from bench.errors import UserError
from bench.history import History
from bench.kernel_speed import run as kernel_run
from bench.kernel_speed.checks import LayerCase
from bench.kernel_speed.plan import CheckCase, KernelOptions
from bench.kernel_speed.run import Budget, KernelRun, check_row, run_kernels
from bench.kernel_speed.timing import Bench, case_of, latency
from bench.records import Measurement, read_records
from bench.workloads import Workload
from kernels.costs import LayerShape
from tests.bench.kernel_speed.rows import CPU, bench_of, small_calls

CASES = [LayerCase(call, batch, "float32") for call in small_calls().values() for batch in (1, 2)]
AGES = Budget(1e6)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subjects that were measured, in order; each takes no time."""
    found: list[str] = []

    def measure(case: Any, bench: Bench, pair_s: float) -> Measurement:
        found.append(f"{case.subject} {case.batch}")
        details = {"relative_error": 1e-7, "grouped_ms": 2.0, "copy_bytes_per_s": 1.0, "matmul_flops_per_s": 1.0}
        return latency(case_of(case, bench), kind="kernel", subject=case.subject, value=1.0, n=4, details=details)

    monkeypatch.setattr(kernel_run, "measure", measure)
    monkeypatch.setattr(kernel_run, "make_bench", lambda _: bench_of())
    monkeypatch.setattr(kernel_run, "plan", lambda *_: CASES)
    return found


def run(folder: Path, budget: Budget = AGES, **how: bool) -> KernelRun:
    return run_kernels(KernelOptions(CPU), budget, History(CPU, folder), **{"record": True, "fresh": False} | how)


def names(cases: Any) -> list[str]:
    return [f"{case.subject} {case.batch}" for case in cases]


def test_every_row_is_in_the_history_as_soon_as_it_is_measured(tmp_path: Path, measured: list[str]) -> None:
    done = run(tmp_path)
    assert measured == names(CASES)
    assert (len(done.rows), done.left) == (len(CASES), 0)
    rows = read_records(tmp_path / machine_slug(CPU) / "kernels-stylegan2-shapes-32.jsonl")
    assert [row.measurement for row in rows] == list(done.rows)
    assert len({row.provenance.run_id for row in rows}) == 1
    assert done.uses[CASES[0].subject] == CASES[0].call.uses


def test_a_run_that_was_cut_goes_on(tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measure = kernel_run.measure  # type: ignore[attr-defined]

    def cut(case: Any, bench: Bench, pair_s: float) -> Measurement:
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(case, bench, pair_s)

    monkeypatch.setattr(kernel_run, "measure", cut)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(kernel_run, "measure", measure)
    done = run(tmp_path)
    assert measured == names(CASES)
    assert (len(done.rows), done.left) == (len(CASES), 0)
    assert [row.subject for row in done.rows] == [case.subject for case in CASES]
    rows = read_records(tmp_path / machine_slug(CPU) / "kernels-stylegan2-shapes-32.jsonl")
    assert len({row.provenance.run_id for row in rows}) == 1


def test_a_run_that_is_done_is_followed_by_a_new_one(tmp_path: Path, measured: list[str]) -> None:
    run(tmp_path)
    run(tmp_path)
    assert measured == names(CASES) * 2
    rows = read_records(tmp_path / machine_slug(CPU) / "kernels-stylegan2-shapes-32.jsonl")
    assert len({row.provenance.run_id for row in rows}) == 2


@pytest.mark.parametrize("how", [{"fresh": True}, {"record": False}])
def test_a_fresh_run_takes_nothing_over(tmp_path: Path, measured: list[str], how: dict[str, bool]) -> None:
    run(tmp_path, Budget(0))
    run(tmp_path, AGES, **how)
    assert measured == names([CASES[0], *CASES])


def test_rows_of_another_version_of_the_program_are_not_taken_over(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, Budget(0))
    monkeypatch.setattr(kernel_run, "source_sha256", lambda: "another")
    run(tmp_path)
    assert measured == names([CASES[0], *CASES])


def test_the_budget_ends_a_run_after_one_row_at_least(tmp_path: Path, measured: list[str]) -> None:
    done = run(tmp_path, Budget(0))
    assert measured == names(CASES[:1])
    assert (len(done.rows), done.left) == (1, len(CASES) - 1)


def test_a_row_that_the_end_of_the_budget_cuts_is_dropped(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = kernel_run.measure  # type: ignore[attr-defined]

    def slow(case: Any, bench: Bench, pair_s: float) -> Measurement:
        if len(measured) == 2:
            time.sleep(5)
        return measure(case, bench, pair_s)

    monkeypatch.setattr(kernel_run, "measure", slow)
    start = time.monotonic()
    done = run(tmp_path, Budget(0.5))
    assert time.monotonic() - start < 3
    assert (len(done.rows), done.left) == (2, len(CASES) - 2)
    rows = read_records(tmp_path / machine_slug(CPU) / "kernels-stylegan2-shapes-32.jsonl")
    assert len(rows) == 2


def test_a_budget_that_is_no_limit_ends_nothing(tmp_path: Path, measured: list[str]) -> None:
    assert run(tmp_path, Budget(0, is_limit=False)).left == 0


def test_time_is_shared_out_over_what_is_left(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    measure = kernel_run.measure  # type: ignore[attr-defined]

    def note(case: Any, bench: Bench, pair_s: float) -> Measurement:
        shares.append(pair_s)
        return measure(case, bench, pair_s)

    monkeypatch.setattr(kernel_run, "measure", note)
    monkeypatch.setattr(kernel_run, "CHECK_S", 0.0)
    run(tmp_path, Budget(len(CASES) * 0.5), fresh=True)
    assert 0.3 < shares[0] <= 0.5
    assert all(a <= b for a, b in itertools.pairwise(shares))  # rows took no time, so later ones get more
    assert max(shares) <= kernel_run.MAX_PAIR_S


def test_nothing_of_that_name_is_an_error(tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_run, "plan", lambda *_: [])
    with pytest.raises(UserError, match="--only x: no row is called so"):
        run_kernels(KernelOptions(CPU, only="x"), AGES, History(CPU, tmp_path), record=True, fresh=False)


def test_check_is_a_row_with_an_error_or_a_status() -> None:
    case = CheckCase(Workload("modulated_conv2d", LayerShape(2, 8, 8, 8, 8), "float16", backward=True))
    row = check_row(case, bench_of())
    assert (row.subject, row.metric, row.status) == ("check/modulated_conv2d", "Relative error", "ok")
    assert 0 < (row.value or 0) < 1e-2
    assert row.case["against"] == "float64"
    missing = check_row(case, bench_of(ours="triton"))
    assert (missing.status, missing.value) == ("missing", None)
    wrong = check_row(
        dataclasses.replace(case, workload=Workload("no-such-kernel", LayerShape(1, 1, 1, 1, 1))), bench_of()
    )
    assert (wrong.status, wrong.error) == ("error", "KeyError: 'no-such-kernel'")


def test_planned_rows_have_the_keys_of_measured_ones() -> None:
    case = CheckCase(Workload("bias_act", LayerShape(2, 8, 8, 8, 8)))
    assert kernel_run.planned_key(case, bench_of()) == kernel_run.key_of(check_row(case, bench_of()))
    assert len({kernel_run.planned_key(one, bench_of()) for one in CASES}) == len(CASES)


def test_a_layer_is_measured_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = KernelOptions(CPU, batches=(1,), only="*/b4.torgb")
    done = run_kernels(options, Budget(0.5), History(CPU, tmp_path), record=True, fresh=False)
    (measured,) = done.rows
    assert (measured.subject, measured.status) == ("modulated_conv2d/stylegan2-ffhq-256/b4.torgb", "ok")
    assert measured.details["grouped_ms"] > 0
    assert measured.details["roofline_fraction"] > 0
    assert "ceilings: copy" in capsys.readouterr().out
    (kept,) = read_records(tmp_path / machine_slug(CPU) / "kernels-stylegan2-ffhq-256.jsonl")
    assert kept.measurement == measured
