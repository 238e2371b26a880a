"""Weights on disk: safetensors files that name their own configuration. Nothing from a file is ever executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.registry import build_target
from models.spec import ImageGenerator

FORMAT = "stylebench-generator-1"
_SHOWN = 4  # so many tensors are named in an error


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
    made = cast("Describable", generator)
    # in one value, since safetensors writes several in an order of its own and the file's hash would vary
    metadata = {FORMAT: json.dumps({"target": made.target, "kwargs": dict(made.kwargs)}, sort_keys=True)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata)
    partial.replace(path)
    return file_sha256(path)


def load_generator(path: Path, device: str = "cpu") -> tuple[ImageGenerator, str]:
    """Make the generator that a file of `save_weights` describes. Returns it and the SHA-256 of the file.

    Raises:
        OSError: the file is not there.
        CheckpointError: the file is of another kind, damaged, or does not name its configuration.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if FORMAT not in metadata:
        raise CheckpointError(
            f"{path}: does not name its configuration (no {FORMAT!r} in its metadata). "
            "Build the model by its registry name and load the weights into it"
        )
    try:
        made = json.loads(metadata[FORMAT])
        generator = build_target(made["target"], made["kwargs"], device)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its configuration can't be built: {error}") from error
    return generator, load_weights(cast("nn.Module", generator), path)


def load_weights(generator: nn.Module, path: Path) -> str:
    """Load a safetensors file whose names, types and shapes are exactly those of the generator's state dict.

    Returns the SHA-256 of the file. The generator keeps its own weights when an error is raised.

    Raises:
        OSError: the file is not there.
        CheckpointError: the file is of another kind, damaged, of another model, or has values that are not finite.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = {name: _signature(tensor) for name, tensor in generator.state_dict().items()}
    _check_signatures(path, expected, {name: _signature(tensor) for name, tensor in tensors.items()})
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{path}: NaN or infinite values in {_first(broken)}. The training may have diverged")
    generator.load_state_dict(tensors, strict=True)
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:  # safe_open has no types
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Expected a .safetensors file of a generator's weights")
    _refuse_pickles(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); {path.stat().st_size} bytes. Fetch or save it again"
        ) from error


def _refuse_pickles(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    # protocol 2 and later begin with \x80; torch.save wraps its pickle in a zip archive
    if (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05") or start[:4] == b"PK\x03\x04":
        raise CheckpointError(
            f"{path}: is a pickle; it is not opened because pickles execute code. "
            "Convert it to .safetensors first (not yet available in this version)"
        )


def _signature(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _check_signatures(path: Path, expected: Mapping[str, str], got: Mapping[str, str]) -> None:
    missing, unexpected = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    wrong = [
        f"{name} is {got[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & got.keys())
        if got[name] != expected[name]
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
    return "; ".join(names[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
