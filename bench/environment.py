"""What a number was measured with: machine, versions, flags and the program's own files."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.errors import UserError
from bench.records import Provenance

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {".py", ".toml", ".safetensors"}  # the last are weights that come with the program
PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "scipy",
    "pillow",
    "open_clip_torch",
    "torch-fidelity",
    "clean-fid",
    "safetensors",
    "pandas",
    "matplotlib",
)


def utc_now() -> str:
    """The time in UTC to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str | None]:
    """The installed version of each package that can change a number."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Name, memory, driver, power limit and clocks; the last three need the extra `gpu` (nvidia-ml-py)."""
    properties = torch.cuda.get_device_properties(device)
    facts: dict[str, Any] = {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    try:
        import pynvml
    except ImportError:
        return facts
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
    return facts | {
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "power_limit_watts": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "sm_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
    }


def machine_slug(device: torch.device) -> str:
    """A folder name for the machine: "nvidia-h100-80gb-hbm3", "cpu-x86-64-2-cores"."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"cpu-{platform.machine()}-{os.cpu_count()}-cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def environment_facts(device: torch.device) -> dict[str, Any]:
    """Everything about the surroundings that can move a number."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "gpu": gpu_facts(device) if device.type == "cuda" else None,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "packages": package_versions(),
    }


@functools.cache
def source_sha256() -> str:
    """The content hash of the program's own files, which names the version also where there is no git."""
    digest = hashlib.sha256()
    floors = ("bench", "models", "kernels")
    files = [path for floor in floors for path in (ROOT / floor).rglob("*") if path.suffix in SOURCES]
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def provenance(run_id: str, device: torch.device) -> Provenance:
    """What goes into every record of this process."""
    # results are no part of the program, and a history that has just grown would make every next row look changed
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return Provenance(
        run_id=run_id,
        commit=_git("rev-parse", "HEAD"),
        dirty=None if changes is None else bool(changes),
        source_sha256=source_sha256(),
        machine=machine_slug(device),
        environment=environment_facts(device),
    )


def choose_device(name: str) -> torch.device:
    """The device of "auto", "cpu", "cuda" or "cuda:1"; TF32 is switched off, as the protocols ask."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device. Allowed: auto, cpu, cuda, cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine has no CUDA device that torch can use. Try --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    if device.type not in {"cpu", "cuda"}:
        raise UserError(f"--device {name}: only cpu and cuda are supported.")
    return device
