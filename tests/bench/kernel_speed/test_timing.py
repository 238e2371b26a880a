from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.clocks import Call
from bench.kernel_speed import contenders as kernel_contenders
from bench.kernel_speed import timing as kernel_timing
from bench.kernel_speed.checks import LayerCase, LayerWork
from bench.kernel_speed.contenders import Form, Outputs, Run
from bench.kernel_speed.timing import measure, time_pairs
from bench.verify import VerificationError
from models.cuda_graphs import Recording
from tests.bench.kernel_speed.rows import CountingClock, bench_of, small_calls

LAYER = LayerCase(small_calls()["b4.conv1"], 2, "float32")
TIMES_MS = {"triton": 2.0, "eager": 6.0, "grouped": 20.0, "compiled eager": 5.0, "compiled grouped": 8.0}


@dataclasses.dataclass(frozen=True)
class FakeGpu:
    """Runs everything on the CPU and tells what is timed by the name of its form."""

    monkeypatch: pytest.MonkeyPatch
    fails: dict[str, Exception] = dataclasses.field(default_factory=dict)

    def install(self) -> None:
        prepared = LayerWork.prepared

        def named(work: LayerWork, form: Form, tensors: Any) -> Run:
            run = prepared(work, "eager" if form == "triton" else form, tensors)
            named_run: Run = self._run(form, run)
            return named_run

        def compiled(function: Callable[..., Outputs], tensors: Any) -> Callable[..., Outputs]:
            form = function.args[1]  # type: ignore[attr-defined]
            if f"compiled {form}" in self.fails:
                raise self.fails[f"compiled {form}"]
            named_run: Callable[..., Outputs] = self._run(f"compiled {form}", function)
            return named_run

        def record(run: Callable[[], Outputs]) -> Recording[Outputs]:
            name = getattr(run, "name", "") or run.func.name  # type: ignore[attr-defined]
            if f"{name} graph" in self.fails:
                raise self.fails[f"{name} graph"]
            replay = self._run(f"{name} graph", lambda: None)
            return Recording(replay, run())

        self.monkeypatch.setattr(LayerWork, "prepared", named)
        self.monkeypatch.setattr(kernel_contenders, "compiled", compiled)
        self.monkeypatch.setattr(kernel_contenders, "record_cuda_graph", record)

    def _run(self, name: str, run: Any) -> Any:
        if name in self.fails:
            error = self.fails[name]

            def run(*_: Any) -> Any:
                raise error

        def named(*inputs: Any) -> Any:
            return run(*inputs)

        named.name = name  # type: ignore[attr-defined]
        return named


def time_of(call: Call) -> float:
    """By the name of what is run; graphs take half a millisecond less."""
    run: Any = call.run
    if "replay" in getattr(run, "__qualname__", ""):
        run = run.__closure__[0].cell_contents.replay
        return TIMES_MS[run.name.removesuffix(" graph")] - 0.5
    return TIMES_MS[getattr(run, "name", "") or run.func.name]


def gpu_bench(monkeypatch: pytest.MonkeyPatch, **fails: Exception) -> Any:
    FakeGpu(monkeypatch, {name.replace("_", " "): error for name, error in fails.items()}).install()
    clock = CountingClock(time_of)
    return bench_of(clock=clock, ours="triton", groups=("eager", "grouped", "compiled"), graphs=True)


def test_a_row_has_every_baseline_as_it_is_compiled_and_graphed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measure(LAYER, gpu_bench(monkeypatch), 0.0)
    assert (row.status, row.value, row.caveats) == ("ok", 1.5, ())
    times = {name: ms for name, ms in row.details.items() if name.endswith("_ms")}
    assert times == {
        "eager_ms": 6.0,
        "eager_graph_ms": 5.5,
        "grouped_ms": 20.0,
        "grouped_graph_ms": 19.5,
        "compiled_eager_ms": 5.0,
        "compiled_eager_graph_ms": 4.5,
        "compiled_grouped_ms": 8.0,
        "compiled_grouped_graph_ms": 7.5,
    }
    assert (row.details["ours_us"], row.details["ours_graph_us"]) == (2000.0, 1500.0)
    assert row.details["eager_ratio"] == 3.0
    assert row.details["compiled_eager_graph_ratio"] == 3.0
    assert row.n == 4 * kernel_timing.MIN_PAIRS  # of the graphed ones, which are ours at its best
    assert row.details["stat_median"] == 1.5
    assert row.details["floor_us"] / 1e3 / 1.5 == pytest.approx(row.details["roofline_fraction"])
    assert row.case["against"] == "eager, grouped, compiled"
    assert {"peak_memory_bytes", "eager_peak_memory_bytes", "compiled_grouped_peak_memory_bytes"} <= row.details.keys()


