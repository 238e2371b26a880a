from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from bench.captions import all_have_caveats
from bench.comparison import comparison_tables, format_value
from bench.errors import UserError
from bench.grouping import metric_family
from bench.networks.standin import StandinExtractor
from bench.protocols import PROTOCOLS
from bench.records import Record
from bench.reported import Published, load_reported
from bench.scoring import caveats
from bench.tables import Cell, Table, to_html, to_latex, to_markdown, to_text
from bench.views import ImageView
from tests.bench.fake_records import (
    FETCH,
    FULL,
    LIMITED,
    NO_INCEPTION,
    RANDOM,
    build_records,
    record,
    speed,
    without_value,
)

FID, STANDIN_VIEW = PROTOCOLS["fid50k_full@sg3"], ImageView(StandinExtractor(torch.device("cpu")))

PUBLISHED = Published({"stylegan-xl-ffhq-256": "StyleGAN-XL", "stylegan2-ffhq-256": "StyleGAN2"}, load_reported())
CASE: dict[str, Any] = {"dataset": "ffhq", "resolution": 256, **FULL}


def table_of(*records: Record, published: Published | None = None) -> Table:
    (table,) = comparison_tables(records, published)
    return table


def heads(table: Table) -> list[str]:
    return [column.label for column in table.columns[1:]]


def cell(table: Table, row: str, column: str) -> Cell:
    place = [c.label for c in table.columns].index(column)
    (found,) = (cells[place] for cells in table.rows if cells[0].text == row)
    return found


def bold(table: Table) -> list[str]:
    return [row[0].text for row in table.rows if row[1].bold]


def test_comparison_of_nothing_says_what_to_run() -> None:
    with pytest.raises(UserError, match=r"no records.*python -m bench run"):
        comparison_tables([])


def test_comparison_makes_a_quality_and_a_cost_table_for_each_data_set() -> None:
    assert [table.title for table in comparison_tables(build_records())] == [
        "CIFAR-10 32 × 32: quality",
        "CIFAR-10 32 × 32: speed and size",
        "FFHQ 256 × 256: quality",
        "FFHQ 256 × 256: speed and size",
    ]


def test_resolutions_and_models_are_in_natural_order() -> None:
    records = [record(case=CASE | {"resolution": size}) for size in (1024, 256)]
    assert [table.title for table in comparison_tables(records)] == [
        "FFHQ 256 × 256: quality",
        "FFHQ 1024 × 1024: quality",
    ]
    table = table_of(*(record(subject=name) for name in ("m-64", "real", "m-128", "a")))
    assert [row[0].text for row in table.rows] == ["real", "a", "m-64", "m-128"]


def test_same_records_in_any_order_give_the_same_bytes() -> None:
    records = build_records()
    for render in (to_markdown, to_latex, to_html, to_text):
        expected = [render(table) for table in comparison_tables(records, PUBLISHED)]
        for seed in range(3):
            shuffled = random.Random(seed).sample(records, len(records))
            assert [render(table) for table in comparison_tables(shuffled, PUBLISHED)] == expected


@pytest.mark.parametrize(
    "difference",
    [
        {"protocol": "fid@clean"},
        {"metric": "FID[n=128]"},
        {"unit": "%"},
        {"n": 10_000},
        {"higher_is_better": True},
        {"case": CASE | {"extractor": "dinov2"}},
        {"case": CASE | {"n_reference": 50_000}},
        {"case": CASE | {"extractor_sha256": "e" * 64}},
        {"case": CASE | {"reference_pixels_sha256": "e" * 64}},
        {"case": CASE | {"a key that nobody knows": 1}},
        {"case": {"dataset": "ffhq", "resolution": 256, "extractor": "inception-2015-tf"}},
    ],
)
def test_incomparable_values_never_share_a_column(difference: dict[str, Any]) -> None:
    table = table_of(record(), record(subject="other", **difference))
    assert len(set(heads(table))) == 2
    assert [sum(c.text != "–" for c in column) for column in list(zip(*table.rows, strict=True))[1:]] == [1, 1]
    assert not any(c.bold for row in table.rows for c in row)


