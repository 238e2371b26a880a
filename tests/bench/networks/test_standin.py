from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench.networks.standin import (
    NUM_CLASSES,
    NUM_FEATURES,
    StandinExtractor,
    StandinPerceptual,
    StandinTextImage,
    uniform_weights,
)

CPU = torch.device("cpu")
SHA256 = "5f55f8b60d9c332fe169fe7c756ee33f9756da65dc4f542bb188b15567791703"


def noise_images(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return (F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def with_noise(images: Tensor, amplitude: float) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return (images + amplitude * torch.randn(images.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def philox_4x64(counter: int, key: int, rounds: int = 10) -> list[int]:
    """Philox 4x64 of Salmon et al. 2011, in Python's integers."""
    mask = 2**64 - 1
    x = [counter, 0, 0, 0]
    k0, k1 = key & mask, key >> 64
    for _ in range(rounds):
        first, second = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(second >> 64) ^ x[1] ^ k0, second & mask, (first >> 64) ^ x[3] ^ k1, first & mask]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return x


@pytest.mark.parametrize("key", [1, 2**100 + 12345])
def test_uniform_weights_are_philox(key: int) -> None:
    raw = [word for counter in (1, 2) for word in philox_4x64(counter, key)]
    expected = [(word >> 40) / 2**23 - 1 for word in raw]
    assert uniform_weights(key, 2, 4).ravel().tolist() == expected


def test_standins_have_the_same_weights_everywhere() -> None:
    assert {StandinExtractor(CPU).sha256, StandinTextImage(CPU).sha256, StandinPerceptual(CPU).sha256} == {SHA256}
    assert not any(standin.official for standin in (StandinExtractor, StandinTextImage, StandinPerceptual))
    names = [standin.name for standin in (StandinExtractor, StandinTextImage, StandinPerceptual)]
    assert names == ["standin-v1", "standin-text-v1", "standin-perceptual-v1"]


def test_standin_extractor_gives_the_same_features_as_when_it_was_named() -> None:
    ramp = (torch.arange(3 * 48 * 40) * 7 % 256).to(torch.uint8).reshape(1, 3, 48, 40)
    features = StandinExtractor(CPU)(ramp)
    pool = features["pool"][0, [0, 20, 60, 111]]
    torch.testing.assert_close(pool, torch.tensor([0.95297, -1.9646, 1.85669, 2.78193]) / 4, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(features["logits"][0, :2], torch.tensor([-7.90009, 10.97751]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [16, 32, 100, 256])
def test_standin_extractor_takes_any_size(size: int) -> None:
    features = StandinExtractor(CPU)(noise_images(3, size))
    assert features["pool"].shape == (3, NUM_FEATURES)
    assert features["logits"].shape == (3, NUM_CLASSES)
    assert features["pool"].dtype == features["logits"].dtype == torch.float32
    assert features["pool"].isfinite().all()


def test_standin_extractor_does_not_depend_on_the_batch() -> None:
    images, extractor = noise_images(5, 64), StandinExtractor(CPU)
    together, alone = extractor(images), extractor(images[3:4])
    for layer in ("pool", "logits"):
        torch.testing.assert_close(together[layer][3:4], alone[layer], rtol=0, atol=1e-5)


def test_standin_extractor_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    StandinExtractor(CPU)(noise_images(1, 32))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


def test_standin_features_move_further_the_more_an_image_is_spoilt() -> None:
    images, extractor = noise_images(16, 32), StandinExtractor(CPU)
    clean = extractor(images)["pool"]
    moved = [float((extractor(with_noise(images, a))["pool"] - clean).norm(dim=1).mean()) for a in (2, 10, 50)]
    assert moved[0] < moved[1] / 2 < moved[2] / 4


@pytest.mark.parametrize("name", ["cifar10-32x32", "ffhq-256x256", "imagenet-256x256"])
def test_standin_classes_are_neither_uniform_nor_certain_on_photographs(shared_dir: Path, name: str) -> None:
    with zipfile.ZipFile(shared_dir / "data" / f"{name}.zip") as archive:
        files = sorted(file for file in archive.namelist() if file.endswith((".png", ".jpg")))[:100]
        arrays = [np.asarray(Image.open(io.BytesIO(archive.read(file))).convert("RGB")) for file in files]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    probabilities = StandinExtractor(CPU)(images)["logits"].softmax(dim=1)
    assert 0.3 < float(probabilities.amax(dim=1).mean()) < 0.7
    assert len(probabilities.argmax(dim=1).unique()) >= 5


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)])
def test_standins_refuse_what_is_no_image(wrong: Tensor) -> None:
    for look in (StandinExtractor(CPU), StandinTextImage(CPU).images, lambda x: StandinPerceptual(CPU).distance(x, x)):
        with pytest.raises(ValueError, match=r"must be uint8 \[N, 3, H, W\], got"):
            look(wrong)


def test_standin_texts_are_sums_of_their_words() -> None:
    encoder = StandinTextImage(CPU)
    red, cat, red_cat, again, empty = encoder.texts(["red", "cat", "a red", "Cat, RED!", ""])
    assert red.shape == (64,)
    torch.testing.assert_close(again, red + cat)
    assert F.cosine_similarity(red, cat, dim=0).abs() < 0.5
    assert F.cosine_similarity(red, red_cat, dim=0) > 0.5
    assert empty.norm() > 0


def test_standin_images_have_embeddings_of_the_texts_size() -> None:
    encoder = StandinTextImage(CPU)
    embedded = encoder.images(noise_images(2, 64))
    assert embedded.shape == encoder.texts(["a", "b"]).shape
    assert not torch.allclose(embedded[0], embedded[1])


def test_standin_perceptual_grows_with_the_difference() -> None:
    images, perceptual = noise_images(4, 32), StandinPerceptual(CPU)
    distances = [float(perceptual.distance(images, with_noise(images, a)).mean()) for a in (0, 5, 25, 100)]
    assert distances[0] == 0
    assert distances == sorted(distances)
    other = perceptual.distance(images, images.flip(0))
    assert other.shape == (4,)
    torch.testing.assert_close(other, perceptual.distance(images.flip(0), images))


def test_standin_perceptual_loss_is_its_distance_of_images_from_minus_one_to_one() -> None:
    a, b, perceptual = noise_images(2, 32), noise_images(2, 32, seed=1), StandinPerceptual(CPU)
    loss = perceptual.loss(a.float() / 127.5 - 1, b.float() / 127.5 - 1)
    torch.testing.assert_close(loss, perceptual.distance(a, b))


def test_standin_perceptual_loss_leads_to_the_target() -> None:
    perceptual = StandinPerceptual(CPU)
    target = noise_images(1, 32).float() / 127.5 - 1
    image = torch.zeros_like(target, requires_grad=True)
    optimiser = torch.optim.Adam([image], lr=0.05)
    before = float((image - target).square().mean().detach())
    for _ in range(60):
        optimiser.zero_grad()
        perceptual.loss(image, target).sum().backward()
        optimiser.step()
    assert float((image - target).square().mean().detach()) < before / 3


def test_standin_perceptual_has_a_finite_gradient_at_a_flat_image() -> None:
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(StandinPerceptual(CPU).loss(flat, flat.detach() + 0.5).sum(), flat)
    assert gradient.isfinite().all()


def test_standin_perceptual_refuses_two_shapes() -> None:
    with pytest.raises(ValueError, match="one shape and dtype"):
        StandinPerceptual(CPU).loss(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))
