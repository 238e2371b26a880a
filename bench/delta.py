"""What each choice of a protocol is worth: one set of images under all protocols whose networks can be had."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.comparison import format_value, row_label
from bench.errors import UserError
from bench.grouping import layout, metric_family, scenes
from bench.plan import Plan, PlanOptions, Stage, Task
from bench.protocols import PROTOCOLS, STANDINS, Protocol
from bench.records import Measurement, Record
from bench.tables import NO_VALUE, Cell, Column, Table
from bench.views import VIEWS
from bench.weights import find_weights

SUFFIX = "-delta"  # of the suite's name, by which its report is known
CAPTION = (
    "All numbers are of the same images. Against: the first protocol of the same maths, network and layer.",
    "Numbers of two networks have no difference that means anything.",
)


class Look(NamedTuple):
    """How a view looks at images and texts, in words."""

    network: str
    resize: str
    pixels: str = "pixels rounded half up"
    text: str = "no prefix"


_TF1 = "TF1 resize inside the network"
LOOKS = {
    "inception": Look("Inception", _TF1),
    "inception-adm": Look("Inception", _TF1, "pixels truncated"),
    "inception-clean": Look("Inception", "antialiased bicubic resize"),
    "inception-torch": Look("Inception", "bilinear resize without antialiasing, 2x/255 - 1"),
    "inception-random": Look("Inception of random weights", _TF1),
    "vgg16-fc": Look("VGG16", _TF1),
    "dinov2-vit-l-14": Look("DINOv2 ViT-L/14", "PIL bicubic resize"),
    "clip-fid-vit-b-32": Look("CLIP ViT-B/32", "PIL bicubic resize"),
    "clip-vit-b-32": Look("CLIP ViT-B/32", "antialiased bicubic resize"),
    "clip-vit-b-32-prefix": Look("CLIP ViT-B/32", "antialiased bicubic resize", text="prefix 'A photo depicts '"),
    "clip-vit-g-14": Look("CLIP ViT-g/14", "bicubic resize without antialiasing"),
}


def delta_plan(plan: Plan, options: PlanOptions) -> Plan:
    """The same plan with each data set scored under every protocol that it can be, and nothing else measured.

    UserError where no network is there: stand-ins have no choices to compare.
    """
    stages = {id(stage): _with_all_protocols(stage, options) for stage in plan.stages}
    kept = (task for task in plan.tasks if task.kind in {"features", "score"})
    tasks: tuple[Task, ...] = tuple(dataclasses.replace(task, stage=stages[id(task.stage)]) for task in kept)
    suite = dataclasses.replace(
        plan.suite, name=plan.suite.name + SUFFIX, entries=tuple(stage.entry for stage in stages.values())
    )
    return dataclasses.replace(plan, suite=suite, stages=tuple(stages.values()), tasks=tasks)


def _with_all_protocols(stage: Stage, options: PlanOptions) -> Stage:
    asked = {VIEWS[PROTOCOLS[name].view].weights for name in stage.entry.protocols}  # what `run` would fetch
    names = tuple(
        protocol.name
        for protocol in PROTOCOLS.values()
        if protocol not in STANDINS
        and (not protocol.datasets or stage.entry.dataset in protocol.datasets)
        and _can_be_had(protocol, asked if not options.network_weights.offline else set(), options)
    )
    if not names:
        raise UserError(
            f"{stage.entry.title}: no network of any protocol is here, and stand-ins have no choices to compare. "
            "`python -m bench fetch inception` gets the first; `ls weights` names all."
        )
    entry = dataclasses.replace(stage.entry, protocols=names, inversion_images=0, probes=())
    return dataclasses.replace(stage, entry=entry)


def _can_be_had(protocol: Protocol, fetchable: set[str | None], options: PlanOptions) -> bool:
    weights = VIEWS[protocol.view].weights
    return weights is None or weights in fetchable or find_weights(weights, options.network_weights) is not None


def choices(protocol: Protocol, base: Protocol) -> tuple[str, ...]:
    """In what a protocol differs from another, in words."""
    looks = zip(LOOKS[protocol.view], LOOKS[base.view], strict=True)
    texts = [own for own, other in looks if own != other]
    pairs = (
        ("layer", f"layer {protocol.layer}"),
        ("ddof", "covariance over N - 1" if protocol.ddof else "covariance over N"),
        ("maths", "extrapolated to infinitely many samples"),
        ("shuffle_seed", f"shuffled with seed {protocol.shuffle_seed}"),
        ("split_size", f"splits of {protocol.split_size or 0:,}"),
        ("aggregate", f"lowest of {protocol.runs} sample sets"),
        ("num_images", f"{protocol.num_images:,} samples"),
        ("num_reference", f"at most {protocol.num_reference or 0:,} real images"),
        ("half_precision", "distances in float16"),
    )
    return (*texts, *(text for name, text in pairs if getattr(protocol, name) != getattr(base, name)))


def delta_tables(records: Sequence[Record]) -> list[Table]:
    """A table for each model, and for the real images, with a row for each number under each protocol."""
    tables = []
    for scene, found in scenes(records).items():
        grid = layout([record for record in found if record.measurement.protocol in PROTOCOLS])
        for row in grid.rows:
            rows = tuple(_rows(grid.values_of(row)))
            if rows:
                title = f"{scene.title}, {row_label(row, grid.rows)}: what each choice is worth"
                tables.append(Table(title, CAPTION, _columns(), rows))
    return tables


def _columns() -> tuple[Column, ...]:
    return (
        *(Column("Protocol", align="left"), Column("Metric", align="left"), Column("Value"), Column("Difference")),
        *(Column("Against", align="left"), Column("What differs", align="left")),
    )


def _rows(measured: Sequence[Measurement]) -> Iterator[tuple[Cell, ...]]:
    bases: dict[tuple[str, ...], Measurement] = {}
    order = list(PROTOCOLS)
    for one in sorted(measured, key=lambda m: order.index(m.protocol)):
        if PROTOCOLS[one.protocol] in STANDINS:
            continue
        base = bases.setdefault(_scale(one), one)
        same = base.protocol == one.protocol
        difference = NO_VALUE if same else _signed(one, (one.value or 0.0) - (base.value or 0.0))
        texts = "; ".join(choices(PROTOCOLS[one.protocol], PROTOCOLS[base.protocol]))
        against = NO_VALUE if same else base.protocol
        yield tuple(map(Cell, (one.protocol, one.metric, format_value(one), difference, against, texts or NO_VALUE)))


def _scale(measured: Measurement) -> tuple[str, ...]:
    """What two numbers must share for their difference to mean something."""
    protocol = PROTOCOLS[measured.protocol]
    maths = protocol.maths.removesuffix("_infinity")
    return maths, metric_family(measured.metric), LOOKS[protocol.view].network, protocol.layer


def _signed(measured: Measurement, difference: float) -> str:
    text = format_value(dataclasses.replace(measured, value=difference, interval=None))
    return text if text.startswith("-") else f"+{text}"
