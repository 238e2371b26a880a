"""One extraction pass feeds many metrics.

Images are drawn in shards of fixed ids. A shard of features is written atomically, so a killed run loses at most one,
and the numbers that come out are a function of the shards alone, wherever the run was cut.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bench.errors import UserError
from bench.records import write_atomic
from bench.references import Reference
from bench.sampling import ImageBatch, ImageSource
from bench.statistics import FeatureStatistics

# beside the features: the first images, and a hash of each image and of each text
THUMBNAILS, PIXELS, PROMPTS = "thumbnails", "pixels", "prompts"
CPU = torch.device("cpu")
MAX_THUMBNAILS, MIN_THUMBNAILS, THUMBNAIL_PIXELS = 64, 4, 2**20  # images kept as pixels: the uncurated first ones


class View(Protocol):
    """A network with its way of looking at an image; see `extractors`."""

    name: str
    sha256: str
    official: bool

    def __call__(self, batch: ImageBatch) -> dict[str, Tensor]:
        """The layers of a batch, float32 `[N, D]` each; empty where the batch has not what the network needs."""
        ...


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """The features of one source, in shards on disk: of each "view.layer" float32 `[N, D]`, read when asked for."""

    shards: tuple[Path, ...]
    count: int  # of images that take part: the first ones
    references: tuple[tuple[str, Reference], ...] = ()  # statistics that are known already, by view
    device: torch.device = CPU  # for maths that take every image with every other

    def first(self, count: int) -> FeatureSet:
        """The same for the first images alone, or for all where there are not so many."""
        return dataclasses.replace(self, count=min(count, self.count))

    def has(self, view: str, layer: str) -> bool:
        """Whether there is such a layer."""
        return f"{view}.{layer}" in self._names()

    def layer(self, view: str, layer: str) -> Tensor:
        """One layer of one view, `[N, D]`, in memory, of which one shard is held twice."""
        blocks = self.blocks(view, layer)
        first = next(blocks)
        features, end = first.new_empty(self.count, *first.shape[1:]), 0
        for block in itertools.chain([first], blocks):
            features[end : end + len(block)] = block
            end += len(block)
        return features[:end]

    def rows(self, view: str, layer: str, rows: Tensor) -> Tensor:
        """Some rows of a layer, by their numbers in ascending order; the others are not held."""
        taken, start = [], 0
        for block in self.blocks(view, layer):
            taken.append(block[rows[(rows >= start) & (rows < start + len(block))] - start])
            start += len(block)
        return torch.cat(taken)

    def blocks(self, view: str, layer: str) -> Iterator[Tensor]:
        """The same, shard by shard; UserError if it is not there."""
        name, missing = f"{view}.{layer}", self.count
        if name not in self._names():
            raise UserError(f"no features {name!r}; there are {', '.join(self._names())}")
        for path in self.shards:
            if missing > 0:
                rows = _read(path, name)[:missing]
                missing -= len(rows)
                yield rows

    def statistics(self, view: str, layer: str) -> FeatureStatistics:
        """Count, mean and scatter of one layer, without holding it; the last few are kept."""
        known = self.reference(view, layer)
        return _statistics(self, view, layer) if known is None else known.layers[layer]

    def reference(self, view: str, layer: str) -> Reference | None:
        """The reference that the statistics of a layer come from, where they don't come from the images."""
        return next((r for v, r in self.references if v == view and layer in r.layers), None)

    @property
    def pixels_sha256(self) -> str:
        """The hash of the pixels of all images in the shards."""
        return _digest(self.shards, PIXELS)

    @property
    def prompts_sha256(self) -> str | None:
        """The hash of the texts, in order, that the images should show; None for images without."""
        return _digest(self.shards, PROMPTS) if PROMPTS in self._names() else None

    @property
    def thumbnails(self) -> Tensor:
        """The first images, uint8 `[N, 3, H, W]`."""
        return torch.cat([_read(path, THUMBNAILS) for path in self.shards])

    def _names(self) -> list[str]:
        with safetensors.safe_open(self.shards[0], "pt") as content:
            return sorted(content.keys())


@functools.lru_cache(maxsize=12)
def _statistics(features: FeatureSet, view: str, layer: str) -> FeatureStatistics:
    blocks = features.blocks(view, layer)
    first = next(blocks)
    return functools.reduce(FeatureStatistics.update, blocks, FeatureStatistics.empty(first.shape[1]).update(first))


