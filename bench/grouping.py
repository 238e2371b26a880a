"""Which records may stand together: tables, rows and columns such that what can't be compared never shares a column."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.records import Measurement, Record
from bench.reported import DATASETS

REAL = "real"
TABLE_KEYS = frozenset({"dataset", "resolution"})
# settings of the model tell rows apart, these tell nothing apart; every other key of a case tells columns apart
MODEL_KEYS = frozenset({"truncation_psi", "noise_mode", "sampler", "steps", "nfe", "guidance", "implementation"})
FREE_KEYS = frozenset({"suite", "pixels_sha256", "verified_max_grey_levels", "interval_kind"})
# real images are measured against other ones than models are: half of the data set against the other half, own texts
REFERENCE_KEYS = frozenset({"reference", "reference_pixels_sha256", "prompts_sha256"})
FRECHET = frozenset({"FID", "sFID", "rFID", "FD", "CLIP-FID"})
KERNEL = frozenset({"KID", "KD"})
FEW_IMAGES = 10_000  # below which a Frechet distance says more of the count than of the images
METRIC_ORDER = (
    *(
        "FID",
        "sFID",
        "rFID",
        "FD",
        "CLIP-FID",
        "KID",
        "KD",
        "IS",
        "Precision",
        "Recall",
        "Density",
        "Coverage",
        "CLIP",
        "Score",
        "PPL",
    ),
    *("EQ", "PSNR", "SSIM", "LPIPS", "Latency", "Throughput", "Parameters", "Operations", "Peak"),
)


class Scene(NamedTuple):
    """What one table is about."""

    dataset: str
    resolution: str

    @property
    def title(self) -> str:
        """The data set as papers spell it, and the size of its images."""
        size = f"{self.resolution} × {self.resolution}" if self.resolution.isdigit() else self.resolution
        return f"{DATASETS.get(self.dataset, self.dataset).removesuffix(' zero-shot')} {size}".strip()


@dataclass(frozen=True, slots=True)
class ColumnKey:
    """All that makes two values comparable; values whose keys differ are in different columns."""

    metric: str
    unit: str
    higher_is_better: bool | None
    protocol: str
    conditions: tuple[tuple[str, str], ...]  # sample counts, extractor, ...; for speed device, dtype, machine

    @property
    def label(self) -> str:
        """The head of the column: metric, unit, and an arrow to where better is."""
        unit = f" ({self.unit})" if self.unit else ""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return f"{self.metric}{unit}{arrow}"

    @property
    def family(self) -> str:
        """What kind of metric it is: "FD" of "FD-standin-conv-v1[n=128]"."""
        return metric_family(self.metric)

    @property
    def has_few_images(self) -> bool:
        """Whether so few were measured that a kernel distance, which has no bias, tells more than a Frechet one."""
        return int(dict(self.conditions).get("n", FEW_IMAGES)) < FEW_IMAGES

    @property
    def task(self) -> str:
        """The task that measures it, among those that measure quality."""
        if self.protocol.startswith("inversion"):
            return "inversion"
        return "probe" if self.protocol == "probe" or self.protocol.startswith(("ppl", "eqt", "eqr")) else "score"

    def without(self, names: frozenset[str]) -> ColumnKey:
        """The same column, blind to some conditions."""
        return dataclasses.replace(self, conditions=tuple(pair for pair in self.conditions if pair[0] not in names))

    def admits(self, other: ColumnKey) -> bool:
        """Whether a row without a value belongs here: it may lack conditions, but contradicts none."""
        if other.metric == other.protocol:  # a whole task failed, and with it every column that it would have filled
            return other.task == self.task
        same = (self.metric, self.protocol) == (other.metric, other.protocol)
        return same and set(other.conditions) <= set(self.conditions)


@dataclass(frozen=True, slots=True)
class RowKey:
    """One row: a model, and with which weights, seed and settings it ran."""

    subject: str
    settings: tuple[tuple[str, str], ...]


Grid = Mapping[tuple[RowKey, ColumnKey], Record]


@dataclass(frozen=True, slots=True)
class Layout:
    """One table's rows, columns and records, in printing order."""

    rows: tuple[RowKey, ...]
    columns: tuple[ColumnKey, ...]
    grid: Grid

    def measured(self, column: ColumnKey) -> dict[RowKey, Record]:
        """The records of a column that have a value."""
        found = {row: self.grid[row, column] for row in self.rows if (row, column) in self.grid}
        return {row: record for row, record in found.items() if record.measurement.status == "ok"}

    def values_of(self, row: RowKey) -> list[Measurement]:
        """What was measured of a row, in the order of the columns."""
        found = [self.grid[row, column].measurement for column in self.columns if (row, column) in self.grid]
        return [measured for measured in found if measured.status == "ok"]


