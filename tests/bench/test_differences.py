from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli import main
from bench.differences import contenders, difference_tables, paired_difference, read_values, write_values
from bench.records import Record
from bench.run import RunOptions
from bench.tables import Table
from tests.bench.fake_records import FULL, record
from tests.bench.tiny_suite import SUITE, run_tiny

CASE: dict[str, Any] = {"dataset": "ffhq", "resolution": 256, **FULL}
SHARED = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scored(folder: Path, subject: str, values: torch.Tensor, **fields: Any) -> Record:
    row = record(subject=subject, value=float(values.mean()), **fields)
    write_values(folder, [(row.measurement, values)])
    return row


def table_of(folder: Path, records: list[Record]) -> Table:
    (table,) = difference_tables(contenders(folder, records))
    return table


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_models_are_compared_sample_by_sample_against_the_best(tmp_path: Path) -> None:
    best, other = scored(tmp_path, "a", 3 + SHARED), scored(tmp_path, "b", 3.1 + SHARED + 0.05 * NOISE)
    (row,) = texts(table_of(tmp_path, [best, other]))
    assert row[:3] == ["FID ↓", "b", "a"]
    assert row[3].startswith("0.1")
    assert row[4:] == ["< 0.0025", "yes"]


def test_what_samples_cannot_tell_apart_is_not_shown(tmp_path: Path) -> None:
    same = [scored(tmp_path, "a", 3 + SHARED), scored(tmp_path, "b", 3 + NOISE)]
    (row,) = texts(table_of(tmp_path, same))
    assert float(row[4]) > 0.05
    assert row[5] == "no"


def test_best_is_the_highest_where_higher_is_better(tmp_path: Path) -> None:
    up: dict[str, Any] = {"metric": "CLIP score", "higher_is_better": True}
    records = [scored(tmp_path, "a", SHARED, **up), scored(tmp_path, "b", SHARED + 1, **up)]
    assert texts(table_of(tmp_path, records))[0][1:3] == ["a", "b"]


def test_seeds_are_compared_by_students_paired_test(tmp_path: Path) -> None:
    case = CASE | {"interval_kind": "95 % Student over sample sets", "repeats": 3}
    sets = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), torch.tensor([1.1, 2.3, 4.2], dtype=torch.float64)
    pair = [scored(tmp_path, name, values, case=case) for name, values in zip("ab", sets, strict=True)]
    found = contenders(tmp_path, pair)
    difference = paired_difference(found[1], found[0])
    assert difference is not None
    assert difference.value == pytest.approx(0.2)
    assert difference.p_value == pytest.approx(0.0742, abs=1e-3)  # t = 3.46, 2 degrees of freedom


@pytest.mark.parametrize(
    "other",
    [
        {"case": CASE | {"n_reference": 50_000}},
        {"protocol": "fid@clean"},
        {"seed": 1},
        {"subject": "real"},
        {"n": 499},
    ],
)
def test_what_is_not_of_the_same_samples_and_reference_is_not_compared(other: dict[str, Any], tmp_path: Path) -> None:
    fields = {"subject": "b"} | other
    records = [scored(tmp_path, "a", SHARED), scored(tmp_path, values=SHARED + 1, **fields)]
    assert difference_tables(contenders(tmp_path, records)) == []


def test_other_numbers_of_samples_are_not_compared(tmp_path: Path) -> None:
    records = [scored(tmp_path, "a", SHARED), scored(tmp_path, "b", SHARED[:400])]
    assert difference_tables(contenders(tmp_path, records)) == []


def test_run_keeps_values_by_which_diff_compares(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.write_text(SUITE.replace("inversion_images = 1", "inversion_images = 0"), encoding="utf-8")
    folder, records = run_tiny(suite, RunOptions(tmp_path / "run"))
    (fd,) = (r.measurement for r in records if r.measurement.protocol == "fd@standin" and r.measurement.seed == 0
             and r.measurement.subject != "real")  # fmt: skip
    values = read_values(folder, fd)
    assert values is not None
    assert len(values) == 24
    assert float(values.mean()) == pytest.approx(fd.value)
    assert fd.case["interval_kind"] == "95 % bootstrap over images"
    assert fd.details["standard_error"] == pytest.approx(float(values.std()) / 24**0.5)
    assert main(["diff", str(folder)]) == 1
    assert "nothing to compare" in capsys.readouterr().err
    (tmp_path / "again").symlink_to(folder)
    assert main(["diff", str(folder), str(tmp_path / "again")]) == 0
    shown = capsys.readouterr().out
    assert "stylegan2-shapes-32 (again)" in shown
    assert "no" in shown
