"""How fast kernels and generators were, commit by commit: one file a machine and kind, rows are only ever added."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.environment import ROOT, provenance, utc_now
from bench.errors import UserError
from bench.generator_timing import GeneratorTiming
from bench.kernel_timing import KernelTiming
from bench.records import Measurement, Provenance, Record, append_records, read_records

HISTORY = ROOT / "results" / "history"
PROTOCOL = "latency@abba-pairs"


@dataclass(frozen=True, slots=True)
class History:
    """What one process adds."""

    device: torch.device
    folder: Path = field(default_factory=lambda: HISTORY)
    run_id: str = field(default_factory=lambda: f"{utc_now()}-{uuid.uuid4().hex[:8]}")

    def append(self, name: str, measurements: Iterable[Measurement]) -> Path:
        """Add rows to `<folder>/<machine>/<name>.jsonl` and return that path. Raises `StorageError`."""
        origin: Provenance = provenance(self.run_id, self.device)
        path = self.folder / origin.machine / f"{name}.jsonl"
        append_records(path, [Record(measured, origin, utc_now()) for measured in measurements])
        return path


def kernel_measurements(timing: KernelTiming) -> Iterator[Measurement]:
    """The layers of `bench kernels`."""
    for row in timing.rows:
        shape = row.shape
        yield _latency(
            kind="kernel",
            subject=f"modulated_conv2d/{row.layer}",
            case={
                "batch_size": shape.batch,
                "channels": f"{shape.in_channels}->{shape.out_channels}",
                "kernel": shape.kernel,
                "size": f"{shape.height}x{shape.width}",
                "up": shape.up,
                "direction": "forward",
            },
            value=row.optimised_ms,
            interval=row.interval_ms,
            n=row.num_pairs,
            details={
                "baseline_ms": row.baseline_ms,
                "ratio": row.ratio,
                "relative_error": row.error,
                "load_before": timing.load_before,
                "load_after": timing.load_after,
            },
        )


def generator_measurement(row: GeneratorTiming) -> Measurement:
    """A row of `bench speed`."""
    return _latency(
        kind="speed",
        subject=row.model,
        case={"resolution": row.resolution, "batch_size": row.batch_size},
        value=row.latency_ms,
        interval=row.interval_ms,
        n=row.num_pairs,
        details={"baseline_ms": row.baseline_ms, "ratio": row.ratio, "max_grey_levels": row.max_grey_levels},
    )


def _latency(case: dict[str, Any], **fields: Any) -> Measurement:
    return Measurement(
        weights="random seed 0",
        weights_sha256=None,
        case=case | {"dtype": "float32", "device": "cpu"},
        protocol=PROTOCOL,
        metric="Latency",
        unit="ms",
        higher_is_better=False,
        seed=0,
        **fields,
    )


def read_history(folder: Path) -> list[Record]:
    """All measured rows of all machines, oldest first. Raises `UserError` where there are none."""
    rows = [row for path in sorted(folder.glob("*/*.jsonl")) for row in read_records(path, appended=True)]
    if not rows:
        raise UserError(f"no history in {folder}. `python -m bench kernels` adds to it.")
    return sorted((row for row in rows if row.measurement.status == "ok"), key=lambda row: row.timestamp_utc)
