"""What a run of `bench kernels` says: rows, geometric means and worst layers, and which targets are met."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from bench.kernel_speed.checks import TOLERANCE
from bench.kernel_speed.plan import check_cases, kind_named
from bench.kernel_speed.timing import MAX_IDLE_LOAD, Bench
from bench.records import Measurement
from kernels.registry import KERNELS

CHECK = "check/"
MET, MISSED, UNMEASURED = "met", "missed", "unmeasured"


def baseline_times(row: Measurement) -> dict[str, float]:
    """Milliseconds of each baseline, by its name."""
    return {name.removesuffix("_ms"): value for name, value in row.details.items() if name.endswith("_ms")}


def speed_up(row: Measurement, only: Collection[str] = ()) -> float | None:
    """The fastest baseline over ours, of those named `only` if any are; None where nothing was timed."""
    times = [value for name, value in baseline_times(row).items() if not only or name in only]
    return min(times) / row.value if times and row.value else None


def kind_of_row(row: Measurement) -> str:
    """What bounds the layer, by the ceilings of its own run."""
    details = row.details
    bound = False
    if "flops" in details:
        traffic_s = details["moved_bytes"] / details["copy_bytes_per_s"]
        bound = traffic_s > details["flops"] / details["matmul_flops_per_s"]
    return kind_named(str(row.case["kernel_name"]), int(row.case.get("up", 1)), memory_bound=bound)


def timed(rows: Iterable[Measurement]) -> list[Measurement]:
    """The rows with a speed-up."""
    return [row for row in rows if row.status == "ok" and speed_up(row) is not None]


def heading(bench: Bench, planned: int, done: int) -> list[str]:
    """Under which conditions the rows are taken, and the names of their columns."""
    load = os.getloadavg()[0]
    where = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    lines = [
        f"{where}, {torch.get_num_threads()} threads, load {load:.2f}, torch {torch.__version__}, {bench.clock.name}",
        f"ceilings: {bench.ceilings}",
        f"against {', '.join(bench.groups)}; ratio: the fastest of them over ours; {planned} rows, {done} done before",
    ]
    if bench.device.type == "cpu" and load > MAX_IDLE_LOAD:
        lines.append(f"The machine is busy (load {load:.2f}): run it again when it is idle.")
    columns = f"{'layer':<50} {'shape':<28} {'baseline ms':>11} {'ours ms':>9} {'ratio':>7} {'roof':>5} {'error':>8}"
    return [*lines, columns]


def shape_of(row: Measurement) -> str:
    """Batch, channels and size in a few characters."""
    case = row.case
    if "channels" not in case:
        return f"{case['batch_size']}x {case.get('size', case.get('resolution', ''))}"
    factors = "".join(f" {name}{case[name]}" for name in ("up", "down") if case[name] > 1)
    dtype = {"float16": "h", "bfloat16": "b", "float32": "", "tf32": "t"}[case["dtype"]]
    direction = " bw" if case["direction"] != "forward" else ""
    return f"{case['batch_size']}x {case['channels']} @{case['size'].split('x')[0]}{factors}{direction} {dtype}".strip()


def format_row(row: Measurement) -> str:
    """One line of the table."""
    what = f"{row.subject.removeprefix('modulated_conv2d/'):<50} {shape_of(row):<28}"
    if row.status != "ok" or row.value is None:
        return f"{what} {row.status}: {row.error}"
    if row.subject.startswith(CHECK):
        return f"{what} right, error {row.value:.1e}"
    ratio, times = speed_up(row), baseline_times(row)
    base = f"{min(times.values()):>11.3f}" if times else f"{'-':>11}"
    roof = f"{row.details['roofline_fraction']:>5.0%}" if "roofline_fraction" in row.details else f"{'':>5}"
    line = f"{what} {base} {row.value:>9.3f} {ratio or math.nan:>6.2f}x {roof} {row.details['relative_error']:>8.1e}"
    return "  ".join([line, *row.caveats])


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one kind: geometric mean and the worst."""

    title: str
    ratio: float
    worst: Measurement
    count: int
    roofline: float | None  # geometric mean of the fractions
    by_total_time: float

    @classmethod
    def of(cls, title: str, rows: Sequence[Measurement]) -> Group:
        """Sum up rows that were timed."""
        ratios = [speed_up(row) or math.nan for row in rows]
        fractions = [row.details["roofline_fraction"] for row in rows if "roofline_fraction" in row.details]
        worst = min(rows, key=lambda row: speed_up(row) or math.inf)
        baseline_ms = sum(min(baseline_times(row).values()) for row in rows)
        total = baseline_ms / sum(row.value or 0.0 for row in rows)
        roofline = statistics.geometric_mean(fractions) if fractions else None
        return cls(title, statistics.geometric_mean(ratios), worst, len(rows), roofline, total)

    def __str__(self) -> str:
        roof = "" if self.roofline is None else f", {self.roofline:.0%} of the roofline"
        worst = f"worst {speed_up(self.worst) or math.nan:.2f}x ({self.worst.subject}, {shape_of(self.worst)})"
        return f"{self.title}: {self.by_total_time:.2f}x by total time, {self.ratio:.2f}x geometric mean{roof}; {worst}"


