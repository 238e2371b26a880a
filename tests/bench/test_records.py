from __future__ import annotations

import dataclasses
import errno
import math
from pathlib import Path

import pytest

from bench.errors import StorageError, UserError
from bench.records import Measurement, Provenance, Record, read_records, write_atomic, write_records

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
