"""torch-fidelity and clean-fid, run whole on folders of images with the weights that we are given too."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from cleanfid import fid as cleanfid
from PIL import Image
from torch import Tensor

from bench.metrics.frechet import frechet_distance_from_features
from bench.metrics.inception_score import inception_score
from bench.metrics.kernel_distance import polynomial_mmd2
from bench.metrics.precision_recall import precision_recall
from bench.networks.inception import Resize, inception_extractor
from bench.weights import LocalWeights
from tests.bench.networks.random_networks import CPU, SHA256, clean_fid_network, noise_images, random_inception

pytestmark = pytest.mark.slow  # 72 passes of Inception on one core
COUNT = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> LocalWeights:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_inception(seed=1), path)
    return LocalWeights("inception", path, SHA256, official=False)


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    return {"fake": noise_images(COUNT, 40, 48, seed=1), "real": 255 - noise_images(COUNT, 40, 48, seed=2) // 2}


@pytest.fixture(scope="module")
def folders(images: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in images}
    for name, pixels in images.items():
        for index, image in enumerate(pixels):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folders[name] / f"{index:03d}.png")
    return folders


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Both libraries use what their own dependencies have deprecated, and clean-fid changes the filters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def features(weights: LocalWeights, images: dict[str, Tensor], resize: Resize) -> dict[str, dict[str, Tensor]]:
    extractor = inception_extractor(weights, resize, CPU)
    return {name: extractor(pixels) for name, pixels in images.items()}


def test_torch_fidelity_scores_folders_as_we_do(
    weights: LocalWeights, images: dict[str, Tensor], folders: dict[str, Path]
) -> None:
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders["fake"]),
        input2=str(folders["real"]),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights.path),
        feature_layer_prc="2048",
        isc_splits=2,
        kid_subsets=1,
        kid_subset_size=COUNT,
        batch_size=COUNT,
        cuda=False,
        cache=False,
        verbose=False,
    )
    ours = features(weights, images, "tf1")
    fake, real = ours["fake"]["pool"], ours["real"]["pool"]
    assert frechet_distance_from_features(fake, real, ddof=1) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-4
    )
    assert float(polynomial_mmd2(fake, real)) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    mean, std = inception_score(ours["fake"]["logits"], splits=2, shuffle_seed=2020)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-7)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-4)
    precision, recall = precision_recall(real, fake)
    assert (precision, recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)


@pytest.mark.parametrize(("mode", "resize"), [("clean", "clean"), ("legacy_pytorch", "torch")])
def test_clean_fid_scores_folders_as_we_do(
    weights: LocalWeights, images: dict[str, Tensor], folders: dict[str, Path], mode: str, resize: Resize
) -> None:
    network = clean_fid_network(torch.load(weights.path, weights_only=True), mode)
    theirs = {
        name: cleanfid.get_folder_features(
            str(folder), network, num_workers=0, device=CPU, mode=mode, batch_size=COUNT, verbose=False
        )
        for name, folder in folders.items()
    }
    ours = {name: layers["pool"] for name, layers in features(weights, images, resize).items()}
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], torch.from_numpy(values), rtol=1e-5, atol=1e-5)
    kid = cleanfid.kernel_distance(theirs["real"], theirs["fake"], num_subsets=1)
    assert float(polynomial_mmd2(ours["real"], ours["fake"])) == pytest.approx(kid, rel=1e-4)
    # at 2048 features its square root of a singular product takes ten seconds
    few = {name: values[:, :4].astype(np.float64) for name, values in theirs.items()}
    distance = frechet_distance_from_features(ours["real"][:, :4], ours["fake"][:, :4], ddof=1)
    assert distance == pytest.approx(cleanfid.fid_from_feats(few["real"], few["fake"]), rel=1e-4)
