"""Lists of prompts for text-conditional generators: COCO's captions, PartiPrompts, DrawBench, one's own."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UserError

KEYS = ("prompt", "caption", "Prompt", "text")


@dataclass(frozen=True, slots=True)
class PromptList:
    """The prompts of a file, in its order. A sample is drawn under a random one, with replacement."""

    name: str
    texts: tuple[str, ...]
    sha256: str  # of the file


def read_prompts(path: Path) -> PromptList:
    """Read prompts: JSON Lines or a table (.tsv, .csv) with `prompt` or `caption`, else one a line.

    Raises:
        UserError: the file can't be read, a row has no such text, or there is none at all.
    """
    try:
        content = path.read_bytes()
        texts = tuple(_texts(path, content.decode("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: cannot be read ({error}). Give a text file in UTF-8.") from error
    if not texts:
        raise UserError(f"--prompts {path}: no prompts in it. Give one a line, JSON Lines, or a table with a header.")
    return PromptList(path.name, texts, hashlib.sha256(content).hexdigest())


def _texts(path: Path, text: str) -> Iterable[str]:
    lines = text.splitlines()
    if path.suffix == ".jsonl":
        return [
            _text_of(_row(path, number, line), path, number) for number, line in enumerate(lines, 1) if line.strip()
        ]
    if path.suffix in {".tsv", ".csv"}:
        rows = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
        return [_text_of(row, path, number) for number, row in enumerate(rows, 2)]
    return [line.strip() for line in lines if line.strip()]


def _row(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error}). Mend or remove it.") from error


def _text_of(row: Any, path: Path, number: int) -> str:
    values = [row[key] for key in KEYS if isinstance(row, dict) and isinstance(row.get(key), str)]
    if not values or not values[0].strip():
        raise UserError(f"{path}, line {number}: no text under one of {', '.join(KEYS)}. Mend or remove it.")
    return str(values[0].strip())
