"""Labels, class names and captions of named images: `dataset.json`, class folders, caption files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from bench.errors import UserError

_COCO_STEM = re.compile(r"(?:COCO_\w+_)?(\d{12})")
_SHARD = re.compile(r"\d{5}")  # folders of dataset tools, "00000", and of FFHQ, "69000": not classes
_Value = TypeVar("_Value", int, str)


@dataclass(frozen=True, slots=True)
class Annotations:
    """What is known of the images beside their pixels."""

    labels: Sequence[int] | None = None  # in the order of the images
    class_names: tuple[str, ...] = ()
    captions: Mapping[str, str] = field(default_factory=dict)  # by image name
    recipe: Mapping[str, Any] | None = None


def read_annotations(document: bytes, names: Sequence[str], where: str) -> Annotations:
    """Parse a `dataset.json`; a label that is missing, doubled, for no image or no integer is an error."""
    try:
        root = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}). Make the data set again.") from error
    if not isinstance(root, dict):
        raise UserError(f'{where}: expected an object such as {{"labels": null}}, got {type(root).__name__}.')
    class_names, recipe = root.get("class_names") or [], root.get("recipe")
    if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
        raise UserError(f"{where}: class_names must be a list of strings, got {class_names!r:.100}.")
    if not isinstance(recipe, dict | None):
        raise UserError(f"{where}: recipe must be an object or null, got {recipe!r:.100}.")
    labels = _pairs(root.get("labels"), int, names, f"{where}: labels")
    if labels is not None and (missing := [name for name in names if name not in labels]):
        raise UserError(f"{where}: {len(missing)} of {len(names)} images have no label, the first is {missing[0]}.")
    return Annotations(
        labels=None if labels is None else [labels[name] for name in names],
        class_names=tuple(class_names),
        captions=_pairs(root.get("captions"), str, names, f"{where}: captions") or {},
        recipe=recipe,
    )


def _pairs(pairs: Any, kind: type[_Value], names: Sequence[str], where: str) -> dict[str, _Value] | None:
    """Check a list of `[name, value]` pairs; null is None."""
    if pairs is None:
        return None
    if not isinstance(pairs, list):
        raise UserError(f"{where}: expected a list of [name, {kind.__name__}] pairs or null, got {pairs!r:.100}.")
    known, values = set(names), dict[str, _Value]()
    for pair in pairs:
        # `type(...) is` because a bool is an int to isinstance
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is kind):
            raise UserError(f"{where}: expected [name, {kind.__name__}], got {pair!r:.100}.")
        if pair[0] not in known:
            raise UserError(f"{where}: name {pair[0]!r}, but there is no such image beside the file.")
        if pair[0] in values:
            raise UserError(f"{where}: {pair[0]!r} is listed twice.")
        values[pair[0]] = pair[1]
    return values


def folder_annotations(names: Sequence[str]) -> Annotations:
    """Take the top folders as classes, in sorted order, if every image is in one and they are not numbered shards."""
    folders = [PurePosixPath(name).parts[0] if "/" in name else "" for name in names]
    classes = sorted(set(folders))
    if len(classes) < 2 or "" in classes or all(_SHARD.fullmatch(name) for name in classes):
        return Annotations()
    number = {name: index for index, name in enumerate(classes)}
    return Annotations(labels=[number[folder] for folder in folders], class_names=tuple(classes))


def read_captions(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Captions by image name from JSON Lines with `caption` and `file`, or COCO's `image_id`; the first one counts.

    An `image_id` matches the names that COCO gives its files, `000000000139.jpg` or `COCO_val2014_000000000139.jpg`.
    Rows for other images are left out; a row without these keys is an error.
    """
    by_key: dict[str | int, str] = {name: name for name in names}
    by_key |= {int(match[1]): name for name in names if (match := _COCO_STEM.fullmatch(PurePosixPath(name).stem))}
    captions: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Restore the file, or remove it.") from error
    for number, line in enumerate(lines, start=1):
        key, caption = _caption_row(line, f"{path}, line {number}")
        if key in by_key:
            captions.setdefault(by_key[key], caption)
    return captions


def _caption_row(line: str, where: str) -> tuple[str | int, str]:
    try:
        row = json.loads(line)
        key, caption = row.get("file", row.get("image_id")), row["caption"]
        if type(key) not in {str, int} or not isinstance(caption, str):
            raise TypeError(f"file or image_id is {key!r}, caption is {caption!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{where}: expected {{"file": NAME or "image_id": NUMBER, "caption": TEXT}} ({error}). Mend or remove it.'
        ) from error
    return key, caption
