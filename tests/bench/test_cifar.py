"""CIFAR-10's archive, made here in its layout; and that nothing in its pickles is executed."""

from __future__ import annotations

import codecs
import os
import pickle
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bench import cifar
from bench.datasets import find_datasets, open_dataset, prompt
from bench.errors import UserError

COUNT = 4


def batch(number: int) -> dict[Any, Any]:
    rng = np.random.default_rng(number)
    labels = [int(label) for label in rng.integers(0, 10, COUNT)]
    return {b"data": pixels(number), b"labels": labels, b"batch_label": b"training batch", b"filenames": [b"x.png"]}


def pixels(number: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(100 + number).integers(0, 256, (COUNT, 3072), dtype=np.uint8)


def write_batches(folder: Path, **replaced: bytes) -> Path:
    folder.mkdir()
    for number in range(1, 6):
        name = f"data_batch_{number}"
        (folder / name).write_bytes(replaced.get(name, pickle.dumps(batch(number), protocol=2)))
    (folder / "test_batch").write_bytes(b"never read")
    return folder


def pack(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    return path


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "BATCH_IMAGES", COUNT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_batches(tmp_path / "cifar-10-batches-py")


def test_real_archive_has_fifty_thousand_training_images() -> None:
    assert len(cifar.BATCHES) * 10_000 == 50_000


def test_archive_and_folder_give_the_same_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    pack(folder, tmp_path / "packed" / "cifar-10-python.tar.gz")
    unpacked, packed = open_dataset("cifar10", 32, tmp_path), open_dataset("cifar10", 32, tmp_path / "packed")
    assert len(unpacked) == len(packed) == 5 * COUNT
    for index in range(5 * COUNT):
        planes = pixels(index // COUNT + 1)[index % COUNT].reshape(3, 32, 32)  # red, green, blue, each by rows
        np.testing.assert_array_equal(unpacked.image(index).numpy(), planes)
        np.testing.assert_array_equal(packed.image(index).numpy(), planes)
        assert unpacked.label(index) == batch(index // COUNT + 1)[b"labels"][index % COUNT]
    assert unpacked.content_sha256() == packed.content_sha256()
    assert prompt(packed, 0) == f"a photo of a {cifar.CLASS_NAMES[batch(1)[b'labels'][0]]}"
    assert find_datasets(tmp_path) == find_datasets(tmp_path / "packed") == [("cifar10", 32)]


def test_archive_may_be_opened_by_path(folder: Path, tmp_path: Path) -> None:
    path = pack(folder, tmp_path / "cifar-10-python.tar.gz")
    assert len(open_dataset(str(path), 32)) == len(open_dataset(str(folder), 32)) == 5 * COUNT


def test_text_keys_of_python_3_are_read(tmp_path: Path) -> None:
    text = {key.decode(): value for key, value in batch(1).items()}
    folder = write_batches(tmp_path / "cifar-10-batches-py", data_batch_1=pickle.dumps(text))
    assert len(open_dataset(str(folder), 32)) == 5 * COUNT


def test_other_resolution_names_the_command(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected 64x64 pixels, got 32x32.*python -m bench dataset"):
        open_dataset("cifar10", 64, tmp_path)


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (lambda mark: Call(os.system, f"touch {mark}"), r"posix\.system is refused"),
        (lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"), r"builtin.*eval is refused"),
        (lambda mark: Call(open, str(mark), "w"), r"open is refused"),
        (lambda _: Call(codecs.encode, "x", "rot13"), r"'rot13' is refused"),
        (lambda mark: Call(np.load, str(mark)), r"numpy.*load is refused"),
        (Path, r"pathlib.* is refused"),
    ],
    ids=["system", "eval", "open", "codec", "numpy.load", "class"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickle_that_calls_something_is_refused_by_name(tmp_path: Path, payload: Any, why: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps(batch(2) | {b"extra": payload(mark)}, protocol=protocol)
    folder = write_batches(tmp_path / "cifar-10-batches-py", data_batch_2=data)
    with pytest.raises(UserError, match=why) as caught:
        open_dataset(str(folder), 32)
    assert str(caught.value).startswith(f"{folder}, data_batch_2: ")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot be read as a CIFAR-10 batch"),
        (pickle.dumps(batch(3), protocol=2)[:-200], "cannot be read as a CIFAR-10 batch"),
        (pickle.dumps([1, 2]), "cannot be read as a CIFAR-10 batch"),
        (pickle.dumps({}), r"data must be uint8 \(4, 3072\), got NoneType"),
        (pickle.dumps(batch(3) | {b"data": np.zeros((4, 3072))}), "got float64"),
        (pickle.dumps(batch(3) | {b"data": np.zeros((3, 3072), np.uint8)}), r"got uint8 \(3, 3072\)"),
        (pickle.dumps(batch(3) | {b"labels": [0, 1, 2, 10]}), "labels must be 4 integers from 0 to 9"),
        (pickle.dumps(batch(3) | {b"labels": [0, 1, 2]}), "labels must be 4 integers"),
    ],
)
def test_damaged_batch_is_named(tmp_path: Path, data: bytes, why: str) -> None:
    folder = write_batches(tmp_path / "cifar-10-batches-py", data_batch_3=data)
    with pytest.raises(UserError, match=why) as caught:
        open_dataset(str(folder), 32)
    assert str(caught.value).startswith(f"{folder}, data_batch_3: ")


def test_missing_batch_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match=r"data_batch_4: cannot be read"):
        open_dataset(str(folder), 32)
    with pytest.raises(UserError, match=r"has no cifar-10-batches-py/data_batch_4"):
        open_dataset(str(pack(folder, tmp_path / "cifar-10-python.tar.gz")), 32)


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_truncated_archive_is_named(folder: Path, tmp_path: Path, keep: float) -> None:
    path = pack(folder, tmp_path / "cifar-10-python.tar.gz")
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz: cannot be read"):
        open_dataset(str(path), 32)


def test_link_in_an_archive_is_not_followed(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, str(folder / "data_batch_1")
        archive.addfile(link, BytesIO())
    with pytest.raises(UserError, match="has no cifar-10-batches-py/data_batch_1"):
        open_dataset(str(path), 32)
