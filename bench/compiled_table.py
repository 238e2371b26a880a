"""The committed table of what the kernels compile to, and what has changed against it."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import kernels
from bench.compile_gate import OPCODES, Compiled, compile_all, compile_cases, violations
from bench.errors import UserError

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


def write_table(rows: Sequence[Compiled], path: Path | None = None, only: str = "*") -> None:
    """Put `rows` in the place of those of the same version of Triton whose cases match `only`; the others stay."""
    path, version = path or TABLE, rows[0].triton
    kept = [row for row in read_table(path) if row.triton != version or not fnmatchcase(row.case, only)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(dataclasses.astuple, sorted([*kept, *rows], key=lambda row: (*_key(row), row.triton))))


def differences(rows: Sequence[Compiled], table: Sequence[Compiled]) -> list[str]:
    """What `rows`, all of one version of Triton, have otherwise than the rows of that version in the table."""
    wanted = {_key(row): row for row in table if row.triton == rows[0].triton}
    found = {_key(row): row for row in rows}
    changed = [f"{words}: not in the table; {UPDATE}" for words in _named(found.keys() - wanted.keys())]
    changed += [f"{words}: in the table, but no case is so any more" for words in _named(wanted.keys() - found.keys())]
    for key in sorted(found.keys() & wanted.keys()):
        changed += [f"{next(_named([key]))}: {words}" for words in _changes(found[key], wanted[key])]
    return changed


def check(rows: Sequence[Compiled], table: Sequence[Compiled]) -> list[str]:
    """All that is wrong: hard limits that are broken, and changes where the table has rows of this Triton."""
    cases = compile_cases()
    broken = [words for row in rows for words in violations(row, cases[row.case])]
    return broken + (differences(rows, table) if covers(rows, table) else [])


def covers(rows: Sequence[Compiled], table: Sequence[Compiled]) -> bool:
    """Whether the table has rows of the version of Triton that made `rows`."""
    return any(row.triton == rows[0].triton for row in table)


def run_compile_gate(*, update: bool, only: str = "*") -> int:
    """Compile the cases that match `only`, print them, and hold them against the table, or put them there.

    Status 1 if all is not well.
    """
    names = fnmatch.filter(compile_cases(), only)
    if not names:
        raise UserError(f"--only {only}: no case is called so. There are {', '.join(compile_cases())}.")
    rows = compile_all(names)
    print(format_rows(rows))
    version = rows[0].triton
    if update:
        write_table(rows, only=only)
        print(f"table    {TABLE}: {len(rows)} rows of triton {version}")
    table = [row for row in read_table() if fnmatchcase(row.case, only)]
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


def _named(keys: Iterable[Key]) -> Iterator[str]:
    """Each case with its architectures."""
    for case, group in groupby(sorted(keys), key=itemgetter(0)):
        yield f"{case} on {', '.join(f'sm_{architecture}' for _, architecture in group)}"