def test_speed_is_only_compared_on_one_machine_device_dtype_and_batch() -> None:
    case = {"dataset": "ffhq", "resolution": 256, "device": "cuda", "dtype": "float16", "batch_size": 1}
    plain: dict[str, Any] = {"kind": "speed", "metric": "Latency p50", "unit": "ms", "protocol": "latency", "n": None}
    others: list[dict[str, Any]] = [
        {"machine": "nvidia-a100"},
        {"case": case | {"dtype": "float32"}},
        {"case": case | {"device": "cpu"}},
        {"case": case | {"batch_size": 2}},
    ]
    for other in others:
        table = table_of(record(**plain, case=case), record(**(plain | {"case": case} | other), subject="other"))
        assert len(set(heads(table))) == 2
    same = table_of(record(**plain, case=case), record(**(plain | {"n": 99}), case=case, subject="other"))
    assert heads(same) == ["Latency p50 (ms) ↓"]


def test_throughput_is_compared_at_each_models_fastest_batch() -> None:
    table = table_of(*speed("stylegan2-ffhq-256", 9.8, 412.3), *speed("ldm", 4630.0, 1.07))
    assert "Throughput (images/s) ↑" in heads(table)
    assert cell(table, "stylegan2-ffhq-256", "Throughput (images/s) ↑").bold


def test_size_of_a_model_does_not_depend_on_the_device() -> None:
    size: dict[str, Any] = {"kind": "size", "metric": "Parameters", "unit": "M", "protocol": "size"}
    cpu, cuda = ({"dataset": "ffhq", "resolution": 256, "device": device} for device in ("cpu", "cuda"))
    assert len(heads(table_of(record(**size, case=cpu), record(**size, case=cuda, subject="other")))) == 1


def test_columns_that_would_read_the_same_say_in_what_they_differ() -> None:
    table = table_of(record(), record(protocol="fid@clean"), record(protocol="fid@clean", n=10_000))
    assert heads(table) == [
        "FID ↓, fid50k_full@sg3, 50,000 samples",
        "FID ↓, fid@clean, 10,000 samples",
        "FID ↓, fid@clean, 50,000 samples",
    ]


def test_real_images_share_the_column_though_their_reference_is_another() -> None:
    case = CASE | {"reference": "reference", "reference_pixels_sha256": "1" * 64}
    floor = CASE | {"reference": "floor-reference", "reference_pixels_sha256": "2" * 64}
    table = table_of(record(case=case), record(subject="real", case=floor, value=0.4))
    assert heads(table) == ["FID ↓"]
    assert [row[1].text for row in table.rows] == ["0.40", "3.80"]
    missing = without_value("missing", FETCH, subject="b", n=None)
    with_missing = table_of(record(case=case), record(subject="real", case=floor), missing)
    assert heads(with_missing) == ["FID ↓"]
    assert not any("Not in the table" in line for line in with_missing.caption)
    smaller = table_of(record(case=case), record(subject="real", case=floor | {"n_reference": 99}))
    assert len(heads(smaller)) == 2


def test_settings_weights_and_seeds_are_rows_of_their_own() -> None:
    table = table_of(
        record(value=3.0),
        record(value=4.0, seed=1),
        record(value=5.0, case=CASE | {"truncation_psi": 0.7}),
        record(value=6.0, weights="random weights, seed 0", weights_sha256=None),
    )
    assert heads(table) == ["FID ↓"]
    assert {row[1].text for row in table.rows} == {"3.00", "4.00", "5.00", "6.00"}
    assert len({row[0].text for row in table.rows}) == 4
    assert any("truncation_psi 0.7" in row[0].text for row in table.rows)


def test_of_repeated_measurements_the_latest_counts_and_the_table_says_so() -> None:
    new, old = record("2026-11-02T00:00:00Z", value=3.0), record("2026-11-01T00:00:00Z", value=9.0)
    for records in ((new, old), (old, new)):
        table = table_of(*records)
        assert [row[1].text for row in table.rows] == ["3.00"]
        assert "Repeated measurements: the latest counts; 1 older left out." in table.caption
    assert not any("Repeated" in line for line in table_of(new).caption)


def test_bold_is_the_best_in_the_metrics_direction() -> None:
    assert bold(table_of(record(value=3.0), record(subject="b", value=2.0))) == ["b"]
    up: dict[str, Any] = {"metric": "IS", "higher_is_better": True}
    assert bold(table_of(record(value=3.0, **up), record(subject="b", value=2.0, **up))) == ["stylegan2-ffhq-256"]


