from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.errors import UserError
from bench.inversion import (
    INVERSION_PROTOCOLS,
    compared,
    drawn_classes,
    has_mapping_network,
    inversion_protocol_named,
    invert,
    learning_rate,
    mean_w,
    render,
)
from bench.metrics.psnr import psnr
from tests.bench.inversion_cases import (
    CPU,
    PixelLoss,
    biggan,
    biggan_deep,
    labels,
    made_images,
    starts_of,
    style_generator,
)

PERCEPTUAL = PixelLoss()


def nothing() -> None:
    pass


def test_learning_rate_ramps_as_published() -> None:
    assert learning_rate(0, 1000) == 0.0
    assert learning_rate(25, 1000) == pytest.approx(0.05)
    assert learning_rate(50, 1000) == learning_rate(750, 1000) == pytest.approx(0.1)
    assert learning_rate(875, 1000) == pytest.approx(0.1 * (0.5 - 0.5 * math.cos(math.pi / 2)))
    assert learning_rate(999, 1000) == pytest.approx(0.1 * (0.5 - 0.5 * math.cos(math.pi * 0.004)))


def test_mean_w_is_the_mean_over_z_of_the_published_seed() -> None:
    generator = style_generator()
    z = torch.from_numpy(np.random.RandomState(123).randn(2300, 16)).float()
    expected = generator.mapping(z, labels(4).expand(2300, -1))[:, 0].double().mean(0)
    torch.testing.assert_close(mean_w(generator, labels(4), 2300, CPU)[0, 0].double(), expected, rtol=1e-5, atol=1e-6)


