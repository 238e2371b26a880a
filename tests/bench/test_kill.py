"""A run that is killed, or whose disk is full, loses nothing that was written and ends with the same numbers."""

from __future__ import annotations

import multiprocessing
import random
import resource
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import safetensors
import torch

from bench import run_folder
from bench.errors import StorageError, UserError
from bench.fetch import RemoteFile, fetch
from bench.records import read_records
from bench.run import RunOptions
from tests.bench.tiny_suite import quality, run_tiny

NUM_KILLS = 20
SMALL_FILE_BYTES = 4096  # less than a shard of features


def _run(num_threads: int, suite: Path, folder: Path, limit_bytes: int | None = None) -> None:
    """What a process does until it is killed."""
    torch.set_num_threads(num_threads)  # a part of the run's identity
    run_folder.RUNS = folder.parent / "results" / "runs"
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        with pytest.raises(StorageError, match="Earlier results are untouched"):
            run_tiny(suite, RunOptions(folder))
        return
    run_tiny(suite, RunOptions(folder))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin with everything imported, so that a kill meets the run and not its imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.run", "tests.bench.test_kill"])
    return context


def start(processes: ForkServerContext, *arguments: object) -> ForkServerProcess:
    process = processes.Process(target=_run, args=(torch.get_num_threads(), *arguments))
    process.start()
    return process


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_number(
    suite: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    started = time.monotonic()
    whole = quality(run_tiny(suite, RunOptions(tmp_path / "whole"))[1])
    duration_s, moments = time.monotonic() - started, random.Random(0)
    kills, runs = 0, 0
    while kills < NUM_KILLS:
        folder, runs = tmp_path / f"run-{runs}", runs + 1
        while kills < NUM_KILLS:
            process = start(processes, suite, folder)
            process.join(moments.uniform(0, 0.7 * duration_s))
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            kills += 1
            for shard in folder.glob("features/*/*/shard-*"):
                safetensors.safe_open(shard, "pt")  # raises for a torn file
        assert quality(run_tiny(suite, RunOptions(folder))[1]) == whole
        assert not list(folder.rglob("*.part"))
        for path in (tmp_path / "whole").rglob("shard-*"):
            assert (folder / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_run_on_a_full_disk_stops_with_one_error_and_goes_on_later(
    suite: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    folder = tmp_path / "run"
    process = start(processes, suite, folder, SMALL_FILE_BYTES)
    process.join()
    assert process.exitcode == 0
    assert not list(folder.rglob("shard-*"))
    records = run_tiny(suite, RunOptions(folder))[1]
    assert quality(records) == quality(run_tiny(suite, RunOptions(tmp_path / "whole"))[1])
    assert records == read_records(folder / "records.jsonl")


def test_cache_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    remote = RemoteFile("http://127.0.0.1:9/x", "x", "0" * 64, 1, "none", "nothing")
    with pytest.raises(UserError, match=r"file.*STYLEBENCH_CACHE"):
        fetch(remote, file / "cache", offline=False)
