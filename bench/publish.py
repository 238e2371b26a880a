"""Publishes a run: its tables and plot go to `results/tables/`, and the tables into the README."""

from __future__ import annotations

import re
from pathlib import Path

from bench.environment import ROOT
from bench.errors import UserError
from bench.records import write_atomic
from bench.report import write_report

TABLES = ROOT / "results" / "tables"
README = ROOT / "README.md"
PARTS = {"tables.md": ".md", "tables.csv": ".csv", "quality_speed.png": ".png"}


def block_pattern(name: str) -> re.Pattern[str]:
    """The place of a published run in the README: what stands between its two markers."""
    return re.compile(f"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- /{re.escape(name)} -->)", re.DOTALL)


def publish(run_dir: Path, name: str) -> list[Path]:
    """Copy the report of a run to `results/tables/NAME.*`, and its tables between the README's markers of that name."""
    readme = README.read_text(encoding="utf-8")
    pattern = block_pattern(name)
    if not pattern.search(readme):
        raise UserError(f"README.md has no place for {name!r}. Add the lines <!-- {name} --> and <!-- /{name} -->.")
    report = write_report(run_dir).parent
    written = []
    for source, suffix in PARTS.items():
        if (report / source).is_file():
            written.append(TABLES / f"{name}{suffix}")
            write_atomic(written[-1], (report / source).read_bytes())
    tables = (report / "tables.md").read_text(encoding="utf-8")
    write_atomic(README, pattern.sub(lambda _: f"\n{tables}\n", readme))
    return [*written, README]
