"""Records -> paper-style comparison tables: one a data set and resolution for quality, one for speed and size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.captions import caption, column_labels, repeats
from bench.errors import UserError
from bench.grouping import (
    ColumnKey,
    Layout,
    RowKey,
    Scene,
    best_rows,
    column_key,
    comparable_groups,
    layout,
    metric_family,
    scenes,
)
from bench.records import Measurement, Record
from bench.reported import Published, ReportedNumber
from bench.tables import NO_VALUE, Cell, Column, Notes, Table

MARKS = {"missing": "missing", "skipped": "n/a", "error": "failed"}
# digits after the point; a metric that is not here prints significant digits
DECIMALS = {
    family: digits
    for digits, families in (
        (1, ("PPL",)),
        (2, ("FID", "sFID", "rFID", "FD", "CLIP-FID", "IS", "PSNR", "EQ")),
        (3, ("KID", "KD", "Precision", "Recall", "Density", "Coverage")),
        (4, ("CLIP", "Score", "SSIM", "LPIPS")),
    )
    for family in families
}
SIGNIFICANT = {"quality": 4, "speed": 3, "size": 3}
TOPICS = {"score": "quality", "inversion": "inversion", "probe": "probes of the generator"}
MAX_COLUMNS = 10  # of a quality table; a wider one is split, and leaves out columns that wait for weights


def comparison_tables(records: Sequence[Record], published: Published | None = None) -> list[Table]:
    """Lay records out as tables: by data set and resolution, quality first, then speed and size.

    Of repeated measurements the latest counts. `published` adds a column of papers' FIDs beside a measured FID.
    Raises `UserError` when there is no record.
    """
    if not records:
        raise UserError("no records: nothing was measured, so there is no table. Run `python -m bench run` first.")
    tables = []
    for scene, found in scenes(records).items():
        quality = [record for record in found if record.measurement.kind == "quality"]
        costs = [record for record in found if record.measurement.kind != "quality"]
        for topic, part in _topics(quality).items():
            tables.append(_table(f"{scene.title}: {topic}", part, scene, published))
        tables += [_table(f"{scene.title}: speed and size", costs, scene, None)] if costs else []
    return tables


def _topics(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of quality in one table, or in one a task where that would be too wide to read."""
    if len(comparable_groups(records)) <= MAX_COLUMNS:
        return {"quality": list(records)} if records else {}
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(TOPICS[column_key(record).task], []).append(record)
    return {topic: found[topic] for topic in TOPICS.values() if topic in found}


def format_value(measured: Measurement) -> str:
    """Print a value with its interval: "2.84 ± 0.03", or "2.84 [2.80, 2.91]" where that is lopsided."""
    value = measured.value
    if value is None:
        return MARKS[measured.status]
    decimals = DECIMALS.get(metric_family(measured.metric))
    decimals = _decimals(value, SIGNIFICANT[measured.kind]) if decimals is None else decimals
    if measured.interval is None:
        return f"{value:.{decimals}f}"
    low, high = measured.interval
    half = (high - low) / 2
    decimals = min(max(decimals, _decimals(half, 1)), decimals + 2)  # an interval of rounding errors shows as 0.00
    if abs((high - value) - (value - low)) <= 0.1 * half:
        return f"{value:.{decimals}f} ± {half:.{decimals}f}"
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _decimals(value: float, significant: int) -> int:
    """Digits after the point that show so many significant ones, 8 at most."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return min(8, max(0, significant - 1 - magnitude))


def _table(title: str, records: Sequence[Record], scene: Scene, published: Published | None) -> Table:
    whole = layout(records)
    grid, absent = _without_empty_columns(whole)
    reported = {} if published is None else {row: published.fid(row.subject, *scene) for row in grid.rows}
    notes, labels = Notes(), column_labels(grid.columns)
    caveats = _place_caveats(grid)
    heads = [Column("Model", align="left")]
    order = _with_reported_column(grid.columns, reported)
    for key in order:
        of_key = notes.numbers(caveats.of_columns[key]) if key else ()
        heads.append(Column(labels[key], of_key) if key else Column("FID reported", reported=True))
    body = _Body(grid, caveats, notes, reported)
    rows = tuple(body.row(row, order) for row in grid.rows)
    below = (*caption(grid, labels), *absent, *repeats(whole, records))
    return Table(title, below, tuple(heads), rows, tuple(notes.texts))


def _with_reported_column(
    columns: Sequence[ColumnKey], reported: Mapping[RowKey, Sequence[ReportedNumber]]
) -> list[ColumnKey | None]:
    """The columns with None for papers' FIDs beside the first measured FID, if there are both."""
    fids = [place for place, column in enumerate(columns, start=1) if column.family == "FID"]
    if not fids or not any(reported.values()):
        return list(columns)
    return [*columns[: fids[0]], None, *columns[fids[0] :]]