@functools.lru_cache(maxsize=12)  # every protocol's rows name them
def _digest(shards: tuple[Path, ...], name: str) -> str:
    return hashlib.sha256(torch.cat([_read(path, name) for path in shards]).numpy().tobytes()).hexdigest()


def _read(path: Path, name: str) -> Tensor:
    with safetensors.safe_open(path, "pt") as content:
        tensor: Tensor = content.get_tensor(name)
    return tensor


class Sharded(ABC):
    """Tensors of samples 0 to `count` - 1, made in shards and in batches of fixed size."""

    __slots__ = ()
    count: int
    shard_size: int
    batch_size: int

    @abstractmethod
    def measure(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of some samples, on the CPU."""

    @property
    def num_shards(self) -> int:
        """How many shards the samples make."""
        return -(-self.count // self.shard_size)

    def shard_ids(self, shard: int) -> range:
        """The sample ids of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


@dataclass(frozen=True, slots=True)
class Extraction(Sharded):
    """What to extract: `count` images of a source through some views, in shards and batches of fixed size."""

    source: ImageSource
    count: int
    views: dict[str, View]
    shard_size: int
    batch_size: int
    layers: frozenset[str] | None = None  # as "view.layer"; None: all that the views give

    def measure(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """The features of some images, with hashes of all and the pixels of the first."""
        return _extract_batch(self, ids)


def _hashes(contents: Iterable[bytes]) -> Tensor:
    """The SHA-256 of each, uint8 `[N, 32]`."""
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    return torch.frombuffer(bytearray(digests), dtype=torch.uint8).reshape(-1, 32)


def _extract_batch(extraction: Extraction, ids: Sequence[int]) -> dict[str, Tensor]:
    batch = extraction.source.batch(ids)
    if batch.images.dtype != torch.uint8 or batch.images.ndim != 4:
        raise ValueError(f"images must be uint8 [N, 3, H, W], got {batch.images.dtype} {list(batch.images.shape)}")
    fitting = THUMBNAIL_PIXELS // batch.images[0, 0].numel()
    num_thumbnails = max(MIN_THUMBNAILS, min(MAX_THUMBNAILS, fitting))
    kept = [position for position, index in enumerate(ids) if index < num_thumbnails]
    tensors = {
        THUMBNAILS: batch.images[kept],
        PIXELS: _hashes(image.numpy().tobytes() for image in batch.images),
    }
    if batch.prompts is not None:
        tensors[PROMPTS] = _hashes(prompt.encode() for prompt in batch.prompts)
    for name, view in extraction.views.items():
        layers = {f"{name}.{layer}": value for layer, value in view(batch).items()}
        wanted = layers.keys() if extraction.layers is None else layers.keys() & extraction.layers
        tensors |= {layer: layers[layer].cpu().contiguous() for layer in sorted(wanted)}
    return tensors


def _extract_shard(sharded: Sharded, shard: int) -> dict[str, Tensor]:
    ids = sharded.shard_ids(shard)
    starts = range(0, len(ids), sharded.batch_size)
    batches = [sharded.measure(ids[start : start + sharded.batch_size]) for start in starts]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _is_readable(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, "pt"):
            return True
    except (OSError, safetensors.SafetensorError):
        return False


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard is kept."""
    return folder / f"shard-{shard:05d}.safetensors"


def missing_shards(sharded: Sharded, folder: Path) -> list[int]:
    """The shards that are not there yet, or that can't be read."""
    return [s for s in range(sharded.num_shards) if not _is_readable(shard_path(folder, s))]


def extract(sharded: Sharded, folder: Path, shards: Sequence[int], done: Callable[[int], None]) -> None:
    """Make some shards in `folder`; `done` is told how many samples each one added."""
    for shard in shards:
        content = safetensors.torch.save(_extract_shard(sharded, shard))
        write_atomic(shard_path(folder, shard), content)
        done(len(sharded.shard_ids(shard)))


def load_features(sharded: Sharded, folder: Path) -> FeatureSet:
    """The shards of what was extracted, in the order of their ids."""
    return FeatureSet(tuple(shard_path(folder, shard) for shard in range(sharded.num_shards)), sharded.count)
