"""Peak memory of a piece of work, on the device that does it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
LIBC = "libc.so.6"


def _resident_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS} has no {field}")
    return int(found.group(1)) * 1024


def peak_memory_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that `call` held at once.

    On a GPU this is what torch allocated, weights included. On a CPU it is how far the resident set of the process grew
    during the call, weights excluded; None where the system does not tell (it is read from Linux's /proc).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    try:
        ctypes.CDLL(LIBC).malloc_trim(0)  # freed blocks that stay resident would hide the growth
        CLEAR_REFS.write_text("5", encoding="ascii")  # resets the high-water mark of the resident set
        before = _resident_bytes("VmRSS")
        call()
        return max(_resident_bytes("VmHWM") - before, 0)
    except OSError:
        return None
