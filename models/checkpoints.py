"""Weights on disk: our safetensors files, which name their own configuration, and official checkpoints.

Nothing from a file is ever executed. `convert` turns official files into ours; loading takes either kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from models.formats.checkpoint_tree import StoredTensor, shown
from models.formats.module_tree import StoredState, check_sizes
from models.formats.official import UnknownNetworkError, find, recover
from models.formats.safetensors_files import SafetensorsState, write_safetensors
from models.formats.torch_files import read_checkpoint
from models.registry import build_target
from models.spec import ImageGenerator

FORMAT = "stylebench-generator-1"
_SHOWN = 4  # so many tensors are named in an error
_MAX_MESSAGE = 1000  # characters of a message that has pieces of a file in it


class CheckpointError(ValueError):
    """A file is there but can't be used as weights."""


class Describable(Protocol):
    """A generator that can say how to make it again: `build_target(target, kwargs)`."""

    @property
    def target(self) -> str:
        """The "module:function" of its registry entry."""
        ...

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The arguments of that function; JSON values only."""
        ...


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` has written."""

    path: Path
    sha256: str
    network: str
    target: str  # see `models.registry`
    resolution: int
    num_parameters: int


@dataclass(frozen=True, slots=True)
class _Weights:
    """What a file holds; without a target where it does not say which network its state dict is of."""

    state: Mapping[str, Tensor]
    target: str | None = None
    kwargs: Mapping[str, Any] | None = None
    why_not: str = ""


def weights_sha256(module: nn.Module) -> str:
    """Hash the content of a network: names, types, shapes and bytes of its sorted state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {_signature(tensor)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(generator: nn.Module, path: Path) -> str:
    """Write the weights of a generator with `target` and `kwargs`, so that `load_generator` can make it again.

    The file appears under its name only when it is whole. Returns the SHA-256 of the file.
    """
    made, state = cast("Describable", generator), generator.state_dict()
    write_safetensors(path, state, state, _described(made.target, made.kwargs))
    return file_sha256(path)


def convert(
    source: Path,
    destination: Path,
    network: str = "G_ema",
    *,
    force: bool = False,
    on_tensor: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write a network of a checkpoint, official or ours, as a safetensors file that names its configuration.

    `network` is "G_ema", "G" or "D". The source is only read; a file in the place of the destination is replaced if
    `force` says so, and only by a whole one. `on_tensor` is told how many tensors were read, and of how many.

    Raises:
        OSError: the source is not there, or the destination is, or it can't be written.
        CheckpointError: the source is damaged, holds what is not data, or no network that this program has.
    """
    if destination.suffix != ".safetensors":
        raise CheckpointError(f"{destination}: the destination must be a .safetensors file")
    if destination.exists() and not (force and destination.resolve() != source.resolve()):
        raise FileExistsError(f"{destination}: it is there already. Give another name, or replace it with --force")
    weights = _read(source, network)
    module = _build_meta(source, weights)
    like = module.state_dict()
    _check_signatures(source, like, weights.state)
    finite = _Finite(source, weights.state, on_tensor)
    write_safetensors(destination, like, finite, _described(str(weights.target), weights.kwargs or {}))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Conversion(
        destination, file_sha256(destination), network, str(weights.target), cast("Any", module).resolution, parameters
    )


def load_generator(path: Path, device: str = "cpu") -> tuple[ImageGenerator, str]:
    """Make the generator of a file that names its configuration, ours or official (its `G_ema`).

    Tensors of a safetensors file stay mapped. Returns the generator and the SHA-256 of the file.

    Raises:
        OSError: the file is not there.
        CheckpointError: the file is of another kind, damaged, or does not name its configuration.
    """
    module, sha256 = load_network(path, device)
    if not hasattr(module, "sample"):
        raise CheckpointError(f"{path}: it holds a {type(module).__name__}, which makes no images")
    return cast("ImageGenerator", module), sha256


def load_network(path: Path, device: str = "cpu", network: str = "G_ema") -> tuple[nn.Module, str]:
    """Make a network of a file as `load_generator` does; `network` chooses in an official file with several."""
    weights = _read(path, network)
    module = _build_meta(path, weights)
    _check_signatures(path, module.state_dict(), weights.state)
    state = dict(_Finite(path, weights.state))
    module.load_state_dict(state, strict=True, assign=True)
    if any(buffer.is_meta for buffer in module.buffers()):  # tensors that are in no state dict
        module = cast("nn.Module", build_target(str(weights.target), weights.kwargs or {}))
        module.load_state_dict(state, strict=True, assign=True)
    return module.to(device), file_sha256(path)


