"""The report of a run: tables, plots and one page that holds everything and needs nothing else to be read."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.captions import all_have_caveats
from bench.comparison import comparison_tables
from bench.delta import SUFFIX as DELTA
from bench.delta import delta_tables
from bench.differences import contenders, difference_tables
from bench.errors import UserError
from bench.grouping import scenes
from bench.plots import quality_speed_plot
from bench.records import Record, read_records, write_atomic
from bench.reported import Published, load_reported, reported_table
from bench.tables import Table, cells_to_csv, to_csv, to_html, to_latex, to_markdown
from bench.verdicts import reproduction_tables
from models.registry import MODELS

NOT_COMPARABLE = "Not comparable with published numbers: every quality value of this run carries a caveat."
HEADLINE_PACKAGES = ("torch", "triton")
STYLE = """
:root { color-scheme: light dark; --line: #d4d4d4; --soft: #6a6a6a; --warn: #9a3412; --back: #fff; --text: #1c1c1c }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #a0a0a0; --warn: #fdba74; --back: #16181b; --text: #e6e6e6 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--back); color: var(--text) }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.warn { border: 2px solid var(--warn); color: var(--warn); padding: .4rem .8rem; font-weight: 600; margin: 1rem 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; font-size: .92rem }
thead tr { border-bottom: 1px solid }
th, td { padding: .28rem .8rem; white-space: nowrap; font-variant-numeric: tabular-nums; text-align: left }
td.left + td.left, td.left:last-child { white-space: normal; min-width: 9rem }
th.right, td.right { text-align: right } th { font-weight: 600; white-space: normal;
  min-width: 5rem; vertical-align: bottom }
th.reported, td.reported { border-left: 1px dashed var(--line); border-right: 1px dashed var(--line);
  color: var(--soft); font-style: italic }
sup { font-size: .7em; line-height: 0; white-space: nowrap; margin-left: .1em; font-style: normal }
.notes, .caption { font-size: .84rem; color: var(--soft); margin: .5rem 0 } .notes { padding-left: 1.6rem }
.caption p { margin: .1rem 0 }
figure { margin: 1rem 0 } figcaption { font-size: .84rem; color: var(--soft) }
img { max-width: 100%; background: #fff } img.pixels { image-rendering: pixelated }
details { margin: 1rem 0 } summary { cursor: pointer }
"""


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run folder holds."""

    records: Sequence[Record]
    facts: Mapping[str, Any]
    samples: Sequence[Path]


def write_report(run_dir: Path) -> Path:
    """Write `report/` in a run's folder: index.html, tables.md, .tex and .csv, plots; return the page.

    `reproduction.csv` is there where papers have numbers of a model that was measured.

    Raises `UserError` when the folder holds no records.
    """
    run = _read_run(run_dir)
    out = run_dir / "report"
    tables = run_tables(run_dir, run.records)
    reproduced = reproduction_tables(run.records, _published_numbers())
    plots = quality_speed_plot(run.records)
    for kind, content in plots.items():
        write_atomic(out / f"quality_speed.{kind}", content)
    write_atomic(out / "tables.md", tables_markdown(tables, run.records))
    write_atomic(out / "tables.tex", "% needs \\usepackage{booktabs}\n\n" + "\n".join(map(to_latex, tables)))
    write_atomic(out / "tables.csv", to_csv(run.records))
    if reproduced:
        write_atomic(out / "reproduction.csv", cells_to_csv(reproduced))
    write_atomic(out / "index.html", _page(run, tables, plots))
    return out / "index.html"


def _published_numbers() -> Published:
    return Published({m.name: m.reported_as for m in MODELS.values() if m.reported_as}, load_reported())


def run_tables(run_dir: Path, records: Sequence[Record]) -> list[Table]:
    """All tables of a run: what was measured, which published numbers it reproduces, which models differ.

    Of a run of `delta`: what each choice of a protocol is worth.
    """
    if str(_read_facts(run_dir / "run.json").get("suite", "")).endswith(DELTA):
        return delta_tables(records)
    published = _published_numbers()
    differences = difference_tables(contenders(run_dir, records))
    return [*comparison_tables(records, published), *reproduction_tables(records, published), *differences]


def tables_markdown(tables: Sequence[Table], records: Sequence[Record]) -> str:
    """All tables of a run as GitHub Markdown, under a line that says where and with what they were measured."""
    header = [f"{name}: {text}" for name, text in _origin(records)]
    warning = [f"> **{NOT_COMPARABLE}**\n"] if _is_not_comparable(records) else []
    return "\n".join(["; ".join(header) + ".\n", *warning, *map(to_markdown, tables)])


def _is_not_comparable(records: Sequence[Record]) -> bool:
    return all_have_caveats(record for record in records if record.measurement.kind == "quality")


def _read_run(run_dir: Path) -> _Run:
    path = run_dir / "records.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {run_dir} is not a finished run. Give a folder of results/runs.")
    records = read_records(path)
    if not records:
        raise UserError(f"{path}: no records, so there is nothing to report. Run the suite again with --fresh.")
    return _Run(records, _read_facts(run_dir / "run.json"), sorted((run_dir / "samples").glob("*.png")))


def _read_facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}). Restore the file, or remove it and report again.") from error
    return facts if isinstance(facts, dict) else {}


