"""Published numbers with their sources: read, chosen and printed apart from what is measured here."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

from bench.errors import UserError
from bench.tables import NO_VALUE, Cell, Column, Table

REPORTED_CSV = Path(__file__).resolve().parents[1] / "results" / "reported.csv"
FIELDS = (
    *("system", "variant", "dataset", "resolution", "metric", "value", "unit", "direction"),
    *("conditions", "source_title", "source_locator", "year", "confidence", "note"),
)
# FFHQ-U, fine-tuned MS-COCO and its 2017 subset are other tasks and stay out of these
DATASETS = {
    "cifar10": "CIFAR-10",
    "ffhq": "FFHQ",
    "imagenet": "ImageNet",
    "pokemon": "Pokemon",
    "coco": "MS-COCO zero-shot",
}
METRICS = {
    "fid": "FID ↓",
    "fid_5k": "FID-5k ↓",
    "fid_10k": "FID-10k ↓",
    "clean_fid": "clean-FID ↓",
    "sfid": "sFID ↓",
    "rfid": "rFID (random features) ↓",
    "fd_dinov2": "FD-DINOv2 ↓",
    "is": "IS ↑",
    "precision": "Precision ↑",
    "recall": "Recall ↑",
    "clip_score": "CLIP score ↑",
    "clip_score_x100": "CLIP score × 100 ↑",
    "ppl_wend": "PPL (W, end) ↓",
    "inversion_fid": "Inversion FID ↓",
    "psnr": "PSNR, inversion (dB) ↑",
    "ssim": "SSIM, inversion ↑",
    "autoencoder_rfid": "Reconstruction FID ↓",
    "autoencoder_psnr": "PSNR, autoencoder (dB) ↑",
    "params": "Parameters (M)",
    "nfe": "NFE",
}
CAPTION = (
    "Not measured here. Sample counts, reference sets, extractors and guidance differ between sources: "
    "the notes name them, and neighbours in a column are only comparable where these agree."
)
_REMEASURED = re.compile(
    r"re-?evaluat\w* by|re-evaluation\)|\bre-?run\b|reproduced|trained by StudioGAN|as evaluated", re.I
)
_STABLE_DIFFUSION_BY_OTHERS = re.compile(r"GigaGAN|Distribution Matching|Diffusion2GAN|f-distill")
Confidence = Literal["high", "medium", "low"]
Direction = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class ReportedNumber:
    """One number as a source prints it; `confidence` says how well that was checked."""

    system: str
    variant: str
    dataset: str  # as papers spell it: "CIFAR-10"
    resolution: str
    metric: str
    value: float
    printed: str  # with the source's own digits: "1.10"
    unit: str
    direction: Direction  # which is better
    conditions: str
    source_title: str
    source_locator: str
    year: int
    confidence: Confidence
    note: str

    @property
    def hidden(self) -> bool:
        """Whether it stays out of print by default: quoted from memory, or contradicted by a better source."""
        return self.confidence == "low" or self.note.startswith("DISPUTED")

    @property
    def remeasured(self) -> bool:
        """Whether somebody other than the authors measured it."""
        by_others = self.system == "Stable Diffusion" and _STABLE_DIFFUSION_BY_OTHERS.search(self.source_title)
        return self.metric == "clean_fid" or bool(by_others or _REMEASURED.search(f"{self.variant} {self.conditions}"))

    @property
    def name(self) -> str:
        """System and variant."""
        return f"{self.system}, {self.variant}" if self.variant else self.system

    @property
    def source(self) -> str:
        """The full reference, for a footnote."""
        parts = [self.conditions, f"{self.source_title}, {self.source_locator}, {self.year}", self.note]
        return "; ".join(part for part in parts if part)


def load_reported(path: Path = REPORTED_CSV) -> list[ReportedNumber]:
    """Read and check the file of published numbers.

    Raises `UserError` naming the line that is wrong.
    """
    try:
        lines = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Restore it from the repository.") from error
    if tuple(lines.fieldnames or ()) != FIELDS:
        raise UserError(
            f"{path}: columns {lines.fieldnames}; expected {list(FIELDS)} in this order. Mend the first line."
        )
    return [_number(row, f"{path}, line {lines.line_num}") for row in lines]


def _number(row: dict[str, str], where: str) -> ReportedNumber:
    if None in row or None in row.values():
        raise UserError(f"{where}: not {len(FIELDS)} fields. Quote a field that holds a comma.")
    try:
        value, year = float(row["value"]), int(row["year"])
    except ValueError as error:
        raise UserError(
            f"{where}: value {row['value']!r}, year {row['year']!r}: not numbers. Write 2.84, 2020."
        ) from error
    if not row["system"] or not math.isfinite(value):
        raise UserError(f"{where}: system {row['system']!r}, value {value}: needs a name and a finite number.")
    _check_choice(row, "direction", get_args(Direction), where)
    _check_choice(row, "confidence", get_args(Confidence), where)
    texts = {name: row[name] for name in FIELDS if name not in {"value", "year", "direction", "confidence"}}
    direction, confidence = cast(Direction, row["direction"]), cast(Confidence, row["confidence"])
    return ReportedNumber(
        value=value, printed=row["value"], year=year, direction=direction, confidence=confidence, **texts
    )


def _check_choice(row: dict[str, str], name: str, allowed: Sequence[str], where: str) -> None:
    if row[name] not in allowed:
        raise UserError(f"{where}: {name} {row[name]!r}; allowed: {', '.join(allowed)}.")


@cache
def _committed() -> tuple[ReportedNumber, ...]:
    return tuple(load_reported())


def select_reported(
    dataset: str,
    resolution: int | str,
    *,
    show_disputed: bool = False,
    numbers: Sequence[ReportedNumber] | None = None,
) -> list[ReportedNumber]:
    """Published numbers of one data set (`cifar10`, `ffhq`, ...) at one resolution, without doubtful ones by default.

    A data set that no paper knows (`shapes`, `folder`) has none.
    """
    spelling = DATASETS.get(dataset)
    return [
        number
        for number in (_committed() if numbers is None else numbers)
        if (number.dataset, number.resolution) == (spelling, str(resolution)) and (show_disputed or not number.hidden)
    ]


@dataclass(frozen=True, slots=True)
class Published:
    """Which published FID stands beside a measured one.

    `systems` says under what name papers print a model: "StyleGAN-XL", or with words of the variant that must
    all be there, "EDM: config F unconditional VP".
    """

    systems: Mapping[str, str]
    numbers: Sequence[ReportedNumber]

    def of(self, subject: str, dataset: str, resolution: int | str) -> list[ReportedNumber]:
        """All numbers for `subject`, variants with the fewest further words first; may be empty.

        Where `systems` names no variant, only numbers without one are surely its own.
        """
        named = ":" in self.systems.get(subject, "")
        found = self._any_variant(subject, dataset, resolution)
        own = (number for number in found if named or not number.variant)
        return sorted(own, key=lambda number: len(_words(number.variant)))

    def _any_variant(self, subject: str, dataset: str, resolution: int | str) -> list[ReportedNumber]:
        system, _, words = self.systems.get(subject, "").partition(":")
        return [
            number
            for number in select_reported(dataset, resolution, numbers=self.numbers)
            if number.system == system and _words(words) <= _words(number.variant)
        ]

    def fid(self, subject: str, dataset: str, resolution: int | str) -> list[ReportedNumber]:
        """The FIDs of the best-checked class for `subject`; authors' own before re-measurements; may be empty."""
        found = [number for number in self._any_variant(subject, dataset, resolution) if number.metric == "fid"]
        ranks = [(number.remeasured, get_args(Confidence).index(number.confidence)) for number in found]
        return [number for number, rank in zip(found, ranks, strict=True) if rank == min(ranks)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w.+=/-]+", text.lower()))


