"""Safetensors files tensor by tensor, so that networks larger than the memory left can be read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class SafetensorsState(Mapping[str, Tensor]):
    """A state dict in a file: tensors are mapped into memory, and read when their values are first needed.

    Raises:
        OSError: the file can't be read.
        ValueError: it is damaged or of another format.
    """

    def __init__(self, path: Path) -> None:
        self._file: Any  # the library has no types
        try:
            self._file = safe_open(path, "pt")
        except SafetensorError as error:
            raise ValueError(
                f"not a whole safetensors file ({error}); {path.stat().st_size} bytes. Fetch or save it again"
            ) from error
        self._names: list[str] = list(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_safetensors(
    path: Path, like: Mapping[str, Tensor], state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write the tensors of `state`, one at a time, with the names, shapes and types of `like`.

    The file appears under its name only when it is whole. Equal tensors give equal files.

    Raises:
        OSError: there is no room, or the file can't be written.
    """
    # the largest numbers first, which keeps all of them aligned
    names = sorted(like, key=lambda name: (-like[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in names:
        begin, end = end, end + like[name].numel() * like[name].dtype.itemsize
        header[name] = {
            "dtype": _NAMES[like[name].dtype],
            "shape": list(like[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps({"__metadata__": dict(metadata), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                tensor = state[name].detach().cpu().contiguous()
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{path}: it can't be written: {reason}. It takes {end / 1e6:,.1f} MB there") from error
    finally:
        if partial.is_file():
            partial.unlink()