def load_weights(generator: nn.Module, path: Path) -> str:
    """Load a file, ours or official, whose names, types and shapes are exactly those of the generator's state dict.

    Returns the SHA-256 of the file. The generator keeps its own weights when an error is raised.

    Raises:
        OSError: the file is not there.
        CheckpointError: the file is of another kind, damaged, of another model, or has values that are not finite.
    """
    weights = _read(path, "G_ema")
    _check_signatures(path, generator.state_dict(), weights.state)
    generator.load_state_dict(dict(_Finite(path, weights.state)), strict=True)
    return file_sha256(path)


def names_configuration(path: Path) -> bool:
    """Whether `load_generator` could find out what network the file is of.

    Raises:
        OSError: the file is not there.
        CheckpointError: it is of another kind or damaged.
    """
    return _read(path, "G_ema").target is not None


def file_sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(target: str, kwargs: Mapping[str, Any]) -> dict[str, str]:
    return {FORMAT: json.dumps({"target": target, "kwargs": dict(kwargs)}, sort_keys=True)}


def _read(path: Path, network: str) -> _Weights:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Expected weights: .safetensors, .pkl, .pt, .pth or .bin")
    try:
        return _read_safetensors(path) if _is_safetensors(path) else _read_official(path, network)
    except ValueError as error:
        raise CheckpointError(f"{path}: {shown(error, _MAX_MESSAGE)}") from error


def _is_safetensors(path: Path) -> bool:
    """A safetensors file begins with the length of a JSON object; a file of that suffix must be one."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> _Weights:
    state = SafetensorsState(path)
    if FORMAT not in state.metadata:
        why_not = f"no {FORMAT!r} in its metadata"
        return _Weights(state, why_not=why_not)
    try:
        made = json.loads(state.metadata[FORMAT])
        return _Weights(state, str(made["target"]), dict(made["kwargs"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its configuration can't be built: {error}") from error


def _read_official(path: Path, network: str) -> _Weights:
    tree = read_checkpoint(path)
    try:
        recovered = recover(tree, network, path.stat().st_size)
    except UnknownNetworkError as error:
        found = find(tree, network)
        return _Weights(found if isinstance(found, StoredState) else found.state(), why_not=str(error))
    return _Weights(recovered.state, recovered.target, recovered.kwargs)


def _build_meta(path: Path, weights: _Weights) -> nn.Module:
    """The network of a file without values: a configuration can't ask for memory that the file does not fill."""
    if weights.target is None:
        raise CheckpointError(
            f"{path}: it does not name its configuration ({weights.why_not}). "
            "Build the model by its registry name and load the weights into it"
        )
    try:
        check_sizes(weights.kwargs)
        return cast("nn.Module", build_target(weights.target, weights.kwargs or {}, "meta"))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = shown(str(error).partition("\n")[0] or type(error).__name__, _MAX_MESSAGE)
        raise CheckpointError(f"{path}: its configuration can't be built: {reason}") from error


class _Finite(Mapping[str, Tensor]):
    """A state dict that raises `CheckpointError` where a tensor has values that are not finite."""

    def __init__(
        self, path: Path, state: Mapping[str, Tensor], on_tensor: Callable[[int, int], None] | None = None
    ) -> None:
        self.path, self.state, self.on_tensor = path, state, on_tensor
        self.done = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.state[name]
        self.done += 1
        if self.on_tensor:
            self.on_tensor(self.done, len(self))
        if not tensor.isfinite().all():
            found = f"{self.path}: NaN or infinite values in {shown(name)}"
            raise CheckpointError(f"{found}. The training may have diverged")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def _signature(tensor: Tensor | StoredTensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _check_signatures(path: Path, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    stored: Mapping[str, Tensor | StoredTensor] = state.tensors if isinstance(state, StoredState) else state
    got = {name: _signature(tensor) for name, tensor in stored.items()}
    wanted = {name: _signature(tensor) for name, tensor in expected.items()}
    missing, unexpected = sorted(wanted.keys() - got.keys()), sorted(got.keys() - wanted.keys())
    wrong = [
        f"{shown(name)} is {got[name]}, expected {wanted[name]}"
        for name in sorted(wanted.keys() & got.keys())
        if got[name] != wanted[name]
    ]
    problems = [
        f"{what} ({len(names)}): {_first(names)}"
        for what, names in (("Missing", missing), ("Unexpected", unexpected), ("Of another shape or type", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path}: the weights are of another model. " + ". ".join(problems))


def _first(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return "; ".join(shown(name, 200) for name in names[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
