"""Networks in the tree of an official checkpoint: their state dicts, constructor arguments and attributes."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.formats.checkpoint_tree import Name, Node, RefusedError, StoredTensor, shown

_MAX_DEPTH = 64  # modules within modules
_MAX_ENTRIES = 300_000  # modules, parameters and buffers; a few bytes of a file can name the same ones again and again
_MAX_PLAIN_DEPTH, _MAX_PLAIN_VALUES = 8, 10_000
_MAX_ATTRIBUTES, _MAX_ATTRIBUTE_VALUES = 200, 64  # of a module, and of each that is a list
_MAX_SIZE, _MAX_COUNT = 2**21, 128  # of a number among arguments; of those that say how many layers there are
_COUNTS = re.compile("layers|depth|blocks|critical|taps|filter_size|upsampling|base_mult")
_POSITIONAL = {  # of official constructors, where arguments were not given by name
    "Generator": ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"),
    "Discriminator": ("c_dim", "img_resolution", "img_channels"),
}


class StoredState(Mapping[str, Tensor]):
    """A state dict that lies in a file: each tensor is copied out of it when it is asked for."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self.tensors = dict(tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, which takes no reading."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@dataclass(frozen=True, slots=True)
class Module:
    """A network module in the tree. Modules may be shared and may contain themselves: whoever walks them must stop."""

    node: Node

    @property
    def class_name(self) -> str:
        """Name of its class, without that of the Python module."""
        return shown(self.node.cls.name)

    def child(self, *path: str) -> Module | None:
        """The module at this path of names; None where there is none."""
        found: Module | None = self
        for name in path:
            found = None if found is None else found.children().get(name)
        return found

    def children(self) -> dict[str, Module]:
        """Its direct submodules by name."""
        return {name: Module(node) for name, node in self._named("_modules").items() if isinstance(node, Node)}

    def attributes(self, *names: str) -> dict[str, Any]:
        """Its attributes that are numbers, texts or short lists of them; those of these names, or all."""
        attributes, found = self.node.attributes, {}
        for name in names or itertools.islice(attributes, _MAX_ATTRIBUTES):
            with contextlib.suppress(RefusedError, KeyError):
                found[name] = plain(attributes[name], _MAX_ATTRIBUTE_VALUES)
        return found

    def walk(self) -> Iterator[tuple[str, Module]]:
        """Itself, under the empty name, and all modules within it under their dotted names."""
        waiting: list[tuple[str, Module, int]] = [("", self, 0)]
        left = _MAX_ENTRIES
        while waiting:
            name, module, depth = waiting.pop()
            left -= module.size()
            if left < 0 or depth > _MAX_DEPTH:
                raise RefusedError(f"{self.class_name}: its modules contain themselves, or are too many")
            yield name, module
            prefix = f"{name}." if name else ""
            waiting += [(prefix + inner, child, depth + 1) for inner, child in module.children().items()]

    def size(self) -> int:
        """How many entries it takes to look at it, submodules aside."""
        entries = (self.node.attributes.get(kind) for kind in ("_modules", "_parameters", "_buffers"))
        skipped = self.node.attributes.get("_non_persistent_buffers_set")
        return (
            1
            + sum(len(e) for e in entries if isinstance(e, dict))
            + (len(skipped.items) if isinstance(skipped, Node) else 0)
        )

    def arguments(self) -> dict[str, Any]:
        """The arguments that it was constructed with; empty where they were not recorded."""
        attributes = self.node.attributes
        args, kwargs = attributes.get("_init_args") or (), attributes.get("_init_kwargs") or {}
        if not isinstance(args, tuple | list) or not isinstance(kwargs, dict):
            raise RefusedError(f"{self.class_name}: its recorded arguments are damaged")
        names = _POSITIONAL.get(self.class_name, ())
        if len(args) > len(names):
            raise RefusedError(f"{self.class_name}: {len(args)} arguments without names; known are {len(names)}")
        found: dict[str, Any] = plain({**dict(zip(names, args, strict=False)), **kwargs})
        check_sizes(found)
        return found

    def state(self) -> StoredState:
        """Its state dict: parameters and buffers of all submodules under their dotted names, without those of None."""
        tensors: dict[str, StoredTensor] = {}
        for module_name, module in self.walk():
            prefix = f"{module_name}." if module_name else ""
            tensors |= {prefix + name: tensor for name, tensor in module._tensors().items()}
        return StoredState(tensors)

    def _tensors(self) -> dict[str, StoredTensor]:
        skipped = self.node.attributes.get("_non_persistent_buffers_set")
        names = {item for item in skipped.items if isinstance(item, str)} if isinstance(skipped, Node) else set()
        found = self._named("_parameters")
        found |= {name: value for name, value in self._named("_buffers").items() if name not in names}
        if wrong := [name for name, value in found.items() if not isinstance(value, StoredTensor | None)]:
            raise RefusedError(f"{self.class_name}: {shown(wrong[0])} is no tensor")
        return {name: value for name, value in found.items() if value is not None}

    def _named(self, kind: str) -> dict[str, Any]:
        values = self.node.attributes.get(kind)
        return {name: v for name, v in values.items() if isinstance(name, str)} if isinstance(values, dict) else {}


def check_sizes(value: object, name: str = "", depth: int = 0) -> None:
    """Refuse arguments whose numbers would keep a constructor busy forever.

    Raises:
        RefusedError: a number is larger than any network's, or there are too many.
    """
    if isinstance(value, Mapping | list | tuple):
        if len(value) > _MAX_COUNT or depth > _MAX_PLAIN_DEPTH:
            raise RefusedError(f"argument {shown(name)} has {len(value)} entries")
        pairs = value.items() if isinstance(value, Mapping) else ((name, item) for item in value)
        for inner, item in pairs:
            check_sizes(item, str(inner), depth + 1)
    limit = _MAX_COUNT if _COUNTS.search(name) else _MAX_SIZE
    if isinstance(value, int | float) and not abs(value) <= limit:
        raise RefusedError(f"argument {shown(name)} is {shown(value)}, which is more than {limit}")


def plain(value: object, max_values: int = _MAX_PLAIN_VALUES) -> Any:
    """Values that JSON has: those of the tree, with small tensors as lists and names as text.

    Raises:
        RefusedError: it is too deep, too large, or has an object of a class in it.
    """
    left = max_values

    def convert(value: object, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > _MAX_PLAIN_DEPTH or left < 0:
            raise RefusedError("an argument or attribute that is too deep or too large")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return [convert(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {str(name): convert(item, depth + 1) for name, item in value.items() if isinstance(name, str | int)}
        if isinstance(value, StoredTensor) and value.numel <= left:
            return value.load().tolist()
        if isinstance(value, Name):
            return str(value)
        raise RefusedError(f"an argument or attribute that is a {type(value).__name__}, not a number, text or list")

    return convert(value, 0)
