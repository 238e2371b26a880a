"""Labels, class folders and caption files, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.annotations import folder_annotations, read_annotations, read_captions
from bench.errors import UserError

NAMES = ["a.png", "b.png"]


def test_labels_follow_the_order_of_the_images() -> None:
    document = {"labels": [["b.png", 5], ["a.png", 1]], "class_names": list("xyzuvw"), "recipe": {"crop": "none"}}
    known = read_annotations(json.dumps(document).encode(), NAMES, "here")
    assert known.labels == [1, 5]
    assert known.class_names == tuple("xyzuvw")
    assert known.recipe == {"crop": "none"}
    assert known.captions == {}


@pytest.mark.parametrize("document", [b"{}", b'{"labels": null}'])
def test_labels_may_be_null_or_absent(document: bytes) -> None:
    assert read_annotations(document, NAMES, "here").labels is None


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b'{"labels": [["a.p', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ([1, 2], "expected an object"),
        ({"labels": {"a.png": 1}}, "labels: expected a list"),
        ({"labels": [["a.png", 1]]}, "1 of 2 images have no label, the first is b.png"),
        ({"labels": []}, "2 of 2 images have no label"),
        ({"labels": [["a.png", 1], ["b.png", 1.5]]}, r"got \['b.png', 1.5\]"),
        ({"labels": [["a.png", 1], ["b.png", [0, 1]]]}, r"got \['b.png', \[0, 1\]\]"),
        ({"labels": [["a.png", 1], ["b.png", True]]}, r"got \['b.png', True\]"),
        ({"labels": [["a.png", 1], ["b.png", None]]}, r"got \['b.png', None\]"),
        ({"labels": [["a.png", 1], ["b.png"]]}, r"got \['b.png'\]"),
        ({"labels": [["a.png", 1], ["b.png", 1], ["c.png", 1]]}, "name 'c.png', but there is no such image"),
        ({"labels": [["a.png", 1], ["b.png", 1], ["a.png", 1]]}, "'a.png' is listed twice"),
        ({"captions": [["a.png", 7]]}, "captions: expected"),
        ({"captions": [["c.png", "x"]]}, "captions: name 'c.png'"),
        ({"class_names": "cat"}, "class_names must be a list"),
        ({"class_names": [1]}, "class_names must be a list"),
        ({"recipe": [1]}, "recipe must be an object"),
    ],
)
def test_broken_annotations_say_why(document: Any, why: str) -> None:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(UserError, match=why) as caught:
        read_annotations(data, NAMES, "x.zip, entry dataset.json")
    assert str(caught.value).startswith("x.zip, entry dataset.json: ")


@pytest.mark.parametrize(
    "names", [["a.png", "b/c.png"], ["a/1.png", "a/2.png"], ["00000/1.png", "01000/2.png"], ["a.png", "b.png"]]
)
def test_folders_that_are_no_classes(names: list[str]) -> None:
    assert folder_annotations(names).labels is None


def test_captions_match_by_file_and_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    rows = [{"file": "a.png", "caption": "one"}, {"file": "a.png", "caption": "two"}, {"file": "z.png", "caption": "z"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert read_captions(path, NAMES) == {"a.png": "one"}


def test_captions_match_coco_names_by_image_id(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image_id": 139, "caption": "a room"}\n{"image_id": 7, "caption": "a cat"}\n')
    names = ["val/000000000139.jpg", "COCO_val2014_000000000007.jpg", "00000/img00000139.jpg", "139.jpg"]
    assert read_captions(path, names) == {names[0]: "a room", names[1]: "a cat"}


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"caption": "x"}', '{"file": "a.png"}', '{"file": "a.png", "caption": 1}']
)
def test_broken_caption_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(f'{{"file": "b.png", "caption": "x"}}\n{line}\n')
    with pytest.raises(UserError, match=r"captions\.jsonl, line 2: expected"):
        read_captions(path, NAMES)


def test_caption_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"captions\.jsonl: cannot be read"):
        read_captions(path, NAMES)
