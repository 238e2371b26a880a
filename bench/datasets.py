"""The data sets: what is known of each, where it is looked for, and images one by one.

Reading is strict, since a resized or re-encoded image moves every number: an image that is not square 8-bit RGB of the
asked resolution is an error that names the file and the command that mends it. Nothing is resized while reading.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bench.annotations import read_captions
from bench.archives import ImageStore, open_files
from bench.cifar import ARCHIVE, CLASS_NAMES, FOLDER, CifarArchive, is_cifar
from bench.cifar import RESOLUTION as CIFAR_RESOLUTION
from bench.errors import UserError, did_you_mean
from bench.shapes import CLASSES, ShapesDataset

_SIZED_NAME = re.compile(r"(?P<stem>.+)-(?P<resolution>\d+)x(?P=resolution)")


class MissingDatasetError(UserError):
    """The data set is not where it was looked for."""


class ImageDataset(Protocol):
    """Images of one resolution with what is known of them; `num_classes` is 0 for an unlabelled set."""

    @property
    def name(self) -> str:
        """Registry name, or the name of the file or folder."""
        ...

    @property
    def resolution(self) -> int:
        """Height and width in pixels."""
        ...

    @property
    def num_classes(self) -> int:
        """Width of the labels, 0 if there are none."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class, or empty."""
        ...

    @property
    def has_captions(self) -> bool:
        """Whether every image has a caption."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """Image `index`, uint8 `[3, H, W]`."""
        ...

    def label(self, index: int) -> int | None:
        """Class of image `index`."""
        ...

    def caption(self, index: int) -> str | None:
        """Caption of image `index`."""
        ...

    def content_sha256(self) -> str:
        """Digest of all bytes that images, labels and captions come from."""
        ...


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """What is known of a data set before its files are seen."""

    name: str
    summary: str
    licence: str
    homepage: str
    num_images: int = 0  # of the whole set, which papers take as reference; 0: not known
    num_classes: int = 0  # 0: unlabelled, or as the files say
    class_names: tuple[str, ...] | str = ()  # a str is "module:NAME", imported when asked for
    captions_file: str = "{name}-captions.jsonl"
    stems: tuple[str, ...] = ()  # further names that its files go by


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="cifar10",
            summary="50,000 training photos of 10 classes, 32x32",
            licence="free to use, asks for citation",
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            num_images=50_000,
            num_classes=len(CLASS_NAMES),
            class_names=CLASS_NAMES,
        ),
        DatasetSpec(
            name="ffhq",
            summary="70,000 aligned photos of faces, up to 1024x1024",
            licence="CC BY-NC-SA 4.0; real people: no recognition",
            homepage="https://github.com/NVlabs/ffhq-dataset",
            num_images=70_000,
        ),
        DatasetSpec(
            name="imagenet",
            summary="1,281,167 training photos of 1000 classes (ILSVRC 2012)",
            licence="non-commercial research and education, after registration",
            homepage="https://www.image-net.org",
            num_images=1_281_167,
            num_classes=1000,
            class_names="open_clip.zero_shot_metadata:IMAGENET_CLASSNAMES",
        ),
        DatasetSpec(
            name="pokemon",
            summary="official artwork on white",
            licence="copyright Nintendo / Creatures / GAME FREAK; no licence to redistribute",
            homepage="https://www.pokemon.com",
        ),
        DatasetSpec(
            name="coco",
            summary="photos with five captions each (MS COCO 2014 and 2017)",
            licence="annotations CC BY 4.0; each photo has its own licence",
            homepage="https://cocodataset.org",
            num_images=40_504,  # val2014
            stems=("coco-val2017", "coco-val2014"),
        ),
        DatasetSpec(
            name="shapes",
            summary="drawn on the fly: 10 shapes in 8 colours with labels and captions, needs no files",
            licence="Apache-2.0, part of this program",
            homepage="",
            num_classes=len(CLASSES),
            class_names=tuple(CLASSES),
        ),
    )
}


class StoredDataset:
    """A data set read from a zip, a folder or CIFAR-10's archive; each image is checked when it is decoded."""

    def __init__(self, spec: DatasetSpec, store: ImageStore, resolution: int) -> None:
        self.name, self.resolution = spec.name, resolution
        self._spec, self._store = spec, store
        self.num_classes = label_width(spec, store)
        self._captions, self._captions_file = find_captions(spec, store)
        self.has_captions = all(name in self._captions for name in store.names)
        self.image(0)  # the commonest mistake, a wrong resolution, is told at once

    def __len__(self) -> int:
        return len(self._store.names)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the spec, else of the files, else none."""
        names = (self._spec.class_names or self._store.annotations.class_names) if self.num_classes else ()
        if not isinstance(names, str):
            return names
        module, _, attribute = names.partition(":")
        return tuple(getattr(importlib.import_module(module), attribute))

    def image(self, index: int) -> Tensor:
        """Decode image `index`, uint8 `[3, H, W]`; one of another size or mode is a `UserError`."""
        decoded = self._store.read(index, self.resolution)
        return torch.from_numpy(np.array(decoded.image)).permute(2, 0, 1).contiguous()

    def label(self, index: int) -> int | None:
        """Class of image `index`."""
        labels = self._store.annotations.labels
        return None if labels is None else labels[index]

    def caption(self, index: int) -> str | None:
        """Caption of image `index`: of `dataset.json`, else of the caption file beside the set."""
        return self._captions.get(self._store.names[index])

    def content_sha256(self) -> str:
        """Digest of the zip (its recipe is inside), folder or archive, and of the caption file if it is used."""
        return self._content_sha256

    @cached_property
    def _content_sha256(self) -> str:
        if self._captions_file is None:
            return self._store.sha256()
        captions = hashlib.sha256(self._captions_file.read_bytes()).hexdigest()
        return hashlib.sha256(f"{self._store.sha256()} {captions}".encode()).hexdigest()


def class_prompt(class_name: str) -> str:
    """The text for an image of a class."""
    return f"a photo of a {class_name}"


def prompt(dataset: ImageDataset, index: int) -> str | None:
    """The caption of an image, else the text for its class, else None."""
    caption, label = dataset.caption(index), dataset.label(index)
    if caption is not None or label is None or not dataset.class_names:
        return caption
    return class_prompt(dataset.class_names[label])


def open_dataset(name: str, resolution: int, data_dir: Path | None = None) -> ImageDataset:
    """Open a data set by its registry name, by the name of its files in `data_dir`, or by the path of a zip or folder.

    In `data_dir` these are tried in order: `NAME-RxR.zip`, folder `NAME-RxR`, for cifar10 its own archive (packed or
    unpacked), folder `NAME`. "shapes" needs no files. Whatever can't be used is a `UserError`.
    """
    if name == "shapes":
        return ShapesDataset(resolution)
    path = None if "/" in name or name.endswith(".zip") else _find(name, resolution, data_dir)
    if path is not None:
        return StoredDataset(_spec(name), open_store(path), resolution)
    path = Path(name).expanduser()
    if name in DATASETS or not path.exists():
        raise _missing(name, resolution, data_dir)
    spec, named_resolution = identify(path)
    if named_resolution not in {None, resolution}:
        raise UserError(f"{path}: holds {named_resolution}x{named_resolution} by its name, asked for {resolution}.")
    return StoredDataset(spec, open_store(path), resolution)


def open_store(path: Path) -> ImageStore:
    """Open a zip, a folder, or CIFAR-10's archive, of images of any size and mode."""
    return CifarArchive(path) if is_cifar(path) else open_files(path)