def test_a_baseline_that_fails_is_named_and_takes_nothing_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = gpu_bench(
        monkeypatch,
        eager_graph=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        compiled_grouped=RuntimeError("no triton template\nand more"),
    )
    row = measure(LAYER, bench, 0.0)
    assert row.status == "ok"
    assert "eager_graph: out of memory" in row.caveats
    assert "compiled_grouped: RuntimeError: no triton template" in row.caveats
    assert "eager_graph_ms" not in row.details
    assert row.details["compiled_eager_ms"] == 5.0


def test_our_graph_may_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measure(LAYER, gpu_bench(monkeypatch, triton_graph=RuntimeError("capture failed")), 0.0)
    assert row.caveats == ("triton_graph: RuntimeError: capture failed",)
    assert row.value == 2.0
    assert row.details["eager_graph_ratio"] == 5.5 / 2.0


def test_compiling_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = dataclasses.replace(gpu_bench(monkeypatch), groups=("compiled",), prepare_limit_s=0.05)
    monkeypatch.setattr(kernel_contenders, "compiled", lambda *_: time.sleep(5))
    row = measure(LAYER, bench, 0.0)
    assert "compiled_eager: TimeoutError: took longer than 0 s" in row.caveats
    assert (row.status, row.value) == ("ok", 2.0)


def test_a_kernel_that_cannot_run_is_a_row_with_a_status() -> None:
    row = measure(LAYER, bench_of(ours="triton"), 0.0)
    assert (row.status, row.value, row.n) == ("missing", None, None)
    assert "Triton needs all of them on a GPU" in (row.error or "")
    assert row.details["floor_us"] > 0


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_nothing_that_is_wrong_is_timed(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    prepared = LayerWork.prepared

    def broken(work: LayerWork, form: Form, tensors: Any) -> Run:
        run = prepared(work, form, tensors)
        return lambda: [out * wrong for out in run()]

    monkeypatch.setattr(LayerWork, "prepared", broken)
    monkeypatch.setattr(kernel_timing, "time_pairs", lambda *_: pytest.fail("a wrong output was timed"))
    row = measure(LAYER, bench_of(), 0.0)
    assert row.status == "error"
    assert (row.error or "").startswith("wrong, so not timed: the output differs from float64 by")


def test_what_a_kernel_leaves_unwritten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(work: LayerWork, form: Form, tensors: Any) -> Run:
        def run() -> Outputs:
            out = torch.empty(work.expected[0].shape)
            out[:, 1:] = work.expected[0][:, 1:].float()
            return [out]

        return run

    monkeypatch.setattr(LayerWork, "prepared", lazy)
    assert "by nan" in (measure(LAYER, bench_of(), 0.0).error or "")


@pytest.mark.parametrize("error", [RuntimeError("CompilationError: at 3:4"), VerificationError("x")])
def test_a_kernel_that_breaks_takes_no_other_row_with_it(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any) -> Run:
        raise error

    monkeypatch.setattr(LayerWork, "prepared", fail)
    row = measure(LAYER, bench_of(), 0.0)
    assert row.status == "error"
    assert row.error


def test_a_row_on_the_cpu_is_ours_against_the_grouped_form() -> None:
    bench = bench_of(clock=kernel_timing.WALL)
    row = measure(LAYER, bench, 0.01)
    assert row.status == "ok"
    assert row.value is not None
    assert row.interval is not None
    assert row.interval[0] <= row.value <= row.interval[1]
    assert {name for name in row.details if name.endswith("_ms")} == {"grouped_ms"}
    assert 0 < row.details["relative_error"] < 1e-5


def test_time_pairs_mirrors_every_second_pair() -> None:
    calls: list[str] = []
    pairs = time_pairs(lambda: calls.append("a"), lambda: calls.append("b"), budget_s=0.0)
    assert "".join(calls) == "abba" * (kernel_timing.MIN_PAIRS // 2)
    assert len(pairs) == kernel_timing.MIN_PAIRS


def test_time_pairs_uses_its_budget() -> None:
    assert len(time_pairs(lambda: None, lambda: None, budget_s=0.01)) > kernel_timing.MIN_PAIRS
