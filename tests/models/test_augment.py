from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.training import augment
from models.training.augment import AugmentConfig, AugmentPipe, named_augment_config, official_augment_config
from models.training.augment_control import AdaptiveAugmentation, Augmenter
from models.training.augment_wavelets import amplify_bands, band_filters, sample_bilinear, warp, warp_filter
from models.training.losses import r1_penalty

EVERYTHING = named_augment_config("bgcfnc")
OPERATIONS = ["xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac", "imgfilter", "noise", "cutout"]
COLORS = ["brightness", "contrast", "lumaflip", "hue", "saturation"]


def make(p: float = 1.0, **kwargs: Any) -> AugmentPipe:
    pipe = AugmentPipe(official_augment_config(kwargs))
    pipe.p.fill_(p)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 4, channels: int = 3, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(count, channels, height, width, generator=seeded(7), dtype=torch.float64) * 2 - 1


# identities


@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig()], ids=["p=0", "strength=0"])
def test_pipe_without_chance_or_strength_returns_images_bit_for_bit(config: AugmentConfig) -> None:
    pipe = AugmentPipe(config)
    if config == EVERYTHING:
        pipe.p.zero_()
    images = pictures().float()
    assert torch.equal(pipe(images, seeded()), images)


def test_sample_that_is_not_chosen_is_unchanged_beside_ones_that_are() -> None:
    images = pictures(16).float()
    pipe = AugmentPipe(named_augment_config("bgcfnc"))
    pipe.p.fill_(0.01)
    error = (pipe(images, seeded(3)) - images).abs().amax((1, 2, 3))
    assert error.max() > 0.1
    assert error.median() < 1e-5  # filtering up and down again costs rounding errors only
    colors = make(0.1, **dict.fromkeys(COLORS, 1), cutout=1)
    changed = [not torch.equal(got, image) for got, image in zip(colors(images, seeded()), images, strict=True)]
    assert 0 < sum(changed) < 16


@pytest.mark.parametrize("size", [(4, 4), (7, 16), (32, 20)])
def test_warp_by_the_identity_returns_the_images(size: tuple[int, int]) -> None:
    images = pictures(2, 1, *size)
    same = warp(images, torch.eye(3, dtype=torch.float64).expand(2, 3, 3), warp_filter())
    assert (same - images).abs().max() < 1e-6  # taps are float32


# closed forms


def test_wavelets_are_orthonormal() -> None:
    taps = warp_filter().double()
    assert taps.sum() == pytest.approx(1)
    for shift in range(6):
        product = (taps[2 * shift :] * taps[: len(taps) - 2 * shift]).sum() * 2
        assert product == pytest.approx(float(shift == 0), abs=1e-6)


def test_band_filters_are_symmetric_octaves_that_add_up_to_the_impulse() -> None:
    bank = band_filters().double()
    assert bank.shape == (4, 43)
    assert torch.allclose(bank, bank.flip(1), atol=1e-7)
    impulse = F.one_hot(torch.tensor(21), 43).double()
    assert torch.allclose(bank.sum(0), impulse, atol=1e-7)
    response = torch.fft.rfft(bank, 256).abs()  # bin 128 is half the sampling rate
    assert response.argmax(1).tolist() == pytest.approx([0, 22, 44, 128], abs=3)
    for band, (low, high) in enumerate([(0, 16), (16, 32), (32, 64), (64, 128)]):
        assert response[band, low : high + 1].sum() > 0.6 * response[band].sum()


def translated(x: int, y: int) -> Callable[[Tensor], Tensor]:
    """Move images by whole pixels; mirror images move in."""

    def shift(images: Tensor) -> Tensor:
        rows = reflected(torch.arange(images.shape[2]) - y, images.shape[2])
        columns = reflected(torch.arange(images.shape[3]) - x, images.shape[3])
        return images[:, :, rows][:, :, :, columns]

    return shift