def scenes(records: Iterable[Record]) -> dict[Scene, list[Record]]:
    """Records by data set and resolution, in the order in which tables print them."""
    found: dict[Scene, list[Record]] = {}
    for record in records:
        case = record.measurement.case
        found.setdefault(Scene(str(case.get("dataset", "")), str(case.get("resolution", ""))), []).append(record)
    return {scene: found[scene] for scene in sorted(found, key=lambda s: (_natural(s.dataset), _natural(s.resolution)))}


def layout(records: Sequence[Record]) -> Layout:
    """Place the records of one table; of repeated measurements the latest stays."""
    kept = _rows(records)
    grid: dict[tuple[RowKey, ColumnKey], Record] = {}
    groups = comparable_groups(records)
    for column, group in groups.items():
        for record in sorted(group, key=lambda record: (record.timestamp_utc, record.to_json())):
            grid |= {(row, column): record for row in _homes(record, kept)}
    rows = sorted(kept, key=lambda row: (row.subject != REAL, _natural(row.subject), row.settings))
    return Layout(tuple(rows), tuple(groups), grid)


def comparable_groups(records: Iterable[Record]) -> dict[ColumnKey, list[Record]]:
    """Records by column, in printing order; those without a value join the columns that they can belong to."""
    groups: dict[ColumnKey, list[Record]] = {}
    records = list(records)
    values = [record for record in records if record.measurement.status == "ok"]
    keys = {column_key(record) for record in values}
    for record in values:
        for key in _columns_of_value(record, keys):
            groups.setdefault(key, []).append(record)
    measured = set(groups)
    for record in (record for record in records if record.measurement.status != "ok"):
        blind = column_key(record).without(REFERENCE_KEYS)
        for key in [key for key in measured if key.admits(blind)] or [blind]:
            groups.setdefault(key, []).append(record)
    return {key: groups[key] for key in sorted(groups, key=_column_order)}


def _columns_of_value(record: Record, keys: Iterable[ColumnKey]) -> list[ColumnKey]:
    own = column_key(record)
    if record.measurement.subject != REAL:
        return [own]
    blind = own.without(REFERENCE_KEYS)
    return [key for key in keys if key != own and key.without(REFERENCE_KEYS) == blind] or [own]


def column_key(record: Record) -> ColumnKey:
    """What this record's value may be compared with."""
    measured = record.measurement
    left_out = TABLE_KEYS | FREE_KEYS | _setting_names(record) | _free_names(record)
    conditions = {name: value for name, value in measured.case.items() if name not in left_out}
    if measured.kind == "quality":
        conditions["n"] = measured.n
    if measured.kind == "speed" or _is_memory(measured):
        conditions["machine"] = record.provenance.machine
    texts = sorted((name, str(value)) for name, value in conditions.items() if value is not None)
    return ColumnKey(measured.metric, measured.unit, measured.higher_is_better, measured.protocol, tuple(texts))


def _setting_names(record: Record) -> frozenset[str]:
    """Keys of a case that belong to the model's row."""
    return MODEL_KEYS | {"device", "dtype"} if record.measurement.kind == "quality" else MODEL_KEYS