def find_captions(spec: DatasetSpec, store: ImageStore) -> tuple[Mapping[str, str], Path | None]:
    """Captions by image name, of `dataset.json` or else of the caption file beside the set, and that file if used."""
    path = store.path.parent / spec.captions_file.format(name=spec.name)
    if store.annotations.captions or not path.is_file():
        return store.annotations.captions, None
    captions = read_captions(path, store.names)
    return captions, path if captions else None


def identify(path: Path) -> tuple[DatasetSpec, int | None]:
    """The data set, and the resolution if the name says one, that a zip or folder is named after."""
    if is_cifar(path):
        return DATASETS["cifar10"], CIFAR_RESOLUTION
    name = path.absolute().name.removesuffix(".zip")
    match = _SIZED_NAME.fullmatch(name)
    return (_spec(match["stem"]), int(match["resolution"])) if match else (_spec(name), None)


def find_datasets(data_dir: Path) -> list[tuple[str, int]]:
    """Names and resolutions of what `open_dataset` would find in a folder, sorted; images are not checked.

    A folder without a resolution in its name counts for the sets of the registry only, with that of its first image.
    """
    if not data_dir.is_dir():
        raise UserError(f"{data_dir}: no such folder. Give the folder that holds the data sets with --data.")
    return sorted({(spec.name, resolution) for spec, resolution, _ in _entries(data_dir, set(DATASETS))})


