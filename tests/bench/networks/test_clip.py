from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

import bench.networks.clip
from bench.errors import UserError
from bench.networks.clip import VIT_B_32, VIT_G_14, ClipNetwork, clip_extractor
from bench.weights import LocalWeights
from tests.bench.networks.random_networks import CPU, SHA256, fill_with_noise, noise_images

TINY = ClipNetwork("tiny-clip", "someone", "pil-bicubic")
STRETCHED = ClipNetwork("tiny-clip", "someone", "torch-bicubic")


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
    extractor = clip_extractor(tiny_clip, CPU, TINY)
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
    extractor = clip_extractor(tiny_clip, CPU, TINY)
    images, texts = noise_images(3, 40, 40), ["a cat", "a long sentence about two dogs", "three"]
    torch.testing.assert_close(extractor.images(images)[1:2], extractor.images(images[1:2]), rtol=0, atol=1e-5)
    torch.testing.assert_close(extractor.texts(texts)[1:2], extractor.texts(texts[1:2]), rtol=0, atol=1e-5)


def test_clip_is_named_for_its_weights_and_refuses_floats(tiny_clip: LocalWeights) -> None:
    extractor = clip_extractor(tiny_clip, CPU, TINY)
    official = LocalWeights("clip-vit-b-32", tiny_clip.path, SHA256, official=True)
    assert extractor.name == "clip-tiny-clip-3fa2b81c+pil-bicubic"
    assert clip_extractor(official, CPU, TINY).name == "clip-tiny-clip-someone+pil-bicubic"
    with pytest.raises(ValueError, match="must be uint8"):
        extractor.images(torch.zeros(1, 3, 32, 32))


def test_clip_stretched_is_stylegan_ts_preparation(tiny_clip: LocalWeights) -> None:
    reference = open_clip.create_model("tiny-clip", pretrained=str(tiny_clip.path)).eval()
    images = noise_images(3, 72, 80)
    pixels = F.interpolate(images.float() / 255.0, 32, mode="bicubic", align_corners=False)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    with torch.no_grad():
        expected = reference.encode_image(torchvision.transforms.functional.normalize(pixels, mean, std))
    stretched, cropped = (clip_extractor(tiny_clip, CPU, network) for network in (STRETCHED, TINY))
    torch.testing.assert_close(stretched.images(images), expected, rtol=1e-5, atol=1e-5)
    assert (stretched.images(images) - cropped.images(images)).abs().max() > 0.01
    texts = ["a cat", "word " * 200]
    assert torch.equal(stretched.texts(texts), cropped.texts(texts))
    assert (stretched.name, cropped.name) == (
        "clip-tiny-clip-3fa2b81c+torch-bicubic",
        "clip-tiny-clip-3fa2b81c+pil-bicubic",
    )


def test_clip_images_are_clean_fids_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-clip-224.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip-224.json")
    reference = open_clip.CLIP(**config).eval()
    fill_with_noise(reference.state_dict(), seed=7)
    torch.save(reference.state_dict(), tmp_path / "tiny.pth")
    # OpenAI's package, which clean-fid asks for its network
    openai = types.SimpleNamespace(load=lambda *_, **__: (reference, None))
    monkeypatch.setitem(sys.modules, "clip", openai)
    from cleanfid.clip_features import CLIP_fx, img_preprocess_clip

    images = noise_images(2, 300, 260)
    prepared = [img_preprocess_clip(image.permute(1, 2, 0).numpy()) for image in images]
    expected = CLIP_fx(device="cpu")(torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2))
    weights = LocalWeights("clip-vit-b-32", tmp_path / "tiny.pth", SHA256, official=False)
    extractor = clip_extractor(weights, CPU, ClipNetwork("tiny-clip-224", "someone", "pil-bicubic"))
    torch.testing.assert_close(extractor.images(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "num_tensors", "num_parameters", "width"),
    [(VIT_B_32, 302, 151_277_313, 512), (VIT_G_14, 782, 1_366_678_273, 1024)],
)
def test_clip_has_the_published_size(
    monkeypatch: pytest.MonkeyPatch, network: ClipNetwork, num_tensors: int, num_parameters: int, width: int
) -> None:
    with torch.device("meta"):
        tensors = open_clip.CLIP(**open_clip.get_model_config(network.architecture)).state_dict()
    assert len(tensors) == num_tensors
    assert sum(tensor.numel() for tensor in tensors.values()) == num_parameters
    monkeypatch.setattr(bench.networks.clip, "read_tensors", lambda _: tensors)
    weights = LocalWeights("clip-vit-b-32", Path("x"), SHA256, official=True)
    extractor = clip_extractor(weights, torch.device("meta"), network)
    images, texts = extractor.images(noise_images(2, 32, 32)), extractor.texts(["a cat", "two dogs"])
    assert images.shape == texts.shape == (2, width)
    assert extractor.name.startswith(f"clip-{network.architecture.lower()}-{network.origin}+")


def test_clip_leaves_the_global_random_state_alone(tiny_clip: LocalWeights) -> None:
    before = torch.get_rng_state()
    clip_extractor(tiny_clip, CPU, TINY)
    assert torch.equal(torch.get_rng_state(), before)


def test_clip_refuses_another_networks_weights(tiny_clip: LocalWeights, tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not hold the weights clip-vit-b-32"):
        clip_extractor(LocalWeights("clip-vit-b-32", tmp_path / "x.pth", SHA256, official=False), CPU, TINY)
