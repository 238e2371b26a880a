"""The containers of official checkpoints: torch.save's two formats, nested storages, and what is none of these."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.formats.checkpoint_tree import RefusedError, StoredTensor
from models.formats.torch_files import read_checkpoint
from tests.models.official_pickles import Call, Dialect, OfficialPickler, Ref, dumps

Read = Callable[[bytes], Any]
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(content: bytes) -> Any:
        path = tmp_path / "a.pt"
        path.write_bytes(content)
        return read_checkpoint(path)

    return read


def refusal(read: Read, content: bytes) -> str:
    with pytest.raises(RefusedError) as caught:
        read(content)
    message = str(caught.value)
    assert "\n" not in message
    return message


def saved(content: object, *, as_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


def tensors() -> dict[str, Tensor]:
    """Tensors of every type, and views of shared storages."""
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    return {
        **{str(dtype): torch.tensor([[0, 1], [1, 0], [3, 2]]).to(dtype) for dtype in DTYPES},
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "base": base,
        "part": base[1:, 1:],
        "transposed": base.permute(3, 0, 2, 1),
        "channels last": base.clone().to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base[0, 0]),
    }


@pytest.mark.parametrize("as_zip", [False, True])
def test_files_of_torch_save_are_read(as_zip: bool, read: Read) -> None:
    expected = tensors()
    found = read(saved({"state_dict": expected, "step": 3}, as_zip=as_zip))
    assert found["step"] == 3
    for name, tensor in expected.items():
        loaded = found["state_dict"][name].load()
        assert loaded.dtype == tensor.dtype
        assert torch.equal(loaded, tensor), name
        assert loaded.is_contiguous()


@pytest.mark.parametrize("dialect", [Dialect(2), Dialect(3), Dialect(4), Dialect(5)])
def test_tensors_within_plain_pickles_are_read(dialect: Dialect, read: Read) -> None:
    expected = tensors()
    found = read(dumps(expected, dialect))
    assert all(torch.equal(found[name].load(), tensor) for name, tensor in expected.items())


def test_state_dict_with_metadata_is_a_dict_of_tensors(read: Read) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    found = read(saved(network.state_dict(), as_zip=True))
    assert list(found) == list(network.state_dict())


def test_loading_a_tensor_leaves_the_file_alone(read: Read, tmp_path: Path) -> None:
    content = saved({"a": torch.ones(3)}, as_zip=False)
    loaded = read(content)["a"].load()
    loaded += 1
    assert read_checkpoint(tmp_path / "a.pt")["a"].load().tolist() == [1, 1, 1]  # type: ignore[index]
    assert (tmp_path / "a.pt").read_bytes() == content


class Storage:
    """What becomes a persistent id."""

    def __init__(self, *identity: Any) -> None:
        self.identity = ("storage", *identity)


class LegacyPickler(OfficialPickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, Storage) else None


def legacy(content: object, keys: object, *data: bytes, version: int = 1001, little: object = True) -> bytes:
    """A file, or a nested storage, as torch.save wrote it."""
    file = io.BytesIO()
    LegacyPickler(file, Dialect(2)).dump(content)
    head = MAGIC + pickle.dumps(version, 2) + pickle.dumps({"little_endian": little}, 2)
    return head + file.getvalue() + pickle.dumps(keys, 2) + b"".join(data)


FLOATS = struct.pack("<Q3f", 3, 1, 2, 3)
FLOAT_STORAGE = Ref("torch", "FloatStorage")


def nested(raw: object) -> bytes:
    """A tensor in a plain pickle whose storage is these bytes."""
    storage = Call(Ref("torch.storage", "_load_from_bytes"), (raw,))
    return dumps({"a": Call(Ref("torch._utils", "_rebuild_tensor_v2"), (storage, 0, (3,), (1,), False, {}))})


@pytest.mark.parametrize(
    "identity",
    [
        (FLOAT_STORAGE, "94", "cpu", 3),  # the oldest files have one entry less
        (FLOAT_STORAGE, "94", "cpu", 3, None),
        (FLOAT_STORAGE, "94", "cuda:7", 3, None),
    ],
)
def test_nested_storages_of_all_versions_are_read(identity: tuple[Any, ...], read: Read) -> None:
    found = read(nested(legacy(Storage(*identity), ["94"], FLOATS)))
    assert found["a"].load().tolist() == [1, 2, 3]


def test_views_of_a_legacy_storage_are_read(read: Read) -> None:
    view = Storage(FLOAT_STORAGE, "94", "cpu", 3, ("95", 1, 2))
    tensor = Call(Ref("torch._utils", "_rebuild_tensor"), (view, 0, (2,), (1,)))
    assert read(legacy({"a": tensor}, ["94"], FLOATS))["a"].load().tolist() == [2, 3]
    for wrong in ((), ("95", 2, 2), ("95", -1, 2), ("95", 1, "2"), "view", ("95", 1.0, 1), ("95", 0, -1)):
        refusal(read, legacy(Storage(FLOAT_STORAGE, "94", "cpu", 3, wrong), ["94"], FLOATS))


def test_several_storages_in_any_order_are_read(read: Read) -> None:
    halves = Storage(Ref("torch", "HalfStorage"), "b", "cpu", 2, None)
    floats = Storage(FLOAT_STORAGE, "a", "cpu", 3, None)
    made = {
        "a": Call(Ref("torch._utils", "_rebuild_tensor_v2"), (floats, 1, (2,), (1,), False, {})),
        "b": Call(Ref("torch._utils", "_rebuild_tensor_v2"), (halves, 0, (2,), (1,), False, {})),
    }
    found = read(legacy(made, ["b", "a"], struct.pack("<Q2e", 2, 5, 6), FLOATS))
    assert (found["a"].load().tolist(), found["b"].load().tolist()) == ([2, 3], [5, 6])


GOOD = Storage(FLOAT_STORAGE, "94", "cpu", 3, None)
BAD_STORAGES: dict[str, bytes | str] = {
    "declared other than stored": legacy(GOOD, ["94"], struct.pack("<Q3f", 2, 1, 2, 3)),
    "declared as a giant": legacy(GOOD, ["94"], struct.pack("<Q3f", 2**63, 1, 2, 3)),
    "cut short": legacy(GOOD, ["94"], FLOATS[:-1]),
    "more behind": legacy(GOOD, ["94"], FLOATS, b"x"),
    "giant": legacy(Storage(FLOAT_STORAGE, "94", "cpu", 2**60, None), ["94"], FLOATS),
    "negative": legacy(Storage(FLOAT_STORAGE, "94", "cpu", -1, None), ["94"], FLOATS),
    "no key": legacy(GOOD, [], FLOATS),
    "other key": legacy(GOOD, ["95"], FLOATS),
    "key twice": legacy(GOOD, ["94", "94"], FLOATS, FLOATS),
    "keys that are none": legacy(GOOD, [("94",)], FLOATS),
    "keys in a dict": legacy(GOOD, {"94": 1}, FLOATS),
    "two types": legacy([GOOD, Storage(Ref("torch", "IntStorage"), "94", "cpu", 3, None)], ["94"], FLOATS),
    "no storage": legacy([GOOD], ["94"], FLOATS),
    "another version": legacy(GOOD, ["94"], FLOATS, version=1000),
    "big-endian": legacy(GOOD, ["94"], FLOATS, little=False),
    "unknown type": legacy(Storage(Ref("torch", "QInt8Storage"), "94", "cpu", 3, None), ["94"], FLOATS),
    "type of another module": legacy(Storage(Ref("os", "FloatStorage"), "94", "cpu", 3, None), ["94"], FLOATS),
    "type that is a text": legacy(Storage("FloatStorage", "94", "cpu", 3, None), ["94"], FLOATS),
    "a module": legacy(Call(Ref("torch.nn", "a"), (Storage(),)), [], b""),
    "key that is a path": legacy(Storage(FLOAT_STORAGE, ["../a"], "cpu", 3, None), ["94"], FLOATS),
    "no magic": pickle.dumps(1, 2),
    "a plain pickle": pickle.dumps([1], 2),
    "nothing": b"",
    "a zip": saved({"a": torch.ones(3)}, as_zip=True),
    "text": "not bytes",
}


@pytest.mark.parametrize("kind", BAD_STORAGES)
def test_nested_storages_that_are_wrong_are_refused(kind: str, read: Read) -> None:
    refusal(read, nested(BAD_STORAGES[kind]))


def test_nested_storages_execute_nothing(read: Read, tmp_path: Path) -> None:
    """Each of the five pickles of a nested storage goes through the restricted reader, which knows no names there."""
    mark = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {mark}",)

    attack = pickle.dumps(Attack(), 2)
    good = legacy(GOOD, ["94"], FLOATS)
    parts = [MAGIC, pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    for count in range(4):
        assert "posix.system" in refusal(read, nested(b"".join(parts[:count]) + attack + good))
    start = good.index(b"}") - 2
    assert "posix.system" in refusal(read, nested(good[:start] + attack + good[start:]))
    listed = good.index(b"\x80\x02]")
    assert "posix.system" in refusal(read, nested(good[:listed] + attack + good[listed:]))
    refusal(read, nested(nested(good)))  # storages in storages would nest without end
    assert not mark.exists()


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def members(key: str = "0", numel: int = 3) -> dict[str, bytes]:
    file = io.BytesIO()
    storage = Storage(FLOAT_STORAGE, key, "cpu", numel)
    LegacyPickler(file, Dialect(2)).dump(
        {"a": Call(Ref("torch._utils", "_rebuild_tensor_v2"), (storage, 0, (3,), (1,), False, {}))}
    )
    return {"archive/data.pkl": file.getvalue(), "archive/data/0": FLOATS[8:], "archive/version": b"3\n"}


def test_archive_by_another_writer_is_read(read: Read) -> None:
    assert read(archive(members()))["a"].load().tolist() == [1, 2, 3]
    assert read(archive({**members(), "archive/byteorder": b"little"}))["a"].load().tolist() == [1, 2, 3]


BAD_ARCHIVES: dict[str, tuple[dict[str, bytes], str]] = {
    "no pickle": ({"a/b": b"1"}, "torch.save has not written it"),
    "two pickles": ({**members(), "other/data.pkl": b"N."}, "torch.save has not written it"),
    "a program": ({**members(), "archive/code/__torch__.py": b"import os"}, "TorchScript"),
    "constants of a program": ({**members(), "archive/constants.pkl": b"N."}, "TorchScript"),
    "big-endian": ({**members(), "archive/byteorder": b"big"}, "big-endian"),
    "a storage that is not there": (members("1"), "no archive/data/1"),
    "a key that leads out": (members("../../../etc/passwd"), r"no archive/data/../../../etc/passwd"),
    "an absolute key": (members("/etc/passwd"), "no archive/data//etc/passwd"),
    "a name that leads out": ({**members(), "archive/../../a": b""}, "leads out of it"),
    "an absolute name": ({**members(), "/tmp/a": b""}, "leads out of it"),
    "a name of another system": ({**members(), "C:\\a": b""}, "leads out of it"),
    "a storage of another size": ({**members(), "archive/data/0": b"1234"}, "3 elements of torch.float32 has 4 bytes"),
    "a storage that is too large": (members(numel=2**40), "has 12 bytes"),
    "more behind the pickle": ({**members(), "archive/data.pkl": b"N.N."}, "2 bytes follow the end"),
    "an attack": ({**members(), "archive/data.pkl": b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R."}, "posix.system"),
    "a nested storage": ({"a/data.pkl": nested(legacy(GOOD, ["94"], FLOATS))}, "_load_from_bytes"),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_archives_that_are_wrong_are_refused(kind: str, read: Read) -> None:
    content, message = BAD_ARCHIVES[kind]
    assert message in refusal(read, archive(content))


def test_compressed_archives_are_refused_unopened(read: Read) -> None:
    bomb = archive({"archive/data.pkl": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10**6
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "is compressed" in refusal(read, archive(members(), method))
    assert "is compressed" in refusal(read, bomb)


def test_archive_that_lies_about_places_and_sizes_is_refused(read: Read) -> None:
    whole = archive(members())
    directory = whole.index(b"PK\x01\x02")
    fields = {"method": 10, "packed size": 20, "size": 24, "name length": 28, "offset": 42}
    for at in fields.values():
        for value in (b"\xff\xff", b"\x01\x00"):
            changed = whole[: directory + at] + value + whole[directory + at + 2 :]
            if changed != whole:
                refusal(read, changed)
    end = len(whole) - 22
    for at, value in ((10, b"\xff\xff"), (16, b"\xff\xff\xff\xff"), (16, b"\xff\xff\xff\x7f"), (16, b"\x00" * 4)):
        refusal(read, whole[: end + at] + value + whole[end + at + len(value) :])


def test_member_that_is_there_twice_is_refused(read: Read) -> None:
    twice = archive({**members(), "archive/data/1": b""})
    assert "double" in refusal(read, twice.replace(b"archive/data/1", b"archive/data/0"))


@pytest.mark.parametrize("as_zip", [False, True])
def test_truncated_files_are_refused(as_zip: bool, read: Read) -> None:
    whole = saved({"a": torch.arange(3.0)}, as_zip=as_zip)
    for length in range(0, len(whole), 1 if not as_zip else 7):
        refusal(read, whole[:length])


def tar_of_old_torch() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("sys_info", "pickle", "storages"):
            file.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (gzip.compress(pickle.dumps({})), "gzip"),
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (tar_of_old_torch(), "tar archive"),
        (b"PK\x03\x04", "without its directory"),
        (b"\x7fELF" + bytes(100), "no opcode"),
        (pickle.dumps({}, 4) + b"more", "4 bytes follow the end"),
        (dumps({}) + MAGIC, "follow the end"),
    ],
    ids=range(12),
)
def test_other_formats_are_refused_by_name(content: bytes, message: str, read: Read) -> None:
    assert message in refusal(read, content)


def test_persistent_ids_are_only_for_files_of_torch(read: Read) -> None:
    file = io.BytesIO()
    LegacyPickler(file, Dialect(4)).dump(GOOD)
    assert "persistent id" in refusal(read, file.getvalue())


def test_opcodes_of_all_nested_storages_are_counted(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """One storage of many opcodes, named again and again, would keep the reader busy forever."""
    monkeypatch.setattr("models.formats.unpickling._FREE_UNITS", 20_000)
    slow = legacy([GOOD, *range(3000)], ["94"], FLOATS)
    storages = [Call(Ref("torch.storage", "_load_from_bytes"), (slow,)) for _ in range(3)]
    assert "nested storage that is not one storage" in refusal(read, dumps(storages))
    slow = legacy(GOOD, ["94"], FLOATS).replace(MAGIC, b"\x80\x02" + b"N0" * 4000 + MAGIC[2:])
    storages = [Call(Ref("torch.storage", "_load_from_bytes"), (slow,)) for _ in range(5)]
    assert "far more objects" in refusal(read, dumps(storages))


def test_stored_tensor_has_no_state(read: Read) -> None:
    tensor = Call(Ref("torch._utils", "_rebuild_tensor"), (GOOD, 0, (3,), (1,)), {"a": 1})
    assert "a state for a tensor" in refusal(read, legacy(tensor, ["94"], FLOATS))
    assert isinstance(read(legacy(Call(tensor.function, tensor.args), ["94"], FLOATS)), StoredTensor)
