"""Parts of one run, made in folders of their own, come together with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.distributed import Shard
from bench.errors import UserError
from bench.records import read_records
from bench.run import RunOptions
from tests.bench.tiny_suite import quality, run_tiny


def parts(suite: Path, tmp_path: Path, count: int, **changes: int) -> tuple[Path, ...]:
    folders = tuple(tmp_path / f"part-{index}-of-{count}" for index in range(1, count + 1))
    for index, folder in enumerate(folders, start=1):
        run_tiny(suite, RunOptions(folder, shard=Shard(index, count)), **changes)
    return folders


def test_numbers_do_not_depend_on_the_number_of_parts(suite: Path, tmp_path: Path) -> None:
    whole = quality(run_tiny(suite, RunOptions(tmp_path / "whole"))[1])
    for count in (2, 3, 8):
        merged = RunOptions(tmp_path / f"merged-{count}", parts=parts(suite, tmp_path, count))
        assert quality(run_tiny(suite, merged)[1]) == whole, f"{count} parts"


def test_part_of_another_plan_is_refused_with_what_differs(suite: Path, tmp_path: Path) -> None:
    folders = parts(suite, tmp_path, 2, seed=5)
    with pytest.raises(UserError, match=r"holds a part of another run: suite differ"):
        run_tiny(suite, RunOptions(tmp_path / "merged", parts=folders))
    with pytest.raises(UserError, match="no run there"):
        run_tiny(suite, RunOptions(tmp_path / "merged-2", parts=(tmp_path / "nothing",)))


def test_part_of_another_machine_is_taken(suite: Path, tmp_path: Path) -> None:
    folders = parts(suite, tmp_path, 2)
    facts = json.loads((folders[1] / "run.json").read_text(encoding="utf-8"))
    facts["identity"]["machine"], facts["identity"]["environment"]["cpu"] = "another", "another"
    (folders[1] / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    assert run_tiny(suite, RunOptions(tmp_path / "merged", parts=folders))[1]


def test_merge_goes_on_as_the_command_of_the_parts_would(suite: Path, tmp_path: Path) -> None:
    run = ["run", "--suite", str(suite), "--offline", "--limit", "16"]
    folders = [str(tmp_path / f"part-{index}") for index in (1, 2)]
    for index, folder in enumerate(folders, start=1):
        assert main([*run, "--shard", f"{index}/2", "--output", folder]) == 0
    assert main(["merge", *folders, "--output", str(tmp_path / "merged")]) == 0
    assert main([*run, "--output", str(tmp_path / "whole")]) == 0
    merged, whole = (read_records(tmp_path / name / "records.jsonl") for name in ("merged", "whole"))
    assert quality(merged) == quality(whole)


def test_merge_of_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(tmp_path), "--output", str(tmp_path / "merged")]) == 1
    assert "no run there" in capsys.readouterr().err
