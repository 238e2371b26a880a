from __future__ import annotations

import math
from typing import Any

import pytest
from scipy.stats import norm, t

from bench.comparison import comparison_tables
from bench.records import Record
from tests.bench.fake_records import FULL, record

CASE: dict[str, Any] = {"dataset": "ffhq", "resolution": 256, **FULL}


def line(records: list[Record], start: str) -> str | None:
    (table,) = comparison_tables(records)
    return next((text for text in table.caption if text.startswith(start)), None)


def sure(error: float, **fields: Any) -> Record:
    return record(details={"standard_error": error}, **fields)


def least(text: str | None) -> float:
    assert text is not None
    return float(text.rstrip(".").rpartition(" ")[2])


def test_intervals_are_named_by_their_kind() -> None:
    kind = "standard deviation over splits"
    scored = record(metric="IS", protocol="is50k@sg3", interval=(3.0, 5.0), case=CASE | {"interval_kind": kind})
    text = line([record(interval=(3.7, 3.9)), scored], "± and [ ]")
    assert text == "± and [ ]: 95 % interval (FID); standard deviation over splits (IS)."
    assert line([record()], "± and [ ]") is None


def test_kind_of_an_interval_makes_no_column_of_its_own() -> None:
    other = record(subject="b", interval=(3.0, 5.0), case=CASE | {"interval_kind": "95 % bootstrap over images"})
    (table,) = comparison_tables([record(), other])
    assert len(table.columns) == 2


def test_smallest_difference_comes_from_the_two_least_sure_models() -> None:
    records = [sure(0.3), sure(0.4, subject="b"), sure(0.01, subject="c"), sure(9.0, subject="real")]
    want = (norm.ppf(0.975) + norm.ppf(0.8)) * math.hypot(0.3, 0.4)
    assert least(line(records, "Smallest difference")) == pytest.approx(want, rel=0.02)


def test_smallest_difference_of_few_sample_sets_takes_students_quantiles() -> None:
    records = [sure(0.3, subject=name, case=CASE | {"repeats": 3}) for name in ("a", "b")]
    want = (t(2).ppf(0.975) + t(2).ppf(0.8)) * math.hypot(0.3, 0.3)
    assert least(line(records, "Smallest difference")) == pytest.approx(want, rel=0.05)


def test_smallest_difference_needs_two_models() -> None:
    assert line([sure(0.3), record(subject="b")], "Smallest difference") is None


def test_legend_names_protocol_network_counts_and_sample_sets() -> None:
    (table,) = comparison_tables([record(protocol="fid50k@edm-min3", metric="FID-min3", case=CASE | {"repeats": 3})])
    assert (
        "FID-min3: fid50k@edm-min3; extractor inception-2015-tf; 50,000 samples; 70,000 reference images; "
        "sample sets: 3." in table.caption
    )


def test_heads_tell_hashes_only_where_nothing_else_differs() -> None:
    def heads(**other: Any) -> list[str]:
        cases = [CASE | {"reference": "a", "n_reference": 70_000}, CASE | {"reference": "b"} | other]
        (table,) = comparison_tables([record(case=case, subject=name) for case, name in zip(cases, "ab", strict=True)])
        return [column.label for column in table.columns if column.label.startswith("FID")]

    assert sorted(heads(n_reference=35_000)) == ["FID ↓, 35,000 reference images", "FID ↓, 70,000 reference images"]
    assert sorted(heads(n_reference=70_000)) == ["FID ↓, reference a", "FID ↓, reference b"]
