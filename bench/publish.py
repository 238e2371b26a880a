"""Publishes a run: its tables and pictures go to `results/tables/`, and its first tables into the README."""

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
TABLES_IN_README = 3  # quality, inversion and speed of the first data set


def block_pattern(name: str) -> re.Pattern[str]:
    """The place of a published run in the README: what stands between its two markers."""
    return re.compile(f"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- /{re.escape(name)} -->)", re.DOTALL)


def publish(run_dir: Path, name: str) -> list[Path]:
    """Copy the report of a run to `results/tables/NAME.*`, and its first tables between the README's markers of NAME.

    Grids of generated `shapes` go along; images of other data sets never do, since they are not ours to publish.
    """
    report = write_report(run_dir).parent
    copies = {report / source: TABLES / f"{name}{suffix}" for source, suffix in PARTS.items()}
    copies |= {
        grid: TABLES / f"{name}-{grid.name}" for grid in run_dir.glob("samples/shapes-*-stylegan2-shapes-??.png")
    }
    written = [target for source, target in copies.items() if source.is_file()]
    for source, target in copies.items():
        if source.is_file():
            write_atomic(target, source.read_bytes())
    readme = README.read_text(encoding="utf-8")
    if not block_pattern(name).search(readme):
        raise UserError(f"README.md has no place for {name!r}. Add the lines <!-- {name} --> and <!-- /{name} -->.")
    head = "\n**".join((report / "tables.md").read_text(encoding="utf-8").split("\n**")[: TABLES_IN_README + 1])
    write_atomic(README, block_pattern(name).sub(lambda _: f"\n{head.strip()}\n\n", readme))
    return [*written, README]
