"""Whether published numbers were reproduced here: reported and measured side by side, and one word on the two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bench.comparison import format_value, reported_note, row_label
from bench.datasets import DATASETS
from bench.grouping import REAL, layout, metric_family, scenes
from bench.protocols import PROTOCOLS
from bench.records import Measurement, Record
from bench.reported import METRICS, Confidence, Published, ReportedNumber, metric_key
from bench.tables import NO_VALUE, Cell, Column, Notes, Table

Word = Literal["reproduced", "within noise", "differs", "not comparable"]
RUN_TO_RUN = 0.02  # of the value: Karras et al. 2022, arXiv 2206.00364, appendix F.1
REFERENCES = {name: spec.num_images for name, spec in DATASETS.items() if spec.num_images}  # images of whole sets
CAPTION = (
    f"reproduced: no farther from the reported number than {RUN_TO_RUN:.0%} of it, by which repeated runs differ.",
    "within noise: farther, but the 95 % interval of the measured mean holds the reported number.",
    "Compared are numbers of one protocol only, whole and with published weights; a note says why others are not.",
)
# what measured numbers are called in the file of published ones
FAMILIES = {
    "FID": "fid",
    "FD": "fid",
    "sFID": "sfid",
    "rFID": "rfid",
    "IS": "is",
    "Precision": "precision",
    "Recall": "recall",
    "CLIP": "clip_score",
    "Score": "clip_score",
    "PPL": "ppl_wend",
}
_STYLEGAN_CODE = r"StyleGAN3 metric code|fid50k_full|StyleGAN-XL:|Alias-Free|Limited Data|quoted by StudioGAN"
_ADM_CODE = r"re-evaluated by the ADM|Diffusion Models Beat GANs|Scalable Diffusion Models with Transformers"
# the first match tells under which protocol a source measured; a name that no protocol here has is another protocol
SOURCES: tuple[tuple[str, str, str], ...] = (
    ("fid|is|precision|recall", r"StudioGAN evaluation|evaluated by StudioGAN", "StudioGAN's, with another resize"),
    ("fid", r"minimum of three", "fid50k@edm-min3"),
    ("fid", _ADM_CODE, "fid50k@adm"),
    ("fid", r"50k reference images|fid50k,", "FID against 50,000 real images"),
    ("fid", rf"all 70k images|70k reference|{_STYLEGAN_CODE}", "fid50k_full@sg3"),
    ("fid", r"30k COCO val2014 captions(?!;)", "fid30k@coco-sgt"),
    ("clean_fid", r"all 70k images|70k reference", "fid@clean"),
    ("clean_fid", r"50k reference images", "clean-FID against 50,000 real images"),
    ("sfid|rfid", r"StyleGAN3 metric code", "{}50k_full@sgxl"),
    ("sfid", _ADM_CODE, "sfid50k@adm"),
    ("is", rf"is50k|{_STYLEGAN_CODE}", "is50k@sg3"),
    ("is", r"TensorFlow Inception", "another Inception network"),
    ("precision|recall", rf"{_ADM_CODE}|with 10k real", "pr50k3@adm-inception"),
    ("precision|recall", r"pr50k3", "pr50k3 against 50,000 real images"),
    ("fd_dinov2", r"", "fd@dinov2"),
    ("clip_score", r"ViT-g-14", "clip@sgt-vit-g-14"),
    ("ppl_wend", r"W endpoints", "ppl2_wend@sg3"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word on a measured and a reported number; `reason` says why they are not comparable."""

    word: Word
    difference: float | None  # measured minus reported; None where they are not comparable
    reason: str = ""


def reported_protocol(number: ReportedNumber) -> str | None:
    """Under which protocol a published number was measured, as far as its source says; None if it does not."""
    where = f"{number.conditions} {number.source_title}"
    for metrics, pattern, protocol in SOURCES:
        if number.metric in metrics.split("|") and re.search(pattern, where):
            return protocol.format(number.metric)
    return None


def verdict(measured: Measurement, number: ReportedNumber) -> Verdict:
    """Judge a measured value against a published one of the same data set, resolution and metric."""
    reason = _obstacle(measured, number)
    if reason is not None:
        return Verdict("not comparable", None, reason)
    value = measured.value or 0.0
    difference = value - number.value
    if abs(difference) <= RUN_TO_RUN * abs(number.value):
        return Verdict("reproduced", difference)
    # the spread of subsets or splits is no interval of the mean
    trusted = measured.interval is not None and "deviation" not in str(measured.case.get("interval_kind"))
    low, high = measured.interval if measured.interval and trusted else (value, value)
    return Verdict("within noise" if low <= number.value <= high else "differs", difference)


