"""The policy of reading pickles: which names are data and how these are rebuilt, and which become inert records.

A name that is in none of the tables refuses the file. Nothing here calls anything that a file has chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.formats.checkpoint_tree import MAX_DIMENSIONS, Name, Node, RefusedError, Storage, StoredTensor, shown

_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
STORAGES = {Name("torch", f"{name}Storage"): dtype for name, dtype in _DTYPES.items()}
_NUMPY_DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8, "i2": torch.int16,
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip
_TORCH_NAMES = {name.name for name in STORAGES} | {
    "device", "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
}  # fmt: skip
# Classes and functions of these become records: modules of networks by reference, and what dill writes of code.
_INERT_MODULES = (
    "torch.nn", "torch.utils.hooks", "torchvision", "timm", "open_clip", "clip", "dill", "dnnlib", "torch_utils",
    "training", "networks", "pg_modules", "feature_networks",
)  # fmt: skip
_INERT_NAMES = {
    *(("torch", name) for name in _TORCH_NAMES),
    *((module, name) for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "slice", "complex")),
    ("numpy", "ndarray"),
    ("builtins", "setattr"),  # only ever an argument, see `_dill_setattr`
    ("__builtin__", "__main__"),  # dill's word for the main module's variables
}


def is_inert(module: str, name: str) -> bool:
    """Whether this class or function becomes a record that does nothing."""
    return (module, name) in _INERT_NAMES or any(
        module == known or module.startswith(known + ".") for known in _INERT_MODULES
    )


def _tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise RefusedError("a tensor that is not of a storage, a shape and strides")
    return StoredTensor(storage, offset, shape, stride)  # type: ignore[arg-type]  # checks the numbers


def _first(value: object, *_: object) -> object:
    return value


def _empty_dict() -> dict[object, object]:
    return {}


def _no_bytes() -> memoryview:
    return memoryview(b"")


def _persistent_object(meta: object) -> Node:
    """An object whose file carries the source of its class, which the official loader executes and this one drops."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise RefusedError("a persistent object without type and class name")
    return Node(Name("torch_utils.persistence", meta["class_name"]), (), meta.get("state"))


def _encode(text: object, encoding: object) -> memoryview:
    """The bytes that pickles of protocol 2 write as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError("bytes in an encoding other than latin-1")
    return memoryview(text.encode("latin-1"))


def _numpy_dtype(described: object) -> torch.dtype:
    if not isinstance(described, Node) or described.cls != Name("numpy", "dtype"):
        raise RefusedError("an array without a numpy.dtype")
    code = described.args[0] if isinstance(described.args, tuple) and described.args else None
    order = described.state[1] if isinstance(described.state, tuple) and len(described.state) > 1 else "|"
    if not isinstance(code, str) or code not in _NUMPY_DTYPES or order not in ("<", "|", "="):
        given = shown(code) if isinstance(code, str) else "a type that is not named"
        raise RefusedError(f"refused: a numpy array of {given}; known are {', '.join(_NUMPY_DTYPES)}")
    return _NUMPY_DTYPES[code]


@dataclass(eq=False, slots=True)
class _NumpyArray(StoredTensor):
    """An array, which comes empty and gets its content as its state."""

    def set_state(self, state: object) -> None:
        """Take (version, shape, type, whether in Fortran's order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise RefusedError("an array whose state is not version, shape, type, order and bytes")
        _, shape, dtype, fortran, raw = state
        filled = _array(raw, dtype, shape, "F" if fortran is True else "C")
        self.storage, self.shape, self.stride = filled.storage, filled.shape, filled.stride


def _empty_array(*_: object) -> _NumpyArray:
    return _NumpyArray(Storage(torch.uint8, 0), 0, (0,), (1,))


def _array(raw: object, described: object, shape: object, order: object) -> StoredTensor:
    if not isinstance(raw, memoryview) or not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
        raise RefusedError("refused: an array that is not of bytes and a shape")
    dtype = _numpy_dtype(described)
    strides, step = [], 1
    for size in shape if order == "F" else reversed(shape):
        strides.append(step)
        step *= size
    stride = tuple(strides if order == "F" else reversed(strides))
    return StoredTensor(Storage(dtype, step, raw), 0, shape, stride)


def _scalar(described: object, raw: object) -> float | int | bool:
    return _array(raw, described, (), "C").load().item()


def _dill_array(_reconstruct: object, _args: object, state: object, _attributes: object = None) -> StoredTensor:
    array = _empty_array()
    array.set_state(state)
    return array


def _dill_setattr(owner: object, name: object, default: object) -> Node:
    """How dill fills the cell of a closure: getattr(dill._dill, "_setattr", setattr). Any other use is refused."""
    if (owner, name, default) != (Name("dill", "_dill"), "_setattr", Name("builtins", "setattr")):
        raise RefusedError("refused: builtins.getattr is not of a checkpoint's data")
    return Node(Name("dill", "_setattr"))


def _refused_setattr(*_: object) -> object:
    raise RefusedError("refused: builtins.setattr is not of a checkpoint's data")


_NUMPY: dict[str, Callable[..., object]] = {"_reconstruct": _empty_array, "scalar": _scalar}
CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _empty_dict,
    "dnnlib.util.EasyDict": _empty_dict,
    "torch.Size": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    **{f"{core}.multiarray.{name}": call for core in ("numpy.core", "numpy._core") for name, call in _NUMPY.items()},
    **{f"{core}.numeric._frombuffer": _array for core in ("numpy.core", "numpy._core")},
    "numpy.dtype": lambda *args: Node(Name("numpy", "dtype"), args),
    "_codecs.encode": _encode,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
    "dill._dill._create_array": _dill_array,
    "builtins.getattr": _dill_setattr,
    "builtins.setattr": _refused_setattr,
}
