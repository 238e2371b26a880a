"""The gate from end to end: what it finds, what it refuses to time, and how it leaves."""

from __future__ import annotations

import builtins
import dataclasses
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bench import gate, gate_measure
from bench.cli import main
from bench.clocks import Call
from bench.code_copies import CALLS, write_commit, write_working_tree
from bench.errors import UserError
from bench.gate import INCOMPLETE, INCONCLUSIVE, OK, REGRESSED, GateSpec, Row, exit_status, judge, run_gate, summary
from bench.gate_measure import VERSIONS, Request, from_json, measure, to_json
from bench.gate_statistics import verdicts
from bench.workloads import Workload
from kernels.costs import LayerShape
from tests.conftest import REPOSITORY

SPEC = GateSpec("main", "bias_act", budget_s=30.0, device="cpu")
TITLE = "2x64->64 @32 float32"
SMALL = Workload("bias_act", LayerShape(1, 8, 8, 8, 8))  # ten microseconds or so
BIAS_ACT = "kernels/bias_act.py"
# does the same work over and over: twenty times in one version and twenty-one times in the other is 5 % more
REPEATED = """

_plain = bias_act_reference


def bias_act_reference(*arguments, **options):
    for _ in range(TIMES):
        out = _plain(*arguments, **options)
    return out
"""
# for the clock below, which charges what a kernel asks for instead of what it takes
CHARGED = """

import builtins as _builtins

_plain = bias_act_reference


def bias_act_reference(*arguments, **options):
    _builtins.charged_ms = FACTOR
    return _plain(*arguments, **options)
"""


class ChargingClock:
    """Durations that kernels name themselves, with noise: the gate's decisions without a machine's mood."""

    name = "charged time"

    def __init__(self, noise: float, seed: int = 0) -> None:
        self.noise, self.rng, self.calls = noise, np.random.default_rng(seed), 0

    def durations_ms(self, calls: Sequence[Call]) -> list[float]:
        found = []
        for call in calls:
            builtins.charged_ms = 1.0  # type: ignore[attr-defined]
            with call.context():
                call.run()
            found.append(builtins.charged_ms * float(np.exp(self.noise * self.rng.normal())))  # type: ignore[attr-defined]
        self.calls += len(found)
        return found