def groups(rows: Iterable[Measurement]) -> list[Group]:
    """All rows that were timed, by kind and direction, largest first; all together where there are several kinds."""
    found: dict[str, list[Measurement]] = {}
    for row in timed(rows):
        found.setdefault(f"{kind_of_row(row)}, {row.case['direction']}", []).append(row)
    made = [Group.of(f"{title} ({len(kind)})", kind) for title, kind in found.items()]
    together = [row for kind in found.values() for row in kind]
    return [*made, Group.of(f"all rows ({len(together)})", together)] if len(made) > 1 else made


@dataclass(frozen=True, slots=True)
class Target:
    """What rows of a kind should reach."""

    title: str
    chosen: Callable[[Measurement], bool]
    ratio: float | None = None  # geometric mean of the speed-ups
    against: tuple[str, ...] = ()  # the best of these baselines; (): of all
    roofline: float | None = None  # geometric mean of the fractions

    def judged(self, rows: Sequence[Measurement]) -> str:
        """One line: met, missed or unmeasured, and by how much."""
        mine = [row for row in timed(rows) if self.chosen(row) and speed_up(row, self.against) is not None]
        wanted = [f"{self.ratio:g}x"] if self.ratio else []
        wanted += [f"{self.roofline:.0%} of the ceiling"] if self.roofline else []
        what = f"{self.title}, {' and '.join(wanted)}"
        if not mine:
            return f"{UNMEASURED:<10} {what}"
        ratios = [speed_up(row, self.against) or math.nan for row in mine]
        ratio = statistics.geometric_mean(ratios)
        roofline = statistics.geometric_mean([row.details.get("roofline_fraction", math.nan) for row in mine])
        met = ratio >= (self.ratio or 0.0) and (self.roofline is None or roofline >= self.roofline)
        reached = f"{ratio:.2f}x" + (f" and {roofline:.0%}" if self.roofline else "")
        return f"{MET if met else MISSED:<10} {what}: {reached} over {len(mine)} rows, worst {min(ratios):.2f}x"


def _layers(kind: str) -> Callable[[Measurement], bool]:
    return lambda row: row.case["direction"] == "forward" and kind_of_row(row) == kind


def _generator(*names: str) -> Callable[[Measurement], bool]:
    return lambda row: row.kind == "speed" and row.subject in names


TARGETS = (
    Target("memory-bound layers", _layers("memory-bound convolution"), 1.8, roofline=0.85),
    Target("up-convolutions", _layers("up-convolution"), 1.5),
    Target("compute-bound layers", _layers("compute-bound convolution"), 1.0, roofline=0.70),
    Target(
        "demodulation over the materialised form", _layers("demodulation"), 20.0, against=("grouped", "grouped_graph")
    ),
    Target("filtered_lrelu over its PyTorch form", _layers("filtered_lrelu"), 10.0, against=("eager", "eager_graph")),
    Target("StyleGAN2-1024 end to end", _generator("stylegan2-ffhq-1024"), 1.5),
    Target("StyleGAN3-R end to end", _generator("stylegan3-r-ffhq-1024"), 2.0),
    Target("CIFAR-32 end to end", _generator("stylegan2-cifar10-32"), 1.3),
    Target("StyleGAN-XL and -T end to end", _generator("stylegan-xl-imagenet-256", "stylegan-t-full-512"), 1.1),
)


