"""The committed table of what the kernels compile to, and what has changed against it."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import kernels
from bench.compile_gate import OPCODES, Compiled, compile_all, compile_cases, violations

TABLE = Path(kernels.__path__[0]) / "compiled.csv"
UPDATE = "`python -m bench compile --update` writes it"
# instructions may differ by 2 %, so that fewer than 50 must agree; all else must agree in any case
COUNTS, TOLERANCE = (*(name for name in OPCODES if name != "local"), "instructions"), 0.02
COLUMNS = tuple(field.name for field in dataclasses.fields(Compiled))
Key = tuple[str, int]


def read_table(path: Path | None = None) -> list[Compiled]:
    """All rows, of every version of Triton."""
    path = path or TABLE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        text = ("case", "triton")
        return [
            Compiled(**{name: value if name in text else int(value) for name, value in row.items()})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def write_table(rows: Sequence[Compiled], path: Path | None = None) -> None:
    """Put `rows` in the place of those of the same version of Triton; the others stay."""
    path = path or TABLE
    versions = {row.triton for row in rows}
    kept = [row for row in read_table(path) if row.triton not in versions]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(dataclasses.astuple, sorted([*kept, *rows], key=lambda row: (*_key(row), row.triton))))


def differences(rows: Sequence[Compiled], table: Sequence[Compiled]) -> list[str]:
    """What `rows`, all of one version of Triton, have otherwise than the rows of that version in the table."""
    version = rows[0].triton
    wanted = {_key(row): row for row in table if row.triton == version}
    found = {_key(row): row for row in rows}
    changed = [f"{_named(key)}: not in the table; {UPDATE}" for key in found.keys() - wanted.keys()]
    changed += [
        f"{_named(key)}: in the table, but no case is called so any more" for key in wanted.keys() - found.keys()
    ]
    for key in found.keys() & wanted.keys():
        changed += [f"{_named(key)}: {words}" for words in _changes(found[key], wanted[key])]
    return sorted(changed)


def check(rows: Sequence[Compiled], table: Sequence[Compiled]) -> list[str]:
    """All that is wrong: hard limits that are broken, and changes where the table has rows of this Triton."""
    cases = compile_cases()
    broken = [words for row in rows for words in violations(row, cases[row.case])]
    return broken + (differences(rows, table) if covers(rows, table) else [])


def covers(rows: Sequence[Compiled], table: Sequence[Compiled]) -> bool:
    """Whether the table has rows of the version of Triton that made `rows`."""
    return any(row.triton == rows[0].triton for row in table)


def run_compile_gate(*, update: bool) -> int:
    """Compile everything, print it, and hold it against the table, or write the table. Status 1 if all is not well."""
    rows = compile_all(compile_cases())
    print(format_rows(rows))
    version = rows[0].triton
    if update:
        write_table(rows)
        print(f"table    {TABLE}: {len(rows)} rows of triton {version}")
    table = read_table()
    if not covers(rows, table):
        print(f"{TABLE.name} has no rows of triton {version}: only the hard limits were checked; {UPDATE}")
    problems = check(rows, table)
    print("\n".join(problems) if problems else "no spills, no limit broken, nothing changed")
    return int(bool(problems))


def format_rows(rows: Iterable[Compiled]) -> str:
    """Return a plain-text table."""
    cells = [COLUMNS, *(tuple(map(str, dataclasses.astuple(row))) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _changes(row: Compiled, wanted: Compiled) -> list[str]:
    changed = []
    for name in COLUMNS:
        new, old = getattr(row, name), getattr(wanted, name)
        allowed = int(TOLERANCE * old) if name in COUNTS else 0
        if new != old and abs(new - old) > allowed:
            changed.append(f"{name} is {new}, was {old}" + (f" (+-{allowed} is allowed)" if allowed else ""))
    return changed


def _key(row: Compiled) -> Key:
    return row.case, row.architecture


def _named(key: Key) -> str:
    return f"{key[0]} on sm_{key[1]}"
