"""Mutated checkpoints of every format: no code runs, nothing else is written, memory is bounded, refusals are clear."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

SEED = 20221122


def fuzz(count: int) -> None:
    """Convert mutated files in another process, under an audit hook and a limit of memory."""
    command = [sys.executable, "-m", "tests.models.fuzz_checkpoints", str(count), str(SEED)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["seen"] == {}, "code ran, or files were written"
    assert told["wrong"] == {}, "a refusal is not one line of CheckpointError"
    assert told["left"] == [], "an unfinished file was left"
    assert told["resident_growth_mb"] < 100
    assert sum(told["results"].values()) == count
    for outcome in ("converted", "refused"):  # mutations that are all alike would show little
        assert sum(number for name, number in told["results"].items() if name.endswith(outcome)) > count / 50


def test_a_few_mutated_files() -> None:
    fuzz(300)


@pytest.mark.slow
def test_ten_thousand_mutated_files() -> None:
    fuzz(10_000)
