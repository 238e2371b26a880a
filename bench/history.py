"""How fast kernels and generators were, commit by commit: one file a machine and kind, rows are only ever added."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.environment import ROOT, provenance, utc_now
from bench.errors import UserError
from bench.records import Measurement, Provenance, Record, append_records, read_records

HISTORY = ROOT / "results" / "history"


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


def read_history(folder: Path) -> list[Record]:
    """All measured times of all machines, oldest first. Raises `UserError` where there are none."""
    rows = [row for path in sorted(folder.glob("*/*.jsonl")) for row in read_records(path, appended=True)]
    if not rows:
        raise UserError(f"no history in {folder}. `python -m bench kernels` adds to it.")
    times = [row for row in rows if row.measurement.status == "ok" and row.measurement.metric == "Latency"]
    return sorted(times, key=lambda row: row.timestamp_utc)
