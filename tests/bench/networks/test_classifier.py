from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

from bench.errors import UserError
from bench.networks.classifier import ARCHITECTURE, DeitClassifier, open_classifier
from bench.weights import WEIGHTS, LocalWeights, WeightsOptions, find_weights

CPU = torch.device("cpu")
SMALL = "deit_tiny_distilled_patch16_224"


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(SMALL, pretrained=False).eval()


@pytest.fixture
def weights(network: torch.nn.Module, tmp_path: Path) -> LocalWeights:
    path = tmp_path / "deit.pth"
    torch.save({"model": network.state_dict()}, path)
    return LocalWeights("deit", path, hashlib.sha256(path.read_bytes()).hexdigest(), official=False)


def test_posterior_is_that_of_the_published_preparation(network: torch.nn.Module, weights: LocalWeights) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    posterior = DeitClassifier(weights, CPU, SMALL).posterior(images)
    pixels = F.interpolate(images.float(), size=224) / 127.5 - 1
    with torch.no_grad():
        tokens = network.forward_features(pixels)  # type: ignore[operator]
        logits = (network.head(tokens[:, 0]) + network.head_dist(tokens[:, 1])) / 2  # type: ignore[operator]
    assert posterior.shape == (2, 1000)
    torch.testing.assert_close(posterior, logits.softmax(1))


def test_weights_of_another_network_are_refused(weights: LocalWeights) -> None:
    with pytest.raises(UserError, match="does not hold the weights deit"):
        DeitClassifier(weights, CPU, "deit_tiny_patch16_224")


def test_missing_file_means_no_classifier(tmp_path: Path) -> None:
    assert open_classifier(WeightsOptions(cache=tmp_path), CPU) is None


def test_file_is_the_one_that_timm_names(weights: LocalWeights) -> None:
    configuration = timm.get_pretrained_cfg(ARCHITECTURE)
    assert configuration is not None
    assert configuration.url == WEIGHTS["deit"].url
    given = find_weights("deit", WeightsOptions({"deit": weights.path}))
    assert given == weights