class Versions:
    """The three folders that the gate compares."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for version in VERSIONS:
            write_working_tree(folder / version)

    def edit(self, version: str, change: Callable[[str], str], path: str = BIAS_ACT) -> None:
        """Change a file of "base", or of "head" and of its copy."""
        for name in ("head", "control") if version == "head" else (version,):
            file = self.folder / name / path
            old = file.read_text(encoding="utf-8") if file.exists() else ""
            new = change(old)
            assert new != old
            file.write_text(new, encoding="utf-8")

    def judge(self, spec: GateSpec = SPEC, seed: int = 0) -> list[Row]:
        return judge(spec, self.folder, seed)

    def verdicts(self, spec: GateSpec = SPEC) -> list[str]:
        return [row.verdict for row in self.judge(spec)]


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "versions")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ChargingClock:
    made = ChargingClock(0.01)
    monkeypatch.setattr(gate_measure, "clock_for", lambda _: made)
    monkeypatch.setattr(gate, "_in_fresh_process", measure)
    return made


def charged(factor: float) -> Callable[[str], str]:
    return lambda text: text + CHARGED.replace("FACTOR", str(factor))


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def test_same_code_passes(versions: Versions, clock: ChargingClock) -> None:
    rows = versions.judge()
    assert [row.verdict for row in rows] == ["ok", "ok"]
    assert [row.result.title for row in rows] == [TITLE, f"{TITLE} backward"]
    assert exit_status(rows) == OK


@pytest.mark.parametrize(("factor", "verdict", "status"), [(1.05, "regressed", REGRESSED), (0.9, "improved", OK)])
def test_other_speed_is_found(
    versions: Versions, clock: ChargingClock, factor: float, verdict: str, status: int
) -> None:
    versions.edit("head", charged(factor))
    rows = versions.judge()
    assert {row.verdict for row in rows} == {verdict}
    assert exit_status(rows) == status
    comparison = rows[0].result.comparison
    assert comparison is not None
    assert comparison.change == pytest.approx(factor - 1, abs=0.01)
    assert rows[0].result.head_ms == pytest.approx(factor, rel=0.02)


def test_base_is_what_is_divided_by(versions: Versions, clock: ChargingClock) -> None:
    versions.edit("base", charged(1.1))
    assert versions.verdicts() == ["improved", "improved"]


def test_regression_must_show_twice(versions: Versions, clock: ChargingClock, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def second(request: Request) -> list[gate_measure.CaseResult]:
        asked.append(request)
        again = Versions(request.folder.parent / "unplanted")
        return measure(dataclasses.replace(request, folder=again.folder))

    monkeypatch.setattr(gate, "_in_fresh_process", second)
    versions.edit("head", charged(1.05))
    rows = versions.judge(seed=4)
    assert [row.verdict for row in rows] == ["ok", "ok"]
    assert "a first measurement saw a regression" in gate.format_row(rows[0])
    assert [workload.title for workload in asked[0].workloads] == [TITLE, f"{TITLE} backward"]
    assert asked[0].seed != 4


def test_only_the_second_look_is_no_alarm_either(versions: Versions, clock: ChargingClock) -> None:
    versions.edit("head", charged(1.05))
    slow = versions.judge()[0]
    unclear = Row(slow.result, "inconclusive")
    assert gate._settle(unclear, slow).verdict == "inconclusive"
    assert gate._settle(slow, slow).verdict == "regressed"


def wrong(kernel: str, factor: str) -> Callable[[str], str]:
    """Let the reference, which is what runs on a CPU, give other numbers than the plainest formulation."""
    name = f"{kernel}_reference"
    return lambda text: f"{text}\n_plain = {name}\n{name} = lambda *a, **k: _plain(*a, **k) * {factor}\n"


@pytest.mark.parametrize("factor", ["1.001", "float('nan')"])
def test_wrong_kernel_fails_and_is_not_timed(versions: Versions, clock: ChargingClock, factor: str) -> None:
    versions.edit("head", wrong("upfirdn2d", factor), "kernels/upfirdn2d.py")
    rows = versions.judge(dataclasses.replace(SPEC, kernels="upfirdn2d"))
    assert {row.verdict for row in rows} == {"wrong"}
    assert "the output differs from float64 by" in rows[0].result.note
    assert clock.calls == 0
    assert exit_status(rows) == REGRESSED


@pytest.mark.parametrize("version", ["head", "base"])
def test_versions_that_disagree_are_not_timed(versions: Versions, clock: ChargingClock, version: str) -> None:
    versions.edit(version, wrong("bias_act", "1.001"))  # it has one formulation, which can't contradict itself
    rows = versions.judge()
    assert {row.verdict for row in rows} == {"incomparable"}
    assert clock.calls == 0
    assert exit_status(rows) == INCOMPLETE


def test_kernel_that_fails_in_head_fails_the_gate(versions: Versions, clock: ChargingClock) -> None:
    versions.edit(
        "head", replaced("    gain, rest = split_gain(activation)", "    raise RuntimeError('no such thing')")
    )
    rows = versions.judge()
    assert {row.verdict for row in rows} == {"wrong"}
    assert "RuntimeError: no such thing" in rows[0].result.note


def test_vanished_kernel_fails_the_gate(versions: Versions, clock: ChargingClock) -> None:
    registry = "kernels/registry.py"
    versions.edit("base", lambda text: text + '\nKERNELS["bias_act_2"] = KERNELS["bias_act"]\n', registry)
    rows = versions.judge(dataclasses.replace(SPEC, kernels="bias_act*"))
    assert [row.verdict for row in rows] == ["ok", "ok", "vanished"]
    assert exit_status(rows) == REGRESSED


def test_new_kernel_is_checked_but_not_compared(versions: Versions, clock: ChargingClock) -> None:
    spec = dataclasses.replace(SPEC, kernels="upfirdn2d")
    versions.edit("base", lambda text: text + '\ndel KERNELS["upfirdn2d"]\n', "kernels/registry.py")
    assert set(versions.verdicts(spec)) == {"new"}
    versions.edit("head", wrong("upfirdn2d", "1.001"), "kernels/upfirdn2d.py")
    assert set(versions.verdicts(spec)) == {"wrong"}


def test_kernel_without_workload_is_named(versions: Versions, clock: ChargingClock) -> None:
    add = '\nKERNELS["bias_act_2"] = KERNELS["bias_act"]\n'
    versions.edit("head", lambda text: text + add, "kernels/registry.py")
    rows = versions.judge(dataclasses.replace(SPEC, kernels="bias_act*"))
    assert rows[-1].verdict == "not measured"
    assert "add it to bench/workloads.py" in rows[-1].result.note
    assert exit_status(rows) == INCOMPLETE


def test_base_without_kernels_makes_everything_new(versions: Versions, clock: ChargingClock) -> None:
    shutil.rmtree(versions.folder / "base" / "kernels")
    (versions.folder / "base" / CALLS).unlink()
    assert versions.verdicts() == ["new", "new"]


def test_base_of_another_interface_is_called_its_own_way(versions: Versions, clock: ChargingClock) -> None:
    versions.edit("base", replaced("def bias_act(", "def biased("))
    rows = versions.judge()
    assert {row.verdict for row in rows} == {"incomparable"}
    assert "ImportError" in rows[0].result.note
    versions.edit("base", replaced("import bias_act\n", "import biased as bias_act\n"), CALLS)
    assert versions.verdicts() == ["ok", "ok"]


def test_spent_budget_is_incomplete(versions: Versions) -> None:
    rows = versions.judge(dataclasses.replace(SPEC, budget_s=1e-6))
    assert {row.verdict for row in rows} == {"not measured"}
    assert "the budget ran out" in rows[0].result.note
    assert exit_status(rows) == INCOMPLETE


def test_noise_above_the_threshold_is_inconclusive(
    versions: Versions, clock: ChargingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.noise = 0.5
    monkeypatch.setattr(gate_measure, "rounds_needed", lambda *_: 120)
    rows = versions.judge()
    assert {row.verdict for row in rows} == {"inconclusive"}
    assert exit_status(rows) == INCONCLUSIVE


def test_failed_second_process_is_incomplete(
    versions: Versions, clock: ChargingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "python", stderr="Traceback\nMemoryError: all gone\n")

    monkeypatch.undo()
    monkeypatch.setattr(gate_measure, "clock_for", lambda _: clock)
    monkeypatch.setattr(subprocess, "run", fail)
    versions.edit("head", charged(1.1))
    rows = versions.judge()
    assert {row.verdict for row in rows} == {"not measured"}
    assert "the second measurement failed: MemoryError: all gone" in rows[0].result.note


def test_unknown_kernel_is_an_error(versions: Versions) -> None:
    with pytest.raises(UserError, match=r"--kernels nosuch: no kernel has such a name"):
        versions.judge(dataclasses.replace(SPEC, kernels="nosuch"))


def test_results_survive_the_way_between_processes(versions: Versions, clock: ChargingClock) -> None:
    results = [row.result for row in versions.judge()]
    assert from_json(to_json(results)) == results


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a commit of the kernels on `main`, and a branch."""
    folder = tmp_path / "repository"
    write_working_tree(folder)
    (folder / "bench").mkdir()
    (folder / CALLS).rename(folder / "bench" / CALLS)
    git(folder, "init", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "base")
    git(folder, "checkout", "-b", "branch")
    return folder


