"""One extraction pass feeds many metrics.

Images are drawn in shards of fixed ids. A shard of features is written atomically, so a killed run loses at most one,
and the numbers that come out are a function of the shards alone, wherever the run was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bench.errors import UserError
from bench.records import write_atomic
from bench.sampling import ImageBatch, ImageSource

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
    """All features of one source: float32 `[N, D]` by "view.layer", and the first images, uint8."""

    tensors: dict[str, Tensor]
    pixels_sha256: str

    def layer(self, view: str, layer: str) -> Tensor:
        """One layer of one view."""
        name = f"{view}.{layer}"
        if name not in self.tensors:
            raise UserError(f"no features {name!r}; there are {', '.join(sorted(self.tensors))}")
        return self.tensors[name]

    @property
    def thumbnails(self) -> Tensor:
        """The first images, uint8 `[N, 3, H, W]`."""
        return self.tensors["thumbnails"]


@dataclass(frozen=True, slots=True)
class Extraction:
    """What to extract: `count` images of a source through some views, in shards and batches of fixed size."""

    source: ImageSource
    count: int
    views: dict[str, View]
    shard_size: int
    batch_size: int

    @property
    def num_shards(self) -> int:
        """How many shards the images make."""
        return -(-self.count // self.shard_size)

    def shard_ids(self, shard: int) -> range:
        """The sample ids of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


def _extract_batch(extraction: Extraction, ids: Sequence[int]) -> dict[str, Tensor]:
    batch = extraction.source.batch(ids)
    if batch.images.dtype != torch.uint8 or batch.images.ndim != 4:
        raise ValueError(f"images must be uint8 [N, 3, H, W], got {batch.images.dtype} {list(batch.images.shape)}")
    fitting = THUMBNAIL_PIXELS // batch.images[0, 0].numel()
    num_thumbnails = max(MIN_THUMBNAILS, min(MAX_THUMBNAILS, fitting))
    kept = [position for position, index in enumerate(ids) if index < num_thumbnails]
    hashes = [hashlib.sha256(image.numpy().tobytes()).digest() for image in batch.images]
    tensors = {
        "thumbnails": batch.images[kept],
        "pixels": torch.frombuffer(bytearray(b"".join(hashes)), dtype=torch.uint8).reshape(-1, 32),
    }
    for name, view in extraction.views.items():
        tensors |= {f"{name}.{layer}": value.cpu().contiguous() for layer, value in view(batch).items()}
    return tensors


def _extract_shard(extraction: Extraction, shard: int) -> dict[str, Tensor]:
    ids = extraction.shard_ids(shard)
    starts = range(0, len(ids), extraction.batch_size)
    batches = [_extract_batch(extraction, ids[start : start + extraction.batch_size]) for start in starts]
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


def missing_shards(extraction: Extraction, folder: Path) -> list[int]:
    """The shards that are not there yet, or that can't be read."""
    return [s for s in range(extraction.num_shards) if not _is_readable(shard_path(folder, s))]


def extract(extraction: Extraction, folder: Path, shards: Sequence[int], done: Callable[[int], None]) -> None:
    """Extract some shards into `folder`; `done` is told how many images each one added."""
    for shard in shards:
        content = safetensors.torch.save(_extract_shard(extraction, shard))
        write_atomic(shard_path(folder, shard), content)
        done(len(extraction.shard_ids(shard)))


def _load_shards(folder: Path, num_shards: int) -> Iterator[dict[str, Tensor]]:
    for shard in range(num_shards):
        yield safetensors.torch.load_file(shard_path(folder, shard))


def load_features(extraction: Extraction, folder: Path) -> FeatureSet:
    """Put the shards of a finished extraction together, in the order of their ids."""
    shards = list(_load_shards(folder, extraction.num_shards))
    tensors = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    digest = hashlib.sha256(tensors.pop("pixels").numpy().tobytes()).hexdigest()
    return FeatureSet(tensors, digest)
