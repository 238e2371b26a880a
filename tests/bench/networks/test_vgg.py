from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

import bench.networks.vgg
from bench.errors import UserError
from bench.networks.vgg import vgg_extractor
from bench.weights import LocalWeights
from tests.bench.networks.random_networks import CPU, SHA256, fill_with_noise, noise_images


def small_vgg16(**_: object) -> nn.Module:
    """VGG16's layout with few channels: the real one has 550 MB."""
    with torch.device("meta"):  # the classifier it makes for itself has 470 MB
        network: nn.Module = torchvision.models.VGG(nn.Identity(), init_weights=False)
    network.features = torchvision.models.vgg.make_layers([8, "M", 16, "M"])
    network.classifier = nn.Sequential(
        nn.Linear(16 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 5)
    )
    return network


@pytest.fixture
def small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalWeights:
    monkeypatch.setattr(torchvision.models, "vgg16", small_vgg16)
    tensors = small_vgg16().state_dict()
    fill_with_noise(tensors, seed=2)
    torch.save(tensors, tmp_path / "vgg16.pth")
    return LocalWeights("vgg16", tmp_path / "vgg16.pth", SHA256, official=False)


@pytest.mark.parametrize("size", [40, 224, 300])
def test_vgg_is_torch_fidelitys(small_file: LocalWeights, size: int) -> None:
    images = noise_images(2, size, size)
    (expected,) = FeatureExtractorVGG16("x", ["fc2_relu"], feature_extractor_weights_path=small_file.path)(images)
    pool = vgg_extractor(small_file, CPU)(images)["pool"]
    assert (pool == 0).any()  # a ReLU is the last layer
    assert pool.std(dim=0).mean() > 0.01
    torch.testing.assert_close(pool, expected, rtol=1e-5, atol=1e-5)


def test_vgg_has_4096_features_of_torchvisions_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        tensors = torchvision.models.vgg16().state_dict()
    monkeypatch.setattr(bench.networks.vgg, "read_tensors", lambda _: tensors)
    extractor = vgg_extractor(LocalWeights("vgg16", Path("x"), SHA256, official=True), torch.device("meta"))
    assert extractor(noise_images(2, 64, 64))["pool"].shape == (2, 4096)
    assert (extractor.name, extractor.official) == ("vgg16-torchvision-fc2", True)


def test_vgg_is_named_for_another_file(small_file: LocalWeights) -> None:
    extractor = vgg_extractor(small_file, CPU)
    assert (extractor.name, extractor.sha256, extractor.official) == ("vgg16-3fa2b81c-fc2", SHA256, False)


@pytest.mark.parametrize("tensors", [{"features.0.weight": torch.zeros(2, 2)}, {}])
def test_vgg_refuses_another_networks_weights(
    small_file: LocalWeights, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"does not hold the weights vgg16: .*bench fetch vgg16"):
        vgg_extractor(LocalWeights("vgg16", tmp_path / "x.pth", SHA256, official=False), CPU)


def test_vgg_refuses_floats(small_file: LocalWeights) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        vgg_extractor(small_file, CPU)(torch.zeros(1, 3, 32, 32))
