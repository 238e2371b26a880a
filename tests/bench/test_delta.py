from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.delta import LOOKS, choices, delta_plan, delta_tables
from bench.errors import UserError
from bench.networks.standin import StandinExtractor
from bench.plan import PlanOptions, make_plan
from bench.protocols import PROTOCOLS, STANDINS
from bench.tables import Table
from bench.views import VIEWS, ImageView, ViewSpec
from tests.bench.fake_records import FULL, record
from tests.bench.tiny_suite import CPU, SUITE

BASE = PROTOCOLS["fid50k_full@sg3"]


def test_every_view_of_a_protocol_is_put_into_words() -> None:
    assert {p.view for p in PROTOCOLS.values() if p not in STANDINS} == set(LOOKS)


@pytest.mark.parametrize(
    ("name", "base", "texts"),
    [
        ("fid50k_full@sg3", "fid50k_full@sg3", ()),
        ("fid50k@adm", "fid50k_full@sg3", ("pixels truncated", "covariance over N - 1")),
        ("fid50k@edm-min3", "fid50k_full@sg3", ("covariance over N - 1", "lowest of 3 sample sets")),
        ("fid@clean", "fid50k_full@sg3", ("antialiased bicubic resize", "covariance over N - 1")),
        ("fid-infinity@sg3", "fid50k_full@sg3", ("extrapolated to infinitely many samples",)),
        ("is50k@shuffled", "is50k@sg3", ("shuffled with seed 2020",)),
        ("is50k@adm", "is50k@sg3", ("pixels truncated", "splits of 5,000")),
        ("clip@vit-b-32-prefix", "clip@vit-b-32", ("prefix 'A photo depicts '", "30,000 samples")),
    ],
)
def test_choices_say_in_what_two_protocols_differ(name: str, base: str, texts: tuple[str, ...]) -> None:
    assert choices(PROTOCOLS[name], PROTOCOLS[base]) == texts


def test_no_two_protocols_of_a_kind_have_the_same_choices() -> None:
    named = [(p.maths, choices(p, BASE)) for p in PROTOCOLS.values() if p not in STANDINS]
    assert len(set(named)) == len(named)


def table_of(*fields: dict[str, Any]) -> Table:
    (table,) = delta_tables([record(**one) for one in fields])
    return table


def test_delta_is_against_the_first_protocol_of_the_same_network_and_layer() -> None:
    table = table_of(
        {"protocol": "fid@clean", "metric": "FID-clean", "value": 2.5},
        {"value": 2.0},
        {"protocol": "fid50k@adm", "metric": "FID-ADM", "value": 1.9},
        {"protocol": "fd@dinov2", "metric": "FD-DINOv2", "value": 90.0},
        {"protocol": "fd@standin", "metric": "FD-standin-v1", "value": 7.0},
    )
    assert [[cell.text for cell in row[:5:2]] + [row[3].text] for row in table.rows] == [
        ["fid50k_full@sg3", "2.00", "–", "–"],
        ["fid50k@adm", "1.90", "fid50k_full@sg3", "-0.10"],
        ["fid@clean", "2.50", "fid50k_full@sg3", "+0.50"],
        ["fd@dinov2", "90.00", "–", "–"],
    ]


def test_delta_has_a_table_for_each_model_and_only_for_scores() -> None:
    rows = [record(subject=name) for name in ("a", "b", "real")]
    speed = record(kind="speed", protocol="latency", metric="Latency p50")
    titles = [table.title for table in delta_tables([*rows, speed])]
    assert [title.partition(", ")[2] for title in titles] == [
        f"{name}: what each choice is worth" for name in ("real", "a", "b")
    ]
    assert delta_tables([speed]) == []


def test_precision_is_not_held_against_recall() -> None:
    case = {"dataset": "ffhq", "resolution": 256, **FULL}
    common: dict[str, Any] = {"protocol": "pr50k3@adm-inception", "higher_is_better": True, "case": case}
    table = table_of(common | {"metric": "Precision", "value": 0.7}, common | {"metric": "Recall", "value": 0.4})
    assert [row[3].text for row in table.rows] == ["–", "–"]


def test_delta_without_any_network_says_what_to_fetch(suite: Path) -> None:
    options = PlanOptions(suite=str(suite))
    with pytest.raises(UserError, match=r"stand-ins have no choices to compare.*fetch inception"):
        delta_plan(make_plan(options, CPU), options)


def test_delta_scores_one_set_of_images_under_all_protocols(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for view, quantiser in (("inception", "half-up"), ("inception-adm", "truncate")):
        spec = ViewSpec(None, lambda _, d, q=quantiser: ImageView(StandinExtractor(d), q), 0.1)  # type: ignore[misc]
        monkeypatch.setitem(VIEWS, view, spec)
    for name in [p.name for p in PROTOCOLS.values() if p.layer == "spatial"]:  # the stand-in has no such layer
        monkeypatch.setitem(PROTOCOLS, name, dataclasses.replace(PROTOCOLS[name], layer="pool"))
    suite.write_text(SUITE.replace("num_images = 24", "num_images = 12"), encoding="utf-8")
    options = PlanOptions(suite=str(suite))
    plan = delta_plan(make_plan(options, CPU), options)
    assert {task.kind for task in plan.tasks} == {"features", "score"}
    assert plan.suite.name == "tiny-delta"
    assert not {*plan.stages[0].entry.protocols} & {p.name for p in STANDINS}
    folder = tmp_path / "run"
    assert main(["delta", "--offline", "--suite", str(suite), "--output", str(folder)]) == 0
    assert len(list((folder / "features").rglob("shard-*"))) == 3 * 2  # 12 images in shards of 8
    text = (folder / "report" / "tables.md").read_text()
    for shown in (text, capsys.readouterr().out):
        assert "stylegan2-shapes-32: what each choice is worth" in shown
    assert "| fid50k@adm |" in text
    assert "pixels truncated; covariance over N - 1" in text
    assert "fid@clean" not in text
