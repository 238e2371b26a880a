"""What a table says below itself: under what its columns were measured, what its intervals are, what they can show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from bench.grouping import REAL, ColumnKey, Layout, RowKey
from bench.intervals import detectable_difference
from bench.records import Record
from bench.tables import NO_VALUE

CONDITION_TEXTS = {
    "n": "{} samples",
    "n_reference": "{} reference images",
    "batch_size": "batch size {}",
    "repeats": "sample sets: {}",
}


def all_have_caveats(records: Iterable[Record]) -> bool:
    """Whether there are values among these, and none is a full number of its protocol."""
    values = [record.measurement for record in records if record.measurement.status == "ok"]
    return bool(values) and all(measured.caveats for measured in values)


def column_labels(columns: Sequence[ColumnKey]) -> dict[ColumnKey, str]:
    """Heads of the columns; where two would read the same, each says in what it differs, by hashes only if it must."""
    labels = {}
    for column in columns:
        twins = [other for other in columns if other.label == column.label]
        parts = [column.protocol] if any(other.protocol != column.protocol for other in twins) else []
        differing = [pair for pair in column.conditions if any(pair not in t.conditions for t in twins)]
        told = [pair for pair in differing if _is_told(pair[0])]
        others = [t for t in twins if t != column and t.protocol == column.protocol]
        suffices = not any(set(told) <= set(other.conditions) for other in others)
        parts += [_condition(*pair) for pair in (told if suffices else differing)]
        labels[column] = ", ".join([column.label, *parts])
    return labels


def _condition(name: str, value: str) -> str:
    value = f"{int(value):,}" if name in {"n", "n_reference"} and value.isdecimal() else value
    value = value[:12] if name.endswith("sha256") else value
    return CONDITION_TEXTS.get(name, f"{name.replace('_', ' ')} {{}}").format(value)


def caption(grid: Layout, labels: dict[ColumnKey, str]) -> tuple[str, ...]:
    """The lines below a table."""
    lines = []
    if all_have_caveats(grid.grid.values()):
        lines.append("Not comparable with published numbers: every value here carries a caveat.")
    lines += _weights(grid.rows)
    lines += _legend(grid.columns, labels)
    lines += _intervals(grid, labels)
    lines += _detectable(grid, labels)
    if any(row.subject == REAL for row in grid.rows):
        lines.append("real: real images against other real images of the set: what a perfect model would reach.")
    if len(grid.grid) < len(grid.rows) * len(grid.columns):
        lines.append(f"{NO_VALUE}: not part of this run.")
    return tuple(lines)


def _intervals(grid: Layout, labels: Mapping[ColumnKey, str]) -> list[str]:
    """What the intervals are, columns of one kind together."""
    kinds: dict[str, list[str]] = {}
    for column in grid.columns:
        measured = [record.measurement for record in grid.measured(column).values()]
        for kind in dict.fromkeys(m.case.get("interval_kind", "95 % interval") for m in measured if m.interval):
            kinds.setdefault(kind, []).append(labels[column].rstrip(" ↑↓"))
    texts = [f"{kind} ({', '.join(heads)})" for kind, heads in kinds.items()]
    return [f"± and [ ]: {'; '.join(texts)}."] if texts else []


def _detectable(grid: Layout, labels: Mapping[ColumnKey, str]) -> list[str]:
    """How far apart two models must be for these samples to tell them apart, by the two least sure ones."""
    found = []
    for column in grid.columns:
        measured = {row: record.measurement for row, record in grid.measured(column).items() if row.subject != REAL}
        errors = sorted(m.details["standard_error"] for m in measured.values() if "standard_error" in m.details)
        if len(errors) < 2:
            continue
        conditions = dict(column.conditions)
        seeds = int(conditions.get("repeats", 1))
        least = detectable_difference(math.hypot(*errors[-2:]), num_seeds=seeds if seeds > 1 else None)
        found.append(f"{labels[column].rstrip(' ↑↓')} {float(f'{least:.2g}'):g}")
    if not found:
        return []
    return [f"Smallest difference that these samples can show (level 0.05, power 0.8, unpaired): {', '.join(found)}."]


def _weights(rows: Sequence[RowKey]) -> list[str]:
    """With which weights each model ran, as its rows say it."""
    models = [(row.subject, dict(row.settings)) for row in rows if row.subject != REAL]
    texts = {
        f"{subject}: {settings['weights']}" + (f" (sha256 {settings['sha256']})" if "sha256" in settings else "")
        for subject, settings in models
        if "weights" in settings
    }
    return [f"Weights of {'; '.join(sorted(texts))}."] if texts else []


def repeats(grid: Layout, records: Sequence[Record]) -> list[str]:
    """How many older measurements of the same a table leaves out."""
    shown = {id(record) for record in grid.grid.values()}
    older = sum(id(record) not in shown for record in records)
    return [f"Repeated measurements: the latest counts; {older} older left out."] if older else []


def _legend(columns: Sequence[ColumnKey], labels: dict[ColumnKey, str]) -> list[str]:
    """What each column was measured under, columns of the same conditions together."""
    groups: dict[str, list[str]] = {}
    for column in columns:
        conditions = [column.protocol, *(_condition(*pair) for pair in column.conditions if _is_told(pair[0]))]
        groups.setdefault("; ".join(filter(None, conditions)), []).append(labels[column].rstrip(" ↑↓"))
    return [f"{', '.join(heads)}: {text}." for text, heads in groups.items() if text]


def _is_told(name: str) -> bool:
    """Whether the caption names this condition; hashes are for the CSV."""
    return name != "reference" and not name.endswith("sha256")
