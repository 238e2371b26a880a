"""Train a small generator on a data set; so were made the weights that come with `shapes`."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.datasets import ImageDataset
from bench.errors import UserError
from bench.grids import image_grid
from bench.progress import format_duration
from bench.sampling import sample_rng
from models.checkpoints import save_weights
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import StyleGAN2Config
from models.training.loop import Batch, DivergedError, Step, TrainingSpec, train
from models.training.stylegan2_discriminator import DiscriminatorConfig

SHAPES_COUNT = 20_000  # images of `shapes` to train on: enough that a discriminator can't learn them by heart
LOG_EVERY_STEPS = 200
GRID_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """How long and where a training runs."""

    batch_size: int = 16
    minutes: float | None = None  # None: until `TrainingSpec.images` were shown
    save_every_minutes: float = 5.0
    device: str = "cpu"


def small_spec(dataset: ImageDataset, images: int) -> TrainingSpec:
    """The settings of the weights that come with `shapes`: a StyleGAN2 small enough for one CPU core."""
    size, classes = dataset.resolution, dataset.num_classes
    # z is wider than the label: where they weigh the same, a class can drift off alone in the first minutes
    generator = StyleGAN2Config(size, classes, z_dim=256, w_dim=64, mapping_layers=2, channel_base=768, channel_max=64)
    discriminator = DiscriminatorConfig(size, classes, channel_base=512, channel_max=64, mapping_layers=2)
    return TrainingSpec(generator, discriminator, images, r1_gamma=1.0)


def train_on(dataset: ImageDataset, spec: TrainingSpec, destination: Path, run: TrainingRun | None = None) -> str:
    """Train, and keep the weights and a grid of samples beside them up to date; returns the SHA-256 of the weights.

    All images are held in memory. Losses and saves are told on stderr. A run that is cut leaves its last
    save.

    Args:
        dataset: images and labels to learn; its resolution and classes must be those of the spec.
        spec: networks and settings.
        destination: safetensors file for the moving average of the generator, which `load_generator` reads.
        run: how long and where.

    Raises:
        UserError: the spec is for other images, there are fewer images than a batch has, or training diverged.
    """
    run = run or TrainingRun()
    _check(dataset, spec, destination, run)
    images, labels = _held_in_memory(dataset)
    journal = _Journal(destination, run)
    batches = _batches(images, labels, run.batch_size, spec.seed)
    try:
        ema = train(spec, itertools.takewhile(lambda _: not journal.is_over(), batches), journal.on_step, run.device)
    except DivergedError as error:
        raise UserError(f"training on {dataset.name} diverged: {error}.") from error
    return journal.save(ema)


def _check(dataset: ImageDataset, spec: TrainingSpec, destination: Path, run: TrainingRun) -> None:
    expected = (dataset.resolution, dataset.num_classes)
    got = {(network.resolution, network.num_classes) for network in (spec.generator, spec.discriminator)}
    if got != {expected}:
        raise UserError(
            f"{dataset.name}: (resolution, classes) is {expected}, the networks are made for {sorted(got)}."
        )
    if len(dataset) < run.batch_size:
        raise UserError(f"{dataset.name}: {len(dataset)} images are fewer than a batch of {run.batch_size}.")
    if destination.suffix != ".safetensors":
        raise UserError(f"{destination}: weights are written as .safetensors; give a name that ends so.")


def _held_in_memory(dataset: ImageDataset) -> tuple[Tensor, Tensor | None]:
    """Images, uint8 `[M, 3, H, W]`, and labels, int64 `[M]`."""
    images = torch.stack([dataset.image(i) for i in range(len(dataset))])
    known = [label for i in range(len(dataset)) if (label := dataset.label(i)) is not None]
    if not dataset.num_classes:
        return images, None
    if len(known) < len(dataset):
        raise UserError(f"{dataset.name}: {len(dataset) - len(known)} images have no label; give each one, or none.")
    return images, torch.tensor(known)


def _batches(images: Tensor, labels: Tensor | None, size: int, seed: int) -> Iterator[Batch]:
    """Epochs without end, each in a random order of its own; what doesn't fill a batch is left out."""
    for epoch in itertools.count():
        # keyed as the loop keys its steps, but counting from elsewhere
        rng = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1]))
        order = rng.permutation(len(images))
        for start in range(0, len(images) - size + 1, size):
            chosen = torch.from_numpy(order[start : start + size])
            yield images[chosen], None if labels is None else labels[chosen]


class _Journal:
    """Keeps the time, tells of the losses and saves."""

    def __init__(self, destination: Path, run: TrainingRun) -> None:
        self.destination, self.run = destination, run
        self.started = self.saved = time.monotonic()
        self.images_seen = 0
        self.losses: list[tuple[float, float]] = []

    def is_over(self) -> bool:
        """Whether the minutes have passed."""
        return self.run.minutes is not None and time.monotonic() - self.started >= self.run.minutes * 60

    def on_step(self, step: Step) -> None:
        """Take note of one step."""
        self.images_seen = step.images_seen
        self.losses.append((step.discriminator_loss, step.generator_loss))
        if len(self.losses) == LOG_EVERY_STEPS:
            discriminator, generator = torch.tensor(self.losses).mean(dim=0).tolist()
            self._tell(f"loss of D {discriminator:.3f}, of G {generator:.3f}")
            self.losses.clear()
        if time.monotonic() - self.saved >= self.run.save_every_minutes * 60:
            self.save(step.ema)

    def save(self, ema: StyleGAN2Generator) -> str:
        """Write weights and grid; each appears under its name only when it is whole."""
        digest = save_weights(ema, self.destination)
        partial = self.destination.with_suffix(".png.partial")
        partial.write_bytes(_grid(ema, self.run.device))
        partial.replace(self.destination.with_suffix(".png"))
        self.saved = time.monotonic()
        self._tell(f"wrote {self.destination}")
        return digest

    def _tell(self, what: str) -> None:
        elapsed = format_duration(time.monotonic() - self.started)
        print(f"{elapsed}, {self.images_seen:,} images: {what}", file=sys.stderr, flush=True)


def _grid(generator: StyleGAN2Generator, device: str) -> bytes:
    """Uncurated samples, as a PNG: a row for each class, a column for each latent."""
    rows = max(generator.num_classes, 1)
    drawn = [generator.draw(sample_rng(0, i, "latents")) for i in range(GRID_COLUMNS)]
    latents = {name: torch.stack([sample[name] for sample in drawn] * rows).to(device) for name in drawn[0]}
    labels = torch.arange(rows, device=device).repeat_interleave(GRID_COLUMNS) if generator.num_classes else None
    return image_grid(generator.sample(latents, labels).cpu(), columns=GRID_COLUMNS)