def test_bold_needs_a_direction() -> None:
    neither: dict[str, Any] = {"metric": "NFE", "higher_is_better": None}
    assert bold(table_of(record(value=3.0, **neither), record(subject="b", value=2.0, **neither))) == []


def test_bold_needs_two_measured_models() -> None:
    missing = without_value("missing", FETCH, subject="b")
    two_seeds_of_one = record(value=2.0, seed=1)
    assert bold(table_of(record(), missing)) == []
    assert bold(table_of(record(), two_seeds_of_one)) == []
    assert bold(table_of(record(), record(subject="c", value=2.0), missing)) == ["c"]


def test_bold_is_never_for_real_images_nor_do_they_count_as_a_model() -> None:
    real = record(subject="real", value=0.4)
    assert bold(table_of(record(), real)) == []
    assert bold(table_of(record(), record(subject="b", value=2.0), real)) == ["b"]


def test_bold_is_not_set_in_a_column_with_a_caveat() -> None:
    limited = record(subject="c", value=9.0, caveats=("half of the samples",))
    assert bold(table_of(record(), record(subject="b", value=2.0), limited)) == []
    floor = record(subject="real", value=0.4, caveats=("half of the samples",))
    assert bold(table_of(record(), record(subject="b", value=2.0), floor)) == ["b"]


def test_bold_is_for_all_that_the_intervals_do_not_tell_apart() -> None:
    best, near = record(value=2.0, interval=(1.9, 2.1)), record(subject="b", value=2.15, interval=(2.05, 2.25))
    far, point = record(subject="c", value=2.3, interval=(2.2, 2.4)), record(subject="d", value=2.05)
    assert bold(table_of(best, near, far, point)) == ["b", "d", "stylegan2-ffhq-256"]
    assert bold(table_of(record(value=2.0), record(subject="b", value=2.0), record(subject="c", value=2.1))) == [
        "b",
        "stylegan2-ffhq-256",
    ]


@pytest.mark.parametrize(("status", "mark"), [("missing", "missing"), ("skipped", "n/a"), ("error", "failed")])
def test_cell_without_a_value_has_a_mark_and_a_note_with_the_reason(status: str, mark: str) -> None:
    table = table_of(record(), without_value(status, "why\n  and `how`", subject="b", n=None))
    found = cell(table, "b", "FID ↓")
    assert (found.text, found.notes, table.notes) == (mark, (1,), (f"{mark}: why and `how`",))


def test_model_that_was_not_asked_for_a_metric_has_a_dash() -> None:
    table = table_of(record(), record(subject="b"), record(metric="IS", protocol="is@sg3"))
    assert cell(table, "b", "IS ↓") == Cell("–")
    assert "–: not part of this run." in table.caption


def test_failed_task_marks_every_column_that_it_would_have_filled() -> None:
    task: dict[str, Any] = {"metric": "score", "protocol": "score", "higher_is_better": None, "seed": None}
    case = {"dataset": "ffhq", "resolution": 256}
    broken = without_value("error", "out of memory", subject="b", case=case, weights_sha256=None, n=None, **task)
    psnr = record(metric="PSNR", unit="dB", protocol="inversion@sg2-w")
    table = table_of(record(), record(metric="IS", protocol="is@sg3"), psnr, broken)
    assert heads(table) == ["FID ↓", "IS ↓", "PSNR (dB) ↓"]
    assert [c.text for c in table.rows[0]] == ["b", "failed", "failed", "–"]


def test_column_that_applies_to_no_row_is_a_line_instead() -> None:
    table = table_of(record(), without_value("skipped", "no text", metric="CLIP score", protocol="clip@vit-b-32"))
    assert not any(label.startswith("CLIP") for label in heads(table))
    assert "Not in the table: CLIP score; n/a: no text" in table.caption


def test_column_of_missing_weights_says_in_each_cell_what_gets_them() -> None:
    table = comparison_tables(build_records())[0]
    assert any(label.startswith("FID") for label in heads(table))
    assert any(NO_INCEPTION in note for note in table.notes)


def test_table_without_any_value_still_shows_why() -> None:
    table = table_of(without_value("missing", FETCH))
    assert cell(table, "stylegan2-ffhq-256", "FID ↓") == Cell("missing", notes=(1,))


