"""Several processes at one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.distributed import World, device_name, world_of_torchrun
from bench.errors import UserError
from bench.model_weights import model_file
from bench.records import read_records
from bench.run import RunOptions
from tests.bench.tiny_suite import quality, run_tiny
from tests.conftest import REPOSITORY

RANKS = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


def test_process_knows_its_place_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world_of_torchrun() is None
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    world = world_of_torchrun()
    assert world == World(1, 2, 1)
    assert world.shard.mine(range(5)) == [1, 3]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device_name(name) for name in ("auto", "cuda", "cpu", "cuda:0")] == ["cuda:1", "cuda:1", "cpu", "cuda:0"]


def test_torchrun_on_several_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (RANKS | {"WORLD_SIZE": "4"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--shard I/N"):
        world_of_torchrun()


def started(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "STYLEBENCH_OFFLINE": "1"} | more
    return subprocess.run(
        command, check=False, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_numbers_of_one(suite: Path, tmp_path: Path) -> None:
    shipped = {"stylegan2-shapes-32": model_file("stylegan2-shapes-32")}
    whole = quality(run_tiny(suite, RunOptions(tmp_path / "whole"), model_weights=shipped)[1])
    run = ["bench", "run", "--suite", str(suite), "--offline", "--output", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    done = started([*launcher, *run])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("report   ") == 1, "one process reports"
    assert quality(read_records(tmp_path / "two" / "records.jsonl")) == whole


@pytest.mark.slow
def test_tasks_of_a_slurm_array_make_the_parts(suite: Path, tmp_path: Path) -> None:
    folder, binaries = tmp_path / "run", tmp_path / "bin"
    binaries.mkdir()
    python = binaries / "python"  # no link: that of a virtual environment would not know its packages
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    script = ["bash", "bench/slurm_array.sh", str(folder), "--suite", str(suite), "--offline"]
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3", "PATH": f"{binaries}:{os.environ['PATH']}"}
    done = started(script, **task)
    assert done.returncode == 0, done.stderr[-2000:]
    made = sorted(path.name for path in folder.glob("features/*/real/*"))
    assert made == ["shard-00001.safetensors"]
    assert "--shard 2/3" in json.loads((folder / "run.json").read_text(encoding="utf-8"))["command"]
