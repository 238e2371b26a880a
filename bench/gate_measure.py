"""Measure two versions of the kernels against each other in one process: correct first, then timed in turn.

As a program, `python -m bench.gate_measure` reads a request from its input and prints the results: that is how the
gate measures again in a fresh process.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.clocks import Call, Clock, clock_for
from bench.code_copies import CALLS, CodeCopy
from bench.environment import choose_device
from bench.gate_statistics import MIN_ROUNDS, Array, Comparison, compare, rounds_needed
from bench.workloads import Workload, check, draw
from kernels.costs import LayerShape

VERSIONS = ("head", "base", "control")  # the folders of a request; control is a second copy of head
WARMUP_ROUNDS, PILOT_ROUNDS = 3, 20

Outcome = Literal["measured", "wrong", "new", "vanished", "incomparable", "not measured"]
Inputs = Mapping[str, Tensor]
Run = Callable[[], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure; `folder` has a subfolder for each of `VERSIONS`."""

    folder: Path
    workloads: tuple[Workload, ...]
    device: str
    budget_s: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One workload; a comparison if it was measured, else a note that says why not."""

    kernel: str
    title: str
    outcome: Outcome
    note: str = ""
    base_ms: float = 0.0
    head_ms: float = 0.0
    comparison: Comparison | None = None


class _UnusableError(Exception):
    """A version that fails, or that computes something else than the reference."""


def measure(request: Request) -> list[CaseResult]:
    """Measure every case, in an order drawn at random; each has an even share of the time that is left."""
    rng = np.random.default_rng(request.seed)
    bench = _Bench.load(request.folder, choose_device(request.device), rng)
    results: dict[int, CaseResult] = {}
    end = time.perf_counter() + request.budget_s
    for place, index in enumerate(rng.permutation(len(request.workloads))):
        workload, left_s = request.workloads[index], end - time.perf_counter()
        deadline = time.perf_counter() + left_s / (len(request.workloads) - place)
        late = CaseResult(workload.kernel, workload.title, "not measured", "the budget ran out")
        results[index] = bench.measure(workload, deadline) if left_s > 0 else late
    return [results[index] for index in range(len(request.workloads))]


@dataclass(frozen=True, slots=True)
class _Bench:
    """The versions side by side."""

    copies: Mapping[str, CodeCopy]
    adapters: Mapping[str, Sequence[ModuleType]]  # ways of calling a version's kernels, the first choice first
    device: torch.device
    clock: Clock
    rng: np.random.Generator

    @classmethod
    def load(cls, folder: Path, device: torch.device, rng: np.random.Generator) -> _Bench:
        """Import the versions in an order drawn at random: what is loaded first may lie better in memory."""
        copies = {VERSIONS[i]: CodeCopy(folder / VERSIONS[i]) for i in rng.permutation(len(VERSIONS))}
        adapters = {}
        for name, copy in copies.items():
            paths = [folder / "head" / CALLS, copy.folder / CALLS]
            adapters[name] = [copy.execute(path) for path in dict.fromkeys(paths) if path.is_file()]
        return cls(copies, adapters, device, clock_for(device), rng)

    def measure(self, workload: Workload, deadline: float) -> CaseResult:
        """Check, then time one workload until it is precise enough, or until `deadline` of `time.perf_counter`."""
        inputs = draw(workload, self.device)
        runs: dict[str, Run] = {}
        try:
            expected = self._expected(workload, inputs)
            for version in ("head", "control"):
                runs[version] = self._checked(version, workload, inputs, expected)
        except _UnusableError as error:
            return CaseResult(workload.kernel, workload.title, "wrong", str(error))
        if workload.kernel not in kernel_names(self.copies["base"]):
            return CaseResult(workload.kernel, workload.title, "new", "the base has no such kernel")
        try:
            runs["base"] = self._checked("base", workload, inputs, expected)
        except _UnusableError as error:
            return CaseResult(workload.kernel, workload.title, "incomparable", f"the base can't serve: {error}")
        calls = [Call(runs[version], self.copies[version].active) for version in VERSIONS]
        return self._timed(workload, calls, deadline)

    def _expected(self, workload: Workload, inputs: Inputs) -> list[Tensor]:
        """What another formulation of head computes in float64: on a CPU, where the reference runs, the naive one."""
        exact = {name: tensor.double() for name, tensor in inputs.items()}
        head = self.copies["head"]
        with _failures(), head.active():
            oracle = "naive" if self.device.type == "cpu" else "reference"
            outputs: list[Tensor] = self.adapters["head"][0].bind(workload, exact, oracle)()
        return outputs

    def _checked(self, version: str, workload: Workload, inputs: Inputs, expected: Sequence[Tensor]) -> Run:
        """The call of a version by the first adapter that it can be called by, if its outputs are right."""
        problem = _UnusableError("it has no kernels")
        for adapter in self.adapters[version]:
            try:
                with _failures(), self.copies[version].active():
                    run: Run = adapter.bind(workload, inputs)
                    check(workload, run(), expected)
            except _UnusableError as error:
                problem = error
            else:
                return run
        raise problem

    def _timed(self, workload: Workload, calls: Sequence[Call], deadline: float) -> CaseResult:
        enabled = gc.isenabled()
        gc.disable()
        try:
            self._rounds(calls, WARMUP_ROUNDS)
            pilot = self._rounds(calls, PILOT_ROUNDS, deadline)
            needed = rounds_needed(pilot[0], pilot[1]) if pilot.shape[1] == PILOT_ROUNDS else MIN_ROUNDS
            head, base, control = self._rounds(calls, needed, deadline)
        finally:
            if enabled:
                gc.enable()
        if len(head) < MIN_ROUNDS:
            note = f"the budget ran out after {len(head)} rounds; {MIN_ROUNDS} are the least"
            return CaseResult(workload.kernel, workload.title, "not measured", note)
        base_ms, head_ms = (float(np.median(version)) for version in (base, head))
        result = CaseResult(workload.kernel, workload.title, "measured", "", base_ms, head_ms)
        return dataclasses.replace(result, comparison=compare(head, base, control))

    def _rounds(self, calls: Sequence[Call], count: int, deadline: float = float("inf")) -> Array:
        """Durations `[versions, rounds, 2]`: a round is the versions in random order, then in its mirror image.

        When the clock ends them is decided by all versions' durations together, which favours none.
        """
        rounds = np.empty((len(calls), count, 2))
        for i in range(count):
            if time.perf_counter() > deadline:
                return rounds[:, :i]
            order = self.rng.permutation(len(calls))
            order = np.concatenate([order, order[::-1]])
            durations = np.array(self.clock.durations_ms([calls[k] for k in order]))
            for k in range(len(calls)):
                rounds[k, i] = durations[order == k]
        return rounds


def kernel_names(copy: CodeCopy) -> set[str]:
    """The kernels that a version has; none if it has no registry."""
    try:
        return set(copy.load("kernels.registry").KERNELS)
    except ImportError:
        return set()


@contextmanager
def _failures() -> Iterator[None]:
    """Other versions of the code may fail in any way; that is a finding about them, not an error of the gate."""
    try:
        yield
    except Exception as error:
        raise _UnusableError(f"{type(error).__name__}: {error}") from error


def to_json(results: Sequence[CaseResult]) -> str:
    """Results as a fresh process hands them back."""
    return json.dumps([dataclasses.asdict(result) for result in results])


def from_json(text: str) -> list[CaseResult]:
    """The inverse of `to_json`."""
    return [CaseResult(**(row | {"comparison": _comparison(row["comparison"])})) for row in json.loads(text)]


def _comparison(fields: dict[str, Any] | None) -> Comparison | None:
    if fields is None:
        return None
    intervals = {name: tuple(fields[name]) for name in ("interval", "control")}
    return Comparison(**(fields | intervals))


def _read_request(text: str) -> Request:
    fields = json.loads(text)
    workloads = tuple(Workload(**(row | {"shape": LayerShape(**row["shape"])})) for row in fields.pop("workloads"))
    return Request(Path(fields.pop("folder")), workloads, **fields)


if __name__ == "__main__":
    print(to_json(measure(_read_request(sys.stdin.read()))))
