"""What the program finds on this machine, and what is known to go wrong with it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bench.canary import sing
from bench.environment import ROOT, cpu_name, package_versions
from bench.errors import UserError
from bench.fetch import cache_dir
from bench.offline import network_available
from bench.weights import WEIGHTS, WeightsOptions, find_weights, how_to_get

State = Literal["ok", "note", "bad"]
TESTED_TORCH = ((2, 11), (2, 15))
TESTED_TRITON = ((3, 6), (3, 9))
FLOORS = ("kernels", "models", "bench")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report; "bad" makes the exit status 1."""

    state: State
    what: str
    text: str


def refuse_foreign_packages(root: Path = ROOT) -> None:
    """Stop if another package shadows one of the three floors, or is installed under its name."""
    for name in FLOORS:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
        if origin != (root / name / "__init__.py").resolve():
            raise UserError(
                f"`import {name}` finds {origin or 'nothing'} instead of {root / name}.\n"
                f"Run from the checkout ({root}), without a PYTHONPATH that comes before it."
            )
        try:
            foreign = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        raise UserError(
            f"the package {name!r} {foreign.version} is installed; other libraries would mistake ours for it.\n"
            f"Remove it with `{sys.executable} -m pip uninstall {name}`, or use the environment that `nox` makes."
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+", maxsplit=1)[0].split(".")[:2] if part.isdecimal())


def _tested(what: str, version: str | None, tested: tuple[tuple[int, int], tuple[int, int]]) -> Finding:
    if version is None:
        return Finding("note", what, "not installed; the reference kernels are used")
    low, high = tested
    span = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
    if low <= _version(version) <= high:
        return Finding("ok", what, f"{version} (tested: {span})")
    return Finding("note", what, f"{version} is outside the tested range {span}")


def _known_bad(versions: dict[str, str | None]) -> Iterator[Finding]:
    """Pairs of libraries that are known to fail together."""
    scipy = versions["scipy"]
    if scipy is not None and _version(scipy) >= (1, 18):
        yield Finding(
            "note", "clean-fid", f"its own distance fails with SciPy {scipy}; Stylebench uses its resizer only"
        )
    try:
        import torchvision
    except (ImportError, RuntimeError, AttributeError) as error:
        yield Finding(
            "bad", "torchvision", f"{error}; install the torchvision that belongs to torch {torch.__version__}"
        )
    else:
        yield Finding("ok", "torchvision", torchvision.__version__)


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        return Finding("note", "GPU", "none; suites for the CPU are chosen")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("ok", "GPU", ", ".join(names))


def _cache(cache: Path) -> Finding:
    existing = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    try:
        cache.mkdir(parents=True, exist_ok=True)
        probe = cache / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        fix = "set STYLEBENCH_CACHE to a folder that can be written"
        return Finding("bad", "cache", f"{cache} can't be written ({error.strerror}); {fix}")
    return Finding("ok" if free_gb > 5 else "note", "cache", f"{cache}, {free_gb:,.0f} GB free")


def _weights(options: WeightsOptions) -> Iterator[Finding]:
    for name in WEIGHTS:
        found = find_weights(name, options)
        if found is None:
            yield Finding("note", name, f"not here. {how_to_get(name)}")
        else:
            origin = "official" if found.official else "not the official file: its numbers carry its hash"
            yield Finding("ok", name, f"{found.path}, {origin}")


@functools.cache
def _canary() -> tuple[Finding, ...]:
    """What the metrics and the libraries below them get wrong."""
    answers = sing()
    wrong = tuple(Finding("bad", f"canary: {a.name}", a.detail) for a in answers if not a.ok)
    return wrong or (Finding("ok", "canary", f"{len(answers)} questions with known answers, all right"),)


def examine(options: WeightsOptions, *, ask_network: bool) -> Iterator[Finding]:
    """Look at everything that a run depends on; the network is asked only where that is allowed."""
    versions = package_versions()
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("ok", "CPU", f"{cpu_name()}, {torch.get_num_threads()} threads")
    yield _gpu()
    yield _tested("torch", torch.__version__, TESTED_TORCH)
    yield _tested("triton", versions["triton"], TESTED_TRITON)
    yield from _known_bad(versions)
    if not ask_network:
        yield Finding("ok", "network", "not asked (--offline)")
    elif network_available():
        yield Finding("ok", "network", "there; missing weights are fetched when a run needs them")
    else:
        yield Finding("note", "network", "none; what is not in the cache is done without")
    yield _cache(cache_dir())
    yield from _canary()
    yield from _weights(options)


def format_findings(findings: list[Finding]) -> str:
    """The findings as aligned lines."""
    width = max(len(finding.what) for finding in findings)
    return "\n".join(f"  {finding.state:<4}  {finding.what:<{width}}  {finding.text}" for finding in findings)
