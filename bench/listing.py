"""`python -m bench ls KIND`: the registries as lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from bench.datasets import DATASETS
from bench.inversion import INVERSION_PROTOCOLS
from bench.model_weights import model_file
from bench.plan_description import format_megabytes
from bench.probes import PROBE_PROTOCOLS
from bench.protocols import PROTOCOLS
from bench.run_folder import RUNS
from bench.suites import load_suite, suite_names
from bench.throughput import THROUGHPUT_PROTOCOLS
from bench.weights import WEIGHTS, WeightsOptions, find_weights
from kernels.dispatch import explain
from kernels.registry import KERNELS
from models.registry import MODELS
from models.spec import ModelSpec

MLPERF = "Reddi et al. 2020, arXiv 1911.02549"  # whose scenarios the speed protocols follow


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    table = list(rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))] if table else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _models() -> list[str]:
    return _aligned(
        (
            model.name,
            model.family,
            f"{model.resolution} px",
            model.dataset,
            f"{model.num_classes} classes" if model.num_classes else model.conditioning,
            _runs_here(model),
            model.licence,
        )
        for model in MODELS.values()
    )


def _runs_here(model: ModelSpec) -> str:
    """How the model runs on this machine: with trained weights, or why not."""
    if path := model_file(model.name):
        return "trained: shipped" if path == model.shipped_weights else "trained: cached"
    text = ", stand-in text features" if model.conditioning == "text" and "text_encoder" not in model.kwargs else ""
    return ("untrained: not fetched" if model.checkpoint else "untrained: none published") + text


def _suites() -> list[str]:
    return _aligned((name, load_suite(name).summary) for name in suite_names())


def _metrics() -> list[str]:
    registries = (PROTOCOLS, PROBE_PROTOCOLS, INVERSION_PROTOCOLS)
    protocols = [protocol for registry in registries for protocol in registry.values()]
    speed = ((name, summary, "-" if name == "size" else MLPERF) for name, summary in THROUGHPUT_PROTOCOLS.items())
    return _aligned([*((p.name, p.summary, p.paper) for p in protocols), *speed])


def _datasets() -> list[str]:
    return _aligned((d.name, d.summary, d.licence) for d in DATASETS.values())


def _weights() -> list[str]:
    options = WeightsOptions(offline=True)
    return _aligned(
        (
            name,
            format_megabytes(file.size_bytes),
            "cached" if find_weights(name, options) else "not here",
            file.licence,
        )
        for name, file in WEIGHTS.items()
    )


def _kernels() -> list[str]:
    return _aligned((name, kernel.summary, explain(name)) for name, kernel in KERNELS.items())


def _runs() -> list[str]:
    return sorted(str(path) for path in RUNS.glob("*") if path.is_dir()) or [f"no runs in {RUNS}"]


KINDS: dict[str, Callable[[], list[str]]] = {
    "models": _models,
    "suites": _suites,
    "metrics": _metrics,
    "datasets": _datasets,
    "weights": _weights,
    "kernels": _kernels,
    "runs": _runs,
}


def ls(arguments: argparse.Namespace) -> int:
    """Print a registry."""
    print("\n".join(list_kind(arguments.kind)))
    return 0


def list_kind(kind: str) -> list[str]:
    """The lines of one registry."""
    return KINDS[kind]()
