"""Writes checkpoints in the official formats, from networks of ours and without a line of the official code.

Class and function names are written as text, so that none of the official packages needs to be there. The module
sources in the files leave a mark if they are ever executed.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

Attributes = Callable[[str, nn.Module], dict[str, Any]]


@dataclass(frozen=True)
class Ref:
    """A class or function by name."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """What a pickle says of an object: call this with that, then set state, items and entries."""

    function: Any
    args: tuple[Any, ...] = ()
    state: Any = None
    new: bool = False  # NEWOBJ, as for classes, and not REDUCE
    entries: dict[Any, Any] = field(default_factory=dict)


class EasyDict(dict[str, Any]):
    """Written as dnnlib.util.EasyDict."""


@dataclass(frozen=True)
class Dialect:
    """How a file is written."""

    protocol: int = 4
    numpy_1: bool = False
    dill: bool = False


class OfficialPickler(pickle._Pickler):
    """The pickler in Python, whose methods can be replaced; their types are not published."""

    save: Callable[[object], None]
    write: Callable[[bytes], object]
    memo: dict[int, Any]
    memoize: Callable[[object], None]
    save_reduce: Callable[..., None]
    _batch_setitems: Callable[[Any], None]
    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO, dialect: Dialect) -> None:
        super().__init__(file, dialect.protocol)
        self.dialect = dialect

    def write_name(self, module: str, name: str, of: object) -> None:
        if self.dialect.numpy_1:
            module = module.replace("numpy._core", "numpy.core")
        if self.dialect.protocol >= 4:
            self.save(module)
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(of)

    def save_ref(self, ref: Ref) -> None:
        self.write_name(ref.module, ref.name, ref)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        self.write_name(obj.__module__ or "builtins", name or obj.__qualname__, obj)

    def save_call(self, call: Call) -> None:
        self.save(call.function)
        self.save(call.args)
        self.write(pickle.NEWOBJ if call.new else pickle.REDUCE)
        self.memoize(call)
        if call.entries:
            self._batch_setitems(call.entries.items())
        if call.state is not None:
            self.save(call.state)
            self.write(pickle.BUILD)

    def save_easy_dict(self, values: EasyDict) -> None:
        self.save(Call(_EASY_DICT, (), new=True, entries=dict(values)))

    def save_array(self, array: np.ndarray[Any, Any]) -> None:
        function, args, state = cast("tuple[Any, Any, Any]", array.__reduce__())
        if self.dialect.dill:
            self.save(Call(_CREATE_ARRAY, (function, args, state, None)))
        else:
            self.save_reduce(function, args, state, obj=array)

    dispatch[Ref] = save_ref
    dispatch[Call] = save_call
    dispatch[EasyDict] = save_easy_dict
    dispatch[np.ndarray] = save_array
    dispatch[type(len)] = save_global
    dispatch[type(Path.exists)] = save_global
    dispatch[type] = save_global


_EASY_DICT = Ref("dnnlib.util", "EasyDict")
_PERSISTENT = Ref("torch_utils.persistence", "_reconstruct_persistent_obj")
_CREATE_ARRAY = Ref("dill._dill", "_create_array")


def dumps(content: object, dialect: Dialect = Dialect()) -> bytes:
    """The pickle of content with `Call`, `Ref` and `EasyDict` in it."""
    file = io.BytesIO()
    OfficialPickler(file, dialect).dump(content)
    return file.getvalue()


def module_source(mark: Path) -> str:
    """Source of a class, as these files carry it; it leaves a mark when it is executed."""
    return f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Generator:\n    pass\n"


def persistent(state: Mapping[str, Any], class_name: str, source: str) -> Call:
    """An object of a persistent class."""
    meta = EasyDict(type="class", version=6, module_src=source, class_name=class_name, state=dict(state))
    return Call(_PERSISTENT, (meta,))


@dataclass(frozen=True)
class Official:
    """How a network is written: name and arguments of its official class, and attributes of its modules."""

    class_name: str
    kwargs: Mapping[str, Any]
    attributes: Attributes = lambda path, module: {}
    by_reference: str | None = None  # Python module of classes that are not persistent
    source: str = "raise SystemExit('executed')"


def module_object(network: nn.Module, official: Official, path: str = "") -> Call:
    """The official object of a network of ours, whose modules have the official names."""
    state: dict[str, Any] = {
        "training": False,
        "_parameters": OrderedDict(network._parameters),
        "_buffers": OrderedDict(network._buffers),
        "_non_persistent_buffers_set": set(network._non_persistent_buffers_set),
        "_backward_hooks": OrderedDict(),
        "_forward_hooks": OrderedDict(),
        "_modules": OrderedDict(
            (name, None if child is None else module_object(child, official, f"{path}.{name}".lstrip(".")))
            for name, child in network._modules.items()
        ),
        **official.attributes(path, network),
    }
    name = type(network).__name__ if path else official.class_name
    if type(network).__module__.startswith("torch.nn"):
        return Call(Ref(type(network).__module__, name), (), state, new=True)
    if official.by_reference is not None:
        return Call(Ref(official.by_reference, name), (), state, new=True)
    state |= {"_init_args": (), "_init_kwargs": EasyDict({} if path else official.kwargs)}
    return persistent(state, name, official.source)


def checkpoint(g_ema: object, **others: object) -> dict[str, object]:
    """The dict that the files of StyleGAN2-ADA and its successors have."""
    return {
        "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", path="/data/a.zip"),
        "G": None,
        "D": None,
        "augment_pipe": None,
        **others,
        "G_ema": g_ema,
    }


def dill_function(name: str) -> Call:
    """A closure of a forward hook, as dill writes it: code object, cell and all."""
    code = Call(Ref("dill._dill", "_create_code"), (3, 0, 0, b"\x95\x01", (None,), ("acts",), "hook", 5, b"", b""))
    variables = Ref("feature_networks.vit", "__dict__")
    cell = Call(Ref("dill._dill", "_create_cell"), (None,))
    function = Ref("dill._dill", "_create_function")
    return Call(function, (code, variables, name, None, (cell,)), ({}, {"__qualname__": name}))


def dill_discriminator() -> Call:
    """A discriminator as StyleGAN-XL has it: by reference, with spectral norm, hooks and methods of dill."""
    norm = Call(Ref("torch.nn.utils.spectral_norm", "SpectralNorm"), (), {"name": "weight", "dim": 0}, new=True)
    method = Call(Ref("dill._dill", "_load_type"), ("MethodType",))
    setter = Call(Ref("builtins", "getattr"), (Ref("dill", "_dill"), "_setattr", Ref("builtins", "setattr")))
    state = {
        "_parameters": OrderedDict(weight_orig=nn.Parameter(torch.ones(2, 2))),
        "_buffers": OrderedDict(),
        "_modules": OrderedDict(act=Call(Ref("torch.nn.modules.activation", "SiLU"), (), {"inplace": True}, new=True)),
        "_forward_hooks": OrderedDict({0: dill_function("get_activation.<locals>.hook"), 1: norm}),
        "forward_flex": Call(method, (Ref("feature_networks.vit", "forward_flex"), norm)),
        "cell": Call(setter, (norm, "cell_contents", 3)),
        "mean": np.arange(3.0),
        "dtype": Ref("torch", "float32"),
        "names": {"a", "b"},
    }
    return Call(Ref("pg_modules.discriminator", "ProjectedDiscriminator"), (), state, new=True)


def tensorflow_network(name: str, static: Mapping[str, Any], variables: Mapping[str, Any], **components: Call) -> Call:
    """A network of the TensorFlow files."""
    state = {
        "version": 4,
        "name": name,
        "static_kwargs": EasyDict(static),
        "components": EasyDict(components),
        "build_module_src": "raise SystemExit('executed')",
        "build_func_name": "G_main",
        "variables": list(variables.items()),
    }
    return Call(Ref("dnnlib.tflib.network", "Network"), (), state, new=True)
