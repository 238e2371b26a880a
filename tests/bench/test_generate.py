"""`bench generate`: what is written, what is kept, and that a seed's image depends on nothing but the seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.errors import UserError
from bench.generate import GenerateSpec, generate, parse_numbers, seed_latents
from bench.model_weights import LoadedModel
from models.layers import initialise, to_uint8
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import StyleGAN2Config
from models.stylegan_xl import build as build_xl

SPEC = GenerateSpec(seeds=(0, 1, 2), batch_size=2)


def loaded(num_classes: int = 0, seed: int = 0) -> LoadedModel:
    generator = StyleGAN2Generator(
        StyleGAN2Config(8, num_classes, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)
    )
    initialise(generator, seed)
    return LoadedModel(generator, "random", f"sha of seed {seed}")


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize(
    ("text", "numbers"), [("3", (3,)), ("0-2", (0, 1, 2)), ("0-1, 7,5-5", (0, 1, 7, 5)), ("85,265", (85, 265))]
)
def test_parse_numbers_reads_lists_and_ranges(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "1..3", "0,"])
def test_parse_numbers_refuses_everything_else(text: str) -> None:
    with pytest.raises(UserError, match="no number or range"):
        parse_numbers(text)


def test_generate_writes_one_png_a_seed_and_a_grid(tmp_path: Path) -> None:
    assert generate(loaded(), SPEC, tmp_path) == [tmp_path / "grid.png"]
    assert sorted(path.name for path in tmp_path.glob("seed*")) == ["seed0000.png", "seed0001.png", "seed0002.png"]
    assert pixels(tmp_path / "seed0001.png").shape == (8, 8, 3)
    assert pixels(tmp_path / "grid.png").std() > 0


def test_generate_gives_a_seed_the_same_image_in_any_batch(tmp_path: Path) -> None:
    generate(loaded(), SPEC, tmp_path / "two")
    generate(loaded(), dataclasses.replace(SPEC, seeds=(2,), batch_size=1), tmp_path / "alone")
    assert (
        np.abs(pixels(tmp_path / "two/seed0002.png").astype(int) - pixels(tmp_path / "alone/seed0002.png")).max() <= 1
    )


def test_generate_uses_the_seeds_of_the_official_scripts(tmp_path: Path) -> None:
    model = loaded()
    assert isinstance(model.generator, StyleGAN2Generator)
    z = torch.from_numpy(np.random.RandomState(85).randn(1, 8)).float()
    torch.testing.assert_close(seed_latents(model.generator, 85)["z"][None], z)
    generate(model, dataclasses.replace(SPEC, seeds=(85,), truncation_psi=0.5), tmp_path)
    expected = to_uint8(model.generator(z, truncation_psi=0.5, noise_mode="const"))[0].permute(1, 2, 0)
    assert np.array_equal(pixels(tmp_path / "seed0085.png"), expected.numpy())


def test_generate_writes_a_sheet_of_classes(tmp_path: Path) -> None:
    paths = generate(loaded(num_classes=4), dataclasses.replace(SPEC, classes=(1, 3)), tmp_path)
    assert [path.name for path in paths] == ["grid.png", "classes.png"]
    names = sorted(path.name for path in tmp_path.glob("class0*"))
    assert names == [f"class000{c}-seed000{s}.png" for c in (1, 3) for s in (0, 1, 2)]
    height, width, _ = pixels(tmp_path / "classes.png").shape
    assert width > height  # three seeds beside each other, two classes below each other
    assert not np.array_equal(pixels(tmp_path / names[0]), pixels(tmp_path / names[3]))


def test_generate_keeps_what_an_earlier_call_made(tmp_path: Path) -> None:
    generate(loaded(), dataclasses.replace(SPEC, seeds=(0,)), tmp_path)
    before = (tmp_path / "seed0000.png").stat().st_mtime_ns
    generate(loaded(), SPEC, tmp_path)
    assert (tmp_path / "seed0000.png").stat().st_mtime_ns == before
    assert (tmp_path / "seed0002.png").is_file()


def test_generate_does_not_mix_weights_or_settings_in_a_folder(tmp_path: Path) -> None:
    generate(loaded(), SPEC, tmp_path)
    old = pixels(tmp_path / "seed0000.png")
    with pytest.raises(UserError, match="other weights or settings"):
        generate(loaded(seed=1), SPEC, tmp_path)
    assert np.array_equal(pixels(tmp_path / "seed0000.png"), old)
    generate(loaded(seed=1), SPEC, tmp_path, force=True)
    assert not np.array_equal(pixels(tmp_path / "seed0000.png"), old)


def test_generate_reports_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    generate(loaded(), SPEC, tmp_path)
    (tmp_path / "seed0001.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(UserError, match="can't be read"):
        generate(loaded(), SPEC, tmp_path)


def test_interpolation_starts_and_ends_at_its_seeds(tmp_path: Path) -> None:
    model = loaded()
    spec = dataclasses.replace(SPEC, interpolate="frames", steps=3)
    generate(model, spec, tmp_path)
    frames = sorted(path.name for path in tmp_path.glob("frame*"))
    assert frames == [f"frame{i:05d}.png" for i in range(7)]
    generate(model, SPEC, tmp_path / "still")
    for frame, seed in ((0, 0), (3, 1), (6, 2)):
        assert np.array_equal(pixels(tmp_path / frames[frame]), pixels(tmp_path / f"still/seed000{seed}.png"))
    generate(model, dataclasses.replace(spec, interpolate="strip"), tmp_path / "strip")
    assert (tmp_path / "strip/interpolation.png").is_file()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": (0,)}, "conditioning is 'none'"),
        ({"prompts": ("a cat",)}, "reads no text"),
        ({"interpolate": "strip", "seeds": (1,)}, "two seeds or more"),
    ],
)
def test_generate_refuses_what_the_generator_cannot_do(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(loaded(), dataclasses.replace(SPEC, **changed), tmp_path)  # type: ignore[arg-type]


def test_generate_refuses_a_class_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 is not one of the 4 classes"):
        generate(loaded(num_classes=4), dataclasses.replace(SPEC, classes=(4,)), tmp_path)


def test_centroids_pull_to_the_nearest_of_them(tmp_path: Path) -> None:
    layer = {"resolution": 16, "channel_base": 64, "channel_max": 8, "num_layers": 4}
    generator = build_xl(stem=layer, resolution=16, w_dim=8, z_dim=8, embed_classes=2, embed_dim=4)
    initialise(generator, 0)
    np.save(tmp_path / "centers.npy", np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32))
    model = LoadedModel(generator, "random", "sha")
    spec = dataclasses.replace(SPEC, truncation_psi=0.5)
    generate(model, spec, tmp_path / "plain")
    generate(model, dataclasses.replace(spec, centroids=tmp_path / "centers.npy"), tmp_path / "centered")
    plain, centered = (pixels(tmp_path / folder / "seed0000.png") for folder in ("plain", "centered"))
    assert not np.array_equal(plain, centered)
    with pytest.raises(UserError, match="only StyleGAN-XL has"):
        generate(loaded(), dataclasses.replace(spec, centroids=tmp_path / "centers.npy"), tmp_path / "other")


@pytest.mark.parametrize("content", [b"no array", b""])
def test_centroids_that_are_no_array_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "centers.npy").write_bytes(content)
    generator = build_xl(
        stem={"resolution": 16, "channel_base": 64, "channel_max": 8, "num_layers": 4}, resolution=16, w_dim=8, z_dim=8
    )
    model = LoadedModel(generator, "random", "sha")
    with pytest.raises(UserError, match=r"not a \.npy file"):
        generate(model, dataclasses.replace(SPEC, centroids=tmp_path / "centers.npy"), tmp_path / "out")
