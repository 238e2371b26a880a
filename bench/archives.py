"""Zip files and folders of images: names, annotations, bytes and decoding; everything read is untrusted.

The layout is that of StyleGAN's dataset tool: images and an optional `dataset.json` with `labels`, a list of
`[name, class]` pairs or null. Three keys of ours may stand beside it: `class_names`, `captions` (`[name, text]` pairs)
and `recipe` (how `bench dataset` made the file).
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from PIL import Image

from bench.annotations import Annotations, folder_annotations, read_annotations
from bench.errors import UserError

ANNOTATIONS_FILE = "dataset.json"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")  # no format whose decoder starts another program
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 89_478_485  # Pillow's limit for a warning; an error here
MAX_ENTRY_BYTES = 2**30  # an entry of a zip that unpacks to more is not an image


class DecodedImage(NamedTuple):
    """An image in memory, and what it was stored as: a Pillow mode ("RGB", "P"), 16-bit PNG marked ("RGB;16")."""

    image: Image.Image
    mode: str


class ImageStore(Protocol):
    """Named images of any size and mode with their annotations."""

    path: Path
    names: Sequence[str]
    annotations: Annotations

    def locate(self, index: int) -> str:
        """Where image `index` is, for messages."""
        ...

    def read(self, index: int, resolution: int | None = None, /) -> DecodedImage:
        """Decode image `index`; with a resolution, anything but square 8-bit RGB of that size is an error."""
        ...

    def sha256(self) -> str:
        """Digest of all bytes that the images and annotations are read from."""
        ...


class FileStore(Protocol):
    """Named files, in a zip or a folder."""

    path: Path
    names: Sequence[str]  # sorted

    def locate(self, name: str) -> str:
        """Where a file is, for messages."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        ...

    def sha256(self) -> str:
        """Digest of all files."""
        ...


class ImageFiles:
    """An `ImageStore` of encoded image files, ordered by name."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self.path = files.path
        self.names: Sequence[str] = tuple(
            name for name in files.names if PurePosixPath(name).suffix.lower() in SUFFIXES
        )
        if not self.names:
            raise UserError(f"{self.path}: holds no images. Image files end with {', '.join(sorted(SUFFIXES))}.")
        if ANNOTATIONS_FILE in files.names:
            where = files.locate(ANNOTATIONS_FILE)
            with _errors_naming(where, "cannot be read"):
                document = files.read(ANNOTATIONS_FILE)
            self.annotations = read_annotations(document, self.names, where)
        else:
            self.annotations = folder_annotations(self.names)

    def locate(self, index: int) -> str:
        """Where image `index` is, for messages."""
        return self._files.locate(self.names[index])

    def read(self, index: int, resolution: int | None = None, /) -> DecodedImage:
        """Decode image `index`; with a resolution, anything but square 8-bit RGB of that size is an error."""
        where = self.locate(index)
        with _errors_naming(where, "cannot be decoded as an image"):
            return _decode(self._files.read(self.names[index]), where, resolution)

    def sha256(self) -> str:
        """Digest of all bytes of the zip, or of all files of the folder."""
        return self._files.sha256()


class ZipFiles:
    """The files of a zip, which is opened once; for the threads of one process, a forked one opens its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _errors_naming(str(path), "cannot be opened as a zip; it may be truncated: download or make it again"):
            self._zip = zipfile.ZipFile(path)
        names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        _check_entry_names(path, names)
        self.names: Sequence[str] = tuple(sorted(name for name in names if not _hidden(name)))

    def locate(self, name: str) -> str:
        """Where an entry is, for messages."""
        return f"{self.path}, entry {name}"

    def read(self, name: str) -> bytes:
        """The bytes of an entry; the zip's checksum is checked."""
        size = self._zip.getinfo(name).file_size
        if size > MAX_ENTRY_BYTES:
            raise UserError(f"{self.locate(name)}: unpacks to {size} bytes; at most {MAX_ENTRY_BYTES} are read.")
        return self._zip.read(name)

    def sha256(self) -> str:
        """Digest of the zip file."""
        with _errors_naming(str(self.path), "cannot be read"), self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class FolderFiles:
    """The files of a folder and of its sub-folders; hidden ones are left out, links to folders are not followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        names = (
            (Path(folder) / file).relative_to(path).as_posix()
            for folder, _, files in os.walk(path, onerror=_raise_unreadable)
            for file in files
        )
        self.names: Sequence[str] = tuple(sorted(name for name in names if not _hidden(name)))

    def locate(self, name: str) -> str:
        """Where a file is, for messages."""
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        """The bytes of a file; a pipe or a device is refused, it may never end."""
        file = self.path / name
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file}: not a regular file. Remove it from the folder.")
        return file.read_bytes()

    def sha256(self) -> str:
        """Digest over the names and digests of the image files and annotations."""
        total = hashlib.sha256()
        for name in self.names:
            if name == ANNOTATIONS_FILE or PurePosixPath(name).suffix.lower() in SUFFIXES:
                with _errors_naming(self.locate(name), "cannot be read"):
                    total.update(f"{name}\0{hashlib.sha256(self.read(name)).hexdigest()}\n".encode())
        return total.hexdigest()


def open_files(path: Path) -> ImageFiles:
    """Open a zip or a folder of images."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder. Give a zip file or a folder of images.")
    return ImageFiles(FolderFiles(path) if path.is_dir() else ZipFiles(path))


@contextmanager
def _errors_naming(where: str, what: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes, which may be of nearly any type, into one message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {what} ({type(error).__name__}: {error}).") from error


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror}). Check the rights of the folder.")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _check_entry_names(path: Path, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path}, entry {name}: is in the zip {count} times. Make the zip again.")
        if name.startswith("/") or "\\" in name or name[1:2] == ":" or ".." in PurePosixPath(name).parts:
            raise UserError(
                f"{path}, entry {name!r}: points outside the zip. Names are relative, with forward slashes."
            )


def _decode(data: bytes, where: str, resolution: int | None) -> DecodedImage:
    image = Image.open(BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{where}: {width}x{height} pixels are more than the limit of {MAX_PIXELS}; scale it down first."
        )
    mode = _stored_mode(image, data)
    if resolution is not None:
        _check_loadable(where, (width, height), mode, resolution)
    image.load()
    return DecodedImage(image, mode)


def _stored_mode(image: Image.Image, data: bytes) -> str:
    if image.mode == "RGB" and image.has_transparency_data:
        return "RGB with a transparent colour"
    # Pillow drops the low bytes of a 16-bit RGB PNG without a word; byte 24 of a PNG is its bit depth
    sixteen_bit = image.format == "PNG" and data[24] == 16
    return f"{image.mode};16" if sixteen_bit and not image.mode.endswith(";16") else image.mode


def _check_loadable(where: str, size: tuple[int, int], mode: str, resolution: int) -> None:
    remedy = f"Prepare the set first: python -m bench dataset SOURCE DEST-{resolution}x{resolution}.zip "
    remedy += f"--resolution {resolution} --crop center"
    if size != (resolution, resolution):
        raise UserError(
            f"{where}: expected {resolution}x{resolution} pixels (width x height), got {size[0]}x{size[1]}. {remedy}"
        )
    if mode != "RGB":
        raise UserError(f"{where}: expected 8-bit RGB, got mode {mode}. {remedy}")