def _origin(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Machine, commit, versions and date; all of them where the rows come from several."""
    origins = [record.provenance for record in records]
    days = sorted({record.timestamp_utc[:10] for record in records})
    yield "measured", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    yield "machine", _unique(origin.machine for origin in origins)
    yield "commit", _unique(_commit(origin.commit, origin.dirty, origin.source_sha256) for origin in origins)
    yield "python", _unique(str(origin.environment.get("python", "unknown")) for origin in origins)
    for name in HEADLINE_PACKAGES:
        packages = (origin.environment.get("packages") for origin in origins)
        yield name, _unique(str(found[name]) for found in packages if isinstance(found, Mapping) and found.get(name))


def _unique(texts: Iterator[str]) -> str:
    return ", ".join(sorted(set(texts))) or "unknown"


def _commit(commit: str | None, dirty: bool | None, source_sha256: str) -> str:
    if commit is None:
        return f"none (files of the program: sha256 {source_sha256[:12]})"
    return commit[:12] + (" with changes that are not committed" if dirty else "")


def _page(run: _Run, tables: Sequence[Table], plots: Mapping[str, bytes]) -> str:
    suite = run.facts.get("suite")
    title = f"Stylebench: {suite}" if isinstance(suite, str) else "Stylebench"
    warning = f'<p class="warn">{NOT_COMPARABLE}</p>\n' if _is_not_comparable(run.records) else ""
    return "".join(
        (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n',
            f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>\n<body>\n',
            f"<h1>{html.escape(title)}</h1>\n{warning}",
            _definitions([*_origin(run.records), *_asked(run.facts)]),
            *map(to_html, tables),
            *_figures(run, plots),
            *_published(run.records),
            _details(run),
            "</body>\n</html>\n",
        )
    )


def _asked(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was asked for, as far as the run's folder says it."""
    for name in ("command", "reason", "left_out"):
        value = facts.get(name)
        for text in value if isinstance(value, list) else [value] if value else []:
            yield name.replace("_", " "), str(text)


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>\n" for name, text in pairs)
    return f"<dl>\n{rows}</dl>\n"


def _figures(run: _Run, plots: Mapping[str, bytes]) -> Iterator[str]:
    if "svg" in plots:
        yield "<h2>Quality against speed</h2>\n" + _image(plots["svg"], "svg+xml", "Quality against images per second")
    if run.samples:
        yield "<h2>Samples</h2>\n<p>The first samples of the run, none chosen.</p>\n"
    for path in run.samples:
        yield _image(path.read_bytes(), "png", path.stem)


def _image(content: bytes, kind: str, caption: str) -> str:
    data, text = base64.b64encode(content).decode(), html.escape(caption)
    style = ' class="pixels"' if kind == "png" else ""
    picture = f'<img{style} src="data:image/{kind};base64,{data}" alt="{text}">'
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>\n"


def _published(records: Sequence[Record]) -> Iterator[str]:
    """Papers' numbers for the same data sets, folded away and never in a table with measured ones."""
    for dataset, resolution in scenes(records):
        for remeasured in (False, True):
            table = reported_table(dataset, resolution, remeasured=remeasured)
            if table is not None:
                yield f"<details><summary>{html.escape(table.title)}</summary>\n{to_html(table)}</details>\n"


def _details(run: _Run) -> str:
    """The settings of the run and every fact of its environment; a fact that moved shows all its values."""
    facts: dict[str, set[str]] = {}
    settings = run.facts.get("settings")
    for name, text in _flat(settings if isinstance(settings, Mapping) else {}, "settings "):
        facts.setdefault(name, set()).add(text)
    for record in run.records:
        for name, text in _flat(record.provenance.environment):
            facts.setdefault(name, set()).add(text)
    pairs = [(name, ", ".join(sorted(texts))) for name, texts in facts.items()]
    return f"<details><summary>Settings and environment</summary>\n{_definitions(pairs)}</details>\n"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", str(value)
