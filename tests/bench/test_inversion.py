from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bench.inversion import InversionSpec, invert, learning_rate, mean_w
from bench.metrics.psnr import psnr
from bench.standin import StandinPerceptual
from models.layers import initialise, to_uint8
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import StyleGAN2Config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator() -> StyleGAN2Generator:
    config = StyleGAN2Config(
        resolution=16, num_classes=3, z_dim=16, w_dim=16, mapping_layers=2, channel_base=256, channel_max=16
    )
    made = StyleGAN2Generator(config)
    initialise(made, 0)
    return made.requires_grad_(requires_grad=False).eval()


def test_learning_rate_ramps_as_published() -> None:
    assert learning_rate(0, 1000) == 0.0
    assert learning_rate(25, 1000) == pytest.approx(0.05)
    assert learning_rate(500, 1000) == pytest.approx(0.1)
    assert learning_rate(875, 1000) == pytest.approx(0.1 * (0.5 - 0.5 * math.cos(math.pi / 2)))


def test_mean_w_is_the_mean_of_the_class(generator: StyleGAN2Generator) -> None:
    first, again, other = (mean_w(generator, torch.eye(3)[[label]], 500, CPU) for label in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape == (1, 1, 16)
    assert (first - other).abs().max() > 1e-3


def test_inversion_comes_close_to_an_image_of_the_generator(generator: StyleGAN2Generator) -> None:
    z = torch.from_numpy(np.random.default_rng(3).standard_normal((1, 16), dtype="float32"))
    ws = generator.mapping(z, torch.eye(3)[:1])
    target = to_uint8(generator.synthesis(ws, noise_mode="const"))
    perceptual, steps = StandinPerceptual(CPU), []
    start = mean_w(generator, torch.eye(3)[:1], 500, CPU).expand(-1, generator.num_ws, -1)
    before = psnr(to_uint8(generator.synthesis(start, noise_mode="const")), target)
    spec = InversionSpec(num_steps=60, num_mean_samples=500)
    inverted = invert(generator, target[0], torch.eye(3)[:1], perceptual, spec, lambda: steps.append(1))
    assert len(steps) == 60
    assert inverted.dtype == torch.uint8
    assert float(psnr(inverted[None], target)) > float(before) + 3
