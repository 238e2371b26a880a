from __future__ import annotations

import re
import types
from pathlib import Path

import pytest
import torch
import torch_fidelity.sample_similarity_lpips
import torchvision
from torch import nn

from bench.errors import UserError
from bench.networks.perceptual import LPIPS_CHANNELS, Lpips, lpips
from bench.weights import LocalWeights
from tests.bench.networks.random_networks import CPU, SHA256, fill_with_noise, noise_images


def vgg16_layers() -> nn.Module:
    layers: nn.Module = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    fill_with_noise(layers.state_dict(), seed=2)
    return layers.eval()


@pytest.fixture(scope="module")
def vgg16() -> nn.Module:
    return vgg16_layers()


@pytest.fixture(scope="module")
def lpips_files(vgg16: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalWeights, LocalWeights]:
    folder = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(3)
    linear = {
        f"lin{index}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for index, channels in enumerate(LPIPS_CHANNELS)
    }
    classifier = {"classifier.0.weight": torch.zeros(2, 2)}
    torch.save(linear, folder / "linear.pth")
    torch.save({f"features.{k}": v for k, v in vgg16.state_dict().items()} | classifier, folder / "vgg16.pth")
    return (
        LocalWeights("vgg16-lpips", folder / "linear.pth", SHA256, official=True),
        LocalWeights("vgg16", folder / "vgg16.pth", SHA256, official=False),
    )


@pytest.fixture(scope="module")
def distance(lpips_files: tuple[LocalWeights, LocalWeights]) -> Lpips:
    return lpips(*lpips_files, CPU)


def test_lpips_is_torch_fidelitys(
    lpips_files: tuple[LocalWeights, LocalWeights],
    vgg16: nn.Module,
    distance: Lpips,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = torch_fidelity.sample_similarity_lpips
    linear = torch.load(lpips_files[0].path, weights_only=True)
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: linear)
    network = types.SimpleNamespace(features=vgg16)
    monkeypatch.setattr(module, "torchvision_load_pretrained_vgg16", lambda **_: network)
    a, b = noise_images(2, 48, 40, seed=4), noise_images(2, 48, 40, seed=5)
    with torch.no_grad():
        reference = module.SampleSimilarityLPIPS("x")(a, b)
    assert reference.min() > 0.01
    assert torch.equal(distance.distance(a, b), reference)


def test_lpips_loss_is_its_distance_of_images_from_minus_one_to_one(distance: Lpips) -> None:
    a, b = noise_images(2, 32, 32, seed=4), noise_images(2, 32, 32, seed=5)
    loss = distance.loss(a.float() / 127.5 - 1, b.float() / 127.5 - 1)
    torch.testing.assert_close(loss, distance.distance(a, b), rtol=1e-4, atol=1e-6)
    assert distance.distance(a, a).tolist() == [0, 0]


def test_lpips_loss_has_a_gradient_that_descends(distance: Lpips) -> None:
    a, b = (noise_images(1, 32, 32, seed=seed).float() / 127.5 - 1 for seed in (4, 5))
    a.requires_grad_()
    loss = distance.loss(a, b).sum()
    (gradient,) = torch.autograd.grad(loss, a)
    step = a - 0.01 * gradient / gradient.abs().max()
    assert distance.loss(step, b).sum() < loss


def test_lpips_is_official_only_with_both_files(lpips_files: tuple[LocalWeights, LocalWeights]) -> None:
    linear, vgg16 = lpips_files
    assert not lpips(linear, vgg16, CPU).official
    assert re.fullmatch(r"lpips-[0-9a-f]{8}", lpips(linear, vgg16, CPU).name)
    trunk = LocalWeights("vgg16", vgg16.path, SHA256, official=True)
    assert lpips(linear, trunk, CPU).name == "lpips-vgg16-v0.1"


def test_lpips_refuses_two_shapes_and_floats_for_scoring(distance: Lpips) -> None:
    with pytest.raises(ValueError, match="one shape and dtype"):
        distance.distance(noise_images(2, 32, 32), noise_images(1, 32, 32))
    with pytest.raises(ValueError, match="must be uint8"):
        distance.distance(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))


def test_lpips_refuses_another_networks_weights(lpips_files: tuple[LocalWeights, LocalWeights], tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(2, 2)}, tmp_path / "x.pth")
    foreign = LocalWeights("vgg16", tmp_path / "x.pth", SHA256, official=False)
    for files in ((lpips_files[0], foreign), (foreign, lpips_files[1])):
        with pytest.raises(UserError, match="does not hold the weights"):
            lpips(*files, CPU)
