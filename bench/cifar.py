"""CIFAR-10's own archive (Krizhevsky 2009), the 50,000 training images; its pickles are read, never executed."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.annotations import Annotations
from bench.archives import DecodedImage
from bench.errors import UserError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE, FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
BATCH_IMAGES = 10_000
MAX_BATCH_BYTES = 2**26
RESOLUTION = 32
_Read = TypeVar("_Read")


def _encode_latin1(text: str, encoding: str) -> bytes:
    # Python 3 pickles bytes for protocol 2 this way; any other codec could run code or unpack a bomb
    if encoding not in {"latin1", "latin-1"}:
        raise pickle.UnpicklingError(f"_codecs.encode with {encoding!r} is refused")
    return text.encode("latin-1")


_reconstruct = np.empty(0).__reduce__()[0]  # public under no name that stays the same over NumPy's versions
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}


class _BatchUnpickler(pickle.Unpickler):
    """Rebuilds containers, text and arrays; every other name in the pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up among the few allowed ones."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is refused; only arrays, text and containers are read")
        return _ALLOWED[module, name]


class CifarArchive:
    """An `ImageStore` of the training images in `cifar-10-python.tar.gz`, or in the folder unpacked from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        batches = _read_folder(path) if path.is_dir() else _read_tar(path)
        self._digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in batches.values())).hexdigest()
        parsed = [_parse(data, f"{path}, {name}") for name, data in batches.items()]
        self._images = np.concatenate([images for images, _ in parsed])
        labels = [label for _, labels in parsed for label in labels]
        self.names: Sequence[str] = tuple(f"{name}/{index:04d}" for name in BATCHES for index in range(BATCH_IMAGES))
        self.annotations = Annotations(labels=labels, class_names=CLASS_NAMES)

    def locate(self, index: int) -> str:
        """Where image `index` is, for messages."""
        return f"{self.path}, {self.names[index]}"

    def read(self, index: int, resolution: int | None = None, /) -> DecodedImage:
        """Image `index`, 32x32 RGB; another resolution is an error."""
        if resolution not in {None, RESOLUTION}:
            raise UserError(
                f"{self.path}: expected {resolution}x{resolution} pixels, got 32x32. Prepare the set first: python -m "
                f"bench dataset {self.path} cifar10-{resolution}x{resolution}.zip --resolution {resolution}"
            )
        return DecodedImage(Image.fromarray(self._images[index]), "RGB")

    def sha256(self) -> str:
        """Digest over the digests of the five batches; the same for the archive and the folder."""
        return self._digest


def is_cifar(path: Path) -> bool:
    """Whether a path looks like CIFAR-10's own archive or its unpacked folder."""
    return path.name.endswith(".tar.gz") if path.is_file() else (path / BATCHES[0]).is_file()


def _read_folder(path: Path) -> dict[str, bytes]:
    return {name: _guarded(f"{path / name}", (path / name).read_bytes) for name in BATCHES}


def _read_tar(path: Path) -> dict[str, bytes]:
    return _guarded(str(path), lambda: _read_members(path))


def _read_members(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            if folder == FOLDER and name in BATCHES and member.isfile() and member.size <= MAX_BATCH_BYTES:
                stream = archive.extractfile(member)
                found[name] = b"" if stream is None else stream.read()
    missing = [f"{FOLDER}/{name}" for name in BATCHES if name not in found]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}. This is not {ARCHIVE}; download it again.")
    return {name: found[name] for name in BATCHES}


def _guarded(where: str, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{where}: cannot be read ({error}). Download {ARCHIVE} again.") from error


def _parse(data: bytes, where: str) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Images uint8 `[N, 32, 32, 3]` and labels of one batch."""
    try:
        batch = _BatchUnpickler(BytesIO(data), encoding="bytes").load()
        # Python 2 wrote the keys as bytes, copies made with Python 3 have text
        pixels, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    except Exception as error:  # damaged pickles raise nearly any type
        raise UserError(f"{where}: cannot be read as a CIFAR-10 batch ({error}). Download {ARCHIVE} again.") from error
    shape = (BATCH_IMAGES, 3 * RESOLUTION * RESOLUTION)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise UserError(f"{where}: data must be uint8 {shape}, got {got}. Download {ARCHIVE} again.")
    valid = isinstance(labels, list) and all(type(label) is int and 0 <= label < len(CLASS_NAMES) for label in labels)
    if not valid or len(labels) != BATCH_IMAGES:
        raise UserError(f"{where}: labels must be {BATCH_IMAGES} integers from 0 to 9. Download {ARCHIVE} again.")
    return pixels.reshape(-1, 3, RESOLUTION, RESOLUTION).transpose(0, 2, 3, 1), labels