def test_gate_compares_the_working_tree_with_the_merge_base(
    repository: Path, clock: ChargingClock, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = dataclasses.replace(SPEC, root=repository)
    assert run_gate(spec) == OK
    file = repository / BIAS_ACT
    file.write_text(charged(1.1)(file.read_text(encoding="utf-8")), encoding="utf-8")
    git(repository, "checkout", "main")  # a later, even slower main is not what the branch began from
    git(repository, "stash")
    file.write_text(charged(2.0)(file.read_text(encoding="utf-8")), encoding="utf-8")
    git(repository, "commit", "-am", "slower")
    git(repository, "checkout", "branch")
    git(repository, "stash", "pop")
    assert run_gate(spec) == REGRESSED
    shown = capsys.readouterr().out.splitlines()
    assert "the merge base with main" in shown[0]
    assert shown[-1] == "gate: regressed (2 regressed); exit status 3"
    assert shown[-2].endswith("regressed")
    assert " 1.10" in shown[-2]


def test_base_is_written_as_committed(repository: Path, tmp_path: Path) -> None:
    (repository / BIAS_ACT).write_text("changed", encoding="utf-8")
    write_commit("main", tmp_path / "base", repository)
    assert (tmp_path / "base" / BIAS_ACT).read_bytes() == (REPOSITORY / BIAS_ACT).read_bytes()
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == [CALLS, "kernels"]


def test_command_leaves_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "--base", "no-such-branch", "--no-gpu"]) == 1
    assert "--base takes a branch, tag or commit" in capsys.readouterr().err
    assert main(["gate", "--base", "HEAD", "--no-gpu", "--budget", "0"]) == 1
    assert "--budget 0: allowed are seconds above 0" in capsys.readouterr().err


