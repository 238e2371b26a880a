from __future__ import annotations

import csv
import io

import pytest

from bench.tables import Cell, Column, Notes, Table, cells_to_csv, to_csv, to_html, to_latex, to_markdown, to_text
from tests.bench.fake_records import build_records, record, without_value

TABLE = Table(
    "FFHQ: quality",
    ("FID: 50,000 samples.",),
    (Column("Model", align="left"), Column("FID ↓", (1,)), Column("FID reported", reported=True)),
    (
        (Cell("a_b"), Cell("2.30 ± 0.10", bold=True), Cell("2.19", notes=(2,))),
        (Cell("c"), Cell("missing", notes=(1, 3)), Cell("–")),
    ),
    ("50% of it & more", "a paper", "run `bench fetch a_b`"),
)


def test_table_refuses_ragged_rows() -> None:
    with pytest.raises(ValueError, match=r"rows \['x'\] don't have 2 cells"):
        Table("t", (), (Column("a"), Column("b")), ((Cell("x"),),))


def test_markdown_of_a_table_reads_well_on_github() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "**FFHQ: quality**",
        "",
        "| Model | FID ↓<sup>1</sup> | FID reported |",
        "| :-- | --: | --: |",
        "| a_b | **2.30 ± 0.10** | *2.19*<sup>2</sup> |",
        "| c | missing<sup>1, 3</sup> | – |",
        "",
        "<sup>1</sup> 50% of it & more<br>",
        "<sup>2</sup> a paper<br>",
        "<sup>3</sup> run `bench fetch a_b`",
        "",
        "FID: 50,000 samples.",
    ]


def test_markdown_escapes_markup_but_not_inside_code() -> None:
    text = to_markdown(Table("t", (), (Column("x"),), ((Cell("a|b *c* <i> _d_ e_f"),),), ("`--only '*_x' <n>`",)))
    assert r"| a\|b \*c\* &lt;i> \_d\_ e_f |" in text
    assert "`--only '*_x' <n>`" in text


def test_latex_escapes_every_special_character() -> None:
    special = "& % $ # _ { } ~ ^ \\ < > [ ]"
    line = to_latex(Table("t", (), (Column("x"),), ((Cell(special),),))).splitlines()[-4]
    assert line == (
        r"\& \% \$ \# \_ \{ \} \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{} \textgreater{} {[} {]} \\"
    )


def test_latex_is_a_booktabs_table_with_notes() -> None:
    assert to_latex(TABLE).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{FFHQ: quality. FID: 50,000 samples.}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"Model & FID $\downarrow$\textsuperscript{1} & FID reported \\",
        r"\midrule",
        r"a\_b & \textbf{2.30 $\pm$ 0.10} & \textit{2.19}\textsuperscript{2} \\",
        r"c & missing\textsuperscript{1, 3} & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\raggedright\footnotesize",
        r"\textsuperscript{1}~50\% of it \& more \\",
        r"\textsuperscript{2}~a paper \\",
        r"\textsuperscript{3}~run \texttt{bench fetch a\_b}",
        r"\end{table}",
    ]


def test_html_sets_reported_numbers_apart_and_escapes() -> None:
    text = to_html(TABLE)
    assert '<td class="right"><b>2.30 ± 0.10</b></td><td class="right reported">2.19<sup>2</sup></td>' in text
    assert "<li>50% of it &amp; more</li>" in text
    assert "<code>bench fetch a_b</code>" in text


def test_text_marks_bold_reported_and_notes() -> None:
    assert to_text(TABLE).splitlines() == [
        "FFHQ: quality",
        "Model      FID ↓ [1]  FID reported",
        "-----  -------------  ------------",
        "a_b     *2.30 ± 0.10    (2.19) [2]",
        "c      missing [1,3]             –",
        "",
        "* best of its column",
        "( ) reported by papers, not measured here",
        "[1] 50% of it & more",
        "[2] a paper",
        "[3] run `bench fetch a_b`",
        "FID: 50,000 samples.",
    ]


def test_text_splits_wide_tables_and_repeats_the_names() -> None:
    columns = (Column("Model", align="left"), *(Column(f"metric {i:020}") for i in range(9)))
    row = (Cell("some-model"), *(Cell(str(i)) for i in range(9)))
    lines = to_text(Table("t", (), columns, (row,)), width=100).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split() for line in lines if line.startswith("some-model")] == [
        ["some-model", "0", "1", "2"],
        ["some-model", "3", "4", "5"],
        ["some-model", "6", "7", "8"],
    ]


def test_text_keeps_a_column_wider_than_the_terminal_whole() -> None:
    lines = to_text(Table("t", (), (Column("m", align="left"), Column("x" * 90)), ((Cell("a"), Cell("1")),)), width=40)
    assert "x" * 90 in lines


def test_csv_has_one_row_a_measurement_in_full_precision() -> None:
    records = [record(value=2.123456789012345, interval=(2.1, 2.2)), without_value("error", "out of memory, again")]
    rows = list(csv.DictReader(io.StringIO(to_csv(records))))
    failed, measured = sorted(rows, key=lambda row: row["status"])
    assert (measured["value"], measured["interval_low"]) == ("2.123456789012345", "2.1")
    assert (measured["case_extractor"], measured["case_n_reference"]) == ("inception-2015-tf", "70000")
    assert (failed["value"], failed["error"]) == ("", "out of memory, again")
    assert len(list(csv.DictReader(io.StringIO(to_csv(build_records()))))) == len(build_records())


def test_csv_does_not_depend_on_the_order_of_records() -> None:
    records = build_records()
    assert to_csv(records) == to_csv(records[::-1])
    assert "\r" not in to_csv(records)


def test_cells_as_csv_have_their_notes_beside_them() -> None:
    rows = list(csv.DictReader(io.StringIO(cells_to_csv([TABLE, TABLE]))))
    assert len(rows) == 4
    assert rows[0] == {
        "Table": "FFHQ: quality",
        "Model": "a_b",
        "FID ↓": "2.30 ± 0.10",
        "FID reported": "2.19",
        "Notes": "a paper",
    }
    assert rows[1]["Notes"] == "50% of it & more | run `bench fetch a_b`"


def test_notes_number_a_text_once() -> None:
    notes = Notes()
    assert notes.numbers(["b", "a"]) == (1, 2)
    assert notes.numbers(["a", "c  d"]) == (2, 3)
    assert notes.texts == ["b", "a", "c d"]