def _free_names(record: Record) -> frozenset[str]:
    """Keys that a value doesn't depend on."""
    measured = record.measurement
    if measured.kind == "size" and not _is_memory(measured):
        return frozenset({"batch_size", "device", "dtype"})
    if measured.kind == "quality":
        return frozenset({"batch_size"}) | (frozenset() if reads_texts(measured.protocol) else {"prompts_sha256"})
    if measured.protocol == "offline":  # at the fastest batch size
        return frozenset({"batch_size"})
    return frozenset()


def _is_memory(measured: Measurement) -> bool:
    return measured.metric.startswith("Peak memory")


def _column_order(key: ColumnKey) -> tuple[Any, ...]:
    rank = METRIC_ORDER.index(key.family) if key.family in METRIC_ORDER else len(METRIC_ORDER)
    leads = key.family in KERNEL and key.has_few_images
    return (not leads, rank, _natural(key.metric), key.protocol, key.conditions, key.unit, str(key.higher_is_better))


def metric_family(metric: str) -> str:
    """The first word of a metric's name."""
    return "CLIP-FID" if metric.startswith("CLIP-FID") else re.split(r"[^A-Za-z]", metric, maxsplit=1)[0]


def reads_texts(protocol: str) -> bool:
    """Whether a number of a protocol depends on which texts the images were drawn for."""
    return protocol.startswith("clip@") or protocol.endswith("@coco-sgt")


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorting key that puts 64 before 256."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def _row_key(record: Record) -> RowKey:
    measured = record.measurement
    names = _setting_names(record)
    settings = {name: value for name, value in measured.case.items() if name in names}
    sha256 = None if measured.weights_sha256 is None else measured.weights_sha256[:12]
    settings |= {"weights": measured.weights, "sha256": sha256, "seed": measured.seed}
    texts = sorted((name, str(value)) for name, value in settings.items() if value is not None)
    return RowKey(measured.subject, tuple(texts))


def _rows(records: Sequence[Record]) -> set[RowKey]:
    """Rows to print: those that some record is at home in, and in no fuller row."""
    rows = {_row_key(record) for record in records}
    return {_row_key(record) for record in records if _homes(record, rows) == [_row_key(record)]}


def _homes(record: Record, rows: Iterable[RowKey]) -> list[RowKey]:
    own = _row_key(record)
    return [row for row in rows if row != own and _joins(record, own, row)] or [own]


def _joins(record: Record, own: RowKey, row: RowKey) -> bool:
    """Whether a record belongs to a row that says more than it does.

    An absent setting of the model means its default, so a value may only lack the seed; a size doesn't depend on
    settings, and a row without a value may not have come so far as to know them.
    """
    if row.subject != own.subject or not set(own.settings) < set(row.settings):
        return False
    more = {name for name, _ in set(row.settings) - set(own.settings)}
    return more <= {"seed"} or record.measurement.kind == "size" or record.measurement.status != "ok"


def best_rows(measured: Mapping[RowKey, Record], column: ColumnKey) -> set[RowKey]:
    """The rows of one column to set in bold: the best, and all that its interval doesn't tell from it.

    None where there is nothing to choose: fewer than two models, a caveat on any of them, no better direction, or a
    Frechet distance of few images.
    """
    models = {row: record.measurement for row, record in measured.items() if row.subject != REAL}
    higher_is_better = column.higher_is_better
    if higher_is_better is None or len({row.subject for row in models}) < 2:
        return set()
    if any(measurement.caveats for measurement in models.values()):
        return set()
    if column.family in FRECHET and column.has_few_images:
        return set()
    ranges = {row: m.interval or (m.value or 0.0, m.value or 0.0) for row, m in models.items()}
    values = {row: m.value or 0.0 for row, m in models.items()}
    best = (max if higher_is_better else min)(sorted(values, key=str), key=lambda row: values[row])
    low, high = ranges[best]
    return {row for row, (other_low, other_high) in ranges.items() if other_low <= high and low <= other_high}
