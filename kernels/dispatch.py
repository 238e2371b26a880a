"""Which implementation of a kernel runs: its reference in PyTorch, its Triton kernel, or the naive baseline."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.registry import KERNELS, KernelSpec

Implementation = Literal["auto", "reference", "triton", "naive"]
Kernel = Callable[..., Tensor]

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Triton reads this when it is imported: kernels then run as NumPy on the CPU, for tests
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")

_implementation: ContextVar[Implementation] = ContextVar("implementation", default="auto")


class KernelUnavailableError(ValueError):
    """The implementation that was asked for by name can't run here."""


@contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Run every kernel called inside in this implementation; "auto" is proven Triton where that can run.

    Elsewhere "auto" is the reference.

    "naive" is what speed-ups divide by; a kernel that has no other formulation runs its reference.
    Raises ValueError for another name. A named implementation that can't run raises KernelUnavailableError when a
    kernel is called; nothing else runs in its place. Triton's interpreter runs only where "triton" is asked for.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(unknown("implementation", implementation, get_args(Implementation)))
    token = _implementation.set(implementation)
    try:
        yield
    finally:
        _implementation.reset(token)


def implementation() -> Implementation:
    """What the present `use` asks for."""
    return _implementation.get()


def is_naive() -> bool:
    """Whether the baseline of speed-ups was asked for: code that has a fast way of its own takes the plain one then."""
    return _implementation.get() == "naive"


def select(kernel: str | KernelSpec, *tensors: Tensor, limit: str | None = None) -> Kernel:
    """Return the function that runs `kernel` for these tensors under the present `use`.

    `limit` says why the Triton kernel can't do what is asked for beside the tensors ("it takes filters of up to 24
    taps, and this one has 30"); None where it can.
    """
    spec = KERNELS[kernel] if isinstance(kernel, str) else kernel
    wanted = _implementation.get()
    if wanted == "naive":
        return resolve(spec.naive or spec.reference)
    if wanted == "reference" or (wanted == "auto" and (spec.triton is None or INTERPRETED or not spec.is_proven)):
        return resolve(spec.reference)
    obstacle = _triton_obstacle(spec, tensors) or limit
    if spec.triton is not None and obstacle is None:
        return resolve(spec.triton)
    if wanted == "auto":
        return resolve(spec.reference)
    raise KernelUnavailableError(
        f"{spec.name}: the implementation 'triton' was asked for, but {obstacle}. "
        f"Allowed here: 'auto', 'reference'. Use kernels.dispatch.use('auto')."
    )


def explain(name: str) -> str:
    """Say in one line which implementation of kernel `name` runs here, and why."""
    if name not in KERNELS:
        raise ValueError(unknown("kernel", name, KERNELS))
    wanted, obstacle = _implementation.get(), _triton_obstacle(KERNELS[name], ())
    if wanted in ("reference", "naive"):
        return f"{name}: {wanted}, because it was asked for"
    if wanted == "auto" and obstacle is None and INTERPRETED:
        obstacle = "Triton's interpreter runs only what is asked for by name"
    if wanted == "auto" and obstacle is None and not KERNELS[name].is_proven:
        obstacle = "no GPU has held its Triton kernel against the reference yet; use('triton') runs it"
    if obstacle is None:
        return f"{name}: triton, because it can run here"
    return f"{name}: reference, because {obstacle}" if wanted == "auto" else f"{name}: none, because {obstacle}"


@cache
def resolve(target: str) -> Kernel:
    """Import the function that "module:function" names."""
    module, _, function = target.partition(":")
    found: Kernel = getattr(importlib.import_module(module), function)
    return found


def unknown(what: str, got: str, allowed: Iterable[str]) -> str:
    """The message for a name that isn't one of `allowed`: what was got, the nearest name, and all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {got!r}.{hint} Allowed: {', '.join(names)}."


def _triton_obstacle(spec: KernelSpec, tensors: tuple[Tensor, ...]) -> str | None:
    if spec.triton is None:
        return "no Triton kernel exists for it yet"
    if _triton_missing():
        return "the package triton is not installed"
    elsewhere = next((tensor.device for tensor in tensors if not tensor.is_cuda), None)
    if elsewhere is not None and not (INTERPRETED and elsewhere.type == "cpu"):
        return f"a tensor is on the device {elsewhere} and Triton needs all of them on a GPU"
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        return f"tensors are on the devices {names} and Triton needs all of them on the same GPU"
    dtype = next((tensor.dtype for tensor in tensors if tensor.dtype not in TRITON_DTYPES), None)
    if dtype is not None:
        return f"a tensor is {dtype} and the Triton kernels take float32, float16 and bfloat16"
    if INTERPRETED and any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        return "a tensor is bfloat16, for which Triton's interpreter silently gives wrong numbers"
    if not tensors and not torch.cuda.is_available() and not INTERPRETED:
        return "no GPU is visible"
    return None


@cache
def _triton_missing() -> bool:
    return importlib.util.find_spec("triton") is None
