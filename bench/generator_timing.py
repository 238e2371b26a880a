"""Images per second of whole generators, beside the straightforward formulation of the same networks.

The baseline computes the same images as the papers' reference code is written: a weight per sample and one grouped
convolution, zero-stuffed upsampling, filters at the high rate. Both run in one process, in turn, so that drift and load
meet both alike; nothing is timed before their images were held against each other.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.clocks import Clock, EventClock
from bench.kernel_speed.timing import MAX_IDLE_LOAD, WALL, latency, time_pairs
from bench.model_weights import load_model, model_named
from bench.records import Measurement
from bench.timing import Timing
from bench.verify import MAX_GREY_LEVELS, MIN_PSNR_DB, VerificationError, difference, draw_batch
from kernels.dispatch import use
from models.cuda_graphs import GraphedGenerator
from models.registry import MODELS
from models.spec import Condition, ImageGenerator, Latents

RESOLUTIONS = (32, 64, 256)
MIN_PAIRS = 2  # one block: a large generator takes a quarter of a minute an image in the naive formulation
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class GeneratorTiming:
    """One generator: median times of a batch in either formulation, and the median of their paired ratios."""

    model: str
    family: str
    resolution: int
    batch_size: int
    parameters: int
    baseline_ms: float
    latency_ms: float
    interval_ms: tuple[float, float]  # 95 % interval of `latency_ms`
    ratio: float
    num_pairs: int
    max_grey_levels: int  # between the images of the two
    device: str = "cpu"
    graphs: bool = False  # both were replayed from CUDA graphs

    @property
    def baseline_images_per_s(self) -> float:
        """Images per second of the baseline."""
        return 1000 * self.batch_size / self.baseline_ms

    @property
    def images_per_s(self) -> float:
        """Images per second of ours."""
        return 1000 * self.batch_size / self.latency_ms


def default_models() -> list[str]:
    """One generator a family at each of `RESOLUTIONS`: the first that fits any data set."""
    chosen: dict[tuple[str, int], str] = {}
    for spec in MODELS.values():
        if spec.dataset == "any" and spec.resolution in RESOLUTIONS:
            chosen.setdefault((spec.family, spec.resolution), spec.name)
    return list(chosen.values())


def time_generators(
    names: list[str], budget_s: float, batch_size: int, device: torch.device = CPU
) -> Iterator[GeneratorTiming]:
    """Check and time each model with random weights; `budget_s` is shared out evenly.

    On a GPU both formulations are replayed from CUDA graphs, where the generator can be captured. Raises `UserError`
    for an unknown name and `VerificationError` where the two formulations disagree.
    """
    for name in names:
        model_named(name)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # clocks are of the current one
    clock: Clock = EventClock(device) if device.type == "cuda" else WALL
    for name in names:
        yield _time(name, budget_s / len(names), batch_size, clock, device)


def _time(name: str, budget_s: float, batch_size: int, clock: Clock, device: torch.device) -> GeneratorTiming:
    spec = model_named(name)
    generator: Any = load_model(name, None, spec.num_classes, 0, device).generator
    latents, condition = draw_batch(generator, batch_size, device)
    sampler, graphs = _sampler(generator, latents, condition, device)

    def optimised() -> Tensor:
        return sampler.sample(latents, condition)

    baseline = _naive(optimised)
    found = difference(optimised(), baseline())
    near_enough = device.type == "cuda" and found.psnr_db >= MIN_PSNR_DB
    if found.max_grey_levels > MAX_GREY_LEVELS and not near_enough:
        raise VerificationError(
            f"{name}: the two formulations differ by {found.max_grey_levels} grey levels. It is not timed"
        )
    pairs = time_pairs(baseline, optimised, budget_s, clock, min_pairs=MIN_PAIRS)
    baseline_ms, latency_ms = (statistics.median(times) for times in zip(*pairs, strict=True))
    return GeneratorTiming(
        model=name,
        family=spec.family,
        resolution=spec.resolution,
        batch_size=batch_size,
        parameters=sum(parameter.numel() for parameter in generator.parameters()),
        baseline_ms=baseline_ms,
        latency_ms=latency_ms,
        interval_ms=Timing(tuple(ours for _, ours in pairs)).median_interval_ms(),
        ratio=statistics.median(a / b for a, b in pairs),
        num_pairs=len(pairs),
        max_grey_levels=found.max_grey_levels,
        device=device.type,
        graphs=graphs,
    )


def _sampler(
    generator: ImageGenerator, latents: Latents, condition: Condition, device: torch.device
) -> tuple[ImageGenerator, bool]:
    """What is timed, and whether it is replayed from graphs; a generator that looks at values can't be captured."""
    if device.type != "cuda":
        return generator, False
    graphed = GraphedGenerator(generator)
    try:
        graphed.sample(latents, condition)
    except RuntimeError:
        return generator, False
    return graphed, True


def _naive(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with use("naive"):
            return call()

    return run


def generator_measurement(row: GeneratorTiming) -> Measurement:
    """A row of `bench speed`."""
    return latency(
        {
            "resolution": row.resolution,
            "batch_size": row.batch_size,
            "dtype": "float32" if row.device == "cpu" else "float16 where published",
            "device": row.device,
            "graphs": row.graphs,
        },
        kind="speed",
        subject=row.model,
        value=row.latency_ms,
        interval=row.interval_ms,
        n=row.num_pairs,
        details={"baseline_ms": row.baseline_ms, "ratio": row.ratio, "max_grey_levels": row.max_grey_levels},
    )


def heading(load_before: float, device: torch.device = CPU) -> list[str]:
    """What the rows mean, and under which conditions they were taken."""
    threads = torch.get_num_threads()
    conditions = f"float32, CPU, {threads} threads, load {load_before:.2f}"
    if device.type == "cuda":
        conditions = f"float16 where published, {torch.cuda.get_device_name(device)}, CUDA graphs of both"
    lines = [
        f"Generators with random weights, `sample` from latents to pixels, {conditions}",
        "baseline: per-sample weights, grouped convolution, zero-stuffed filters; ratio: median of paired times",
    ]
    if device.type == "cpu" and load_before > MAX_IDLE_LOAD:
        lines.append(f"The machine is busy (load {load_before:.2f}): run it again when it is idle.")
    columns = f"{'model':<26} {'family':<13} {'px':>4} {'batch':>5} {'params M':>9}"
    return [*lines, f"{columns} {'baseline/s':>10} {'ours/s':>9} {'ratio':>7} {'pairs':>6}"]


def format_row(row: GeneratorTiming) -> str:
    """One line of the table."""
    what = f"{row.model:<26} {row.family:<13} {row.resolution:>4} {row.batch_size:>5} {row.parameters / 1e6:>9.1f}"
    return (
        f"{what} {row.baseline_images_per_s:>10.2f} {row.images_per_s:>9.2f} {row.ratio:>6.2f}x {row.num_pairs:>6}"
        + ("  without graphs" if row.device == "cuda" and not row.graphs else "")
    )


def print_timings(
    names: list[str],
    budget_s: float,
    batch_size: int,
    device: torch.device,
    then: Callable[[GeneratorTiming], object],
) -> None:
    """Time, print and hand on to `then`, row by row: a long table shows where it is, and a cut keeps what was done."""
    print("\n".join(heading(os.getloadavg()[0], device)), flush=True)
    for row in time_generators(names or default_models(), budget_s, batch_size, device):
        print(format_row(row), flush=True)
        then(row)