def judged_memory(rows: Iterable[Measurement]) -> str:
    """One line on peak memory against the eager form."""
    ours, eager = "peak_memory_bytes", "eager_peak_memory_bytes"
    pairs = [row for row in rows if ours in row.details and eager in row.details]
    if not pairs:
        return f"{UNMEASURED:<10} peak memory never above eager"
    above = [row for row in pairs if row.details[ours] > row.details[eager]]
    words = f"; above in {', '.join(row.subject for row in above[:3])}" if above else ""
    return f"{MISSED if above else MET:<10} peak memory never above eager: {len(above)} of {len(pairs)} rows{words}"


def targets(rows: Sequence[Measurement]) -> list[str]:
    """All of them, a line each."""
    return [*(target.judged(rows) for target in TARGETS), judged_memory(rows)]


def checked_kernels(rows: Iterable[Measurement]) -> Iterator[str]:
    """Which kernels have passed every check on this GPU: those may be marked as proven in the registry."""
    checks: dict[str, list[Measurement]] = {}
    for row in rows:
        if row.subject.startswith(CHECK):
            checks.setdefault(str(row.case["kernel_name"]), []).append(row)
    wanted = Counter(case.kernel for case in check_cases())
    for kernel, spec in KERNELS.items():
        found = checks.get(kernel, [])
        failed = [row for row in found if row.status != "ok"]
        if spec.triton is None:
            yield f"{kernel}: no Triton kernel"
        elif failed:
            first = f"first {shape_of(failed[0])}: {failed[0].error}"
            yield f"{kernel}: {len(failed)} of {len(found)} checks failed, {first}"
        elif len(found) < wanted[kernel]:
            yield f"{kernel}: {len(found)} of {wanted[kernel]} checks done, and passed"
        else:
            marked = "is marked" if spec.is_proven else "may be marked"
            yield f"{kernel}: all {len(found)} checks passed; it {marked} is_proven in kernels/registry.py"


def summary(rows: Sequence[Measurement], *, on_gpu: bool) -> list[str]:
    """The end of the report."""
    lines = [str(group) for group in groups(rows)]
    if on_gpu:
        limits = ", ".join(f"{dtype} {limit:g}" for dtype, limit in TOLERANCE.items())
        lines += ["", f"checks against float64 ({limits})", *checked_kernels(rows)]
        lines += ["", "targets, against the best of all baselines unless said otherwise", *targets(rows)]
    return lines


def markdown(rows: Sequence[Measurement], facts: Mapping[str, str], uses: Mapping[str, Sequence[str]]) -> str:
    """The whole report as a page; `uses` are the layers that a row stands for, by its subject."""
    on_gpu = any(row.case["device"] == "cuda" for row in rows)
    lines = ["# Kernels", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += [*(f"{line}  " for line in summary(rows, on_gpu=on_gpu)), ""]
    lines += [
        "| row | shape | ours ms | speed-up | roofline | error | baselines, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows if not row.subject.startswith(CHECK)]
    shared = {row.subject: uses.get(row.subject, ())[1:] for row in rows}
    alike = [f"- {subject}: {', '.join(others)}" for subject, others in shared.items() if others]
    return "\n".join([*lines, "", "Layers that are alike are measured once:", "", *alike] if alike else lines) + "\n"


def _cells(row: Measurement) -> list[str]:
    if row.value is None:
        return [row.subject, shape_of(row), row.status, "", "", "", row.error or ""]
    ratio, roof, times = speed_up(row), row.details.get("roofline_fraction"), baseline_times(row)
    return [
        row.subject,
        shape_of(row),
        f"{row.value:.4f}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if roof is None else f"{roof:.0%}",
        f"{row.details['relative_error']:.1e}",
        "; ".join([*(f"{name} {ms:.4f}" for name, ms in times.items()), *row.caveats]),
    ]