def _obstacle(measured: Measurement, number: ReportedNumber) -> str | None:
    """Why a measured and a published number can't be compared; None if they can."""
    protocol, wanted = PROTOCOLS.get(measured.protocol), reported_protocol(number)
    if measured.caveats:  # random weights, stand-in network, few images
        return "; ".join(measured.caveats)
    if wanted is None:
        return "the source does not say under which protocol it measured"
    if wanted != measured.protocol:
        return f"other protocol: reported under {wanted}, measured under {measured.protocol}"
    whole, counted = REFERENCES.get(str(measured.case.get("dataset"))), measured.case.get("n_reference")
    partly = protocol is not None and protocol.num_reference is not None
    if whole is not None and counted is not None and not partly and counted != whole:
        return f"other reference: {counted:,} real images instead of {whole:,}"
    psi = measured.case.get("truncation_psi", 1.0)
    if psi != 1.0 and "truncation" not in f"{number.variant} {number.conditions}":
        return f"other settings: truncation {psi}"
    return None


def reproduction_tables(records: Sequence[Record], published: Published) -> list[Table]:
    """One table a data set and resolution for which papers have numbers of a model that was measured."""
    tables = []
    for scene, found in scenes(records).items():
        notes = Notes()
        grid = layout([record for record in found if record.measurement.kind == "quality"])
        rows = [
            row
            for model in grid.rows
            if model.subject != REAL
            for row in _rows(
                (row_label(model, grid.rows), grid.values_of(model)), published.of(model.subject, *scene), notes
            )
        ]
        if rows:
            tables.append(Table(f"{scene.title}: reproduction", CAPTION, _columns(), tuple(rows), tuple(notes.texts)))
    return tables


def _columns() -> tuple[Column, ...]:
    return (
        *(Column("Model", align="left"), Column("Metric", align="left"), Column("Reported", reported=True)),
        *(Column("Reported under", align="left"), Column("Measured"), Column("Measured under", align="left")),
        *(Column("Difference"), Column("Verdict", align="left")),
    )


def _rows(
    model: tuple[str, Sequence[Measurement]], numbers: Sequence[ReportedNumber], notes: Notes
) -> Iterable[tuple[Cell, ...]]:
    """A row for each protocol of a model that papers used too; where there is none, one that says why."""
    name, measured = model
    for key in dict.fromkeys(filter(None, map(_key, measured))):
        candidates = [n for n in numbers if _reported_key(n) == key]
        pairs = [(m, n) for m in measured if _key(m) == key for n in candidates]
        for one, number in _matching(pairs):
            yield Cell(name), *_row(one, number, notes)


def _matching(pairs: Sequence[tuple[Measurement, ReportedNumber]]) -> list[tuple[Measurement, ReportedNumber]]:
    """For each protocol that is both measured and reported its best-checked number, else the nearest pair."""
    best: dict[str, tuple[Measurement, ReportedNumber]] = {}
    for one, number in sorted(pairs, key=_rank):
        same = reported_protocol(number) == one.protocol
        best.setdefault(one.protocol if same else "", (one, number))
    return [pair for protocol, pair in best.items() if protocol] or list(best.values())


def _rank(pair: tuple[Measurement, ReportedNumber]) -> tuple[object, ...]:
    one, number = pair
    words = len(number.variant.split())
    return (len(one.caveats), words, number.remeasured, get_args(Confidence).index(number.confidence), one.protocol)


def _key(measured: Measurement) -> str | None:
    if measured.protocol.startswith("inversion") or "infinity" in measured.metric:
        return None
    return "fd_dinov2" if measured.metric.startswith("FD-DINOv2") else FAMILIES.get(metric_family(measured.metric))


def _reported_key(number: ReportedNumber) -> str:
    """The same for a published number: clean-FID is an FID of another protocol."""
    return "fid" if number.metric == "clean_fid" else metric_key(number)


def _row(measured: Measurement, number: ReportedNumber, notes: Notes) -> tuple[Cell, ...]:
    judged = verdict(measured, number)
    difference = NO_VALUE if judged.difference is None else f"{judged.difference:+.{_digits(number)}f}"
    return (
        Cell(METRICS[metric_key(number)].rstrip(" ↑↓")),
        Cell(number.printed, notes=notes.numbers([reported_note(number)])),
        Cell(reported_protocol(number) or "not stated"),
        *(Cell(format_value(measured)), Cell(measured.protocol), Cell(difference)),
        Cell(judged.word, notes=notes.numbers([judged.reason]) if judged.reason else ()),
    )


def _digits(number: ReportedNumber) -> int:
    return max(2, len(number.printed.partition(".")[2]))
