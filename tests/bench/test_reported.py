from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.reported import (
    FIELDS,
    METRICS,
    REPORTED_CSV,
    Published,
    ReportedNumber,
    load_reported,
    reported_table,
    select_reported,
)

ROW = (
    *("StyleGAN2", "config F", "FFHQ", "1024", "fid", "2.84", "", "lower"),
    *("fid50k", "A paper (arXiv:1912.04958)", "Table 1", "2019", "high", ""),
)


@pytest.fixture(scope="module")
def numbers() -> list[ReportedNumber]:
    return load_reported()


def write_csv(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([FIELDS, *rows])
    return path


def changed(**fields: str) -> tuple[str, ...]:
    return tuple((dict(zip(FIELDS, ROW, strict=True)) | fields).values())


def number(**fields: object) -> ReportedNumber:
    base = ReportedNumber(
        *("StyleGAN2", "config F", "FFHQ", "1024", "fid", 2.84, "2.84", "", "lower"),
        *("fid50k", "A paper (arXiv:1912.04958)", "Table 1", 2019, "high", ""),
    )
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


def test_committed_file_is_clean_text() -> None:
    content = REPORTED_CSV.read_bytes()
    assert b"\r" not in content
    assert not re.search(rb"/(home|work|tmp|Users|root)/|[\w.]+@[\w.]+\.\w+", content)


def test_committed_file_has_the_numbers_it_was_copied_from(shared_dir: Path, numbers: list[ReportedNumber]) -> None:
    with (shared_dir / "reported" / "reported.csv").open(newline="", encoding="utf-8") as stream:
        source = list(csv.DictReader(stream))
    names = ("system", "dataset", "resolution", "metric", "unit", "direction", "confidence")
    ours = [[n.printed, str(n.year), *(getattr(n, name) for name in names)] for n in numbers]
    assert ours == [[row["value"], row["year"], *(row[name] for name in names)] for row in source]


def test_load_reported_keeps_the_digits_of_the_source(numbers: list[ReportedNumber]) -> None:
    printed = {n.printed for n in numbers if n.system == "LDM-4" and n.metric == "recall"}
    assert "0.50" in printed
    assert all(float(n.printed) == n.value for n in numbers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": "2,84"}, "line 3: value '2,84'"),
        ({"value": "nan"}, "line 3: system 'StyleGAN2', value nan"),
        ({"year": "soon"}, "line 3: value '2.84', year 'soon'"),
        ({"direction": "up"}, "line 3: direction 'up'; allowed: lower, higher"),
        ({"confidence": "sure"}, "line 3: confidence 'sure'; allowed: high, medium, low"),
        ({"system": ""}, "line 3: system ''"),
    ],
)
def test_load_reported_names_the_wrong_line(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_reported(write_csv(tmp_path / "reported.csv", ROW, changed(**fields)))


def test_load_reported_refuses_other_columns_and_ragged_rows(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("system,value\n")
    with pytest.raises(UserError, match=r"columns \['system', 'value'\]"):
        load_reported(tmp_path / "other.csv")
    with pytest.raises(UserError, match="line 2: not 14 fields"):
        load_reported(write_csv(tmp_path / "ragged.csv", ROW[:-1]))
    with pytest.raises(UserError, match=r"cannot read .*Restore it"):
        load_reported(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("dataset", "resolution"), [("cifar10", 32), ("ffhq", 256), ("imagenet", 256), ("pokemon", 1024), ("coco", "256")]
)
def test_select_reported_knows_our_names_of_data_sets(dataset: str, resolution: int | str) -> None:
    found = select_reported(dataset, resolution)
    assert found
    assert {n.resolution for n in found} == {str(resolution)}


def test_select_reported_does_not_take_other_tasks_for_ours() -> None:
    assert select_reported("shapes", 32) == []
    assert {n.dataset for n in select_reported("ffhq", 256, show_disputed=True)} == {"FFHQ"}  # not FFHQ-U
    assert {n.dataset for n in select_reported("coco", 256, show_disputed=True)} == {"MS-COCO zero-shot"}


def test_select_reported_hides_doubtful_numbers_by_default() -> None:
    disputed = [n for n in select_reported("ffhq", 512, show_disputed=True) if n.note.startswith("DISPUTED")]
    assert [n.printed for n in disputed] == ["2.41"]
    assert "2.41" not in [n.printed for n in select_reported("ffhq", 512)]
    both = [number(), number(note="DISPUTED: by the authors"), number(confidence="low")]
    assert select_reported("ffhq", 1024, numbers=both) == [number()]
    assert select_reported("ffhq", 1024, numbers=both, show_disputed=True) == both


@pytest.mark.parametrize(
    "fields",
    [
        {"variant": "official (StudioGAN re-evaluation)"},
        {"variant": "conditional (trained by StudioGAN)"},
        {"metric": "clean_fid"},
        {"conditions": "re-evaluated by the ADM paper"},
        {"system": "Stable Diffusion", "source_title": "f-distill (arXiv:2502.15681)"},
    ],
)
def test_remeasured_is_what_others_than_the_authors_measured(fields: dict[str, str]) -> None:
    assert number(**fields).remeasured
    assert not number().remeasured
    assert not number(source_title="f-distill (arXiv:2502.15681)").remeasured


def test_published_fid_takes_the_best_checked_numbers() -> None:
    quoted, others = number(confidence="medium", value=2.7), number(conditions="re-evaluated by others", value=3.1)
    fid = Published({"a": "StyleGAN2"}, [quoted, number(), others, number(confidence="low"), number(metric="is")]).fid
    assert fid("a", "ffhq", 1024) == [number()]
    assert fid("a", "ffhq", 256) == []
    assert fid("unknown", "ffhq", 1024) == []
    assert Published({"a": "StyleGAN2"}, [others, quoted]).fid("a", "ffhq", 1024) == [quoted]
    assert Published({"a": "StyleGAN2"}, [others]).fid("a", "ffhq", 1024) == [others]


def test_published_numbers_are_of_the_models_own_variant() -> None:
    plain, other, long = number(variant=""), number(variant="FFHQ-140k"), number(variant="config F, released")
    assert Published({"a": "StyleGAN2"}, [plain, other, long]).of("a", "ffhq", 1024) == [plain]
    assert Published({"a": "StyleGAN2: config F"}, [long, number(), other]).of("a", "ffhq", 1024) == [number(), long]
    assert Published({}, [plain]).of("a", "ffhq", 1024) == []


def test_published_fid_matches_whole_words_of_the_variant(numbers: list[ReportedNumber]) -> None:
    published = Published({"a": "EDM: config F conditional VP", "b": "EDM: config F unconditional VP"}, numbers)
    assert [n.printed for n in published.fid("a", "cifar10", 32)] == ["1.79"]
    assert [n.printed for n in published.fid("b", "cifar10", 32)] == ["1.97"]


def test_reported_table_keeps_claims_and_remeasurements_apart() -> None:
    claims, others = reported_table("cifar10", 32), reported_table("cifar10", 32, remeasured=True)
    assert claims is not None
    assert others is not None
    names = [{row[0].text for row in table.rows} for table in (claims, others)]
    assert not any("StudioGAN re-evaluation" in name or "trained by" in name for name in names[0])
    assert any("StudioGAN re-evaluation" in name for name in names[1])
    assert "clean-FID ↓" not in [column.label for column in claims.columns]


def test_reported_table_prints_every_number_once_with_source_and_confidence() -> None:
    table = reported_table("ffhq", 1024)
    assert table is not None
    labels = [column.label for column in table.columns]
    assert labels[-2:] == ["Source", "Confidence"]
    shown = [n for n in select_reported("ffhq", 1024) if not n.remeasured and n.metric in METRICS]
    values = [cell.text for row in table.rows for cell in row[1:-2] if cell.text != "–"]
    assert sorted(values) == sorted(n.printed for n in shown)
    assert all(row[-2].notes and row[-1].text in {"high", "medium"} for row in table.rows)
    assert "Not measured here" in table.caption[0]


def test_reported_table_separates_scales_that_share_a_name() -> None:
    labels = {
        column.label
        for dataset, resolution in (("coco", 64), ("coco", 256), ("coco", 512), ("imagenet", 256), ("imagenet", 512))
        for remeasured in (False, True)
        if (table := reported_table(dataset, resolution, remeasured=remeasured))
        for column in table.columns
    }
    assert {"CLIP score ↑", "CLIP score × 100 ↑", "PSNR, inversion (dB) ↑"} <= labels


def test_reported_table_is_none_without_numbers() -> None:
    assert reported_table("shapes", 32) is None
    assert reported_table("pokemon", 512, remeasured=True) is None
