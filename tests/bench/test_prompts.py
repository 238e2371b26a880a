from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.errors import UserError
from bench.prompts import PromptList, read_prompts
from bench.sampling import GeneratedImages
from bench.shapes import ShapesDataset
from tests.bench.test_sampling import Worded


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "a red cat\n\n  a dog \n"),
        ("list.jsonl", '{"prompt": "a red cat"}\n{"image_id": 3, "caption": "a dog"}\n'),
        ("list.tsv", "Prompt\tCategory\na red cat\tAbstract\na dog\tAnimals\n"),
        ("list.csv", 'id,prompt\n1,a red cat\n2,"a dog"\n'),
    ],
)
def test_prompts_are_read_from_each_format(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    read = read_prompts(path)
    assert read.texts == ("a red cat", "a dog")
    assert read.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"other": 1}\n', "line 2: no text"),
        ("a.jsonl", b"{\n", "line 1: not JSON"),
        ("a.txt", b"\n \n", "no prompts in it"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
    ],
)
def test_file_without_prompts_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name)


def test_samples_are_drawn_under_the_given_prompts(shared_dir: Path) -> None:
    prompts = read_prompts(shared_dir / "data" / "coco-val2014-prompts.jsonl")
    assert len(prompts.texts) == 6087
    generator, dataset = Worded(encoder=nn.Identity()), ShapesDataset(8, count=5)
    source = GeneratedImages(generator, dataset, 0, torch.device("cpu"), prompts)
    drawn = source.batch(range(6)).prompts
    assert drawn is not None
    assert set(drawn) <= set(prompts.texts)
    assert len(set(drawn)) > 3
    assert source.batch([4]).prompts == [drawn[4]]


def test_prompts_are_drawn_with_replacement() -> None:
    prompts = PromptList("two", ("a", "b"), "")
    source = GeneratedImages(Worded(), ShapesDataset(8, count=5), 0, torch.device("cpu"), prompts)
    drawn = source.batch(range(40)).prompts
    assert drawn is not None
    assert {"a", "b"} == set(drawn)
