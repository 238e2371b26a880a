"""Zips and folders that are broken, hostile or merely not as they should be: one message that names the file."""

from __future__ import annotations

import os
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import archives
from bench.archives import open_files
from bench.datasets import open_dataset
from bench.errors import UserError
from tests.bench.image_files import encode, noise, pngs, write_folder, write_zip

GOOD = "00000/img00000000.png"
BAD = "00000/img00000009.png"


def read_all(path: Path) -> None:
    dataset = open_dataset(str(path), 16)
    for index in range(len(dataset)):
        dataset.image(index)


def assert_refused(path: Path, where: str, why: str) -> None:
    """Opening, or reading all images, gives one `UserError` that starts with the place and tells the reason."""
    with pytest.raises(UserError) as caught:
        read_all(path)
    message = str(caught.value)
    assert message.startswith(where), message
    assert re.search(why, message), message
    assert "\n" not in message


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header: bytes, pixels: bytes) -> bytes:
    """A PNG built by hand, for what Pillow does not write."""
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


SIXTEEN_BIT = png(struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0), (b"\0" + b"\x12\x34" * 48) * 16)
BOMB = png(struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0), b"")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (encode(noise(0))[:300], "cannot be decoded"),
        (encode(noise(0))[:10], "cannot be decoded"),
        (encode(noise(0), "JPEG")[:200], "cannot be decoded"),
        (b"", "cannot be decoded"),
        (b"<html>404</html>", "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be decoded"),  # Pillow would start Ghostscript for it
        (encode(noise(0, 8)), "expected 16x16 pixels.*got 8x8.*python -m bench dataset .*--resolution 16"),
        (encode(noise(0, (16, 12))), "expected 16x16 pixels.*got 16x12"),
        (encode(noise(0).convert("L")), "expected 8-bit RGB, got mode L.*python -m bench dataset"),
        (encode(noise(0).convert("RGBA")), "got mode RGBA"),
        (encode(noise(0).convert("P")), "got mode P"),
        (encode(noise(0).convert("CMYK"), "JPEG"), "got mode CMYK"),
        (encode(Image.fromarray(np.zeros((16, 16), np.uint16))), "got mode I;16"),
        (SIXTEEN_BIT, "got mode RGB;16"),
        (encode(noise(0), transparency=(1, 2, 3)), "got mode RGB with a transparent colour"),
    ],
    ids=[
        *("cut png", "header only", "cut jpeg", "empty", "html", "eps", "small", "oblong", "grey", "alpha", "palette"),
        *("cmyk", "16-bit grey", "16-bit", "transparent colour"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_bad_image_is_named(tmp_path: Path, kind: str, data: bytes, why: str) -> None:
    files = pngs(2) | {BAD: data}
    if kind == "zip":
        path = write_zip(tmp_path / "set.zip", files)
        assert_refused(path, f"{path}, entry {BAD}: ", why)
    else:
        path = write_folder(tmp_path / "set", files)
        assert_refused(path, f"{path / BAD}: ", why)


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {BAD: BOMB})
    with pytest.raises(UserError, match=r"img00000009\.png: .*(bomb|limit)"):
        open_files(path).read(0)
    # above Pillow's warning and below its error, with warnings shown only
    large = png(struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0), b"")
    path = write_zip(tmp_path / "large.zip", {BAD: large})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"img00000009\.png: 10000x10000 pixels are more than the limit"):
            open_files(path).read(0)


def test_entry_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRY_BYTES", 100)
    path = write_zip(tmp_path / "set.zip", pngs(1))
    assert_refused(path, f"{path}, entry {GOOD}: ", "unpacks to")


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    assert_refused(tmp_path / "gone", f"{tmp_path / 'gone'}: ", "no such")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", f"{tmp_path / 'empty'}: ", "holds no images")
    path = write_folder(tmp_path / "text", {"a.txt": b"x", ".hidden.png": b"x", "__MACOSX/a.png": b"x"})
    assert_refused(path, f"{path}: ", "holds no images")
    path = write_zip(tmp_path / "empty.zip", {})
    assert_refused(path, f"{path}: ", "holds no images")


def test_damaged_zip_is_named(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "whole.zip", pngs(4)).read_bytes()
    path = tmp_path / "set.zip"
    for data in (whole[: len(whole) // 2], whole[:-5], b"", b"PK", b"no zip at all"):
        path.write_bytes(data)
        assert_refused(path, f"{path}: ", "cannot be opened as a zip")


def test_flipped_byte_in_a_zip_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", pngs(2))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("00000/img00000001.png").header_offset
    data = bytearray(path.read_bytes())
    data[start + 300] ^= 1
    path.write_bytes(data)
    assert_refused(path, f"{path}, entry 00000/img00000001.png: ", "CRC")


@pytest.mark.parametrize("name", ["../up.png", "/etc/root.png", "a/../../b.png", "a\\b.png", "C:/x.png"])
def test_entry_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "set.zip", pngs(1) | {name: encode(noise(1))})
    assert_refused(path, f"{path}, entry {name!r}: ", "points outside")


def test_doubled_entry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(GOOD, encode(noise(0)))
        archive.writestr(GOOD, encode(noise(1)))
    assert_refused(path, f"{path}, entry {GOOD}: ", "is in the zip 2 times")


def test_pipe_in_a_folder_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", pngs(1))
    os.mkfifo(path / "pipe.png")
    assert_refused(path, f"{path / 'pipe.png'}: ", "not a regular file")


def test_dangling_link_in_a_folder_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", pngs(1))
    (path / "link.png").symlink_to(tmp_path / "gone.png")
    assert_refused(path, f"{path / 'link.png'}: ", "No such file")


def test_file_deleted_after_opening_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", pngs(2))
    dataset = open_dataset(str(path), 16)
    (path / "00000/img00000001.png").unlink()
    with pytest.raises(UserError, match=r"img00000001\.png: "):
        dataset.image(1)
    with pytest.raises(UserError, match=r"img00000001\.png: "):
        dataset.content_sha256()