def _entries(data_dir: Path, unsized: set[str]) -> Iterator[tuple[DatasetSpec, int, Path]]:
    """Sets in a folder; folders without a resolution in their name are looked into if their set is in `unsized`."""
    for path in data_dir.iterdir():
        if not (path.is_dir() or path.suffix == ".zip" or path.name == ARCHIVE):
            continue
        spec, resolution = identify(path)
        if resolution is None and path.is_dir() and spec.name in unsized:
            width, height = open_store(path).read(0).image.size
            resolution = width if width == height else None
        if resolution is not None:
            yield spec, resolution, path


def _spec(stem: str) -> DatasetSpec:
    known = next((spec for spec in DATASETS.values() if stem in {spec.name, *spec.stems}), None)
    return known or DatasetSpec(name=stem, summary="images of your own", licence="", homepage="")


def label_width(spec: DatasetSpec, store: ImageStore) -> int:
    """Width of the labels: of the spec, else of the class names, else one more than the greatest label."""
    labels, named = store.annotations.labels, len(store.annotations.class_names)
    if labels is None:
        return 0
    if spec.num_classes and named not in {0, spec.num_classes}:
        raise UserError(
            f"{store.path}: {named} classes, {spec.name} has {spec.num_classes}. "
            f"Rename it if it is another set; else list each image with its class in dataset.json."
        )
    width = spec.num_classes or named or max(labels) + 1
    for index, label in enumerate(labels):
        if not 0 <= label < width:
            raise UserError(f"{store.locate(index)}: label {label} is outside 0..{width - 1}; mend dataset.json.")
    return width


def _candidates(spec: DatasetSpec, resolution: int, data_dir: Path) -> Iterator[tuple[Path, Callable[[Path], bool]]]:
    stems = (spec.name, *spec.stems)
    for stem in stems:
        yield data_dir / f"{stem}-{resolution}x{resolution}.zip", Path.is_file
        yield data_dir / f"{stem}-{resolution}x{resolution}", Path.is_dir
    if spec.name == "cifar10":
        yield data_dir / ARCHIVE, Path.is_file
        yield data_dir / FOLDER, Path.is_dir
    for stem in stems:
        yield data_dir / stem, Path.is_dir


def _find(name: str, resolution: int, data_dir: Path | None) -> Path | None:
    if data_dir is None:
        return None
    if not data_dir.is_dir():
        raise UserError(f"{data_dir}: no such folder. Give the folder that holds the data sets with --data.")
    return next((path for path, fits in _candidates(_spec(name), resolution, data_dir) if fits(path)), None)


def _missing(name: str, resolution: int, data_dir: Path | None) -> MissingDatasetError:
    if "/" in name or name.endswith(".zip"):
        return MissingDatasetError(f"{name}: no such file or folder. Give the path of a zip or folder of images.")
    if data_dir is None:
        return MissingDatasetError(f"{name!r} needs its files: give their folder with --data. {_known(name)}")
    candidates = [path for path, _ in _candidates(_spec(name), resolution, data_dir)]
    message = f"no {name!r} at {resolution}x{resolution} in {data_dir}; looked for "
    message += ", ".join(path.name for path in candidates)
    if name not in DATASETS:
        return MissingDatasetError(f"{message}. {_known(name)}")
    others = sorted((r, path) for spec, r, path in _entries(data_dir, {name}) if spec.name == name)
    there = f" It is there at {', '.join(f'{r}x{r}' for r, _ in others)}." if others else ""
    source = others[-1][1] if others else "SOURCE"
    return MissingDatasetError(
        f"{message}.{there} Prepare it: python -m bench dataset {source} {candidates[0]} --resolution {resolution}. "
        f"{_known(name)}"
    )


def _known(name: str) -> str:
    if name in DATASETS:
        return f"Get it from {DATASETS[name].homepage} ({DATASETS[name].licence})."
    hint = did_you_mean(name, DATASETS, cutoff=0.6)
    return f"Known data sets: {', '.join(DATASETS)}; the path of a zip or folder works too.{hint}"
