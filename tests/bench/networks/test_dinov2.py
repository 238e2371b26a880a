from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms

import bench.networks.dinov2
from bench.errors import UserError
from bench.networks.dinov2 import Dinov2Extractor, VisionTransformerShape, dinov2_extractor, resample_positions
from bench.weights import LocalWeights
from tests.bench.networks.random_networks import CPU, SHA256, fill_with_noise, noise_images

TINY = VisionTransformerShape("tiny", width=48, depth=2, num_heads=3)


def official_shapes(width: int, depth: int, grid: int = 37) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published DINOv2 file: trained at 518 pixels, so 37 x 37 patches."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, grid**2 + 1, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
    }
    for block in range(depth):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "ls1.gamma": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
            "ls2.gamma": (width,),
        }.items():
            shapes[f"blocks.{block}.{name}"] = shape
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def random_tensors() -> dict[str, Tensor]:
    tensors = {name: torch.zeros(shape) for name, shape in official_shapes(TINY.width, TINY.depth).items()}
    fill_with_noise(tensors, seed=8)
    for name in tensors:
        if "norm" in name and name.endswith("weight"):
            tensors[name] += 1
    tensors["pos_embed"] *= 20
    return tensors


def cubic_weights(grid: int, size: int, scale: float) -> Tensor:
    """Weights `[size, grid]` of Keys' kernel (A = -0.75) at (i + 1/2) / scale - 1/2, with the border repeated."""
    matrix = torch.zeros(size, grid, dtype=torch.float64)
    for index in range(size):
        position = (index + 0.5) / scale - 0.5
        for tap in range(math.floor(position) - 1, math.floor(position) + 3):
            x, a = abs(position - tap), -0.75
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            matrix[index, min(max(tap, 0), grid - 1)] += near if x <= 1 else far
    return matrix


def norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def attention(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    count, length, width = x.shape
    parts = linear(x, tensors, f"{name}.qkv").reshape(count, length, 3, TINY.num_heads, width // TINY.num_heads)
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(width // TINY.num_heads)).softmax(-1)
    return linear((weights @ v).transpose(1, 2).reshape(x.shape), tensors, f"{name}.proj")


def naive_features(pixels: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The class token, written out in float64 from Oquab et al. 2023 and Dosovitskiy et al. 2021."""
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    patches = F.unfold(pixels.double(), 14, stride=14).transpose(1, 2)
    x = patches @ tensors["patch_embed.proj.weight"].flatten(1).T + tensors["patch_embed.proj.bias"]
    x = torch.cat([tensors["cls_token"].expand(len(x), -1, -1), x], dim=1)
    to_16 = cubic_weights(37, 16, 16.1 / 37)
    square = tensors["pos_embed"][0, 1:].unflatten(0, (37, 37))
    resampled = torch.einsum("yi,xj,ijd->yxd", to_16, to_16, square).flatten(0, 1)
    x = x + torch.cat([tensors["pos_embed"][0, :1], resampled])
    for block in range(TINY.depth):
        name = f"blocks.{block}"
        x = x + tensors[f"{name}.ls1.gamma"] * attention(norm(x, tensors, f"{name}.norm1"), tensors, f"{name}.attn")
        hidden = linear(norm(x, tensors, f"{name}.norm2"), tensors, f"{name}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + tensors[f"{name}.ls2.gamma"] * linear(hidden, tensors, f"{name}.mlp.fc2")
    return norm(x, tensors, "norm")[:, 0]


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> LocalWeights:
    path = tmp_path_factory.mktemp("weights") / "dinov2.pth"
    torch.save(random_tensors(), path)
    return LocalWeights("dinov2-vit-l-14", path, SHA256, official=False)


@pytest.fixture(scope="module")
def extractor(tiny_file: LocalWeights) -> Dinov2Extractor:
    return dinov2_extractor(tiny_file, CPU, TINY)


@pytest.mark.parametrize("shape", [(40, 56), (224, 224), (320, 280)])
def test_dinov2_is_the_network_of_the_paper_after_dgm_evals_preparation(
    extractor: Dinov2Extractor, shape: tuple[int, int]
) -> None:
    images = noise_images(2, *shape)
    prepare = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])),
        ]
    )
    pixels = torch.stack([prepare(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    pool = extractor(images)["pool"]
    expected = naive_features(pixels, random_tensors())
    assert pool.dtype == torch.float32
    assert (pool[0] - pool[1]).abs().mean() > 0.01
    torch.testing.assert_close(pool, expected.float(), rtol=1e-5, atol=1e-5)


def test_resample_positions_is_the_official_interpolation() -> None:
    positions = torch.randn(1, 37**2 + 1, 5, generator=torch.Generator().manual_seed(0))
    weights = cubic_weights(37, 16, 16.1 / 37)
    expected = torch.einsum("yi,xj,ijd->yxd", weights, weights, positions[0, 1:].unflatten(0, (37, 37)).double())
    resampled = resample_positions(positions)
    assert torch.equal(resampled[:, 0], positions[:, 0])
    torch.testing.assert_close(resampled[0, 1:], expected.flatten(0, 1).float(), rtol=1e-5, atol=1e-5)
    exact_grid = F.interpolate(positions[0, 1:].T.unflatten(1, (37, 37))[None], size=(16, 16), mode="bicubic")
    assert (exact_grid[0].flatten(1).T - resampled[0, 1:]).abs().max() > 0.01  # the scale factor matters


def test_resample_positions_leaves_a_grid_of_16_alone() -> None:
    positions = torch.randn(1, 257, 4)
    assert resample_positions(positions) is positions


def test_dinov2_vit_l_14_takes_the_published_names_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = official_shapes(1024, 24)
    assert sum(math.prod(shape) for shape in shapes.values()) == 304_368_640
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    monkeypatch.setattr(bench.networks.dinov2, "read_tensors", lambda _: tensors)
    weights = LocalWeights("dinov2-vit-l-14", Path("x"), SHA256, official=True)
    extractor = dinov2_extractor(weights, torch.device("meta"))
    assert extractor(noise_images(2, 32, 32))["pool"].shape == (2, 1024)
    assert (extractor.name, extractor.official) == ("dinov2-vit-l-14+pil-bicubic", True)


def test_dinov2_does_not_depend_on_the_batch(extractor: Dinov2Extractor) -> None:
    images = noise_images(3, 40, 40)
    torch.testing.assert_close(extractor(images)["pool"][1:], extractor(images[1:])["pool"], rtol=0, atol=1e-5)


def test_dinov2_is_named_for_its_file_and_refuses_floats(extractor: Dinov2Extractor) -> None:
    assert (extractor.name, extractor.sha256) == ("dinov2-tiny-3fa2b81c+pil-bicubic", SHA256)
    assert not extractor.official
    with pytest.raises(ValueError, match="must be uint8"):
        extractor(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    "spoil", [{"norm.bias": torch.zeros(3)}, {"register_tokens": torch.zeros(1, 4, 48)}, {"pos_embed": torch.zeros(7)}]
)
def test_dinov2_refuses_another_networks_weights(tmp_path: Path, spoil: dict[str, Tensor]) -> None:
    torch.save(random_tensors() | spoil, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not hold the weights dinov2-vit-l-14"):
        dinov2_extractor(LocalWeights("dinov2-vit-l-14", tmp_path / "x.pth", SHA256, official=False), CPU, TINY)


def test_dinov2_refuses_positions_of_no_square_grid(tmp_path: Path) -> None:
    torch.save(random_tensors() | {"pos_embed": torch.zeros(1, 1000, 48)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"does not hold the weights dinov2-vit-l-14: .*pos_embed"):
        dinov2_extractor(LocalWeights("dinov2-vit-l-14", tmp_path / "x.pth", SHA256, official=False), CPU, TINY)
