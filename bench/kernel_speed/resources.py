"""What the kernels of a layer were compiled to, where the committed table knows: registers, spills, shared memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.compile_gate import Compiled, compile_cases
from bench.compiled_table import read_table
from bench.kernel_speed.ceilings import multiplying, torch_dtype
from bench.kernel_speed.layers import KernelCall
from kernels.dispatch import resolve
from kernels.launch import Launch, recording
from kernels.registry import KERNELS

Key = tuple[Any, ...]


def resources(call: KernelCall, batch: int, dtype: str, architecture: int) -> dict[str, float]:
    """The most that any launch of a forward pass needs; empty where the table does not have all of them.

    A launch is known by its kernel, constants, options and dtypes; what else the compiler specialises on, as
    whether pointers are aligned, may differ.
    """
    target = KERNELS[call.kernel].triton
    if target is None:
        return {}
    function = resolve(target)

    def run() -> None:
        tensors = {
            name: torch.empty(
                operand.sized(batch), dtype=torch_dtype(dtype) if name == "x" else torch.float32, device="meta"
            )
            for name, operand in call.operands.items()
        }
        with torch.no_grad(), multiplying(dtype):
            function(**call.filled(tensors))

    known = _known(architecture)
    try:
        rows = [known.get(key) for key in _launches(run, architecture)]
    except Exception:  # host code that needs values can't be asked on the meta device
        return {}
    found = [row for row in rows if row is not None]
    if not found or len(found) < len(rows):
        return {}
    return {
        "registers": float(max(row.registers for row in found)),
        "spilled_bytes": float(max(row.stack_bytes for row in found)),
        "shared_bytes": float(max(row.shared_bytes for row in found)),
    }


@functools.cache
def _known(architecture: int) -> dict[Key, Compiled]:
    """The rows of the table for this version of Triton, by the launch that they are of."""
    import triton

    rows = {
        row.case: row for row in read_table() if (row.architecture, row.triton) == (architecture, triton.__version__)
    }
    return {
        key: rows[name]
        for name, case in compile_cases().items()
        if name in rows
        for key in _launches(case.call, architecture)
    }


def _launches(run: Callable[[], object], architecture: int) -> list[Key]:
    with recording(architecture) as launches:
        run()
    return [_key(launch) for launch in launches]


def _key(launch: Launch) -> Key:
    dtypes = tuple(argument.dtype for argument in launch.arguments if isinstance(argument, Tensor))
    constants = tuple(sorted((name, str(value)) for name, value in launch.constants.items()))
    return launch.kernel, constants, launch.options, dtypes
