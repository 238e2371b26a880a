"""`bench dataset`: any source of images into one StyleGAN zip of equal square PNGs, with the recipe written inside.

Crop and filter are part of what a data set is: the filter of the reference alone moves a network's FID on FFHQ-256 from
4.3 to 5.3. So the recipe is in `dataset.json`, and thereby in the content hash. Equal input gives equal bytes.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from tqdm import tqdm

from bench.annotations import Annotations
from bench.archives import ANNOTATIONS_FILE, DecodedImage, ImageStore
from bench.datasets import find_captions, identify, label_width, open_store
from bench.errors import UserError
from bench.shapes import ShapesDataset

Crop = Literal["none", "center", "center-dhariwal"]
Filter = Literal["lanczos", "bicubic", "bilinear", "hamming", "box", "nearest"]
CROPS: tuple[Crop, ...] = get_args(Crop)
FILTERS: tuple[Filter, ...] = get_args(Filter)
CHOICE_SEED = 0  # of the images that `max_images` takes
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold; a real time would change the hash


@dataclass(frozen=True, slots=True)
class PreparationSpec:
    """What to make of which source; `filter` does not apply to `center-dhariwal`, whose filters are fixed."""

    source: str  # zip, folder, CIFAR-10's archive, or "shapes"
    destination: Path
    resolution: int
    crop: Crop = "center"
    filter: Filter = "lanczos"
    max_images: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise UserError(f"--crop {self.crop!r}: choose from {', '.join(CROPS)}.")
        if self.filter not in FILTERS:
            raise UserError(f"--filter {self.filter!r}: choose from {', '.join(FILTERS)}.")
        if self.resolution < 1 or (self.max_images is not None and self.max_images < 1):
            raise UserError(f"--resolution {self.resolution}, --max-images {self.max_images}: must be at least 1.")


def prepare_dataset(spec: PreparationSpec) -> Path:
    """Write the zip and print what was converted; a source or destination that can't be used is a `UserError`.

    `max_images` takes a fixed random choice, not the first ones: those of a set sorted by class are a few classes.
    The file appears when it is complete; whatever goes wrong leaves nothing, and an older file as it was.
    """
    _check_destination(spec)
    store = _open(spec)
    indices, tally = _chosen(len(store.names), spec.max_images), Counter[str]()
    part = spec.destination.with_name(f".{spec.destination.name}.{os.getpid()}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _write_zip(part, spec, store, tqdm(indices, desc=spec.destination.name, unit="image", disable=None), tally)
        part.replace(spec.destination)
    except OSError as error:  # of the destination: the source's are UserErrors by now
        raise UserError(
            f"cannot write {spec.destination}: {error.strerror or error}. Nothing was left behind; "
            "free some space or choose another folder."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    print(_summary(spec, len(indices), tally))
    return spec.destination


def to_rgb(decoded: DecodedImage, where: str) -> Image.Image:
    """Convert to 8-bit RGB: grey and palette as they look, transparency over white, 16 bits by their high byte."""
    image, mode = decoded.image, decoded.mode
    if mode in {"I", "F"}:
        raise UserError(f"{where}: pixels of mode {mode} have no fixed range. Save it as 8-bit RGB.")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return image.convert("RGB")


def resize(image: Image.Image, spec: PreparationSpec) -> Image.Image:
    """Crop and scale an RGB image to the resolution; `ValueError` if it is not square and `crop` is "none"."""
    if spec.crop == "center-dhariwal":
        return _crop_dhariwal(image, spec.resolution)
    side, size = min(image.size), (spec.resolution, spec.resolution)
    if spec.crop == "none" and image.width != image.height:
        raise ValueError(f"{image.width}x{image.height} pixels are not square; give --crop center")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return image if image.size == size else image.resize(size, Image.Resampling[spec.filter.upper()])


def _crop_dhariwal(image: Image.Image, resolution: int) -> Image.Image:
    """The crop of ADM (Dhariwal and Nichol 2021): halve by box, scale the short side by bicubic, cut the centre."""
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


class _ShapesStore:
    """Shapes drawn at the resolution of the destination, as an `ImageStore`."""

    def __init__(self, spec: PreparationSpec) -> None:
        self._shapes = ShapesDataset(spec.resolution)
        self.path = Path("shapes")
        self.names: Sequence[str] = tuple(f"{index:08d}" for index in range(len(self._shapes)))
        self.annotations = Annotations(
            labels=[self._shapes.label(index) for index in range(len(self._shapes))],
            class_names=self._shapes.class_names,
            captions={name: self._shapes.caption(index) for index, name in enumerate(self.names)},
            recipe={"shapes": self._shapes.content_sha256()},
        )

    def locate(self, index: int) -> str:
        """Which image it is, for messages."""
        return f"shapes, image {index}"

    def read(self, index: int, _resolution: int | None = None, /) -> DecodedImage:
        """Draw image `index`."""
        return DecodedImage(Image.fromarray(self._shapes.image(index).permute(1, 2, 0).numpy()), "RGB")

    def sha256(self) -> str:
        """Digest of what is drawn."""
        return self._shapes.content_sha256()


def _open(spec: PreparationSpec) -> ImageStore:
    if spec.source == "shapes":
        return _ShapesStore(spec)
    store = open_store(Path(spec.source).expanduser())
    label_width(identify(store.path)[0], store)  # labels out of range are told before hours of work
    return store


def _check_destination(spec: PreparationSpec) -> None:
    path = spec.destination
    if path.suffix != ".zip":
        raise UserError(
            f"{path}: the destination is a zip; give a name such as NAME-{spec.resolution}x{spec.resolution}.zip."
        )
    if path.exists() and not spec.force:
        raise UserError(f"{path}: exists. Choose another name, or overwrite it with --force.")
    named = identify(path)[1]
    if named not in {None, spec.resolution}:
        raise UserError(f"{path}: its name says {named}x{named}, but --resolution is {spec.resolution}.")


def _chosen(count: int, max_images: int | None) -> list[int]:
    if max_images is None or max_images >= count:
        return list(range(count))
    order = np.random.Generator(np.random.Philox(CHOICE_SEED)).random(count).argsort(kind="stable")
    return sorted(order[:max_images].tolist())


def _write_zip(part: Path, spec: PreparationSpec, store: ImageStore, indices: tqdm[int], tally: Counter[str]) -> None:
    written = dict[int, str]()
    with part.open("wb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for index in indices:
                name = f"{len(written) // 1000:05d}/img{len(written):08d}.png"
                _write_entry(archive, name, _png(store, index, spec, tally))
                written[index] = name
            document = _annotations(store, written, spec)
            _write_entry(archive, ANNOTATIONS_FILE, json.dumps(document).encode())
        stream.flush()
        os.fsync(stream.fileno())


def _png(store: ImageStore, index: int, spec: PreparationSpec, tally: Counter[str]) -> bytes:
    decoded = store.read(index)
    image = to_rgb(decoded, store.locate(index))
    if decoded.mode != "RGB":
        tally[f"converted to RGB from {decoded.mode}"] += 1
    if decoded.image.format == "JPEG":
        tally["from JPEG, which is lossy"] += 1
    if min(image.size) < spec.resolution:
        tally["enlarged"] += 1
    try:
        image = resize(image, spec)
    except ValueError as error:
        raise UserError(f"{store.locate(index)}: {error}.") from error
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=0)  # stored: equal bytes whatever zlib, and fast to read
    return buffer.getvalue()


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, ZIP_TIME)
    info.create_system, info.external_attr = 3, 0o644 << 16  # Unix wherever it is made: equal bytes
    archive.writestr(info, data)


def _annotations(store: ImageStore, written: dict[int, str], spec: PreparationSpec) -> dict[str, Any]:
    known, (captions, _) = store.annotations, find_captions(identify(store.path)[0], store)
    document: dict[str, Any] = {"labels": None}
    if known.labels is not None:
        document["labels"] = [[name, known.labels[index]] for index, name in written.items()]
        document["class_names"] = list(known.class_names)
    sources = {name: store.names[index] for index, name in written.items()}
    document["captions"] = [[name, captions[source]] for name, source in sources.items() if source in captions]
    document["recipe"] = {
        "source": store.path.absolute().name,
        "images": len(written),
        "resolution": spec.resolution,
        "crop": spec.crop,
        "filter": "box, bicubic" if spec.crop == "center-dhariwal" else spec.filter,
        "source_recipe": known.recipe,
    }
    return document


def _summary(spec: PreparationSpec, count: int, tally: Counter[str]) -> str:
    lines = [f"{spec.destination}: {count} images, {spec.resolution}x{spec.resolution}, crop {spec.crop}"]
    return "\n".join(lines + [f"  {number} {what}" for what, number in sorted(tally.items())])