def reflected(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def blob(x: Tensor, y: Tensor) -> Tensor:
    """A smooth image `[1, 1, H, W]` without any symmetry of its own."""
    return torch.exp(-((x - 4) ** 2 + 2 * (y + 3) ** 2) / 60).double()[None, None]


def centred(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The x and y of each pixel."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return x, y


@pytest.mark.parametrize(
    ("kwargs", "percentile", "expected"),
    [
        ({"xflip": 1}, 0.4, lambda images: images),
        ({"rotate90": 1}, 0.2, lambda images: images),
        ({"xint": 1}, 0.9, translated(2, 2)),
        ({"xint": 1, "xint_max": 0.5}, 0.1, translated(-10, -10)),
    ],
)
def test_shift_by_whole_pixels_is_exact(
    kwargs: dict[str, Any], percentile: float, expected: Callable[[Tensor], Tensor]
) -> None:
    images = pictures(2, 3, 24, 24)
    assert (make(**kwargs)(images, debug_percentile=percentile) - expected(images)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kwargs", "percentile", "expected"),
    [
        ({"xflip": 1}, 0.6, lambda images: images.flip(3)),
        ({"rotate90": 1}, 0.3, lambda images: images.rot90(1, (2, 3))),
        ({"rotate90": 1}, 0.6, lambda images: images.rot90(2, (2, 3))),
        ({"rotate90": 1}, 0.8, lambda images: images.rot90(-1, (2, 3))),
        ({"rotate": 1}, 0.75, lambda images: images.rot90(1, (2, 3))),
    ],
)
def test_flips_and_quarter_turns_are_exact_up_to_the_asymmetry_of_the_wavelet(
    kwargs: dict[str, Any], percentile: float, expected: Callable[[Tensor], Tensor]
) -> None:
    # sym6 is only nearly symmetric: what it delays one way and not back is some hundredths of a pixel
    images = blob(*centred(40, 40))
    assert (make(**kwargs)(images, debug_percentile=percentile) - expected(images)).abs().max() < 0.02


def test_shifts_are_parts_of_width_and_height() -> None:
    images = pictures(1, 1, 24, 40)
    shifted = make(xint=1)(images, debug_percentile=0.9)  # 0.1 of 40 and of 24 pixels, rounded
    assert (shifted - translated(4, 2)(images)).abs().max() < 1e-5


def test_geometry_moves_a_smooth_image_as_its_formula_says() -> None:
    x, y = centred(48, 64)
    gauss = torch.tensor(2 * 0.7 - 1).erfinv().item()  # of percentile 0.7
    factor, angle = 2 ** (0.2 * gauss), 0.4 * math.pi
    cos, sin = math.cos(angle), math.sin(angle)
    cases: dict[str, tuple[Tensor, Tensor]] = {
        "scale": (x / factor, y / factor),
        "aniso": (x / factor, y * factor),
        "rotate": (cos * x - sin * y, sin * x + cos * y),
        "xfrac": (x - 0.125 * gauss * 64, y - 0.125 * gauss * 48),
    }
    for name, (from_x, from_y) in cases.items():
        moved = make(**{name: 1})(blob(x, y), debug_percentile=0.7)
        inside = (from_x.abs() < 30) & (from_y.abs() < 22)  # elsewhere the image is mirrored
        error = (moved - blob(from_x, from_y))[..., inside]
        assert error.abs().max() < 0.02, name


@pytest.mark.parametrize("percentile", [0.1, 0.45, 0.8])
def test_colour_changes_keep_what_they_must(percentile: float) -> None:
    images = pictures()
    luma, chroma = images.mean(1, keepdim=True), images - images.mean(1, keepdim=True)

    def change(name: str) -> Tensor:
        changed: Tensor = make(**{name: 1})(images, debug_percentile=percentile)
        return changed

    hue = change("hue")  # a rotation about the grey axis
    assert torch.allclose(hue.mean(1, keepdim=True), luma)
    assert torch.allclose(hue.square().sum(1), images.square().sum(1))
    saturated = change("saturation")
    gauss = math.sqrt(0.5) * float(torch.distributions.Normal(0, 1).icdf(torch.tensor(percentile)))
    assert torch.allclose(saturated, luma + chroma * 2**gauss, atol=1e-6)
    flipped = change("lumaflip")
    assert torch.allclose(flipped, images - 2 * luma * (percentile >= 0.5))
    assert torch.allclose(change("brightness"), images + 0.2 * gauss, atol=1e-6)
    assert torch.allclose(change("contrast"), images * 2 ** (0.5 * gauss), atol=1e-6)


def test_colours_change_in_the_official_order() -> None:
    images, percentile = pictures(), 0.8
    together = make(**dict.fromkeys(COLORS, 1))(images, debug_percentile=percentile)
    for name in COLORS:
        images = make(**{name: 1})(images, debug_percentile=percentile)
    assert torch.allclose(together, images)


def test_grey_image_is_changed_as_the_mean_of_three_equal_channels() -> None:
    grey, pipe = pictures(channels=1), make(**dict.fromkeys(COLORS, 1))
    coloured = pipe(grey.expand(-1, 3, -1, -1), seeded())
    assert torch.allclose(pipe(grey, seeded()), coloured.mean(1, keepdim=True))


def test_band_gains_of_one_change_nothing_and_others_what_their_band_holds() -> None:
    images = pictures(2, 3, 64, 64)
    bank = band_filters()
    assert (amplify_bands(images, torch.ones(2, 4), bank) - images).abs().max() < 1e-6
    flat = torch.full_like(images, 0.3)
    lowest = torch.tensor([[3.0, 1, 1, 1], [1.0, 5, 5, 5]])
    amplified = amplify_bands(flat, lowest, bank)
    assert torch.allclose(amplified[0], flat[0] * 9, atol=1e-5)  # 3 along x, 3 along y
    assert torch.allclose(amplified[1], flat[1], atol=1e-5)
    with pytest.raises(ValueError, match="images of 32x16; its filters need more than 21 pixels"):
        amplify_bands(pictures(1, 3, 16, 32), torch.ones(1, 4), bank)


def test_image_filter_keeps_the_expected_power_of_natural_images() -> None:
    power = torch.tensor([10, 1, 1, 1]) / 13
    draws = augment._Draws(pictures(64), torch.tensor(0.7), seeded(), None)
    gains = augment._band_gains(official_augment_config({"imgfilter": 1, "imgfilter_bands": [1, 0, 1, 1]}), draws)
    only_one = augment._band_gains(official_augment_config({"imgfilter": 1, "imgfilter_bands": [0, 1, 0, 0]}), draws)
    assert ((only_one.square() * power).sum(1)).numpy() == pytest.approx(np.ones(64))
    assert len(only_one[:, 1].unique()) > 20
    assert torch.allclose(only_one[:, 0], only_one[:, 2])
    assert len(gains[:, 0].unique()) > 20


def test_noise_adds_normal_numbers_of_a_random_strength() -> None:
    images = torch.zeros(200, 3, 16, 16)
    noise = make(noise=1)(images, seeded())
    levels = noise.std((1, 2, 3))
    assert levels.square().mean().sqrt() == pytest.approx(0.1, rel=0.15)  # |N(0, 0.1^2)| has this second moment
    assert noise.mean().abs() < 1e-3
    gated = make(0.5, noise=1)(images, seeded()).std((1, 2, 3))
    assert 60 < (gated == 0).sum() < 140


def test_cutout_blanks_one_box_of_half_the_size() -> None:
    ones = torch.ones(1, 3, 20, 40)
    cut = make(cutout=1)(ones, debug_percentile=0.5)
    expected = ones.clone()
    expected[:, :, 5:15, 10:30] = 0
    assert torch.equal(cut, expected)
    small = make(cutout=1, cutout_size=0.1)(ones, debug_percentile=0.0)
    assert small.sum() == 3 * (20 * 40 - 1 * 2)


# chances


@pytest.mark.parametrize("name", [*OPERATIONS, *COLORS])
def test_operation_happens_with_its_chance(name: str) -> None:
    images = pictures(400, 3, 24, 24) if name == "imgfilter" else pictures(400, 3, 8, 8)
    changed = (make(0.5, **{name: 0.8})(images, seeded(1)) - images).abs().amax((1, 2, 3)) > 1e-4
    by_nothing = {"xflip": 0.5, "rotate90": 0.25, "xint": 0.25, "lumaflip": 0.5}.get(name, 0.0)
    chance = 1 - 0.6**4 if name == "imgfilter" else 0.4  # four bands, each with a chance of its own
    assert changed.float().mean().item() == pytest.approx(chance * (1 - by_nothing), abs=0.09)


def test_chance_above_one_is_certainty() -> None:
    pipe = make(1.7, rotate=1, contrast=1)
    images = pictures(50, 3, 8, 8)
    assert ((pipe(images, seeded()) - images).abs().amax((1, 2, 3)) > 1e-4).all()


def test_same_generator_gives_the_same_changes_and_leaves_torchs_own_alone() -> None:
    images, pipe = pictures(3, 3, 32, 32).float(), AugmentPipe(EVERYTHING)
    before = torch.get_rng_state()
    first, again, other = (pipe(images, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.1
    assert torch.equal(torch.get_rng_state(), before)
    generator = seeded(5)
    assert torch.equal(pipe(images, generator), first)
    assert not torch.equal(pipe(images, generator), first)


# derivatives


def smooth_pipe() -> Callable[[Tensor], Tensor]:
    pipe = make(**{name: 1 for name in [*OPERATIONS, *COLORS] if name != "imgfilter"}).double()
    return lambda images: pipe(images, seeded(4))


def test_pipe_has_first_and_second_derivatives() -> None:
    # the pipe is linear in its input, so its square has a second derivative to check
    pipe, images = smooth_pipe(), pictures(1, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(pipe, (images,))
    assert torch.autograd.gradgradcheck(lambda x: pipe(x).square(), (images,))


def test_image_filter_has_first_and_second_derivatives() -> None:
    bank, gains = band_filters().double()[:, 19:24], torch.tensor([[1.5, 0.5, 2, 1]], dtype=torch.float64)
    images = pictures(1, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: amplify_bands(x, gains, bank), (images,))
    assert torch.autograd.gradgradcheck(lambda x: amplify_bands(x, gains, bank).square(), (images,))


def test_bilinear_sampling_is_grid_sample_and_has_second_derivatives() -> None:
    images = pictures(2, 2, 4, 5).requires_grad_()
    grid = pictures(2, 3, 6, 2) * 1.3
    assert torch.equal(sample_bilinear(images, grid), F.grid_sample(images, grid, align_corners=False))
    assert torch.autograd.gradcheck(lambda x: sample_bilinear(x, grid), (images,))
    assert torch.autograd.gradgradcheck(lambda x: sample_bilinear(x, grid).square(), (images,))


def test_r1_through_augmentation_reaches_the_weights_of_the_discriminator() -> None:
    weight = torch.ones(3, 24, 24, dtype=torch.float64, requires_grad=True)
    images = pictures(2, 3, 24, 24).requires_grad_()
    logits = (AugmentPipe(EVERYTHING).double()(images, seeded(2)) * weight).square().sum((1, 2, 3))[:, None]
    (gradient,) = torch.autograd.grad(r1_penalty(logits, images).sum(), weight)
    assert gradient.abs().max() > 0
    assert gradient.isfinite().all()


# names and control


def test_state_has_the_official_buffers_and_no_parameters() -> None:
    pipe = AugmentPipe(EVERYTHING)
    assert {name: tuple(value.shape) for name, value in pipe.state_dict().items()} == {
        "p": (),
        "Hz_geom": (12,),
        "Hz_fbank": (4, 43),
    }
    assert pipe.p == 1
    assert not list(pipe.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *[("blit", 3), ("geom", 4), ("color", 5), ("filter", 1), ("noise", 1), ("cutout", 1)],
        *[("bg", 7), ("bgc", 12), ("bgcf", 13), ("bgcfn", 14), ("bgcfnc", 15)],
    ],
)
def test_named_pipe_has_its_operations_at_full_strength(name: str, count: int) -> None:
    config = named_augment_config(name)
    chosen = [operation for operation in [*OPERATIONS, *COLORS] if getattr(config, operation)]
    assert len(chosen) == count
    assert all(getattr(config, operation) == 1 for operation in chosen)


def test_config_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown augmentation arguments flip; known: xflip, rotate90"):
        official_augment_config({"flip": 1})
    with pytest.raises(ValueError, match="allowed are 4 strengths"):
        official_augment_config({"imgfilter_bands": [1, 1]})
    with pytest.raises(ValueError, match="unknown augmentation pipe 'bgx'; known are blit"):
        named_augment_config("bgx")
    with pytest.raises(ValueError, match="images of 4 channels; colours are changed of 1 or 3"):
        make(hue=1)(pictures(channels=4), seeded())
    assert make(xflip=1, rotate=1, cutout=1, noise=1)(pictures(channels=4), seeded()).shape == (4, 4, 24, 32)


def test_strength_follows_the_sign_of_the_overfitting() -> None:
    spec = AdaptiveAugmentation(images=500_000)
    assert spec.next_p(0.1, 0.7, 256) == pytest.approx(0.1 + 256 / 500_000)
    assert spec.next_p(0.1, 0.5, 256) == pytest.approx(0.1 - 256 / 500_000)
    assert spec.next_p(0.1, 0.6, 256) == 0.1
    assert spec.next_p(0.0, 0.5, 256) == 0
    assert AdaptiveAugmentation(target=None).next_p(0.2, 1.0, 256) == 0.2


def test_augmenter_takes_the_mean_sign_over_an_interval() -> None:
    augmenter = Augmenter(AdaptiveAugmentation(interval=2, images=100, target=0.6), seed=0, device="cpu")
    augmenter.observe(torch.tensor([[0.01], [5.0]]))
    assert augmenter.pipe.p == 0
    augmenter.observe(torch.tensor([[0.1], [-9.0]]))  # mean sign 0.5: not yet overfitted
    assert augmenter.pipe.p == 0
    for logits in (torch.ones(4, 1), torch.ones(4, 1)):
        augmenter.observe(logits)
    assert augmenter.pipe.p == pytest.approx(8 / 100)
