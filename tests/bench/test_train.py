from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.errors import UserError
from bench.sampling import sample_rng
from bench.shapes import ShapesDataset
from bench.train import TrainingRun, small_spec, train_on
from models.checkpoints import file_sha256, load_generator, weights_sha256
from models.stylegan2 import StyleGAN2Generator
from models.training.loop import TrainingSpec
from tests.conftest import REPOSITORY

RUN = TrainingRun(batch_size=4)
SHIPPED = REPOSITORY / "models" / "weights" / "stylegan2-shapes-32.safetensors"


def tiny_spec(dataset: ShapesDataset, images: int = 8) -> TrainingSpec:
    spec = small_spec(dataset, images)
    narrow: dict[str, Any] = {"channel_base": 64, "channel_max": 8}
    return replace(
        spec, generator=replace(spec.generator, **narrow), discriminator=replace(spec.discriminator, **narrow)
    )


def weights_digest(path: Path) -> str:
    generator, _ = load_generator(path)
    assert isinstance(generator, StyleGAN2Generator)
    return weights_sha256(generator)


def test_train_on_writes_weights_that_load_and_a_grid(tmp_path: Path) -> None:
    dataset, destination = ShapesDataset(8, count=12), tmp_path / "folder" / "weights.safetensors"
    digest = train_on(dataset, tiny_spec(dataset), destination, RUN)
    generator, loaded = load_generator(destination)
    assert digest == loaded == file_sha256(destination)
    latents = {name: value[None] for name, value in generator.draw(sample_rng(0, 0, "latents")).items()}
    assert generator.sample(latents, torch.tensor([3])).shape == (1, 3, 8, 8)
    grid = Image.open(io.BytesIO(destination.with_suffix(".png").read_bytes()))
    assert np.ptp(np.asarray(grid)) > 0
    assert sorted(path.name for path in destination.parent.iterdir()) == ["weights.png", "weights.safetensors"]


def test_train_on_gives_equal_weights_for_equal_settings(tmp_path: Path) -> None:
    dataset = ShapesDataset(8, count=12)
    digests = []
    for seed in (0, 0, 1):
        train_on(dataset, replace(tiny_spec(dataset), seed=seed), tmp_path / "weights.safetensors", RUN)
        digests.append(weights_digest(tmp_path / "weights.safetensors"))
    assert digests[0] == digests[1] != digests[2]


def test_train_on_saves_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr("bench.train.save_weights", lambda ema, path: saved.append(path))
    dataset, destination = ShapesDataset(8, count=4), tmp_path / "weights.safetensors"
    train_on(dataset, tiny_spec(dataset, images=8), destination, replace(RUN, save_every_minutes=0))
    assert saved == [destination] * 3  # after each of two steps, and at the end


def test_train_on_says_when_training_diverges(tmp_path: Path) -> None:
    dataset = ShapesDataset(8, count=4)
    diverging = replace(tiny_spec(dataset), learning_rate=1e30)
    with pytest.raises(UserError, match="training on shapes diverged"):
        train_on(dataset, diverging, tmp_path / "weights.safetensors", RUN)


def test_train_on_ends_when_its_minutes_have_passed(tmp_path: Path) -> None:
    dataset = ShapesDataset(8, count=4)
    train_on(dataset, tiny_spec(dataset, images=10**9), tmp_path / "w.safetensors", replace(RUN, minutes=0.01))
    assert (tmp_path / "w.safetensors").is_file()


def test_train_on_tells_of_losses_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.train.LOG_EVERY_STEPS", 2)
    dataset, destination = ShapesDataset(8, count=4), tmp_path / "weights.safetensors"
    train_on(dataset, tiny_spec(dataset, images=12), destination, RUN)
    first, second = capsys.readouterr().err.splitlines()
    assert ", 8 images: loss of D " in first
    assert second.endswith(f", 12 images: wrote {destination}")


def test_train_on_refuses_what_does_not_fit(tmp_path: Path) -> None:
    dataset = ShapesDataset(8, count=2)
    with pytest.raises(UserError, match=r"shapes: \(resolution, classes\) is \(8, 10\)"):
        train_on(dataset, small_spec(ShapesDataset(16), 8), tmp_path / "weights.safetensors", RUN)
    with pytest.raises(UserError, match="2 images are fewer than a batch of 4"):
        train_on(dataset, tiny_spec(dataset), tmp_path / "weights.safetensors", RUN)
    with pytest.raises(UserError, match=r"written as \.safetensors"):
        train_on(dataset, tiny_spec(dataset), tmp_path / "weights.pt", replace(RUN, batch_size=2))


def test_shipped_weights_have_the_settings_of_small_spec() -> None:
    generator, _ = load_generator(SHIPPED)
    assert isinstance(generator, StyleGAN2Generator)
    assert generator.config == small_spec(ShapesDataset(32), images=1).generator
    assert SHIPPED.stat().st_size < 1_500_000
