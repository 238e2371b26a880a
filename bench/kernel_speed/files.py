"""The files of a run of `bench kernels`: the page, the figures, and the rows as pytest-benchmark stores them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.environment import ROOT, utc_now
from bench.kernel_speed.plots import kernel_plots
from bench.kernel_speed.report import CHECK, kind_of_row, markdown, shape_of
from bench.kernel_speed.run import KernelRun
from bench.records import Measurement, Provenance, write_atomic

TABLES, PLOTS, HISTORY = (ROOT / "results" / name for name in ("tables", "plots", "history"))
STATISTICS = ("min", "max", "mean", "stddev", "median", "q1", "q3")


def write_files(run: KernelRun, origin: Provenance, output: Path | None) -> Iterator[Path]:
    """Write page, figures and rows to `output`, or to their places under `results`; yield the paths."""
    machine = origin.machine
    facts = {
        "machine": machine,
        "commit": f"{origin.commit}{', changed since' if origin.dirty else ''}",
        "torch": torch.__version__,
        "ceilings": str(run.ceilings),
        "rows": f"{len(run.rows)}, and {run.left} left to measure",
        "time": utc_now(),
    }
    files: dict[Path, str | bytes] = {
        (output or TABLES) / f"kernels-{machine}.md": markdown(run.rows, facts, run.uses),
        (output or HISTORY / machine) / "kernels-pytest-benchmark.json": pytest_benchmark_json(run.rows, origin),
    }
    for name, content in kernel_plots(run.rows, f"Kernels on {machine}").items():
        files[(output or PLOTS) / f"kernels-{machine}-{name}"] = content
    for path, text in files.items():
        write_atomic(path, text)
        yield path


def pytest_benchmark_json(rows: Sequence[Measurement], origin: Provenance) -> str:
    """The timed rows in the form of pytest-benchmark's storage, so that `pytest-benchmark compare` reads them."""
    facts = origin.environment
    content = {
        "machine_info": {
            "device": origin.machine,
            "python_version": facts["python"],
            "system": facts["system"],
            "cpu": {"brand_raw": facts["cpu"]},
            "gpu": facts["gpu"],
        },
        "commit_info": {"id": origin.commit, "dirty": origin.dirty, "time": utc_now(), "project": "stylebench"},
        "benchmarks": [_benchmark(row, origin) for row in rows if row.value is not None and not _is_check(row)],
        "datetime": utc_now(),
        "version": "5.1.0",
    }
    return json.dumps(content, indent=1)


def _is_check(row: Measurement) -> bool:
    return row.subject.startswith(CHECK)


def _benchmark(row: Measurement, origin: Provenance) -> dict[str, Any]:
    versions = origin.environment["packages"]
    stats = {name: row.details[f"stat_{name}"] / 1e3 for name in STATISTICS}  # seconds
    n, iqr = row.n or 0, stats["q3"] - stats["q1"]
    name = f"{row.subject} {shape_of(row)}"
    extra = {name: value for name, value in row.details.items() if not name.startswith("stat_")}
    return {
        "group": kind_of_row(row),
        "name": name,
        "fullname": name,
        "params": None,
        "param": None,
        "extra_info": extra
        | {"device": origin.machine, "torch": versions["torch"], "triton": versions["triton"]}
        | {"error": row.details["relative_error"], "caveats": list(row.caveats)},
        "options": {"disable_gc": False, "timer": "bench.clocks", "min_rounds": 4, "max_time": 0, "warmup": True},
        "stats": stats
        | {"rounds": n, "iterations": 1, "iqr": iqr, "ops": 1 / stats["mean"], "total": stats["mean"] * n}
        | {"iqr_outliers": 0, "stddev_outliers": 0, "outliers": "0;0"}
        | {"ld15iqr": stats["min"], "hd15iqr": stats["max"]},
    }
