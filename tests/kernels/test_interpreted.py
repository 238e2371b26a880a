"""Runs the tests of the folder `interpreted` in processes of their own: Triton reads TRITON_INTERPRET on import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY, golden_root

FILES = sorted(map(str, (Path(__file__).parent / "interpreted").glob("test_*.py")))


@pytest.mark.slow
def test_kernels_in_the_interpreter(pytestconfig: pytest.Config) -> None:
    triton = pytest.importorskip("triton", reason="needs the package triton, which has wheels for Linux only")
    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 needs NumPy below 2.4")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--golden",
        str(golden_root(pytestconfig)),
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    running = [
        subprocess.Popen([*command, *files], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
        for files in (FILES[0::2], FILES[1::2])  # a kernel in the interpreter keeps one core busy
    ]
    outputs = [process.communicate()[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-10_000:]
        assert " passed" in output
