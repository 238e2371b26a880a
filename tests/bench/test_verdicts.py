from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bench.protocols import PROTOCOLS
from bench.records import Record
from bench.reported import Published, ReportedNumber, load_reported
from bench.tables import Table, to_html, to_latex, to_markdown
from bench.verdicts import reported_protocol, reproduction_tables, verdict
from tests.bench.fake_records import build_records, record

SOURCE = "StyleGAN-XL: Scaling StyleGAN to Large Diverse Datasets (arXiv:2202.00273)"
NUMBER = ReportedNumber(
    *("StyleGAN-XL", "released checkpoint", "FFHQ", "1024", "fid", 2.00, "2.00", "", "lower"),
    *("fid50k_full, released checkpoint", SOURCE, "README", 2022, "high", ""),
)
CASE: dict[str, Any] = {"dataset": "ffhq", "resolution": 1024, "n_reference": 70_000}
BOOTSTRAP = {"interval_kind": "95 % bootstrap over images"}


def measured(value: float = 2.0, **fields: Any) -> Record:
    return record(subject="xl", value=value, **({"case": CASE} | fields))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"value": 2.039}, "reproduced"),
        ({"value": 1.961}, "reproduced"),
        ({"value": 2.041}, "differs"),
        ({"value": 1.9}, "differs"),
        ({"value": 2.039, "interval": (2.03, 2.05)}, "reproduced"),
        ({"value": 2.3, "interval": (1.95, 2.65), "case": CASE | BOOTSTRAP}, "within noise"),
        ({"value": 2.3, "interval": (2.05, 2.55), "case": CASE | BOOTSTRAP}, "differs"),
        ({"value": 2.3, "interval": (1.9, 2.7), "case": CASE | {"interval_kind": "standard deviation over subsets"}},
         "differs"),
    ],
)  # fmt: skip
def test_verdict_is_one_word_on_the_difference(fields: dict[str, Any], word: str) -> None:
    judged = verdict(measured(**fields).measurement, NUMBER)
    assert (judged.word, judged.reason) == (word, "")
    assert judged.difference == pytest.approx(fields["value"] - 2.0)


@pytest.mark.parametrize(
    ("fields", "number", "reason"),
    [
        ({"caveats": ("random weights: untrained",)}, {}, "random weights: untrained"),
        ({"caveats": ("standin-v1 is not the network of the papers",)}, {}, "not the network of the papers"),
        ({"caveats": ("512 images instead of 50,000",)}, {}, "512 images instead of 50,000"),
        ({"protocol": "fid@clean"}, {}, "other protocol: reported under fid50k_full@sg3, measured under fid@clean"),
        ({}, {"conditions": "fid50k, mean of 10"}, "other protocol: reported under FID against 50,000 real images"),
        ({}, {"conditions": "", "source_title": "A paper"}, "does not say under which protocol"),
        ({"case": CASE | {"n_reference": 35_000}}, {}, "other reference: 35,000 real images instead of 70,000"),
        ({"case": CASE | {"truncation_psi": 0.7}}, {}, "other settings: truncation 0.7"),
    ],
)
def test_verdict_says_why_numbers_are_not_comparable(
    fields: dict[str, Any], number: dict[str, Any], reason: str
) -> None:
    judged = verdict(measured(**fields).measurement, dataclasses.replace(NUMBER, **number))
    assert (judged.word, judged.difference) == ("not comparable", None)
    assert reason in judged.reason


def test_part_of_the_reference_is_right_where_the_protocol_takes_a_part() -> None:
    number = dataclasses.replace(
        NUMBER, metric="precision", conditions="precision/recall with 10k real", direction="higher"
    )
    one = measured(metric="Precision", protocol="pr50k3@adm-inception", case=CASE | {"n_reference": 10_000})
    assert verdict(one.measurement, number).word == "reproduced"


