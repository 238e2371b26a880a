"""Where images come from, one by one: sample `i` is a pure function of (weights, settings, seed, i).

Random numbers of a sample come from a counter-based generator of its own, drawn on the CPU. So a result does not depend
on the batch size, on the number of devices, or on where a run was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.datasets import ImageDataset, class_prompt, prompt
from bench.prompts import PromptList
from models.layers import to_uint8
from models.spec import Condition, ImageGenerator, Latents

Stream = Literal["latents", "label", "halves", "path", "transform"]
# numbers are part of every result
STREAMS: dict[Stream, int] = {"latents": 0, "label": 1, "halves": 2, "path": 3, "transform": 4}


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


def _truncate(images: Tensor) -> Tensor:
    levels = ((images + 1) * 127.5).clamp(0, 255)
    return levels.to(torch.uint8, memory_format=torch.contiguous_format)


# images [N, 3, H, W] of [-1, 1] to uint8: StyleGAN, EDM and DiT round half up; ADM and MDT cut, half a level darker
Quantiser = Literal["half-up", "truncate"]
QUANTISERS: dict[Quantiser, Callable[[Tensor], Tensor]] = {"half-up": to_uint8, "truncate": _truncate}


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images uint8 `[N, 3, H, W]` on the CPU, and the text that each should show, if there is any."""

    images: Tensor  # rounded half up, where they are not pixels of a file
    prompts: list[str] | None = None
    truncated: Tensor | None = None  # cut to integers instead; None for pixels of a file, which are integers already
    seen: dict[tuple[Callable[[Tensor], Any], int], Any] = field(default_factory=dict)  # by network and pixels

    def pixels(self, quantiser: Quantiser) -> Tensor:
        """The images uint8 `[N, 3, H, W]`, quantised as a protocol asks."""
        return self.truncated if quantiser == "truncate" and self.truncated is not None else self.images

    def look(self, network: Callable[[Tensor], Any], quantiser: Quantiser = "half-up") -> Any:
        """What a network makes of the pixels; the same network is asked only once about the same ones."""
        pixels = self.pixels(quantiser)
        key = network, id(pixels)
        if key not in self.seen:
            self.seen[key] = network(pixels)
        return self.seen[key]


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
    """Samples of a generator, each under the class or the text of a random image of the data set.

    Texts come from a list instead, where one is given.
    """

    generator: ImageGenerator
    dataset: ImageDataset
    seed: int
    device: torch.device
    prompts: PromptList | None = None
    uniform_labels: bool = False  # every class as likely, instead of as often as the data set has it

    def batch(self, ids: Sequence[int]) -> ImageBatch:
        """Generate the samples."""
        latents = draw_latents(self.generator, self.seed, ids, self.device)
        condition, prompts = self._conditions(ids)
        images = self.generator.images(latents, condition)
        half_up, truncated = (QUANTISERS[quantiser](images).cpu() for quantiser in ("half-up", "truncate"))
        return ImageBatch(half_up, prompts, truncated)

    def condition(self, ids: Sequence[int]) -> Condition:
        """What the generator is given for each of these samples: labels, prompts or their features, or nothing."""
        return self._conditions(ids)[0]

    def _conditions(self, ids: Sequence[int]) -> tuple[Condition, list[str] | None]:
        """What the generator is given for each sample, and the text that the sample should show."""
        if self.generator.conditioning == "none":
            return None, None
        if self.generator.conditioning == "text":
            prompts = [self._prompt(i) for i in ids]
            known = reads_prompts(self.generator)
            return prompts if known else standin_text_features(self.generator, prompts, self.device), prompts
        labels = [self._label(i) for i in ids]
        names = self.dataset.class_names
        texts = [class_prompt(names[label]) for label in labels] if names else None
        return torch.tensor(labels, device=self.device), texts

    def _member(self, index: int) -> int:
        """The image whose class or text sample `index` has: a random one, as `fid50k_full` draws it."""
        return int(sample_rng(self.seed, index, "label").integers(len(self.dataset)))

    def _label(self, index: int) -> int:
        if self.uniform_labels and self.dataset.num_classes:
            return int(sample_rng(self.seed, index, "label").integers(self.dataset.num_classes))
        label = self.dataset.label(self._member(index))
        if label is None:
            raise ValueError(f"{self.dataset.name} has no labels; a class-conditional generator can't run on it")
        return label

    def _prompt(self, index: int) -> str:
        if self.prompts is not None:
            return self.prompts.texts[sample_rng(self.seed, index, "label").integers(len(self.prompts.texts))]
        text = prompt(self.dataset, self._member(index))
        if text is None:
            raise ValueError(f"{self.dataset.name} has no captions; a text-conditional generator can't run on it")
        return text
