"""The files that hold official checkpoints: plain pickles and both formats of torch.save, read as data.

A file is mapped into memory and stays there: tensors are views of it until they are loaded. Archives are not unpacked,
so that neither the names nor the sizes that they declare can do harm.
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from models.formats.checkpoint_tree import Name, RefusedError, Storage, shown
from models.formats.rebuilding import CALLS, STORAGES, is_inert
from models.formats.unpickling import Budget, Rules, unpickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_FOREIGN = {  # beginnings of files that are no checkpoints of ours
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x89HDF": "an HDF5 file",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"<": "a web page or XML; fetch the file again",
    b"version https://git-lfs": "a pointer of Git LFS and not the file that it stands for",
}


def read_checkpoint(path: Path) -> object:
    """Read a .pkl, or a .pt, .pth or .bin of torch.save, as a tree.

    The tree has dicts, lists, tuples, numbers, texts, `memoryview` for bytes, `StoredTensor`, and `Node` and `Name` for
    classes. Nothing of the file is executed.

    Raises:
        OSError: the file can't be read.
        RefusedError: it is damaged, of another format, or holds what is not data of a checkpoint.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise RefusedError("the file is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    budget = Budget.of_file(len(data))
    start = bytes(data[:512])
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise RefusedError(f"refused: it is {what}")
    if start[257:262] == b"ustar":
        raise RefusedError("refused: it is a tar archive, as torch.save wrote before version 0.2. Save it again")
    if start.startswith(b"PK"):
        return _read_archive(data, budget)
    load = functools.partial(_load_from_bytes, budget=budget)
    rules = Rules({**CALLS, "torch.storage._load_from_bytes": load}, is_inert)
    value, end = unpickle(data, 0, rules, budget)
    if value == _LEGACY_MAGIC and type(value) is int:
        value, end = _read_legacy(data, end, budget)
    if end != len(data):
        raise RefusedError(f"damaged: {len(data) - end} bytes follow the end of the pickle at byte {end}")
    return value


@dataclass(slots=True)
class _Storages:
    """The storages that the persistent ids of one file name."""

    find: Callable[[str], memoryview | None]  # the bytes of a key, if they are known yet
    by_key: dict[str, Storage] = field(default_factory=dict)
    views: list[tuple[Storage, Storage, int]] = field(default_factory=list)  # view, base, first element

    def resolve(self, identity: object) -> Storage:
        """The storage of ("storage", class, key, location, number of elements[, view])."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise RefusedError("refused: a persistent id that is not of a storage")
        _, cls, key, _, numel = identity[:5]
        dtype = STORAGES.get(cls) if isinstance(cls, Name) else None
        if dtype is None or not isinstance(key, str):
            raise RefusedError(f"refused: a storage of {cls if isinstance(cls, Name) else 'no known type'}")
        if key not in self.by_key:
            self.by_key[key] = Storage(dtype, numel, self.find(key))
        base = self.by_key[key]
        if (base.dtype, base.numel) != (dtype, numel):
            raise RefusedError(f"storage {shown(key)} is declared twice, with different types or sizes")
        return self._view(base, identity[5]) if len(identity) == 6 and identity[5] is not None else base

    def _view(self, base: Storage, described: object) -> Storage:
        """A part of a storage, which files of old versions have: (key, first element, number of elements)."""
        if not isinstance(described, tuple) or len(described) != 3:
            raise RefusedError("damaged: a view of a storage that is not key, offset and size")
        _, offset, numel = described
        view = Storage(base.dtype, numel)
        if type(offset) is not int or not 0 <= offset <= base.numel - view.numel:
            raise RefusedError(f"damaged: a view of {view.numel} elements of a storage of {base.numel}")
        self.views.append((view, base, offset))
        return view

    def finish(self) -> None:
        """Give the views their bytes, once all storages have theirs."""
        for view, base, offset in self.views:
            if base.data is not None:
                itemsize = base.dtype.itemsize
                view.fill(base.data[offset * itemsize : (offset + view.numel) * itemsize])


def _load_from_bytes(raw: object, budget: Budget) -> Storage:
    """A storage within a pickle: bytes that torch.save has written of it alone."""
    if not isinstance(raw, memoryview):
        raise RefusedError("refused: a storage that is not bytes")
    magic, end = unpickle(raw, 0, _PLAIN, budget)
    if magic != _LEGACY_MAGIC:
        raise RefusedError("refused: a nested storage that torch.save has not written")
    storage, end = _read_legacy(raw, end, budget)
    if not isinstance(storage, Storage) or end != len(raw):
        raise RefusedError("refused: a nested storage that is not one storage")
    return storage


_PLAIN = Rules({}, lambda module, name: False)  # noqa: ARG005  # numbers and texts, no names at all


def _read_legacy(data: memoryview, position: int, budget: Budget) -> tuple[object, int]:
    """The rest of a file of torch.save before version 1.6: four more pickles, then the bytes of each storage."""
    version, position = unpickle(data, position, _PLAIN, budget)
    system, position = unpickle(data, position, _PLAIN, budget)
    if version != _LEGACY_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise RefusedError("refused: torch.save wrote it in another version, or on a big-endian machine")
    storages = _Storages(lambda key: None)  # noqa: ARG005
    value, position = unpickle(data, position, Rules(CALLS, is_inert, storages.resolve), budget)
    keys, position = unpickle(data, position, _PLAIN, budget)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(keys) != len(set(keys)):
        raise RefusedError("damaged: the list of its storages is not one of names")
    if set(keys) != storages.by_key.keys():
        raise RefusedError("damaged: the list of its storages does not fit what refers to them")
    for key in keys:
        position = _fill(storages.by_key[key], data, position)
    storages.finish()
    return value, position


def _fill(storage: Storage, data: memoryview, position: int) -> int:
    """Give a storage its bytes, which follow their number of elements. Returns where they end."""
    end = position + 8 + storage.numel * storage.dtype.itemsize
    if end > len(data):
        raise RefusedError(f"cut short: a storage ends at byte {end} of {len(data)}")
    if (declared := int.from_bytes(data[position : position + 8], "little")) != storage.numel:
        raise RefusedError(f"damaged: a storage of {storage.numel} elements is stored as {declared}")
    storage.fill(data[position + 8 : end])
    return end


def _read_archive(data: memoryview, budget: Budget) -> object:
    """A zip of torch.save since version 1.6: a pickle, and one member for each storage."""
    members = _members(data, budget)
    roots = [name.removesuffix("/data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise RefusedError("refused: it is a zip archive, but torch.save has not written it (no data.pkl)")
    root = roots[0]
    if any(name.startswith(f"{root}/code/") or name == f"{root}/constants.pkl" for name in members):
        raise RefusedError("refused: it is a TorchScript archive, which is a program. Save its state dict instead")
    if bytes(members.get(f"{root}/byteorder", memoryview(b"little"))[:8]) != b"little":
        raise RefusedError("refused: torch.save wrote it on a big-endian machine")
    storages = _Storages(lambda key: _member(members, f"{root}/data/{key}"))
    pickled = members[f"{root}/data.pkl"]
    value, end = unpickle(pickled, 0, Rules(CALLS, is_inert, storages.resolve), budget)
    storages.finish()
    if end != len(pickled):
        raise RefusedError(f"damaged: {len(pickled) - end} bytes follow the end of {shown(root)}/data.pkl")
    return value


def _member(members: Mapping[str, memoryview], name: str) -> memoryview:
    if name not in members:
        raise RefusedError(f"damaged: the archive has no {shown(name)}")
    return members[name]


_END = struct.Struct("<4s4H2LH")  # signature, disks, entries, size and offset of the directory, length of the comment
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


def _members(data: memoryview, budget: Budget) -> dict[str, memoryview]:
    """The members of a zip archive, where they lie. All are stored: torch.save compresses nothing."""
    if len(data) < _END.size or bytes(data[-_END.size : -_END.size + 4]) != b"PK\x05\x06":
        raise RefusedError("cut short: a zip archive without its directory")
    _, _, _, _, count, _, position, _ = _END.unpack(data[-_END.size :])
    if position == 2**32 - 1:
        raise RefusedError("refused: archives of more than 4 GB are not read")
    members: dict[str, memoryview] = {}
    for _ in range(count):
        budget.spend(2)
        if position + _ENTRY.size > len(data):
            raise RefusedError("damaged: the directory of the archive leads out of it")
        entry = _ENTRY.unpack(data[position : position + _ENTRY.size])
        signature, flags, method, packed, size = entry[0], entry[3], entry[4], entry[8], entry[9]
        raw_name = data[position + _ENTRY.size : position + _ENTRY.size + entry[10]]
        name = str(raw_name, "utf-8", "replace")
        position += _ENTRY.size + sum(entry[10:13])
        if signature != b"PK\x01\x02" or name in members or _leads_out(name):
            raise RefusedError(f"refused: member {shown(name)} of the archive is damaged, double or leads out of it")
        if method or packed != size or flags & 1:
            raise RefusedError(f"refused: member {shown(name)} of the archive is compressed or encrypted")
        members[name] = _content(data, entry[-1], size, name)
    return members


def _leads_out(name: str) -> bool:
    return name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/")


def _content(data: memoryview, offset: int, size: int, name: str) -> memoryview:
    """The bytes of a member, which follow a header of their own."""
    header = data[offset : offset + _LOCAL.size]
    if len(header) < _LOCAL.size or bytes(header[:4]) != b"PK\x03\x04":
        raise RefusedError(f"damaged: member {shown(name)} is not where the archive says")
    start = offset + _LOCAL.size + sum(_LOCAL.unpack(header)[-2:])
    if start + size > len(data):
        raise RefusedError(f"cut short: member {shown(name)} leads out of the file")
    return data[start : start + size]
