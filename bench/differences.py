"""Whether two models differ: paired tests over the same sample ids, or over the same seeds, on one reference.

A run keeps what each image adds to each score (`Score.values`); two models are compared by these, without features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from bench.comparison import format_value
from bench.grouping import REAL, ColumnKey, Scene, comparable_groups, scenes
from bench.intervals import RESAMPLES, Difference, paired_bootstrap, paired_t
from bench.records import Measurement, Record, write_atomic
from bench.tables import Cell, Column, Table

CAPTION = (
    "Each model against the best of its column, sample by sample, so that what both share cancels.",
    "p is two-sided and not corrected for the number of comparisons; shown: the 95 % interval leaves out 0.",
)


def values_path(run_dir: Path, measured: Measurement) -> Path:
    """Where a run keeps what each image adds to the scores of one subject under one protocol."""
    title = f"{measured.case['dataset']}-{measured.case['resolution']}"
    return run_dir / "values" / title / measured.subject / f"{measured.protocol}.safetensors"


def write_values(run_dir: Path, scored: Sequence[tuple[Measurement, Tensor | None]]) -> None:
    """Keep the values `[N]` of the scores of one subject under one protocol, where they have some."""
    values = {measured.metric: tensor.contiguous() for measured, tensor in scored if tensor is not None}
    if values:
        write_atomic(values_path(run_dir, scored[0][0]), safetensors.torch.save(values))


def read_values(run_dir: Path, measured: Measurement) -> Tensor | None:
    """The values `[N]` of a score, float64; None if the run has none."""
    path = values_path(run_dir, measured)
    return safetensors.torch.load_file(path).get(measured.metric) if path.is_file() else None


@dataclass(frozen=True, slots=True)
class Contender:
    """A model's score with what each of its images adds to it; `name` tells it from the others."""

    name: str
    record: Record
    values: Tensor


def contenders(run_dir: Path, records: Sequence[Record], label: str = "") -> list[Contender]:
    """The scores of a run that can be compared one by one; `label` is added to the names of its models."""
    found = []
    for record in records:
        measured = record.measurement
        if measured.kind != "quality" or measured.status != "ok" or measured.subject == REAL:
            continue
        values = read_values(run_dir, measured)
        if values is not None:
            found.append(Contender(measured.subject + label, record, values))
    return found


def paired_difference(a: Contender, b: Contender) -> Difference | None:
    """a - b; None where their values are not of the same samples."""
    seeds = a.record.measurement.seed, b.record.measurement.seed
    if a.values.shape != b.values.shape or len(a.values) < 2 or seeds[0] != seeds[1]:
        return None
    if "Student" in str(a.record.measurement.case.get("interval_kind")):
        return paired_t(a.values, b.values)
    return paired_bootstrap(a.values, b.values, seed=0)


def difference_tables(found: Sequence[Contender]) -> list[Table]:
    """One table a data set and resolution that has models to compare."""
    by_record = {id(one.record): one for one in found}
    tables = []
    for scene, records in scenes([one.record for one in found]).items():
        rows = []
        for column, group in comparable_groups(records).items():
            rows += list(_rows(column, [by_record[id(record)] for record in group]))
        tables += [_table(scene, rows)] if rows else []
    return tables


def _rows(column: ColumnKey, group: Sequence[Contender]) -> Iterator[tuple[Cell, ...]]:
    sign = -1 if column.higher_is_better else 1
    ranked = sorted(group, key=lambda one: (sign * (one.record.measurement.value or 0.0), one.name))
    for other in ranked[1:]:
        found = paired_difference(other, ranked[0])
        if found is None:
            continue
        low, high = found.interval
        shown = dataclasses.replace(other.record.measurement, value=found.value, interval=found.interval)
        p_value = f"< {2.5 / RESAMPLES:.4f}" if found.p_value < 2.5 / RESAMPLES else f"{found.p_value:.3f}"
        texts = (column.label, other.name, ranked[0].name, format_value(shown), p_value)
        yield (*map(Cell, texts), Cell("no" if low <= 0 <= high else "yes"))


def _table(scene: Scene, rows: Sequence[tuple[Cell, ...]]) -> Table:
    columns = (
        *(Column(label, align="left") for label in ("Metric", "Model", "Against")),
        *(Column(label) for label in ("Difference", "p", "Shown")),
    )
    return Table(f"{scene.title}: differences between models", CAPTION, columns, tuple(rows))