def test_notes_are_numbered_in_reading_order_without_repeats() -> None:
    for table in comparison_tables(build_records(), PUBLISHED):
        order = [n for column in table.columns for n in column.notes]
        order += [n for row in table.rows for c in row for n in c.notes]
        assert list(dict.fromkeys(order)) == list(range(1, len(table.notes) + 1))
        assert len(set(table.notes)) == len(table.notes)


def test_notes_of_one_cell_are_in_ascending_order() -> None:
    table = table_of(record(caveats=("z",)), record(subject="x", caveats=("a", "z")), record(subject="y"))
    assert table.notes == ("z", "a")
    assert [row[0].notes for row in table.rows] == [(1,), (1, 2), ()]


def test_caveats_stand_once_where_all_values_share_them() -> None:
    few, untrained, odd = "few samples", "random weights", "one split"
    table = table_of(
        record(subject="real", caveats=(few,)),
        record(caveats=(few, untrained)),
        record(metric="IS", caveats=(untrained, odd)),
    )
    assert table.notes == (few, untrained, odd)
    assert [column.notes for column in table.columns] == [(), (1,), ()]
    assert [[c.notes for c in row] for row in table.rows] == [[(), (), ()], [(2,), (), (3,)]]


def test_caveat_of_a_whole_column_stands_at_its_head() -> None:
    shared: dict[str, Any] = {"metric": "IS", "caveats": ("few samples",)}
    table = table_of(record(), record(subject="b"), record(**shared), record(subject="b", **shared))
    assert [column.notes for column in table.columns] == [(), (), (1,)]
    assert not any(c.notes for row in table.rows for c in row)


def test_table_of_caveats_only_says_that_it_is_not_comparable() -> None:
    smoke, _, full, _ = comparison_tables(build_records())
    assert smoke.caption[0].startswith("Not comparable with published numbers")
    assert not any("Not comparable" in line for line in full.caption)
    assert RANDOM in smoke.notes
    assert not all_have_caveats([without_value("missing", FETCH)])


def test_reported_fid_stands_beside_the_measured_one_and_apart() -> None:
    table = comparison_tables(build_records(), PUBLISHED)[2]
    assert heads(table)[:3] == ["FID ↓", "FID reported", "FID-clean ↓"]
    assert [column.reported for column in table.columns][:4] == [False, False, True, False]
    found = cell(table, "stylegan-xl-ffhq-256", "FID reported")
    assert (found.text, found.bold) == ("2.19", False)
    note = table.notes[found.notes[0] - 1]
    assert "arXiv:2202.00273" in note
    assert note.endswith("confidence high")
    assert cell(table, "ldm-4-ffhq-256", "FID reported") == Cell("–")


def test_reported_fid_prints_the_range_when_sources_disagree() -> None:
    table = comparison_tables(build_records(), PUBLISHED)[2]
    found = cell(table, "stylegan2-ffhq-256", "FID reported")
    assert found.text == "3.66 to 3.8"
    assert len(found.notes) == 3


def test_reported_fid_is_left_out_without_a_measured_fid_beside_it() -> None:
    standin = record(metric="FD-standin[n=128]")
    assert heads(table_of(standin, published=PUBLISHED)) == ["FD-standin[n=128] ↓"]
    assert heads(table_of(record(), published=PUBLISHED)) == ["FID ↓", "FID reported"]
    assert heads(table_of(record(subject="unpublished"), published=PUBLISHED)) == ["FID ↓"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"value": 2.8449}, "2.84"),
        ({"value": 2.84, "interval": (2.81, 2.87)}, "2.84 ± 0.03"),
        ({"value": 2.84, "interval": (2.838, 2.842)}, "2.840 ± 0.002"),
        ({"value": 2.84, "interval": (2.80, 2.95)}, "2.84 [2.80, 2.95]"),
        ({"value": 2.84, "interval": (2.84, 2.84)}, "2.84 ± 0.00"),
        ({"value": 2.84, "interval": (2.84 - 1e-9, 2.84 + 1e-9)}, "2.8400 ± 0.0000"),
        ({"value": 0.43149, "metric": "Recall-standin"}, "0.431"),
        ({"value": 0.028449, "metric": "A new one"}, "0.02845"),
        ({"value": 1234.56, "metric": "Throughput", "kind": "speed"}, "1235"),
        ({"value": 9.8765, "metric": "Latency p50", "kind": "speed"}, "9.88"),
        ({"value": 24.767458, "metric": "Parameters", "kind": "size"}, "24.8"),
        ({"value": 0.0, "metric": "Throughput", "kind": "speed"}, "0.00"),
    ],
)
def test_format_value_shows_digits_that_mean_something(fields: dict[str, Any], text: str) -> None:
    assert format_value(record(**fields).measurement) == text


