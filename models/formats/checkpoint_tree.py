"""What reading an official checkpoint yields: plain data, stored tensors, and inert records of everything else."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_DIMENSIONS = 8


class RefusedError(ValueError):
    """A file holds what is not data of a checkpoint, or is damaged. The message is one line without the path."""


def shown(text: object, length: int = 80) -> str:
    """A piece of a foreign file as it may stand in a one-line message."""
    kept = str(text)[:length]
    return "".join(char if char.isprintable() else "?" for char in kept) + ("..." if len(str(text)) > length else "")


@dataclass(frozen=True, slots=True)
class Name:
    """A global that a pickle refers to. It is never looked up: this is only its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


@dataclass(eq=False, slots=True)
class Node:
    """An object of a class that is not data: which class, what it was made from, its attributes. It does nothing."""

    cls: Name
    args: object = ()
    state: object = None  # as the pickle has it: a dict, or a pair of dicts where the class has slots
    items: list[object] = field(default_factory=list)  # of a subclass of list or set
    entries: list[tuple[object, object]] = field(default_factory=list)  # of a subclass of dict

    def set_state(self, state: object) -> None:
        """Keep the attributes, which come once."""
        if self.state is not None:
            raise RefusedError(f"the state of {self.cls} is set twice")
        self.state = state

    @property
    def attributes(self) -> dict[Any, Any]:
        """The attributes by name, without those of slots."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, dict) else {}


@dataclass(eq=False, slots=True)
class Storage:
    """A run of numbers in the file, which `StoredTensor` is a view of."""

    dtype: torch.dtype
    numel: int
    data: memoryview | None = None  # None until a container has found the bytes

    def __post_init__(self) -> None:
        if type(self.numel) is not int or self.numel < 0:
            raise RefusedError("a storage of a number of elements that is none")
        if self.data is not None:
            self.fill(self.data)

    def fill(self, data: memoryview) -> None:
        """Give the bytes."""
        if len(data) != self.numel * self.dtype.itemsize:
            raise RefusedError(f"a storage of {self.numel} elements of {self.dtype} has {len(data)} bytes")
        self.data = data


@dataclass(eq=False, slots=True)
class StoredTensor:
    """A tensor that still lies in the file. Its shape and its place in the storage are checked when it is made."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.stride) or len(self.shape) > MAX_DIMENSIONS:
            raise RefusedError(f"a tensor of {len(self.shape)} dimensions and {len(self.stride)} strides")
        numbers = (self.offset, *self.shape, *self.stride)
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise RefusedError("a tensor whose offset, shape or strides are not natural numbers")
        if self.numel and self.offset + self._extent > self.storage.numel:
            raise RefusedError(f"a tensor of shape {list(self.shape)} in a storage of {self.storage.numel} elements")

    def set_state(self, state: object) -> None:  # noqa: ARG002
        """Refuse: a tensor is made at once."""
        raise RefusedError("a state for a tensor")

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""
        return self.storage.dtype

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def _extent(self) -> int:
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))

    def load(self) -> Tensor:
        """Copy it out of the file: contiguous, on the CPU."""
        if not self.numel:
            return torch.empty(self.shape, dtype=self.dtype)
        if self.numel > self.storage.numel:  # a stride of 0 could make a giant of a few bytes
            raise RefusedError(f"a tensor of {self.numel} elements in a storage of {self.storage.numel}")
        if self.storage.data is None:
            raise RefusedError("a tensor whose bytes are not in the file")
        start, itemsize = self.offset * self.dtype.itemsize, self.dtype.itemsize
        raw = np.frombuffer(self.storage.data[start : start + self._extent * itemsize], dtype=np.uint8)
        # numpy's copy is aligned, which numbers in a pickle are not
        flat = torch.from_numpy(raw.copy()).view(self.dtype)
        _forget_pages(self.storage.data)
        return flat.as_strided(self.shape, self.stride).contiguous()


def _forget_pages(data: memoryview) -> None:
    """Give back the memory of a mapped file's pages, which the next reader has the system read again."""
    if isinstance(data.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        data.obj.madvise(mmap.MADV_DONTNEED)