@dataclass(frozen=True, slots=True)
class _Body:
    """Everything that the cells of one table need; notes get their numbers as cells are made, row by row."""

    grid: Layout
    caveats: _Caveats
    notes: Notes
    reported: Mapping[RowKey, Sequence[ReportedNumber]]

    def row(self, row: RowKey, order: Sequence[ColumnKey | None]) -> tuple[Cell, ...]:
        """The cells of one row, its label first."""
        label = row_label(row, self.grid.rows)
        head = Cell(label, notes=self.notes.numbers(self.caveats.of_rows[row]))
        return (head, *(self._measured(row, key) if key else self._reported(row) for key in order))

    def _measured(self, row: RowKey, column: ColumnKey) -> Cell:
        record = self.grid.grid.get((row, column))
        if record is None:
            return Cell(NO_VALUE)
        bold = row in best_rows(self.grid.measured(column), column)
        texts = (*_reason(record), *self.caveats.of_cells.get((row, column), ()))
        return Cell(format_value(record.measurement), bold, self.notes.numbers(texts))

    def _reported(self, row: RowKey) -> Cell:
        numbers = sorted(self.reported[row], key=lambda number: number.value)
        texts = list(dict.fromkeys(number.printed for number in numbers)) or [NO_VALUE]
        text = texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"
        return Cell(text, notes=self.notes.numbers(map(reported_note, numbers)))


def _reason(record: Record) -> tuple[str, ...]:
    """Why there is no value, and what mends that."""
    if record.measurement.status == "ok":
        return ()
    return (f"{MARKS[record.measurement.status]}: {record.measurement.error or 'no reason was recorded'}",)


_Place = tuple[RowKey, ColumnKey]


@dataclass(frozen=True, slots=True)
class _Caveats:
    """Where each caveat is marked: at rows or heads of columns all of whose values share it, else at cells."""

    of_rows: dict[RowKey, list[str]]
    of_columns: dict[ColumnKey, list[str]]
    of_cells: dict[_Place, list[str]]


def _place_caveats(grid: Layout) -> _Caveats:
    """Mark each caveat at rows or at columns, whichever takes fewer marks."""
    caveats = {place: r.measurement.caveats for place, r in grid.grid.items() if r.measurement.status == "ok"}
    marks = _Caveats({row: [] for row in grid.rows}, {column: [] for column in grid.columns}, {})
    for text in sorted({text for texts in caveats.values() for text in texts}):
        places = {place for place, texts in caveats.items() if text in texts}
        rows = {row for row in grid.rows if _shared([p for p in caveats if p[0] == row], places)}
        columns = {c for c in grid.columns if _shared([p for p in caveats if p[1] == c], places)}
        beside_rows = [place for place in places if place[0] not in rows]
        beside_columns = [place for place in places if place[1] not in columns]
        by_row = len(rows) + len(beside_rows) <= len(columns) + len(beside_columns)
        for row in rows if by_row else ():
            marks.of_rows[row].append(text)
        for column in () if by_row else columns:
            marks.of_columns[column].append(text)
        for place in beside_rows if by_row else beside_columns:
            marks.of_cells.setdefault(place, []).append(text)
    return marks


def _shared(line: Sequence[_Place], places: set[_Place]) -> bool:
    """Whether a row or column has values, and all of them are among `places`."""
    return bool(line) and places.issuperset(line)


def row_label(row: RowKey, rows: Sequence[RowKey]) -> str:
    """The name of a row; a model that has several says in what they differ."""
    twins = [other.settings for other in rows if other.subject == row.subject]
    own = [f"{name} {value}" for name, value in row.settings if any((name, value) not in twin for twin in twins)]
    return f"{row.subject} ({', '.join(own)})" if own else row.subject


def reported_note(number: ReportedNumber) -> str:
    """The footnote of a published number."""
    whose = "re-measured by others" if number.remeasured else "not measured here"
    return f"reported {number.printed}, {whose}: {number.name}; {number.source}; confidence {number.confidence}"


def _without_empty_columns(grid: Layout) -> tuple[Layout, list[str]]:
    """Take out columns that apply to no row for one reason, and say that in a line each reason.

    A column that is empty because something is missing or failed stays: its readers look for it. In a wide table one
    that is missing gives way to those with values.
    """
    wide = len(grid.columns) > MAX_COLUMNS
    reasons = {}
    for column in grid.columns:
        cells = [record for (_, c), record in grid.grid.items() if c == column]
        texts = {_reason(record) for record in cells}
        if len(texts) == 1 and {r.measurement.status for r in cells} <= {"skipped", "missing" if wide else "skipped"}:
            reasons[column] = texts.pop()[0]
    kept = tuple(column for column in grid.columns if column not in reasons)
    if not kept:
        return grid, []
    lines = []
    for text in dict.fromkeys(reasons.values()):
        names = dict.fromkeys(column.label.rstrip(" ↑↓") for column in reasons if reasons[column] == text)
        lines.append(f"Not in the table: {', '.join(names)}; {text}")
    return Layout(grid.rows, kept, {key: record for key, record in grid.grid.items() if key[1] in kept}), lines
