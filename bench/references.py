"""Statistics of reference sets: built once from the images, or imported from the official npz files of ADM and EDM.

A reference says what it was made of: data set, resolution, digest of the pixels' files, network and layer. One that
does not fit what a run scores is refused, with the fields that differ.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bench.errors import UserError
from bench.fetch import file_sha256
from bench.records import write_atomic
from bench.statistics import FeatureStatistics

SCHEMA_VERSION = 1
LAYERS_OF_NPZ = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # ADM has both, EDM the first
UNKNOWN = "unknown"  # a field that an imported file does not tell


@dataclass(frozen=True, slots=True)
class Origin:
    """What statistics were made of; `UNKNOWN` where an imported file does not tell."""

    dataset: str
    resolution: int
    dataset_sha256: str
    extractor: str  # name of the network with its resize
    extractor_sha256: str
    convention: str = UNKNOWN  # whose crop it has, for protocols that end in @ and this; unknown: for all
    source: str = "images"  # or the imported file with its SHA-256

    def is_for(self, wanted: Origin) -> bool:
        """Whether it is meant for what is wanted: the same data set, size, network and convention."""
        return not {"dataset", "resolution", "extractor", "convention"} & self.differing(wanted).keys()

    def differing(self, wanted: Origin) -> dict[str, str]:
        """The fields that are known on both sides and are not the same, with what they are and should be."""
        fields = [field.name for field in dataclasses.fields(self) if field.name != "source"]
        pairs = {name: (getattr(self, name), getattr(wanted, name)) for name in fields}
        return {k: f"{k} {a} instead of {b}" for k, (a, b) in pairs.items() if UNKNOWN not in (a, b) and a != b}


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """Statistics of the layers of one network over one set of images."""

    origin: Origin
    layers: Mapping[str, FeatureStatistics]
    sha256: str = ""  # of the file


def save_reference(reference: Reference, path: Path) -> None:
    """Write a reference as safetensors, atomically."""
    tensors: dict[str, Tensor] = {}
    for layer, statistics in reference.layers.items():
        tensors |= {f"{layer}.mean": statistics.mean, f"{layer}.scatter": statistics.scatter}
    facts = {
        "schema_version": SCHEMA_VERSION,
        "origin": dataclasses.asdict(reference.origin),
        "counts": {layer: statistics.n for layer, statistics in reference.layers.items()},
    }
    content = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(content, {"reference": json.dumps(facts, sort_keys=True)}))


def load_reference(path: Path) -> Reference:
    """Read a reference; UserError if the file is none, is cut short, or is of another version."""
    try:
        with safetensors.safe_open(path, "pt") as content:
            facts: dict[str, Any] = json.loads((content.metadata() or {})["reference"])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} can't be read as a reference: {error}. `python -m bench reference build` makes one, "
            "`reference import` one of an official npz."
        ) from error
    if facts["schema_version"] != SCHEMA_VERSION:
        raise UserError(f"{path}: schema {facts['schema_version']}; this program reads {SCHEMA_VERSION}. Make it anew.")
    layers = {
        layer: FeatureStatistics(n, tensors[f"{layer}.mean"], tensors[f"{layer}.scatter"])
        for layer, n in facts["counts"].items()
    }
    return Reference(Origin(**facts["origin"]), layers, file_sha256(path))


def import_npz(path: Path, origin: Origin, count: int) -> Reference:
    """The statistics of an official npz of `count` images: ADM's (pool and spatial) or EDM's (pool).

    Both divide covariances by N - 1. Nothing in the file is executed. UserError for a file without them, or whose
    covariance is not symmetric or has no positive trace.
    """
    if count < 2:
        raise UserError(f"--count {count}: of how many images are these statistics? It must be 2 or more.")
    arrays = _arrays(path)
    layers = {
        layer: _checked(path, arrays[mean], arrays[cov], count)
        for layer, (mean, cov) in LAYERS_OF_NPZ.items()
        if mean in arrays and cov in arrays
    }
    if not layers:
        raise UserError(
            f"{path} has no mu and sigma; there are {', '.join(arrays) or 'no arrays'}. Give ADM's or EDM's npz."
        )
    source = f"{path.name}, sha256 {file_sha256(path)}"
    return Reference(dataclasses.replace(origin, source=source), layers)


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    names = {name for pair in LAYERS_OF_NPZ.values() for name in pair}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return {name: np.asarray(content[name], np.float64) for name in content.files if name in names}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} can't be read as an npz of statistics: {error}. Download it again.") from error


def _checked(path: Path, mean: Any, cov: Any, count: int) -> FeatureStatistics:
    mu, sigma = torch.from_numpy(mean), torch.from_numpy(cov)
    width = mu.numel()
    finite = torch.isfinite(mu).all() and torch.isfinite(sigma).all()
    if mu.ndim != 1 or sigma.shape != (width, width) or not finite:
        raise UserError(
            f"{path}: mean {list(mu.shape)} and covariance {list(sigma.shape)}; they must be finite, [D] and [D, D]"
        )
    if not torch.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-9) or float(sigma.trace()) <= 0:
        raise UserError(f"{path}: its covariance is not symmetric, or has no positive trace; download the file again")
    return FeatureStatistics(count, mu, sigma * (count - 1))


def export_npz(reference: Reference, path: Path) -> None:
    """Write `mu` and `sigma` (over N - 1) of pool features, `mu_s` and `sigma_s` of spatial ones, as in ADM's files."""
    arrays: dict[str, Any] = {}
    for layer, (mean, cov) in LAYERS_OF_NPZ.items():
        if layer in reference.layers:
            statistics = reference.layers[layer]
            arrays |= {mean: statistics.mean.numpy(), cov: statistics.cov(1).numpy()}
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    write_atomic(path, stream.getvalue())


def fitting(references: Iterable[Reference], wanted: Origin) -> Reference | None:
    """The first reference for this data set and network; UserError if that was made of something else."""
    for reference in references:
        if not reference.origin.is_for(wanted):
            continue
        if differing := reference.origin.differing(wanted):
            raise UserError(
                f"the reference of {wanted.dataset} at {wanted.resolution} px ({reference.origin.source}) does not fit "
                f"this run: {'; '.join(differing.values())}. Build it again with `python -m bench reference build`."
            )
        return reference
    return None
