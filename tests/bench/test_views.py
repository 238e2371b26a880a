from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import bench.networks.clip
from bench.networks.standin import StandinExtractor, StandinTextImage
from bench.protocols import PROTOCOLS
from bench.sampling import ImageBatch
from bench.views import GIGAGAN_PREFIX, VIEWS, EmbeddingView, ImageView, TextImageView, open_views
from bench.weights import WEIGHTS, LocalWeights, WeightsOptions
from tests.bench.networks.random_networks import CPU, SHA256, noise_images, random_inception


def batch_of(prompts: list[str] | None = None) -> ImageBatch:
    images = noise_images(2, 32, 32)
    return ImageBatch(images, prompts, truncated=images.sub(1).clamp(min=0))


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> LocalWeights:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_inception(seed=1), path)
    return LocalWeights("inception", path, SHA256, official=False)


def test_views_have_a_network_for_every_protocol_and_protocols_for_every_network() -> None:
    assert {protocol.view for protocol in PROTOCOLS.values()} == set(VIEWS)
    assert {spec.weights for spec in VIEWS.values()} - {None} <= set(WEIGHTS)


def test_inception_views_differ_in_resize_and_quantiser_alone(inception: LocalWeights) -> None:
    batch = batch_of()
    views = {
        name: VIEWS[name].build(inception, CPU)
        for name in ("inception", "inception-adm", "inception-clean", "inception-torch", "inception-random")
    }
    layers = {name: view(batch) for name, view in views.items()}
    assert all(set(found) == {"pool", "logits", "spatial"} for found in layers.values())
    pools = {name: found["pool"] for name, found in layers.items()}
    assert torch.equal(pools["inception"], pools["inception-random"])
    for name in ("inception-adm", "inception-clean", "inception-torch"):
        assert not torch.equal(pools[name], pools["inception"])
    same_pixels = ImageBatch(batch.images)  # of a file: nothing was quantised
    assert torch.equal(views["inception-adm"](same_pixels)["pool"], pools["inception"])


def test_views_of_one_network_look_at_the_same_pixels_once(inception: LocalWeights) -> None:
    batch = ImageBatch(noise_images(2, 32, 32))
    half_up, truncated = (VIEWS[name].build(inception, CPU) for name in ("inception", "inception-adm"))
    assert half_up(batch)["pool"] is truncated(batch)["pool"]


def test_text_image_view_puts_the_prefix_before_the_text_and_into_its_name() -> None:
    network = StandinTextImage(CPU)
    plain, prefixed = TextImageView(network), TextImageView(network, GIGAGAN_PREFIX)
    batch = batch_of(["a cat", "two dogs"])
    expected = network.texts(["A photo depicts a cat", "A photo depicts two dogs"])
    assert torch.equal(prefixed(batch)["text"], expected)
    assert not torch.equal(plain(batch)["text"], expected)
    assert prefixed(batch)["image"] is plain(batch)["image"]
    assert (plain.name, prefixed.name) == (network.name, f"{network.name}+prefix")
    assert prefixed(batch_of()) == {}


def test_embedding_view_is_the_image_side_of_a_text_image_network() -> None:
    network = StandinTextImage(CPU)
    batch = batch_of()
    layers = EmbeddingView(network)(batch)
    assert list(layers) == ["pool"]
    assert torch.equal(layers["pool"], network.images(batch.images))
    assert not torch.equal(layers["pool"], ImageView(StandinExtractor(CPU))(batch)["pool"])


def test_clip_views_share_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[LocalWeights] = []

    def meta_tensors(weights: LocalWeights) -> dict[str, Tensor]:
        import open_clip

        reads.append(weights)
        with torch.device("meta"):
            tensors: dict[str, Tensor] = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu")).state_dict()
        return tensors

    monkeypatch.setattr(bench.networks.clip, "read_tensors", meta_tensors)
    weights = LocalWeights("clip-vit-b-32", Path("shared"), SHA256, official=True)
    names = ("clip-vit-b-32", "clip-vit-b-32-prefix", "clip-fid-vit-b-32")
    views = [VIEWS[name].build(weights, torch.device("meta")) for name in names]
    assert len(reads) == 1
    assert all(view.official for view in views)


def test_open_views_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    opened = open_views(["standin", "dinov2-vit-l-14", "inception-random"], WeightsOptions(cache=tmp_path), CPU)
    assert list(opened.views) == ["standin"]
    assert "python -m bench fetch dinov2-vit-l-14" in opened.missing["dinov2-vit-l-14"]
    assert "--inception-random-weights FILE" in opened.missing["inception-random"]