def test_kernel_distance_leads_where_images_are_few() -> None:
    kid: dict[str, Any] = {"metric": "KID", "protocol": "kid50k_full@sg3", "value": 1.0}
    assert heads(table_of(record(), record(**kid))) == ["FID ↓", "KID ↓"]
    few = table_of(record(metric="FID [n=9999]", n=9999), record(**kid | {"metric": "KID [n=9999]"}, n=9999))
    assert heads(few) == ["KID [n=9999] ↓", "FID [n=9999] ↓"]


@pytest.mark.parametrize("metric", ["FID", "sFID-ADM", "rFID", "FD-DINOv2", "CLIP-FID", "FID-infinity"])
def test_frechet_distance_of_few_images_is_never_bold(metric: str) -> None:
    def pair(**fields: Any) -> list[Record]:
        return [record(subject=name, value=value, **fields) for name, value in (("a", 2.0), ("b", 3.0))]

    assert bold(table_of(*pair(metric=metric))) == ["a"]
    assert bold(table_of(*pair(metric=metric, n=9_999))) == []
    assert bold(table_of(*pair(metric="KID", n=9_999))) == ["a"]


@pytest.mark.parametrize("caveat", ["random weights: untrained", *caveats(FID, STANDIN_VIEW, 50_000), LIMITED])
def test_random_weights_stand_ins_and_short_runs_are_never_bold(caveat: str) -> None:
    assert bold(table_of(record(value=2.0, caveats=(caveat,)), record(subject="b", value=3.0))) == []


def test_texts_part_columns_only_where_a_number_depends_on_them() -> None:
    cases = [CASE | {"prompts_sha256": None}, CASE | {"prompts_sha256": "1" * 64}, CASE | {"prompts_sha256": "2" * 64}]
    fids = [record(subject=str(i), case=case) for i, case in enumerate(cases)]
    assert heads(table_of(*fids)) == ["FID ↓"]
    clip: dict[str, Any] = {"metric": "CLIP score", "protocol": "clip@vit-b-32", "higher_is_better": True}
    scores = [record(subject=str(i), case=case, **clip) for i, case in enumerate(cases[1:])]
    assert len(heads(table_of(*scores))) == 2
    floor = [record(case=cases[1], **clip), record(subject="real", case=cases[2], **clip)]
    assert len(heads(table_of(*floor))) == 1


NUMBERS = (
    *("FID", "FID-ADM", "FID-clean", "FID-min3", "FID-pytorch", "FID-infinity", "sFID", "rFID", "FD-DINOv2"),
    *("CLIP-FID", "KID", "IS", "Precision", "Recall", "Density", "Coverage"),
)


def many() -> list[Record]:
    rows = [record(metric=name, protocol=f"{name}@x") for name in reversed(NUMBERS)]
    rows.append(record(metric="PSNR", protocol="inversion@sgxl"))
    return [*rows, record(metric="PPL", protocol="ppl2_wend@sg3")]


def test_every_protocol_has_a_column_of_its_own_in_the_order_of_papers() -> None:
    order = [label.removesuffix(" ↓") for label in heads(comparison_tables(many())[0])]
    families = ["FID", "sFID", "rFID", "FD", "CLIP-FID", "KID", "IS", "Precision", "Recall", "Density", "Coverage"]
    assert [metric_family(name) for name in order] == ["FID"] * 5 + families
    assert sorted(order) == sorted(NUMBERS)


def test_wide_tables_are_split_by_what_measures() -> None:
    titles = [table.title.partition(": ")[2] for table in comparison_tables(many())]
    assert titles == ["quality", "inversion", "probes of the generator"]
    assert [table.title.partition(": ")[2] for table in comparison_tables(many()[-3:])] == ["quality"]


def test_wide_tables_name_what_is_missing_below() -> None:
    missing = without_value("missing", "no weights", metric="FID-late", protocol="fid@late", n=None)
    assert "FID-late ↓" in heads(table_of(record(), missing))
    wide = comparison_tables([*many(), missing])[0]
    assert "FID-late ↓" not in heads(wide)
    assert "Not in the table: FID-late; missing: no weights" in wide.caption
