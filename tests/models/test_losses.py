from __future__ import annotations

import math

import torch

from models.training.losses import (
    discriminator_loss,
    generator_loss,
    r1_penalty,
    stylegan_t_discriminator_loss,
    stylegan_t_generator_loss,
    stylegan_xl_discriminator_loss,
    stylegan_xl_generator_loss,
)


def test_losses_are_negative_log_likelihoods() -> None:
    real, fake = torch.tensor([[0.0], [2.0]]), torch.tensor([[-1.0], [3.0]])

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    assert math.isclose(generator_loss(fake).item(), -(log_sigmoid(-1) + log_sigmoid(3)) / 2, rel_tol=1e-6)
    expected = -(log_sigmoid(0) + log_sigmoid(2)) / 2 - (log_sigmoid(1) + log_sigmoid(-3)) / 2
    assert math.isclose(discriminator_loss(real, fake).item(), expected, rel_tol=1e-6)


def test_r1_penalty_of_a_linear_discriminator_is_its_squared_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(48, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(images.flatten(1) @ weight + 7, images)
    assert torch.allclose(penalty, weight.square().sum().expand(5))
    (gradient,) = torch.autograd.grad(penalty.mean(), weight)
    assert torch.allclose(gradient, 2 * weight)


def test_r1_penalty_is_taken_image_by_image() -> None:
    images = torch.stack([torch.full((3, 2, 2), value) for value in (0.0, 1.0, -2.0)]).requires_grad_()
    logits = images.square().sum(dim=(1, 2, 3)).unsqueeze(1) / 2  # the gradient is the image itself
    assert r1_penalty(logits, images).tolist() == [0.0, 12.0, 48.0]


def test_stylegan_xl_sums_hinges_over_images_and_backbones() -> None:
    fake = [torch.tensor([[0.5, -3.0], [1.0, 1.0]]), torch.tensor([[2.0], [-2.0]])]  # backbones differ in patches
    real = [torch.tensor([[0.5, 3.0], [-1.0, 1.0]]), torch.tensor([[2.0], [-2.0]])]
    assert stylegan_xl_generator_loss(fake).item() == (1.25 - 1.0) + (-2.0 + 2.0)
    on_fake, on_real = (0.75 + 2.0) + (3.0 + 0.0), (0.25 + 1.0) + (0.0 + 3.0)
    assert stylegan_xl_discriminator_loss(real, fake).item() == on_fake + on_real


def test_stylegan_t_divides_mean_hinges_by_the_images() -> None:
    fake, real = torch.tensor([[0.5, -3.0], [1.0, 1.0]]), torch.tensor([[0.5, 3.0], [-1.0, 1.0]])
    assert stylegan_t_generator_loss(fake).item() == 0.125 / 2
    assert stylegan_t_discriminator_loss(real, fake).item() == (5.5 / 4 + 2.5 / 4) / 2
