from __future__ import annotations

import dataclasses
import errno
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.errors import StorageError, UserError
from bench.records import (
    Measurement,
    Provenance,
    Record,
    append_records,
    read_records,
    write_atomic,
    write_records,
)

MEASUREMENT = Measurement(
    kind="quality",
    subject="stylegan2-ffhq-256",
    weights="random weights, seed 0",
    weights_sha256="ab",
    case={"dataset": "ffhq", "resolution": 256},
    protocol="fid50k_full@sg3",
    metric="FID[n=8]",
    unit="",
    higher_is_better=False,
    value=0.1 + 0.2,
    n=8,
    interval=(0.1, 1 / 3),
    seed=0,
    caveats=("8 images",),
)
PROVENANCE = Provenance("run", "c0ffee", False, "aa", "cpu", {"torch": "2.15"})
RECORD = Record(MEASUREMENT, PROVENANCE, "2026-01-01T00:00:00+00:00", "ffhq-256/real/score")


def test_record_survives_a_round_trip_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [RECORD, RECORD])
    assert read_records(path) == [RECORD, RECORD]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_measurement_refuses_what_is_not_a_number(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        dataclasses.replace(MEASUREMENT, value=value)


def test_measurement_without_value_needs_a_status() -> None:
    with pytest.raises(ValueError, match="only 'ok' has a value"):
        dataclasses.replace(MEASUREMENT, value=None)


@pytest.mark.parametrize("line", ["{", "[]", '{"schema_version": 1}', '{"schema_version": 7}'])
def test_broken_row_names_file_and_line_or_schema(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(RECORD.to_json() + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2|schema 7"):
        read_records(path)


def test_full_disk_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.md"
    write_atomic(path, "old")

    def full_disk(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(StorageError, match=r"No space left.*Earlier results are untouched"):
        write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_appended_rows_follow_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "machine" / "kernels.jsonl"
    append_records(path, [RECORD])
    first = path.read_bytes()
    append_records(path, [RECORD, RECORD])
    assert path.read_bytes() == first * 3
    assert read_records(path) == [RECORD] * 3


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_torn_last_row_is_skipped_and_then_replaced(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "kernels.jsonl"
    append_records(path, [RECORD])
    row = path.read_bytes()
    path.write_bytes(row + row[:-1][:kept])  # a process was cut while it wrote
    assert read_records(path, appended=True) == [RECORD]
    with pytest.raises(UserError, match="line 2: not a record"):
        read_records(path)
    append_records(path, [RECORD])
    assert path.read_bytes() == row * 2


def test_last_row_that_lacks_its_line_end_only_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "kernels.jsonl"
    path.write_text(RECORD.to_json(), encoding="utf-8")
    assert read_records(path, appended=True) == [RECORD]
    append_records(path, [RECORD])
    assert read_records(path) == [RECORD, RECORD]


def test_full_disk_keeps_the_rows_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kernels.jsonl"
    append_records(path, [RECORD])
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError, match=r"cannot append to .*Earlier rows are untouched"):
        append_records(path, [RECORD, RECORD])
    assert path.read_bytes() == before


def test_processes_that_append_at_once_mix_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "kernels.jsonl"
    with ThreadPoolExecutor(8) as pool:  # a lock belongs to an opened file, so threads stand in for processes
        list(pool.map(lambda _: append_records(path, [RECORD] * 5), range(20)))
    assert read_records(path) == [RECORD] * 100


def test_rows_from_before_there_were_details_are_read() -> None:
    row = json.loads(RECORD.to_json())
    del row["details"]
    assert Record.from_json(json.dumps(row)) == RECORD