def test_compiled_code_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, verdict in ((1, "regressed"), (0, "ok")):
        monkeypatch.setattr("bench.compiled_table.run_compile_gate", lambda *, update, status=status: status)
        assert gate.compiled_row().verdict == verdict
    monkeypatch.setattr("bench.compiled_table.run_compile_gate", lambda **_: (_ for _ in ()).throw(UserError("none")))
    assert exit_status([gate.compiled_row()]) == INCOMPLETE


def test_failure_outweighs_what_is_missing_and_that_the_unclear(versions: Versions, clock: ChargingClock) -> None:
    result = versions.judge()[0].result
    ok, unclear, missing, bad = (
        Row(result, verdict) for verdict in ("ok", "inconclusive", "not measured", "regressed")
    )
    assert exit_status([ok, unclear, missing, bad]) == REGRESSED
    assert exit_status([ok, unclear, missing]) == INCOMPLETE
    assert exit_status([ok, unclear]) == INCONCLUSIVE
    assert summary([ok, ok, unclear], INCONCLUSIVE) == "gate: inconclusive (1 inconclusive, 2 ok); exit status 4"


def repeated(times: int) -> Callable[[str], str]:
    return lambda text: text + REPEATED.replace("TIMES", str(times))


@pytest.mark.slow
def test_planted_slow_down_of_a_twentieth_is_caught(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the real clock, confirmed in a real second process."""
    monkeypatch.setattr(gate, "workloads", lambda _: (SMALL,))
    versions.edit("base", repeated(20))
    versions.edit("head", repeated(21))
    rows = versions.judge(dataclasses.replace(SPEC, budget_s=20.0), seed=time.time_ns() % 2**32)
    assert [row.verdict for row in rows] == ["regressed"], gate.format_row(rows[0])
    assert exit_status(rows) == REGRESSED


@pytest.mark.slow
def test_hundred_comparisons_of_equal_code_raise_no_alarm(versions: Versions) -> None:
    """On the real clock, each with modules of its own; a suspicion counts if a second process confirms it."""
    alarms = 0
    for run in range(100):
        request = Request(versions.folder, (SMALL,), "cpu", budget_s=1.0, seed=time.time_ns() % 2**32 + run)
        for result in measure(request):
            if result.comparison is None or verdicts([result.comparison]) != ["regressed"]:
                continue
            again = gate._in_fresh_process(dataclasses.replace(request, budget_s=5.0))[0].comparison
            alarms += again is not None and verdicts([again]) == ["regressed"]
    assert alarms == 0
