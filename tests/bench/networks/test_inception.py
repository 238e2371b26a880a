from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bench.errors import UserError
from bench.networks.inception import Resize, inception_extractor
from bench.weights import LocalWeights
from tests.bench.networks.random_networks import CPU, SHA256, noise_images, pytorch_fid_network, random_inception


@pytest.fixture(scope="module")
def state_dict() -> dict[str, Tensor]:
    return random_inception(seed=1)


@pytest.fixture(scope="module")
def inception_file(state_dict: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> LocalWeights:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state_dict, path)
    return LocalWeights("inception", path, SHA256, official=False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return noise_images(2, 40, 48)


def test_inception_tf1_is_torch_fidelitys(
    inception_file: LocalWeights, state_dict: dict[str, Tensor], images: Tensor
) -> None:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    layers = ["2048", "logits_unbiased"]
    reference = FeatureExtractorInceptionV3("x", layers, feature_extractor_weights_path=buffer)
    branches: list[Tensor] = []
    reference.Mixed_6d.branch1x1.register_forward_hook(lambda *call: branches.append(call[2]))
    pool, logits = reference(images)
    features = inception_extractor(inception_file, "tf1", CPU)(images)
    # as TensorFlow lays out the images, of which ADM takes [..., :7] and flattens it
    spatial = branches[0].permute(0, 2, 3, 1)[..., :7].reshape(len(images), -1)
    for layer, expected in (("pool", pool), ("logits", logits), ("spatial", spatial)):
        torch.testing.assert_close(features[layer], expected, rtol=1e-5, atol=1e-5)
    assert features["spatial"].shape == (2, 2023)
    assert spatial.min() == 0
    assert spatial.std(dim=0).mean() > 0.01
    assert features["pool"].std(dim=0).mean() > 0.01
    assert features["pool"].dtype == features["logits"].dtype == torch.float32


@pytest.mark.parametrize("resize", ["clean", "torch"])
def test_inception_clean_and_torch_are_clean_fids(
    inception_file: LocalWeights, state_dict: dict[str, Tensor], images: Tensor, resize: Resize
) -> None:
    with warnings.catch_warnings():  # building the resizer silences all warnings of the process
        resizer = build_resizer({"clean": "clean", "torch": "legacy_pytorch"}[resize])
        arrays = [resizer(image) for image in images.permute(0, 2, 3, 1).numpy()]
    resized = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    # The network of pytorch-fid scales [0, 1] to [-1, 1]; clean-fid's own scaling is (x - 128) / 128.
    unit = resized / 255 if resize == "torch" else ((resized - 128) / 128 + 1) / 2
    with torch.no_grad():
        reference = pytorch_fid_network(state_dict)(unit)[0].flatten(1)
    pool = inception_extractor(inception_file, resize, CPU)(images)["pool"]
    torch.testing.assert_close(pool, reference, rtol=1e-5, atol=1e-5)


def test_inception_does_not_depend_on_the_batch(inception_file: LocalWeights, images: Tensor) -> None:
    extractor = inception_extractor(inception_file, "clean", CPU)
    together, alone = extractor(images), extractor(images[1:])
    for layer in ("pool", "logits", "spatial"):
        torch.testing.assert_close(together[layer][1:], alone[layer], rtol=0, atol=1e-5)


def test_inception_is_named_for_its_weights_and_its_resize(inception_file: LocalWeights) -> None:
    official = LocalWeights("inception", inception_file.path, SHA256, official=True)
    own = inception_extractor(inception_file, "clean", CPU)
    pinned = [inception_extractor(official, resize, CPU) for resize in ("tf1", "torch")]
    assert (own.name, own.official) == ("inception-3fa2b81c+clean", False)
    assert [extractor.name for extractor in pinned] == ["inception-v3-2015-12-05", "inception-v3-2015-12-05+torch"]
    assert pinned[0].official
    assert pinned[0].sha256 == SHA256


def test_inception_with_random_weights_is_named_for_its_file(inception_file: LocalWeights, images: Tensor) -> None:
    weights = LocalWeights("inception-random", inception_file.path, SHA256, official=False)
    extractor = inception_extractor(weights, "tf1", CPU)
    assert (extractor.name, extractor.official) == ("inception-random-3fa2b81c", False)
    assert torch.equal(extractor(images)["pool"], inception_extractor(inception_file, "tf1", CPU)(images)["pool"])


def test_inception_leaves_the_global_random_state_alone(inception_file: LocalWeights) -> None:
    before = torch.get_rng_state()
    inception_extractor(inception_file, "tf1", CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_inception_needs_no_unbounded_unpickling(inception_file: LocalWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    load, sources = torch.load, []

    def watched(source: object, **options: object) -> object:
        sources.append((type(source), options.get("weights_only")))
        return load(source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", watched)
    inception_extractor(inception_file, "tf1", CPU)
    assert [source for source, weights_only in sources if not weights_only] == [io.BytesIO]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("fc.bias"),
        lambda d: d.update(more=torch.zeros(1)),
        lambda d: d.update({"fc.bias": torch.zeros(3)}),
    ],
)
def test_inception_refuses_another_networks_weights(
    state_dict: dict[str, Tensor], tmp_path: Path, spoil: Callable[[dict[str, Tensor]], object]
) -> None:
    spoilt = dict(state_dict)
    spoil(spoilt)
    torch.save(spoilt, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not hold the weights inception"):
        inception_extractor(LocalWeights("inception", tmp_path / "x.pth", SHA256, official=False), "tf1", CPU)


def test_inception_refuses_what_is_no_image(inception_file: LocalWeights) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[N, 3, H, W\], got"):
        inception_extractor(inception_file, "tf1", CPU)(torch.zeros(1, 3, 8, 8))
