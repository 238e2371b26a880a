from __future__ import annotations

import io
import json
import re
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cleanfid.inception_pytorch
import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
import torch_fidelity.sample_similarity_lpips
import torchvision
from cleanfid.resize import build_resizer
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bench.errors import UserError
from bench.extractors import (
    LPIPS_CHANNELS,
    Lpips,
    Resize,
    clip_extractor,
    full_float32,
    inception_extractor,
    lpips,
)
from bench.weights import LocalWeights

CPU = torch.device("cpu")
SHA256 = "3fa2b81c" + "0" * 56


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other take ten times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 4, width // 4, generator=generator)
    fine = torch.rand(count, 3, height, width, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (255 * (0.8 * smooth + 0.2 * fine).clamp(0, 1)).to(torch.uint8)


def fill_with_noise(tensors: dict[str, Tensor], seed: int) -> None:
    """He-normal weights and batch statistics that are not trivial, so that activations keep their size."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
        elif "running_var" in name:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim and "bn.weight" not in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def pytorch_fid_network(state_dict: dict[str, Tensor] | None) -> nn.Module:
    """clean-fid's copy of pytorch-fid's network, with these weights; None leaves it without."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names torchvision's `pretrained`
        patch.setattr(cleanfid.inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state_dict)
        if state_dict is None:
            patch.setattr(torchvision.models.Inception3, "load_state_dict", lambda *_: None)
            network: nn.Module = cleanfid.inception_pytorch.fid_inception_v3()
        else:
            network = cleanfid.inception_pytorch.InceptionV3([3], resize_input=False)
    return network.eval()


def random_inception(seed: int) -> dict[str, Tensor]:
    """Random weights under the names of pytorch-fid."""
    tensors = pytorch_fid_network(None).state_dict()
    fill_with_noise(tensors, seed)
    return tensors


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
    pool, logits = reference(images)
    features = inception_extractor(inception_file, "tf1", CPU)(images)
    assert features["pool"].std(dim=0).mean() > 0.01
    assert torch.equal(features["pool"], pool)
    assert torch.equal(features["logits"], logits)
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
    torch.testing.assert_close(together["pool"][1:], alone["pool"], rtol=0, atol=1e-5)
    torch.testing.assert_close(together["logits"][1:], alone["logits"], rtol=0, atol=1e-5)


def test_inception_is_named_for_its_weights_and_its_resize(inception_file: LocalWeights) -> None:
    official = LocalWeights("inception", inception_file.path, SHA256, official=True)
    own = inception_extractor(inception_file, "clean", CPU)
    pinned = [inception_extractor(official, resize, CPU) for resize in ("tf1", "torch")]
    assert (own.name, own.official) == ("inception-3fa2b81c+clean", False)
    assert [extractor.name for extractor in pinned] == ["inception-v3-2015-12-05", "inception-v3-2015-12-05+torch"]
    assert pinned[0].official
    assert pinned[0].sha256 == SHA256


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


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_inception_refuses_what_is_no_image(inception_file: LocalWeights, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[N, 3, H, W\], got"):
        inception_extractor(inception_file, "tf1", CPU)(wrong)


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


def test_lpips_refuses_another_networks_weights(
    lpips_files: tuple[LocalWeights, LocalWeights], inception_file: LocalWeights
) -> None:
    for files in ((lpips_files[0], inception_file), (inception_file, lpips_files[1])):
        with pytest.raises(UserError, match="does not hold the weights"):
            lpips(*files, CPU)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> LocalWeights:
    """A small CLIP, made known to open_clip as "tiny-clip"."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-clip.json")
    tensors = open_clip.CLIP(**config).state_dict()
    fill_with_noise(tensors, seed=6)
    safetensors.torch.save_file(tensors, folder / "tiny.safetensors")
    return LocalWeights("clip-vit-b-32", folder / "tiny.safetensors", SHA256, official=False)


def test_clip_is_open_clips_with_its_preparation(tiny_clip: LocalWeights) -> None:
    extractor = clip_extractor(tiny_clip, CPU, "tiny-clip")
    reference, _, prepare = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(tiny_clip.path))
    reference.eval()
    images, texts = noise_images(3, 72, 80), ["a photo of a cat", "a dog", "word " * 200]
    pixels = torch.stack([prepare(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    with torch.no_grad():
        expected_images = reference.encode_image(pixels)
        expected_texts = reference.encode_text(open_clip.get_tokenizer("tiny-clip")(texts))
    torch.testing.assert_close(extractor.images(images), expected_images, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extractor.texts(texts), expected_texts, rtol=1e-5, atol=1e-5)
    assert extractor.images(images).shape == extractor.texts(texts).shape == (3, 24)
    assert expected_images.std(dim=0).mean() > 0.01


def test_clip_does_not_depend_on_the_batch(tiny_clip: LocalWeights) -> None:
    extractor = clip_extractor(tiny_clip, CPU, "tiny-clip")
    images, texts = noise_images(3, 40, 40), ["a cat", "a long sentence about two dogs", "three"]
    torch.testing.assert_close(extractor.images(images)[1:2], extractor.images(images[1:2]), rtol=0, atol=1e-5)
    torch.testing.assert_close(extractor.texts(texts)[1:2], extractor.texts(texts[1:2]), rtol=0, atol=1e-5)


def test_clip_is_named_for_its_weights_and_refuses_floats(tiny_clip: LocalWeights) -> None:
    extractor = clip_extractor(tiny_clip, CPU, "tiny-clip")
    official = LocalWeights("clip-vit-b-32", tiny_clip.path, SHA256, official=True)
    assert extractor.name == "clip-tiny-clip-3fa2b81c+pil-bicubic"
    assert clip_extractor(official, CPU, "tiny-clip").name == "clip-tiny-clip-openai+pil-bicubic"
    with pytest.raises(ValueError, match="must be uint8"):
        extractor.images(torch.zeros(1, 3, 32, 32))


def test_clip_refuses_another_networks_weights(inception_file: LocalWeights, tiny_clip: LocalWeights) -> None:
    with pytest.raises(UserError, match="does not hold the weights inception"):
        clip_extractor(inception_file, CPU, "tiny-clip")


@pytest.mark.parametrize("allowed", [True, False])
def test_full_float32_switches_tf32_off_and_back(allowed: bool) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
        with full_float32():
            assert matmul.fp32_precision == "ieee"
            assert cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
            assert cudnn.deterministic
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic) == (allowed, allowed, False)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
