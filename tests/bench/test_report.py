from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from bench.differences import write_values
from bench.errors import UserError
from bench.grids import image_grid
from bench.records import Record, write_atomic, write_records
from bench.report import tables_markdown, write_report
from tests.bench.fake_records import LIMITED, build_records, record, speed

VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Collects tags, and fails on one that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.open += [] if tag in VOID else [tag]
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", build_records())


def make_run(folder: Path, records: list[Record]) -> Path:
    write_records(folder / "records.jsonl", records)
    facts = {"suite": "paper", "command": "python -m bench run --only '<x>'", "left_out": ["pokemon: no data"]}
    write_atomic(folder / "run.json", json.dumps(facts | {"settings": {"ffhq-256": "n=50000"}}))
    write_atomic(folder / "samples" / "ffhq-256-a.png", image_grid(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)))
    return folder


def test_report_writes_all_forms_and_returns_the_page(run_dir: Path) -> None:
    page = write_report(run_dir)
    assert page == run_dir / "report" / "index.html"
    names = {path.name for path in page.parent.iterdir()}
    assert names == {
        *("index.html", "tables.md", "tables.tex", "tables.csv", "reproduction.csv"),
        *("quality_speed.png", "quality_speed.svg"),
    }


def test_report_page_is_whole_and_needs_nothing_else(run_dir: Path) -> None:
    parser = Balance()
    parser.feed(write_report(run_dir).read_text())
    assert parser.open == []
    assert not {"script", "link", "iframe"} & parser.tags
    assert len(parser.sources) == 2
    assert all(source.startswith("data:image/") for source in parser.sources)


def test_report_page_says_where_the_numbers_come_from(run_dir: Path) -> None:
    text = write_report(run_dir).read_text()
    for fact in ("nvidia-h100-80gb-hbm3", "900b480aa11b", "2026-10-01 to 2026-11-01", "2.15.0", "3.9.0", "3.11.7"):
        assert f"<dd>{fact}</dd>" in text
    assert "<dd>python -m bench run --only &#x27;&lt;x&gt;&#x27;</dd>" in text
    assert "<dd>pokemon: no data</dd>" in text
    assert "<dt>settings ffhq-256</dt><dd>n=50000</dd>" in text
    assert "<dt>gpu driver</dt><dd>590.48</dd>" in text


def test_report_tells_uncommitted_changes_and_a_lack_of_git(tmp_path: Path) -> None:
    origin = record().provenance
    for change, text in (
        ({"dirty": True}, "900b480aa11b with changes that are not committed"),
        ({"commit": None, "dirty": None}, "none (files of the program: sha256 abababababab)"),
    ):
        row = dataclasses.replace(record(), provenance=dataclasses.replace(origin, **change))
        assert f"commit: {text};" in tables_markdown([], [row])


def test_report_shows_published_numbers_but_no_doubtful_ones(run_dir: Path) -> None:
    text = write_report(run_dir).read_text()
    assert "FFHQ 256 × 256: published by the authors" in text
    assert "CIFAR-10 32 × 32: re-measured by others" in text
    assert ">low<" not in text


def test_report_says_in_every_form_what_was_reproduced(run_dir: Path) -> None:
    page = write_report(run_dir)
    for name in ("index.html", "tables.md", "tables.tex"):
        text = (page.parent / name).read_text()
        assert "FFHQ 256 × 256: reproduction" in text.replace(r"$\times$", "×"), name
        assert "not comparable" in text, name
    rows = list(csv.DictReader(io.StringIO((page.parent / "reproduction.csv").read_text())))
    assert {(row["Model"], row["Metric"], row["Verdict"]) for row in rows} == {
        ("stylegan2-ffhq-256", "FID", "reproduced"),
        ("stylegan2-ffhq-256", "Precision", "not comparable"),
        ("stylegan2-ffhq-256", "Recall", "not comparable"),
    }
    assert any("does not say under which protocol" in row["Notes"] for row in rows)


def test_report_says_which_models_differ(run_dir: Path) -> None:
    assert "differences between models" not in write_report(run_dir).read_text()
    for place, row in enumerate(r.measurement for r in build_records() if r.measurement.metric == "FID"):
        if row.value is not None:
            write_values(run_dir, [(row, torch.arange(50.0) + place)])
    page = write_report(run_dir)
    for name in ("index.html", "tables.md", "tables.tex"):
        assert "differences between models" in (page.parent / name).read_text(), name


def test_report_bears_a_watermark_when_every_value_has_a_caveat(tmp_path: Path, run_dir: Path) -> None:
    watermark = "every quality value of this run carries a caveat"
    limited_rows = [record(caveats=(LIMITED,)), record(subject="b", caveats=(LIMITED,))]
    limited = make_run(tmp_path / "limited", [*limited_rows, *speed("b", 10.0, 100.0)])  # a speed needs no caveat
    for name in ("index.html", "tables.md"):
        assert watermark in (write_report(limited).parent / name).read_text()
        assert watermark not in (write_report(run_dir).parent / name).read_text()


def test_report_of_the_same_records_has_the_same_bytes(tmp_path: Path, run_dir: Path) -> None:
    first = write_report(run_dir).parent
    second = write_report(make_run(tmp_path / "again", build_records()[::-1])).parent
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_report_needs_only_the_records(tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", [record(subject="mine")])
    text = write_report(tmp_path).read_text()
    assert "<h2>FFHQ 256 × 256: quality</h2>" in text
    assert not re.search(r"<h2>(Samples|Quality against speed)", text)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        *("index.html", "tables.md", "tables.tex", "tables.csv"),
    }


def test_report_without_records_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a finished run\. Give a folder"):
        write_report(tmp_path)
    write_records(tmp_path / "records.jsonl", [])
    with pytest.raises(UserError, match=r"no records.*--fresh"):
        write_report(tmp_path)


def test_report_names_a_broken_run_file(run_dir: Path) -> None:
    (run_dir / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json: not JSON"):
        write_report(run_dir)