@pytest.mark.parametrize(
    ("metric", "conditions", "title", "protocol"),
    [
        ("fid", "fid50k_full, released checkpoint", SOURCE, "fid50k_full@sg3"),
        ("fid", "legacy FID reproduced against all 70k images", "clean-fid", "fid50k_full@sg3"),
        ("fid", "deterministic Heun sampler; minimum of three 50k evaluations", "EDM", "fid50k@edm-min3"),
        ("fid", "re-evaluated by the ADM paper", "Diffusion Models Beat GANs", "fid50k@adm"),
        ("fid", "zero-shot FID on 30k COCO val2014 captions", "StyleGAN-T", "fid30k@coco-sgt"),
        ("fid", "zero-shot FID on 30k COCO val2014 captions; downsampled from 512", "StyleGAN-T", None),
        ("fid", "as quoted by the LDM paper", "LDM", None),
        ("clean_fid", "clean-FID against all 70k images", "clean-fid", "fid@clean"),
        ("sfid", "50k samples vs full train set for FID; StyleGAN3 metric code", SOURCE, "sfid50k_full@sgxl"),
        ("rfid", "50k samples vs full train set for FID; StyleGAN3 metric code", SOURCE, "rfid50k_full@sgxl"),
        ("sfid", "re-evaluated by the ADM paper", "ADM", "sfid50k@adm"),
        ("is", "is50k, std 0.02", "StyleGAN2", "is50k@sg3"),
        ("clip_score", "CLIP ViT-g-14 (LAION-2B), truncation psi towards 0", "StyleGAN-T", "clip@sgt-vit-g-14"),
        ("ppl_wend", "W endpoints", "StyleGAN2", "ppl2_wend@sg3"),
    ],
)
def test_protocol_of_a_source_is_read_from_its_conditions(
    metric: str, conditions: str, title: str, protocol: str | None
) -> None:
    number = dataclasses.replace(NUMBER, metric=metric, conditions=conditions, source_title=title)
    assert reported_protocol(number) == protocol


def test_sources_name_protocols_that_there_are_or_none_at_all() -> None:
    named = {p for number in load_reported() if (p := reported_protocol(number)) and "@" in p}
    assert named <= {*PROTOCOLS, "ppl2_wend@sg3"}


PUBLISHED = Published({"xl": "StyleGAN-XL: released checkpoint"}, [NUMBER])


def table_of(*records: Record, published: Published = PUBLISHED) -> Table:
    (table,) = reproduction_tables(records, published)
    return table


def test_reported_numbers_stand_in_a_column_of_their_own() -> None:
    table = table_of(measured(2.01))
    assert [column.label for column in table.columns] == [
        *("Model", "Metric", "Reported", "Reported under", "Measured", "Measured under", "Difference", "Verdict"),
    ]
    assert [column.label for column in table.columns if column.reported] == ["Reported"]
    protocol = "fid50k_full@sg3"
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["xl", "FID", "2.00", protocol, "2.01", protocol, "+0.01", "reproduced"],
    ]


def test_reproduction_takes_the_number_of_its_own_protocol() -> None:
    clean = dataclasses.replace(NUMBER, metric="clean_fid", conditions="clean-FID against all 70k images", value=2.5)
    published = Published(PUBLISHED.systems, [clean, NUMBER])
    rows = table_of(measured(), measured(2.5, protocol="fid@clean", metric="FID-clean"), published=published).rows
    assert [[row[1].text, row[-1].text] for row in rows] == [["FID", "reproduced"], ["clean-FID", "reproduced"]]


def test_number_without_a_partner_says_why_in_a_note() -> None:
    standin = measured(70.0, metric="FD-standin-v1", protocol="fd@standin", caveats=("a stand-in network",))
    table = table_of(standin)
    assert [row[-1].text for row in table.rows] == ["not comparable"]
    assert [row[-2].text for row in table.rows] == ["–"]
    assert table.notes[table.rows[0][-1].notes[0] - 1] == "a stand-in network"


def test_only_the_latest_measurement_is_judged_and_never_real_images() -> None:
    old = measured(9.0, timestamp="2026-01-01T00:00:00Z")
    assert [row[4].text for row in table_of(old, measured(2.0)).rows] == ["2.00"]
    assert reproduction_tables([record(subject="real", case=CASE)], PUBLISHED) == []
    assert reproduction_tables([measured(kind="speed", metric="FID")], PUBLISHED) == []


def test_reproduction_prints_in_every_form_and_in_any_order_alike() -> None:
    systems = {"stylegan-xl-ffhq-256": "StyleGAN-XL: released checkpoint", "stylegan2-ffhq-256": "StyleGAN2"}
    published, records = Published(systems, load_reported()), build_records()
    for render in (to_markdown, to_latex, to_html):
        first = [render(table) for table in reproduction_tables(records, published)]
        assert first == [render(table) for table in reproduction_tables(records[::-1], published)]
        assert all("not comparable" in text or "differs" in text or "reproduced" in text for text in first)
