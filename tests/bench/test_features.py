from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.errors import UserError
from bench.features import Extraction, extract, load_features, missing_shards, shard_path
from bench.sampling import GeneratedImages, ImageBatch
from bench.shapes import ShapesDataset
from tests.bench.test_sampling import Stripes

CPU = torch.device("cpu")


class MeanColour:
    name, sha256, official = "mean-colour", "00", False

    def __call__(self, batch: ImageBatch) -> dict[str, Tensor]:
        return {"pool": batch.images.float().mean(dim=(2, 3))}


def extraction(batch_size: int = 4) -> Extraction:
    source = GeneratedImages(Stripes(), ShapesDataset(8, count=50), seed=0, device=CPU)
    return Extraction(source, count=10, views={"colour": MeanColour()}, shard_size=4, batch_size=batch_size)


def everything(folder: Path, batch_size: int = 4) -> tuple[Tensor, str]:
    work = extraction(batch_size)
    extract(work, folder, missing_shards(work, folder), lambda _: None)
    features = load_features(work, folder)
    return features.layer("colour", "pool"), features.pixels_sha256


def test_cut_and_resumed_extraction_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = everything(tmp_path / "whole")
    work, cut = extraction(), tmp_path / "cut"
    extract(work, cut, [1], lambda _: None)
    assert missing_shards(work, cut) == [0, 2]
    resumed = everything(cut)
    assert torch.equal(whole[0], resumed[0])
    assert whole[1] == resumed[1]
    for shard in range(3):
        assert shard_path(cut, shard).read_bytes() == shard_path(tmp_path / "whole", shard).read_bytes()


def test_batch_size_does_not_change_the_samples(tmp_path: Path) -> None:
    assert everything(tmp_path / "a", 1)[1] == everything(tmp_path / "b", 3)[1]


def test_damaged_shard_is_made_again(tmp_path: Path) -> None:
    whole = everything(tmp_path)
    path = shard_path(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:-5])
    assert missing_shards(extraction(), tmp_path) == [2]
    assert torch.equal(everything(tmp_path)[0], whole[0])


def test_thumbnails_are_the_first_images(tmp_path: Path) -> None:
    work = extraction()
    everything(tmp_path)
    assert torch.equal(load_features(work, tmp_path).thumbnails, work.source.batch(range(10)).images)


def test_unknown_layer_names_those_that_are_there(tmp_path: Path) -> None:
    everything(tmp_path)
    with pytest.raises(UserError, match=r"colour\.pool"):
        load_features(extraction(), tmp_path).layer("inception", "pool")


def test_statistics_of_shards_are_those_of_all_features(tmp_path: Path) -> None:
    everything(tmp_path)
    features = load_features(extraction(), tmp_path)
    values, statistics = features.layer("colour", "pool").double(), features.statistics("colour", "pool")
    torch.testing.assert_close(statistics.mean, values.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics.cov(1), values.T.cov(), rtol=1e-10, atol=1e-10)
    assert features.first(5).statistics("colour", "pool").n == len(features.first(5).layer("colour", "pool")) == 5


def test_rows_are_those_of_the_whole_layer(tmp_path: Path) -> None:
    work = extraction()
    extract(work, tmp_path, missing_shards(work, tmp_path), lambda _: None)
    features = load_features(work, tmp_path)
    rows = torch.tensor([0, 3, 4, 9])
    assert torch.equal(features.rows("colour", "pool", rows), features.layer("colour", "pool")[rows])
    assert len(features.first(6).layer("colour", "pool")) == 6


def test_texts_are_told_apart_by_their_hash(tmp_path: Path) -> None:
    everything(tmp_path)
    known = load_features(extraction(), tmp_path).prompts_sha256
    texts = extraction().source.batch(range(10)).prompts or []
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    assert known == hashlib.sha256(digests).hexdigest()
