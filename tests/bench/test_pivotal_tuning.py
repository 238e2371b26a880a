from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from bench.inversion import invert, render
from bench.metrics.psnr import psnr
from bench.pivotal_tuning import Pivot, neighbouring_ws, planned_steps, tune, tuning_steps
from bench.sampling import sample_rng
from tests.bench.inversion_cases import PixelLoss, biggan, labels, made_images, starts_of, style_generator

PERCEPTUAL = PixelLoss()


def nothing() -> None:
    pass


def pivot_of(generator: Any, seed: int = 5) -> Pivot:
    """An image of other weights, so that no latent gives it exactly."""
    c = labels(2)
    target = made_images(generator, c, seed).flip(3)
    ws = invert(generator, target, starts_of(generator, c), PERCEPTUAL, ("w", 30), nothing)
    return Pivot(target, ws, index=4)


@pytest.mark.parametrize("make", [style_generator, biggan])
def test_tuning_comes_closer_and_leaves_the_generator_alone(make: Any) -> None:
    generator = make()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    pivot, steps = pivot_of(generator), []
    image, tuned = tune(generator, pivot, PERCEPTUAL, 40, lambda: steps.append(1))
    assert len(steps) == 40
    assert psnr(image, pivot.target) > psnr(render(generator, pivot.ws), pivot.target) + 1.5
    assert torch.equal(image, render(tuned, pivot.ws))
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    moved = [name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])]
    assert any("conv" in name for name in moved)


def test_tuning_does_not_depend_on_what_was_tuned_before() -> None:
    generator = style_generator()
    pivot = pivot_of(generator)
    first, _ = tune(generator, pivot, PERCEPTUAL, 5, nothing)
    tune(generator, pivot_of(generator, seed=6), PERCEPTUAL, 5, nothing)
    again, _ = tune(generator, pivot, PERCEPTUAL, 5, nothing)
    assert torch.equal(first, again)


def test_neighbours_lie_at_the_published_distance_towards_a_truncated_w() -> None:
    generator = style_generator()
    generator.mapping.w_avg.fill_(0.3)
    pivot = Pivot(torch.zeros(1), torch.ones(1, generator.num_ws, 16), index=0)
    rng, same = sample_rng(0, 0, "latents"), sample_rng(0, 0, "latents")
    for _ in range(2):
        z = torch.from_numpy(same.standard_normal((1, 16), dtype="float32"))
        w = generator.mapping(z, labels(int(same.integers(10))))
        towards = 0.3 + 0.5 * (w - 0.3) - 1
        expected = 1 + 30 * towards / towards.square().sum().sqrt()
        torch.testing.assert_close(neighbouring_ws(generator, pivot, rng), expected)


def test_locality_holds_the_neighbours() -> None:
    """Without the term, images around the pivot move farther from where they were."""
    generator = style_generator()
    pivot = pivot_of(generator)
    rng = sample_rng(9, 9, "latents")
    neighbours = torch.cat([neighbouring_ws(generator, pivot, rng) for _ in range(8)])
    before = generator.synthesis(neighbours, noise_mode="const")

    def moved(weight: float) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bench.pivotal_tuning.LOCALITY_WEIGHT", weight)
            _, tuned = tune(generator, pivot, PERCEPTUAL, 40, nothing)
        return float(PERCEPTUAL.loss(tuned.synthesis(neighbours, noise_mode="const"), before).mean())

    assert moved(1e7) < 0.8 * moved(0.0)


def test_two_steps_follow_the_published_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out: LPIPS and squared error of pixels of [0, 255], LPIPS of neighbours as [-1, 1], and Adam."""
    monkeypatch.setattr("bench.pivotal_tuning.LOCALITY_WEIGHT", 1e11)  # its part of two steps can then be seen
    generator = style_generator()
    pivot = pivot_of(generator)
    _, tuned = tune(generator, pivot, PERCEPTUAL, 2, nothing)
    by_hand = copy.deepcopy(generator).requires_grad_(True)
    rng = sample_rng(123, pivot.index, "latents")
    parameters = dict(by_hand.synthesis.named_parameters())
    means, squares = ([torch.zeros(())] * len(parameters) for _ in range(2))
    wanted = pivot.target.float()
    for t in (1, 2):
        image = (by_hand.synthesis(pivot.ws, noise_mode="const") + 1) * 127.5
        neighbour = neighbouring_ws(generator, pivot, rng)
        after, before = (net.synthesis(neighbour, noise_mode="const") for net in (by_hand, generator))
        loss = (image - wanted).square().mean() + ((image - wanted) / 127.5).square().mean()
        loss = loss + 1e11 * ((after - before) / 127.5).square().mean()
        for i, gradient in enumerate(torch.autograd.grad(loss, list(parameters.values()))):
            means[i] = 0.9 * means[i] + 0.1 * gradient
            squares[i] = 0.999 * squares[i] + 0.001 * gradient**2
        with torch.no_grad():
            for value, mean, square in zip(parameters.values(), means, squares, strict=True):
                value.sub_(3e-4 * (mean / (1 - 0.9**t)) / ((square / (1 - 0.999**t)) ** 0.5 + 1e-8))
    for name, value in parameters.items():
        assert (tuned.synthesis.get_parameter(name) - value).abs().mean() < 1e-6, name


def test_steps_scale_with_those_of_inversion() -> None:
    assert [tuning_steps(steps) for steps in (1000, 20, 1)] == [350, 7, 1]
    assert planned_steps(["inversion@sgxl"], 1000) == (1000, 0)
    assert planned_steps(["inversion@sgxl", "inversion@sgxl-w+", "inversion@sgxl-pti"], 1000) == (2000, 350)
    assert planned_steps(["inversion@sgxl-pti"], 1000) == (1000, 350)