def reported_table(
    dataset: str, resolution: int | str, *, remeasured: bool = False, show_disputed: bool = False
) -> Table | None:
    """Published numbers of one data set and resolution, one row a system, variant and source.

    Either authors' claims or, with `remeasured`, what others measured: the two are never in one table. None if there
    is nothing to print.
    """
    numbers = [
        number
        for number in select_reported(dataset, resolution, show_disputed=show_disputed)
        if number.remeasured == remeasured and metric_key(number) in METRICS
    ]
    if not numbers:
        return None
    keys = [key for key in METRICS if any(metric_key(number) == key for number in numbers)]
    notes: dict[str, int] = {}
    rows = tuple(_reported_row(row, keys, notes) for row in _rows(numbers))
    kind = "re-measured by others" if remeasured else "published by the authors, or quoted from them"
    columns = (
        Column("System", align="left"),
        *(Column(METRICS[key]) for key in keys),
        Column("Source", align="left"),
        Column("Confidence", align="left"),
    )
    title = f"{DATASETS[dataset]} {resolution} × {resolution}: {kind}"
    return Table(title, (CAPTION,), columns, rows, tuple(notes))


def metric_key(number: ReportedNumber) -> str:
    """The column of a number; one name covers two scales or two tasks in places."""
    if number.metric == "clip_score" and "x100" in f"{number.conditions} {number.note}":
        return "clip_score_x100"
    if number.metric == "psnr" and number.system == "LDM autoencoder":
        return "autoencoder_psnr"
    return number.metric


_Row = dict[str, ReportedNumber]


def _rows(numbers: Iterable[ReportedNumber]) -> list[_Row]:
    """Numbers of one system, variant, source and confidence share a row; a second value of a metric opens another."""
    groups: dict[tuple[str, ...], list[_Row]] = {}
    for number in numbers:
        key = (number.system, number.variant, number.source_title, number.confidence)
        rows = groups.setdefault(key, [])
        free = next((row for row in rows if metric_key(number) not in row), None)
        if free is None:
            rows.append(free := {})
        free[metric_key(number)] = number
    return [row for key in sorted(groups, key=lambda key: tuple(map(str.lower, key))) for row in groups[key]]


def _reported_row(row: _Row, keys: Sequence[str], notes: dict[str, int]) -> tuple[Cell, ...]:
    first = next(iter(row.values()))
    sources = dict.fromkeys(number.source for number in row.values())
    marks = tuple(sorted(notes.setdefault(source, len(notes) + 1) for source in sources))
    arxiv = re.search(r"arXiv:[\d.]+\d", first.source_title)
    values = (Cell(row[key].printed if key in row else NO_VALUE) for key in keys)
    source = Cell(f"{arxiv.group() if arxiv else first.source_title}, {first.year}", notes=marks)
    return (Cell(first.name), *values, source, Cell(first.confidence))
