"""The README says what is there: its tables are the published ones, its commands parse, its links lead on."""

from __future__ import annotations

import re
import shlex

import pytest

from bench.cli import build_parser
from bench.publish import TABLES, TABLES_IN_README, block_pattern
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PUBLISHED = sorted(path.stem for path in TABLES.glob("*.md"))
COMMANDS = re.findall(r"^python -m bench[^\n#]*", README, re.MULTILINE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_readme_shows_the_head_of_the_published_tables(name: str) -> None:
    found = block_pattern(name).search(README)
    assert found is not None, f"no place for {name}"
    shown = found.group().strip()
    assert shown.count("| Model |") == TABLES_IN_README
    assert (TABLES / f"{name}.md").read_text(encoding="utf-8").startswith(shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_readme_parses(command: str) -> None:
    words = shlex.split(command)[3:]
    build_parser().parse_args(words if words and not words[0].startswith("-") else ["main", *words])


def test_links_of_the_readme_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target
