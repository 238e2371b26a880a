"""The weights of generators: the user's own file, the shipped one, the fetched official one, or random numbers."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from urllib.parse import urlsplit

import torch
from torch import nn

from bench.errors import UserError
from bench.fetch import RemoteFile, UnreachableError, cache_dir, fetch
from models.checkpoints import CheckpointError, convert, load_generator, load_weights, names_configuration
from models.checkpoints import weights_sha256 as content_sha256
from models.layers import initialise
from models.registry import UnknownModelError, build, find
from models.spec import ImageGenerator, ModelSpec

ARCHIVED = "G_ema.pth"
FORMATS = (".pkl", ".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A generator ready to run, and where its weights come from."""

    generator: ImageGenerator
    weights: str
    weights_sha256: str


def model_named(name: str) -> ModelSpec:
    """The registered model of this name; a miss names the nearest."""
    try:
        return find(name)
    except UnknownModelError as error:
        raise UserError(f"{error}. `python -m bench ls models` lists all of them.") from error


def converted_path(name: str, cache: Path) -> Path:
    """Where the converted official weights of a model are, once they were fetched."""
    return cache / "models" / f"{name}.safetensors"


def model_file(name: str) -> Path | None:
    """The weights of a registered model on this machine: fetched, else shipped; asks no network."""
    converted = converted_path(name, cache_dir())
    return converted if converted.is_file() else model_named(name).shipped_weights


def fetch_model(name: str, *, offline: bool = False) -> Path:
    """Download the official file of a model, convert it to safetensors, and return that; done once.

    Raises `UserError` if there is none, if it can't be had, or if it is not what it should be.
    """
    converted = converted_path(name, cache_dir())
    if converted.is_file():
        return converted
    spec = model_named(name)
    if spec.checkpoint is None:
        raise UserError(f"{name}: no weights were published. `--random-weights SEED` runs it untrained.")
    suffix = Path(urlsplit(spec.checkpoint.url).path).suffix
    remote = RemoteFile(
        url=spec.checkpoint.url,
        filename=f"{name}{suffix if suffix in FORMATS else '.pkl'}",
        sha256=spec.checkpoint.sha256 or "",
        size_bytes=0,
        licence=spec.checkpoint.licence,
        serves=name,
    )
    try:
        source = fetch(remote, cache_dir(), offline=offline)
    except UnreachableError as error:
        raise UserError(
            f"{name}: its weights are not here, and can't be fetched now ({error}). `python -m bench fetch {name}` "
            "gets them where there is a network; `--random-weights SEED` runs the model untrained."
        ) from error
    partial = converted.with_name(f".{converted.name}")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _unpacked(source) as checkpoint:
            convert(checkpoint, partial, force=True)
        _check_fits(spec, partial)
    except (CheckpointError, OSError, zipfile.BadZipFile) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{name}: the fetched file can't be used: {error}") from error
    partial.replace(converted)
    return converted


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """The checkpoint itself, where an archive holds it beside others: BigGAN's author published whole folders."""
    if not zipfile.is_zipfile(source):
        yield source
        return
    with zipfile.ZipFile(source) as archive, TemporaryDirectory(dir=source.parent) as folder:
        wanted = [info for info in archive.infolist() if Path(info.filename).name == ARCHIVED]
        if len(wanted) != 1:
            yield source
            return
        name, size = wanted[0].filename, wanted[0].file_size
        if size > 4 * source.stat().st_size:  # weights hardly compress
            raise CheckpointError(f"{source}: {name} would unpack to {size} bytes. It is not a file of weights")
        target = Path(folder) / ARCHIVED
        with archive.open(wanted[0]) as member, target.open("wb") as file:
            shutil.copyfileobj(member, file)
        yield target


def load_model(name: str, path: Path | None, num_classes: int, seed: int, device: torch.device) -> LoadedModel:
    """A registered model with the weights of a file, or with random ones of a seed where `path` is None.

    A file that names its configuration decides it, as far as resolution and classes agree with the registry.
    """
    spec = model_named(name)
    if path is None:
        generator: Any = build(name, num_classes=num_classes)
        initialise(generator, seed)
        return _ready(generator, f"random weights, seed {seed}", content_sha256(generator), device)
    try:
        if names_configuration(path):
            generator, digest = load_generator(path)
            _check_same(spec, generator, num_classes, path)
        else:
            generator = build(name, num_classes=num_classes)
            digest = load_weights(generator, path)
    except (CheckpointError, OSError) as error:
        raise UserError(f"weights can't be used: {error}") from error
    return _ready(generator, _origin(spec, path), digest, device)


def load_file(path: Path, device: torch.device) -> LoadedModel:
    """The generator of a file that names its configuration: official or converted."""
    try:
        generator, digest = load_generator(path)
    except (CheckpointError, OSError) as error:
        raise UserError(str(error)) from error
    return _ready(generator, f"file {path.name}", digest, device)


def _origin(spec: ModelSpec, path: Path) -> str:
    if path == spec.shipped_weights:
        return "self-trained, shipped"
    return "official" if path == converted_path(spec.name, cache_dir()) else f"file {path.name}"


def _ready(generator: Any, weights: str, digest: str, device: torch.device) -> LoadedModel:
    cast("nn.Module", generator).requires_grad_(requires_grad=False).eval().to(device)
    return LoadedModel(generator, weights, digest)


def _check_fits(spec: ModelSpec, path: Path) -> None:
    generator, _ = load_generator(path)
    _check_same(spec, generator, spec.num_classes, path)


def _check_same(spec: ModelSpec, generator: ImageGenerator, num_classes: int, path: Path) -> None:
    got = (generator.resolution, generator.conditioning, generator.num_classes)
    conditioning = "class" if num_classes else spec.conditioning if spec.conditioning != "class" else "none"
    allowed = (spec.resolution, conditioning, num_classes)
    if got != allowed:
        raise CheckpointError(
            f"{path}: a generator of {got[0]} px, conditioning {got[1]}, {got[2]} classes; {spec.name} has "
            f"{allowed[0]} px, {allowed[1]}, {allowed[2]} classes. Give the file of that model, or another model"
        )
