"""Kernels compiled ahead of time, where no GPU is: what every shipped configuration turns into, and its hard limits.

Compiling proves neither numbers nor speed; it shows that a kernel compiles, spills nothing, fits the device and uses
the tensor cores, and it makes a change of registers or instructions visible in a review.
"""

from __future__ import annotations

import importlib
import multiprocessing
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

import kernels
from bench.errors import UserError
from kernels.dispatch import INTERPRETED
from kernels.launch import CompileCase, Launch, recording

SHARED_LIMIT_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}  # of one block; Triton doesn't check it without a device
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64",
    torch.int64: "*i64", torch.int32: "*i32", torch.uint8: "*u8", torch.int8: "*i8", torch.bool: "*i1",
}  # fmt: skip
# column: opcodes, as nvdisasm names them without their modifiers
OPCODES = {
    "mma": re.compile(r"HMMA|IMMA|QMMA"),
    "wgmma": re.compile(r"[HIQ]GMMA|UTC[A-Z]*MMA"),
    "tma": re.compile(r"UTMA(LDG|STG)|UBLKCP"),
    "ldg": re.compile(r"LDG|LDGSTS"),
    "stg": re.compile(r"STG"),
    "ffma": re.compile(r"FFMA2?"),
    "local": re.compile(r"LDL|STL"),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one case turned into on one architecture; counts are of instructions in the code, not of those run."""

    case: str
    architecture: int
    triton: str
    warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    local: int  # loads and stores of spilled registers
    wgmma: int  # wide tensor-core instructions (wgmma, tcgen05)
    mma: int  # tensor-core instructions of a warp
    tma: int
    ldg: int
    stg: int
    ffma: int
    instructions: int


@cache
def compile_cases() -> dict[str, CompileCase]:
    """All cases that the modules `kernels/*_triton.py` list in `COMPILE_CASES`, by name."""
    cases: dict[str, CompileCase] = {}
    for path in sorted(Path(kernels.__path__[0]).glob("*_triton.py")):
        listed: tuple[CompileCase, ...] = getattr(importlib.import_module(f"kernels.{path.stem}"), "COMPILE_CASES", ())
        for case in listed:
            if case.name in cases:
                raise ValueError(f"{path.name}: another compile case is called {case.name!r} already")
            cases[case.name] = case
    return cases


def compile_all(names: Iterable[str], processes: int = 2) -> list[Compiled]:
    """Compile these cases for each of their architectures, in a cache of their own."""
    if INTERPRETED:
        raise UserError("TRITON_INTERPRET is set, and then Triton compiles nothing. Unset it for the compile gate.")
    tasks = [(name, target) for name in names for target in compile_cases()[name].architectures]
    context = multiprocessing.get_context("spawn")  # torch has threads, which a fork would not survive
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(processes, mp_context=context) as pool:
        return list(pool.map(_compile_task, *zip(*tasks, strict=True), repeat(folder)))


def _compile_task(name: str, architecture: int, cache_dir: str) -> Compiled:
    torch.set_num_threads(1)
    return compile_case(compile_cases()[name], architecture, Path(cache_dir))


def compile_case(case: CompileCase, architecture: int, cache_dir: Path) -> Compiled:
    """Compile what one case launches on one architecture; ValueError unless it launches one kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    with recording(architecture) as launches:
        case.call()
    if len(launches) != 1:
        raise ValueError(f"{case.name}: launches {len(launches)} kernels; a case shows one, so split it")
    signature, constants, attributes = _specialised(launches[0])
    source = ASTSource(fn=launches[0].kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache_dir)
        compiled = triton.compile(source, target=target, options=launches[0].options.keywords())
    # not by its hash: two cases may launch the same kernel, and be compiled side by side
    cubin = cache_dir / f"{case.name.replace('/', '.')}.{architecture}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    counts = _instructions(cubin)
    registers, stack_bytes = _resources(cubin)
    return Compiled(
        case=case.name,
        architecture=architecture,
        triton=triton.__version__,
        warps=compiled.metadata.num_warps,
        registers=registers,
        stack_bytes=stack_bytes,
        shared_bytes=compiled.metadata.shared,
        instructions=counts.total(),
        **{
            column: sum(count for name, count in counts.items() if opcode.fullmatch(name))
            for column, opcode in OPCODES.items()
        },
    )


def violations(row: Compiled, case: CompileCase) -> list[str]:
    """What is wrong with a compiled case whatever its baseline says; empty if nothing is."""
    found = []
    if row.stack_bytes or row.local:
        found.append(f"spills: {row.stack_bytes} bytes of stack, {row.local} loads and stores of local memory")
    limit = SHARED_LIMIT_BYTES[row.architecture]
    if row.shared_bytes > limit:
        found.append(f"needs {row.shared_bytes} bytes of shared memory; the device has {limit}")
    if case.tensor_cores != "none" and not row.mma + row.wgmma:
        found.append("multiplies without tensor cores")
    elif case.tensor_cores == "warpgroup" and row.architecture >= 90 and not row.wgmma:
        found.append("multiplies with small fragments, not with the wide instructions of a warpgroup")
    return [f"{row.case} on sm_{row.architecture}: {words}" for words in found]


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Signature, constants and attributes of a launch, as Triton specialises them when it launches."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | dict(launch.constants)
    for index, parameter in enumerate(launch.kernel.params):
        value = values[parameter.name]
        fixed = parameter.name in launch.constants or value is None
        if fixed or (type(value) is int and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        signature[parameter.name] = _type_name(value)
        if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _type_name(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if type(value) is int:
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    if hasattr(value, "block_shape") and hasattr(value, "base"):  # a tensor descriptor
        return f"tensordesc<{POINTERS[value.base.dtype][1:]}{list(value.block_shape)}>"
    raise TypeError(f"a kernel got {value!r} at run time; allowed are tensors, descriptors, int, float and None")


@cache
def _tool(name: str) -> Path:
    """A program that Triton's wheel brings along."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.is_file():
        raise UserError(f"{path.name} is not in this Triton ({triton.__version__}); install triton from its wheel")
    return path


def _resources(cubin: Path) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack."""
    text = subprocess.check_output([_tool("cuobjdump"), "--dump-resource-usage", cubin], text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump names no registers: {text}")
    return int(found[1]), int(found[2])


def _instructions(cubin: Path) -> Counter[str]:
    """How often each opcode stands in the code, without its modifiers."""
    text = subprocess.check_output([_tool("nvdisasm"), "-c", cubin], text=True, stderr=subprocess.DEVNULL)
    return Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", text, re.MULTILINE))
