"""Where images come from, one by one: sample `i` is a pure function of (weights, settings, seed, i).

Random numbers of a sample come from a counter-based generator of its own, drawn on the CPU. So a result does not depend
on the batch size, on the number of devices, or on where a run was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.datasets import ImageDataset, class_prompt, prompt
from models.spec import ImageGenerator, Latents

Stream = Literal["latents", "label", "halves"]
STREAMS: dict[Stream, int] = {"latents": 0, "label": 1, "halves": 2}  # numbers are part of every result


def sample_rng(seed: int, index: int, stream: Stream) -> np.random.Generator:
    """The random numbers of one sample: Philox keyed by (seed, stream), counting from (index, 0)."""
    return np.random.Generator(np.random.Philox(key=[seed, STREAMS[stream]], counter=[0, 0, 0, index]))


def disjoint_halves(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Split `count` images into two disjoint random halves of equal size; an odd one is left out."""
    order = sample_rng(seed, 0, "halves").permutation(count)
    middle = count // 2
    return sorted(order[:middle].tolist()), sorted(order[middle : 2 * middle].tolist())


def draw_latents(generator: ImageGenerator, seed: int, ids: Sequence[int], device: torch.device) -> Latents:
    """The latents of these samples, drawn one by one on the CPU and stacked on the device."""
    drawn = [generator.draw(sample_rng(seed, i, "latents")) for i in ids]
    return {name: torch.stack([sample[name] for sample in drawn]).to(device) for name in drawn[0]}


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images uint8 `[N, 3, H, W]` on the CPU, and the text that each should show, if there is any."""

    images: Tensor
    prompts: list[str] | None


class ImageSource(Protocol):
    """Anything that has an image for each id: a data set or a generator."""

    def batch(self, ids: Sequence[int]) -> ImageBatch:
        """The images with these ids."""
        ...


@dataclass(frozen=True, slots=True)
class RealImages:
    """Images of a data set; `members` says which image an id stands for."""

    dataset: ImageDataset
    members: Sequence[int]

    def batch(self, ids: Sequence[int]) -> ImageBatch:
        """Decode the images."""
        chosen = [self.members[i] for i in ids]
        prompts = [prompt(self.dataset, i) for i in chosen]
        images = torch.stack([self.dataset.image(i) for i in chosen])
        return ImageBatch(images, [p for p in prompts if p is not None] if None not in prompts else None)


def reads_prompts(generator: ImageGenerator) -> bool:
    """Whether a text-conditional generator has the text encoder that it was trained with."""
    return getattr(getattr(generator, "mapping", None), "encoder", None) is not None


def standin_text_features(generator: ImageGenerator, prompts: Sequence[str], device: torch.device) -> Tensor:
    """A random unit vector `[N, text_dim]` of each prompt's hash: it tells prompts apart and knows no language.

    It stands in for the text encoder where a generator has none, and where text encoding is not to be timed.
    """
    width = cast("Any", generator).text_dim
    keys = [list(hashlib.sha256(text.encode()).digest()[:16]) for text in prompts]
    rows = [np.random.Generator(np.random.Philox(key)).standard_normal(width, dtype=np.float32) for key in keys]
    return F.normalize(torch.from_numpy(np.stack(rows)), dim=1).to(device)


@dataclass(frozen=True, slots=True)
class GeneratedImages:
    """Samples of a generator, each under the class or the text of a random image of the data set."""

    generator: ImageGenerator
    dataset: ImageDataset
    seed: int
    device: torch.device

    def batch(self, ids: Sequence[int]) -> ImageBatch:
        """Generate the samples."""
        latents = draw_latents(self.generator, self.seed, ids, self.device)
        if self.generator.conditioning == "none":
            return ImageBatch(self.generator.sample(latents).cpu(), None)
        members = [self._member(i) for i in ids]
        if self.generator.conditioning == "text":
            prompts = [self._prompt(member) for member in members]
            known = reads_prompts(self.generator)
            condition = prompts if known else standin_text_features(self.generator, prompts, self.device)
            return ImageBatch(self.generator.sample(latents, condition).cpu(), prompts)
        labels = [self._label(member) for member in members]
        images = self.generator.sample(latents, torch.tensor(labels, device=self.device)).cpu()
        names = self.dataset.class_names
        return ImageBatch(images, [class_prompt(names[label]) for label in labels] if names else None)

    def _member(self, index: int) -> int:
        """The image whose class or text sample `index` has: a random one, as `fid50k_full` draws it."""
        return int(sample_rng(self.seed, index, "label").integers(len(self.dataset)))

    def _label(self, member: int) -> int:
        label = self.dataset.label(member)
        if label is None:
            raise ValueError(f"{self.dataset.name} has no labels; a class-conditional generator can't run on it")
        return label

    def _prompt(self, member: int) -> str:
        text = prompt(self.dataset, member)
        if text is None:
            raise ValueError(f"{self.dataset.name} has no captions; a text-conditional generator can't run on it")
        return text
