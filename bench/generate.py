"""`python -m bench generate`: pictures of a generator, one PNG a seed, a grid, a class sheet, an interpolation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from bench.errors import UserError
from bench.fetch import file_sha256
from bench.grids import image_grid, png
from bench.model_weights import LoadedModel
from bench.records import write_atomic
from bench.sampling import sample_rng
from models.layers import one_hot, to_uint8
from models.spec import Latents, NoiseMode

MAX_GRID, MAX_SHEET_COLUMNS = 64, 16  # a picture of more can't be looked at
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True, slots=True)
class GenerateSpec:
    """What to draw: every seed of every class, or of every prompt."""

    seeds: tuple[int, ...]
    classes: tuple[int, ...] = ()  # empty: class `seed % num_classes`
    prompts: tuple[str, ...] = ()
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    centroids: Path | None = None  # .npy [K, w_dim]: truncation pulls to the nearest of these
    noise_mode: NoiseMode = "const"
    interpolate: Literal["strip", "frames"] | None = None
    steps: int = 8  # images from one seed to the next
    batch_size: int = 8


@dataclass(frozen=True, slots=True)
class _Picture:
    """One image to make: the class is its number, the prompt its place in the list."""

    seed: int
    kind: int | None = None
    label: int | None = None
    prompt: str | None = None

    def filename(self, conditioning: str) -> str:
        stem = f"seed{self.seed:04d}"
        return f"{stem}.png" if self.kind is None else f"{conditioning}{self.kind:04d}-{stem}.png"


def parse_numbers(text: str) -> tuple[int, ...]:
    """Read "0-31,40" as numbers.

    Raises `UserError` for anything else.
    """
    numbers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()) or (dash and int(high) < int(low)):
            raise UserError(f"{text!r}: {part!r} is no number or range. Allowed are lists such as 0-31,40.")
        numbers += range(int(low), int(high or low) + 1)
    return tuple(numbers)


def generate(model: LoadedModel, spec: GenerateSpec, out: Path, *, force: bool = False) -> list[Path]:
    """Write the pictures into folder `out`; those that an earlier, cut call has made are kept. Returns the overviews.

    The image of a seed is the same whatever the batch. Seeds are those of the official scripts where these take z from
    `numpy.random.RandomState(seed)`, that is for every StyleGAN.
    """
    generator: Any = model.generator
    generator.settings = replace(
        generator.settings,
        truncation_psi=spec.truncation_psi,
        truncation_cutoff=spec.truncation_cutoff,
        noise_mode=spec.noise_mode,
    )
    if spec.centroids is not None:
        generator.centroids = _centroids(generator, spec.centroids)
    _claim(out, {"weights_sha256": model.weights_sha256} | _lasting(spec), force=force)
    if spec.interpolate:
        return _interpolation(generator, spec, out)
    paths = _make(generator, spec, list(_pictures(generator, spec)), out)
    overviews = {"grid.png": image_grid(_read_all(paths[:MAX_GRID]))}
    if spec.classes or len(spec.prompts) > 1:
        overviews["classes.png" if spec.classes else "prompts.png"] = _sheet(paths, spec)
    for name, content in overviews.items():
        write_atomic(out / name, content)
    return [out / name for name in overviews]


def _lasting(spec: GenerateSpec) -> dict[str, Any]:
    """The settings that decide the pixels of a file; more seeds or another batch may be added to a folder."""
    kept = {name: value for name, value in asdict(spec).items() if name not in ("seeds", "classes", "batch_size")}
    return kept | {"centroids": spec.centroids and file_sha256(spec.centroids)}


def _centroids(generator: Any, path: Path) -> Tensor:
    """The centres of multi-modal truncation (StyleGAN-XL, arXiv:2202.00273, section 3.4)."""
    if not hasattr(generator, "centroids"):
        raise UserError("--centroids: this generator has no multi-modal truncation; only StyleGAN-XL has.")
    try:
        centers = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--centroids {path}: not a .npy file of numbers ({error}).") from error
    width = generator.mapping.w_avg.shape[-1]
    if centers.ndim != 2 or centers.shape[1] != width or not centers.isfinite().all():
        raise UserError(f"--centroids {path}: an array {list(centers.shape)}; allowed is [K, {width}], all finite.")
    return centers.to(next(generator.parameters()).device)


def _claim(out: Path, settings: dict[str, Any], *, force: bool) -> None:
    """Refuse to mix pictures of two weights or settings in one folder."""
    path, content = out / SETTINGS_FILE, json.dumps(settings, indent=1, sort_keys=True)
    if path.is_file() and path.read_text(encoding="utf-8") != content:
        if not force:
            raise UserError(f"{out} holds pictures of other weights or settings. Give another --out, or --force.")
        for picture in (*out.glob("*seed*.png"), *out.glob("frame*.png")):
            picture.unlink()
    write_atomic(path, content)


def _pictures(generator: Any, spec: GenerateSpec) -> Iterator[_Picture]:
    if spec.classes and generator.conditioning != "class":
        raise UserError(f"--classes: this generator's conditioning is {generator.conditioning!r}; leave them out.")
    if bool(spec.prompts) != (generator.conditioning == "text"):
        need = "a text-conditional generator needs --prompt" if not spec.prompts else "--prompt: it reads no text"
        raise UserError(f"{need} (its conditioning is {generator.conditioning!r}).")
    if wrong := [c for c in spec.classes if c >= generator.num_classes]:
        raise UserError(f"--classes: {wrong[0]} is not one of the {generator.num_classes} classes, counted from 0.")
    if spec.prompts:
        yield from (_Picture(seed, i, None, text) for i, text in enumerate(spec.prompts) for seed in spec.seeds)
    elif spec.classes:
        yield from (_Picture(seed, label, label) for label in spec.classes for seed in spec.seeds)
    elif generator.conditioning == "class":
        yield from (_Picture(seed, None, seed % generator.num_classes) for seed in spec.seeds)
    else:
        yield from map(_Picture, spec.seeds)


def _make(generator: Any, spec: GenerateSpec, pictures: Sequence[_Picture], out: Path) -> list[Path]:
    """Write the pictures that are not there yet; the files of all of them."""
    paths = [out / picture.filename(generator.conditioning) for picture in pictures]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    with tqdm(total=len(paths), initial=len(paths) - len(missing), unit="image", disable=None) as bar:
        for start in range(0, len(missing), spec.batch_size):
            chunk = missing[start : start + spec.batch_size]
            for i, image in zip(chunk, _sample(generator, [pictures[i] for i in chunk]), strict=True):
                write_atomic(paths[i], png(image))
            bar.update(len(chunk))
    return paths


def _sample(generator: Any, pictures: Sequence[_Picture]) -> Tensor:
    device = next(generator.parameters()).device
    drawn = [seed_latents(generator, picture.seed) for picture in pictures]
    latents = {name: torch.stack([sample[name] for sample in drawn]).to(device) for name in drawn[0]}
    condition: Any = None
    if generator.conditioning == "class":
        condition = torch.tensor([picture.label for picture in pictures], device=device)
    elif generator.conditioning == "text":
        condition = [picture.prompt for picture in pictures]
    try:
        images: Tensor = generator.sample(latents, condition)
    except ValueError as error:  # such as prompts for a file without a text encoder
        raise UserError(str(error)) from error
    return images.cpu()


def seed_latents(generator: Any, seed: int) -> Latents:
    """The latents of a seed: z as the official StyleGAN scripts draw it, everything else from the sample's own numbers.

    BigGAN's z is truncated, and has no official rule: it is what `draw` makes of the seed.
    """
    latents: Latents = generator.draw(sample_rng(seed, 0, "latents"))
    if hasattr(generator, "synthesis") and generator.num_ws > 1:
        z = np.random.RandomState(seed).randn(1, generator.z_dim)[0]
        latents["z"] = torch.from_numpy(z.astype(np.float32))
    return latents


def _sheet(paths: Sequence[Path], spec: GenerateSpec) -> bytes:
    """One row a class or prompt, one column a seed."""
    columns = min(len(spec.seeds), MAX_SHEET_COLUMNS)
    names = [f"class {c}" for c in spec.classes] or [text[:40] for text in spec.prompts]
    starts = range(0, len(paths), len(spec.seeds))
    images = _read_all([path for start in starts for path in paths[start : start + columns]])
    return image_grid(images, columns, [text for name in names for text in (name, *[""] * (columns - 1))])


def _interpolation(generator: Any, spec: GenerateSpec, out: Path) -> list[Path]:
    """Images along straight lines in W from each seed to the next; for BigGAN in its latent and class space."""
    if len(spec.seeds) < 2 or not hasattr(generator, "synthesis"):
        raise UserError("--interpolate needs two seeds or more, such as --seeds 0-3, and a generator with styles.")
    one_row = replace(spec, prompts=spec.prompts[:1], classes=spec.classes[:1])
    keys = torch.cat([_style(generator, picture) for picture in _pictures(generator, one_row)])
    between = [i / spec.steps for i in range(spec.steps)]
    path = [*(a.lerp(b, t) for a, b in pairwise(keys) for t in between), keys[-1]]
    with torch.inference_mode():
        chunks = tqdm(torch.stack(path).split(spec.batch_size), unit="batch", disable=None)
        images = torch.cat([to_uint8(generator.synthesis(ws, noise_mode="const")).cpu() for ws in chunks])
    if spec.interpolate == "strip":
        write_atomic(out / "interpolation.png", image_grid(images, spec.steps))
        return [out / "interpolation.png"]
    for i, image in enumerate(images):
        write_atomic(out / f"frame{i:05d}.png", png(image))
    return [out / f"frame{i:05d}.png" for i in (0, len(images) - 1)]


def _style(generator: Any, picture: _Picture) -> Tensor:
    """The style vectors `[1, num_ws, w_dim]` of a picture."""
    device = next(generator.parameters()).device
    z = seed_latents(generator, picture.seed)["z"][None].to(device)
    labels = None if picture.label is None else torch.tensor([picture.label], device=device)
    with torch.inference_mode():
        c = one_hot(labels, generator.num_classes, like=z)
        if picture.prompt is not None:
            c = generator.text_features([picture.prompt])
        ws: Tensor = generator.mapping(z, c, generator.settings.truncation_psi)
    return ws


def _read_all(paths: Sequence[Path]) -> Tensor:
    return torch.stack([_read(path) for path in paths])


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error}. Remove it, or give --force.") from error
