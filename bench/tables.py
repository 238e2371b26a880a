"""A table as a thing of its own, and how it prints: Markdown, LaTeX, HTML, plain text, and records as CSV.

Renderers are pure functions from a `Table` to text; the same table gives the same bytes.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.records import Record

CSV_FIELDS = (
    *("kind", "subject", "weights", "weights_sha256", "protocol", "metric", "unit", "higher_is_better", "value"),
    *("interval_low", "interval_high", "n", "seed", "status", "error", "caveats", "machine", "commit", "dirty"),
    *("run_id", "timestamp_utc"),
)
NO_VALUE = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell; `notes` are numbers of the table's footnotes, from 1."""

    text: str
    bold: bool = False
    notes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """One column's head; a `reported` column holds papers' numbers and is set apart from measured ones."""

    label: str
    notes: tuple[int, ...] = ()
    reported: bool = False
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True, slots=True)
class Table:
    """A table ready to print; the first column names the rows, `notes[0]` is footnote 1."""

    title: str
    caption: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ragged = [row[0].text for row in self.rows if len(row) != len(self.columns)]
        if ragged:
            raise ValueError(f"table {self.title!r}: rows {ragged} don't have {len(self.columns)} cells")


@dataclass(slots=True)
class Notes:
    """Footnotes in order of first use; the same text has one number."""

    texts: list[str] = field(default_factory=list)

    def numbers(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The numbers of `texts`, added where they are new."""
        found = []
        for text in (" ".join(text.split()) for text in texts):
            if text not in self.texts:
                self.texts.append(text)
            found.append(self.texts.index(text) + 1)
        return tuple(sorted(found))


def to_markdown(table: Table) -> str:
    """Render as GitHub Markdown: bold title, table, footnotes, caption."""
    marks = {"left": ":--", "right": "--:"}
    head = [_markdown(column.label) + _markdown_notes(column.notes) for column in table.columns]
    lines = [f"**{_markdown(table.title)}**", "", _pipes(head), _pipes(marks[c.align] for c in table.columns)]
    lines += [_pipes(map(_markdown_cell, row, table.columns)) for row in table.rows]
    foot = [f"<sup>{number}</sup> {_markdown(note)}" for number, note in enumerate(table.notes, start=1)]
    for block in (foot, [_markdown(line) for line in table.caption]):
        lines += ["", "<br>\n".join(block)] if block else []
    return "\n".join(lines) + "\n"


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(cell: Cell, column: Column) -> str:
    text = _markdown(cell.text)
    if cell.bold:
        text = f"**{text}**"
    elif column.reported and text != NO_VALUE:
        text = f"*{text}*"
    return text + _markdown_notes(cell.notes)


def _markdown_notes(notes: tuple[int, ...]) -> str:
    return f"<sup>{', '.join(map(str, notes))}</sup>" if notes else ""


def _markdown(text: str) -> str:
    """Escape what GitHub would read as markup, outside `code spans` only; a pipe would end a cell even inside one."""
    spans = text.split("`")
    spans[::2] = [
        re.sub(r"([\\*]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", span).replace("<", "&lt;") for span in spans[::2]
    ]
    return "`".join(spans).replace("|", "\\|")


def to_latex(table: Table) -> str:
    """Render as a LaTeX `table` for the booktabs package."""
    spec = "".join(column.align[0] for column in table.columns)
    head = " & ".join(_latex(column.label) + _latex_notes(column.notes) for column in table.columns)
    body = [" & ".join(map(_latex_cell, row, table.columns)) + r" \\" for row in table.rows]
    caption = " ".join([f"{_latex(table.title)}.", *map(_latex, table.caption)])
    notes = [f"{_latex_notes((number,))}~{_latex(note)}" for number, note in enumerate(table.notes, start=1)]
    foot = [r"\par\smallskip\raggedright\footnotesize", " \\\\\n".join(notes)] if notes else []
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    lines += [head + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}", *foot, r"\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell, column: Column) -> str:
    text = _latex(cell.text)
    if cell.bold:
        text = rf"\textbf{{{text}}}"
    elif column.reported and cell.text != NO_VALUE:
        text = rf"\textit{{{text}}}"
    return text + _latex_notes(cell.notes)


def _latex_notes(notes: tuple[int, ...]) -> str:
    return rf"\textsuperscript{{{', '.join(map(str, notes))}}}" if notes else ""


_LATEX = {sign: "\\" + sign for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # else an optional argument of \\ at the head of a row
    "]": "{]}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
}


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(sign, sign) for sign in text)
    return re.sub(r"`([^`]+)`", r"\\texttt{\1}", escaped)


def to_html(table: Table) -> str:
    """Render as an HTML `section` whose classes the report's style sheet knows."""
    head = "".join(map(_html_head, table.columns))
    body = "\n".join(f"<tr>{''.join(map(_html_cell, row, table.columns))}</tr>" for row in table.rows)
    notes = "".join(f"<li>{_html(note)}</li>" for note in table.notes)
    caption = "".join(f"<p>{_html(line)}</p>" for line in table.caption)
    return (
        f"<section>\n<h2>{html.escape(table.title)}</h2>\n"
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>\n'
        + (f'<ol class="notes">{notes}</ol>\n' if notes else "")
        + (f'<div class="caption">{caption}</div>\n' if caption else "")
        + "</section>\n"
    )


def _html_head(column: Column) -> str:
    label = re.sub(" (?=[↓↑])", "&nbsp;", html.escape(column.label))
    return f'<th scope="col"{_html_class(column)}>{label}{_html_notes(column.notes)}</th>'


def _html_cell(cell: Cell, column: Column) -> str:
    text = html.escape(cell.text)
    text = f"<b>{text}</b>" if cell.bold else text
    return f"<td{_html_class(column)}>{text}{_html_notes(cell.notes)}</td>"


def _html(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _html_class(column: Column) -> str:
    names = [column.align] + (["reported"] if column.reported else [])
    return f' class="{" ".join(names)}"'


def _html_notes(notes: tuple[int, ...]) -> str:
    return f"<sup>{', '.join(map(str, notes))}</sup>" if notes else ""


def to_text(table: Table, width: int = 110) -> str:
    """Render for a terminal; columns that don't fit `width` characters go to a second block below the first."""
    heads = [column.label + _text_notes(column.notes) for column in table.columns]
    cells = [[_text_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [table.title]
    for block in _blocks(widths, width):
        for row in (heads, ["-" * w for w in widths], *cells):
            fields = [_align(row[i], widths[i], table.columns[i].align) for i in block]
            lines.append("  ".join(fields).rstrip())
        lines.append("")
    legend = ["* best of its column"] if any(cell.bold for row in table.rows for cell in row) else []
    legend += ["( ) reported by papers, not measured here"] if any(c.reported for c in table.columns) else []
    notes = [f"[{number}] {note}" for number, note in enumerate(table.notes, start=1)]
    for line in [*legend, *notes, *table.caption]:
        lines += textwrap.wrap(line, width, subsequent_indent="    ", break_long_words=False) or [""]
    return "\n".join(lines).rstrip() + "\n"


def _text_cell(cell: Cell, column: Column) -> str:
    text = f"({cell.text})" if column.reported and cell.text != NO_VALUE else cell.text
    return ("*" if cell.bold else "") + text + _text_notes(cell.notes)


def _text_notes(notes: tuple[int, ...]) -> str:
    return f" [{','.join(map(str, notes))}]" if notes else ""


def _align(text: str, width: int, side: Literal["left", "right"]) -> str:
    return text.ljust(width) if side == "left" else text.rjust(width)


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Columns of each block; every block starts with column 0, which names the rows."""
    blocks, used = [[0]], widths[0]
    for i, column_width in enumerate(widths[1:], start=1):
        if used + 2 + column_width > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(i)
        used += 2 + column_width
    return blocks


def cells_to_csv(tables: Sequence[Table]) -> str:
    """Write tables of the same columns as one CSV, what the cells say as it is printed, notes in a last column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Table", *(column.label for column in tables[0].columns), "Notes"])
    for table in tables:
        for row in table.rows:
            notes = [table.notes[number - 1] for number in sorted({n for cell in row for n in cell.notes})]
            writer.writerow([table.title, *(cell.text for cell in row), " | ".join(notes)])
    return out.getvalue()


def to_csv(records: Iterable[Record]) -> str:
    """Write records in long form with full precision, one row a measurement; `case` fields are `case_*` columns.

    Nothing is left out: of repeated measurements every row is here, told apart by `timestamp_utc`.
    """
    rows = [_csv_row(record) for record in records]
    case_fields = sorted({name for row in rows for name in row if name.startswith("case_")})
    rows.sort(key=lambda row: [str(row.get(name, "")) for name in (*case_fields, *CSV_FIELDS)])
    out = io.StringIO()
    writer = csv.DictWriter(out, [*case_fields, *CSV_FIELDS], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _csv_row(record: Record) -> dict[str, object]:
    row = json.loads(record.to_json())
    low, high = row["interval"] or (None, None)
    row |= {"interval_low": low, "interval_high": high, "caveats": "; ".join(row["caveats"])}
    return {name: row[name] for name in CSV_FIELDS} | {f"case_{k}": v for k, v in row["case"].items()}