def test_mean_w_takes_a_condition_for_each_sample() -> None:
    generator = style_generator()
    classes = torch.arange(1500) % 2
    z = torch.from_numpy(np.random.RandomState(123).randn(1500, 16)).float()
    expected = generator.mapping(z, labels(*classes.tolist()))[:, 0].mean(0)
    mean = mean_w(generator, labels(*classes.tolist()), 1500, CPU)
    torch.testing.assert_close(mean[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_drawn_classes_follow_the_posterior() -> None:
    posterior = torch.tensor([0.0, 0.7, 0.0, 0.3, 0.0])
    drawn = drawn_classes(posterior, 10_000)
    shares = torch.bincount(drawn, minlength=5) / 10_000
    torch.testing.assert_close(shares, posterior, atol=0.02, rtol=0)
    assert shares[[0, 2, 4]].tolist() == [0, 0, 0]
    assert torch.equal(drawn, drawn_classes(posterior, 10_000))


@pytest.mark.parametrize("latent", ["w", "w+"])
def test_inversion_recovers_an_image_of_the_generator(latent: str) -> None:
    generator, c = style_generator(), labels(3, 8)
    targets, starts = made_images(generator, c), starts_of(generator, c)
    before = psnr(render(generator, starts.expand(-1, generator.num_ws, -1)), targets)
    steps: list[int] = []
    ws = invert(generator, targets, starts, PERCEPTUAL, (latent, 100), lambda: steps.append(1))  # type: ignore[arg-type]
    after = psnr(render(generator, ws), targets)
    assert len(steps) == 100
    assert (after > before + 12).all(), (before, after)
    rows = len(ws[0].unique(dim=0))
    assert rows == (1 if latent == "w" else generator.num_ws)


def test_inversion_follows_the_published_optimiser() -> None:
    """Against the textbook form of Adam, written out."""
    generator, c = style_generator(), labels(1)
    targets, w = made_images(generator, c), starts_of(generator, c)
    found = invert(generator, targets, w, PERCEPTUAL, ("w", 4), nothing)[:, :1]
    wanted, mean, square = targets.float() / 127.5 - 1, torch.zeros(()), torch.zeros(())
    for step in range(4):
        w = w.detach().requires_grad_()
        image = generator.synthesis(w.repeat(1, generator.num_ws, 1), noise_mode="const")
        (gradient,) = torch.autograd.grad(PERCEPTUAL.loss(image, wanted).sum(), w)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        t = step + 1
        w = w - learning_rate(step, 4) * (mean / (1 - 0.9**t)) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(found, w.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("latent", ["w", "w+"])
def test_target_does_not_depend_on_its_batch(latent: str) -> None:
    generator, c = style_generator(), labels(0, 7, 2)
    targets, starts = made_images(generator, c), starts_of(generator, c)
    together = invert(generator, targets, starts, PERCEPTUAL, (latent, 20), nothing)  # type: ignore[arg-type]
    alone = [
        invert(generator, targets[[i]], starts[[i]], PERCEPTUAL, (latent, 20), nothing)  # type: ignore[arg-type]
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [biggan, biggan_deep])
def test_biggan_keeps_the_embedding_or_optimises_it(make: object) -> None:
    generator = make()  # type: ignore[operator]
    c = labels(3)
    targets, start = made_images(generator, c), mean_w(generator, c, 500, CPU)
    assert not has_mapping_network(generator)
    assert torch.equal(start, generator.mapping(torch.zeros(1, generator.z_dim), c))
    z_only = invert(generator, targets, start, PERCEPTUAL, ("w", 30), nothing)
    both = invert(generator, targets, start, PERCEPTUAL, ("w+", 30), nothing)
    embedding = slice(generator.z_dim, None)
    assert torch.equal(z_only[..., embedding], start[..., embedding])
    assert not torch.equal(both[..., embedding], start[..., embedding])
    before = PERCEPTUAL.distance(render(generator, start), targets)
    for ws in (z_only, both):
        assert PERCEPTUAL.distance(render(generator, ws), targets) < 0.7 * before


def test_diverged_target_leaves_the_others_alone() -> None:
    generator, c = style_generator(), labels(0, 7)
    targets, starts = made_images(generator, c), starts_of(generator, c)
    good = invert(generator, targets[:1], starts[:1], PERCEPTUAL, ("w", 5), nothing)
    starts[1] = math.nan
    ws = invert(generator, targets, starts, PERCEPTUAL, ("w", 5), nothing)
    assert not ws[1].isfinite().any()
    torch.testing.assert_close(ws[:1], good, rtol=1e-3, atol=1e-3)


def test_images_are_compared_at_256_pixels_at_most() -> None:
    image = torch.rand(1, 3, 512, 512)
    assert torch.equal(compared(image), F.avg_pool2d(image, 2))
    assert torch.equal(compared(image[..., :64, :64]), image[..., :64, :64])


def test_pixels_are_cut_to_integers_as_the_published_script_does() -> None:
    class Constant:
        def synthesis(self, ws: torch.Tensor, *, noise_mode: str) -> torch.Tensor:
            return ws / 127.5 - 1

    levels = torch.tensor([[[[-3.0, 0.9, 1.99, 254.5, 270.0]]]])
    assert render(Constant(), levels).flatten().tolist() == [0, 0, 1, 254, 255]  # type: ignore[arg-type]


def test_target_of_another_size_is_refused() -> None:
    generator = style_generator()
    with pytest.raises(ValueError, match=r"needs uint8 \[N, 3, 8, 8\]. Prepare"):
        invert(
            generator,
            torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
            torch.zeros(1, 1, 16),
            PERCEPTUAL,
            ("w", 1),
            nothing,
        )


def test_protocols_are_found_by_name() -> None:
    assert inversion_protocol_named("inversion@sgxl-pti").tunes_weights
    assert all(
        name == protocol.name and protocol.summary and protocol.paper for name, protocol in INVERSION_PROTOCOLS.items()
    )
    with pytest.raises(UserError, match="Did you mean 'inversion@sgxl-w\\+'"):
        inversion_protocol_named("inversion@sgxl-w")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_recovers_an_image_of_the_generator() -> None:
    generator, c = style_generator().cuda(), labels(3, 8).cuda()
    z = torch.from_numpy(np.random.default_rng(3).standard_normal((2, generator.z_dim), dtype="float32")).cuda()
    targets = render(generator, generator.mapping(z, c))
    starts = torch.cat([mean_w(generator, one[None], 500, targets.device) for one in c])
    ws = invert(generator, targets, starts, PERCEPTUAL, ("w", 100), nothing)
    before = psnr(render(generator, starts.expand(-1, generator.num_ws, -1)), targets)
    assert (psnr(render(generator, ws), targets) > before + 6).all()
