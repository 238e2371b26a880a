"""Layers and generators of `models` on the Triton kernels."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from kernels import conv2d_resample_triton, modulated_conv_triton, synthesis_chain_triton
from kernels.conv_triton import convolve
from kernels.dispatch import KernelUnavailableError, use
from models import stylegan2, stylegan3, stylegan_t
from models.layers import initialise
from models.stylegan2 import StyleGAN2Generator, SynthesisBlock, build
from tests.conftest import golden_root
from tests.golden_cases import assert_close_to_golden, golden_meta, load_golden
from tests.models.golden.stylegan3 import modulated_conv


def test_stylegan3_convolution_matches_golden(pytestconfig: pytest.Config) -> None:
    paths = golden_root(pytestconfig).rglob("op_modulated_conv2d.safetensors")
    case = next(load_golden(path) for path in paths if "stylegan3" in golden_meta(path)["class"])
    for name, value in modulated_conv(case).items():
        assert_close_to_golden(name, value, case)


Network = TypeVar("Network", bound=nn.Module)


def rounded(network: Network) -> Network:
    """A network of random weights, biases and noise, all of which float16 has."""
    initialise(network, 1)
    normal = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            if name.endswith(("bias", "noise_strength")):
                value.add_(torch.randn(value.shape, generator=normal) / 4)
            value.copy_(value.half())
    return network.eval()


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


STYLEGAN2: dict[str, Any] = {
    "resolution": 16,
    "z_dim": 8,
    "w_dim": 8,
    "mapping_layers": 1,
    "channel_base": 256,
    "channel_max": 24,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clamped": {"conv_clamp": 0.8, "activation": "relu", "img_channels": 1, "resolution": 8},
    "orig": {"architecture": "orig", "use_noise": False, "resolution": 8},
    "other-filter": {"resample_filter": (1, 2, 1), "resolution": 8, "kernel_size": 1},
    "many-colours": {"img_channels": 5, "resolution": 8},
    "odd-channels": {"channel_base": 104, "channel_max": 13, "resolution": 8},
    "resnet": {"architecture": "resnet", "resolution": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stylegan2_agrees_with_float64_reference(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variant != "resnet":  # the layers are one chain
        monkeypatch.setattr(stylegan2.SynthesisBlock, "__call__", None)
    network = rounded(build(**STYLEGAN2 | VARIANTS[variant]))
    ws = torch.randn(2, network.num_ws, 8, generator=torch.Generator().manual_seed(3)).half().float()
    normal = torch.Generator().manual_seed(4)
    maps = [torch.randn(2, size, size, generator=normal) for size in network.config.noise_resolutions]
    with torch.no_grad():
        image = network.synthesis(ws, "random" if maps else "none", maps or None)
        monkeypatch.undo()
        with use("reference"):
            exact = [noise.double() for noise in maps]
            want = network.double().synthesis(ws.double(), "random" if maps else "none", exact or None)
    assert image.dtype == torch.float32
    assert image.shape == want.shape
    assert error(image, want) < 1e-5


@pytest.mark.parametrize("paints", [True, False])
def test_stylegan2_chain_in_float16_agrees(paints: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv2d_resample_triton, "composes", lambda *_: paints)
    if paints:  # all of the image is made by convolutions to features
        monkeypatch.setattr(synthesis_chain_triton, "upsample2d", None)
    else:
        monkeypatch.setattr(synthesis_chain_triton, "paints", lambda *_: False)
    network = rounded(build(**STYLEGAN2, conv_clamp=256.0))
    with torch.no_grad():
        for block in blocks_of(network):  # styles and weights beyond the range of float16
            block.conv1.affine.bias.mul_(1e5)
            block.conv1.weight.mul_(1e4)
    ws = torch.randn(2, network.num_ws, 8, generator=torch.Generator().manual_seed(3)).half().float()
    with torch.no_grad():
        image = synthesis_chain(network, ws, torch.float16)
        with use("reference"):
            want = network.double().synthesis(ws.double(), "const")
    assert error(image, want) < 2e-3


def blocks_of(network: StyleGAN2Generator) -> list[SynthesisBlock]:
    return [block for block in network.synthesis.children() if isinstance(block, SynthesisBlock)]


def synthesis_chain(network: StyleGAN2Generator, ws: Tensor, dtype: torch.dtype) -> Tensor:
    """What a network does on a GPU: all but its first block in half precision."""
    blocks = blocks_of(network)
    styled, layer = [], 0
    for block in blocks:
        noises = [noise * 1 for noise in block.noise_consts]
        styled.append(block.styled(ws[:, layer:], noises, dtype if block.num_convs == 2 else torch.float32))
        layer += block.num_convs
    return synthesis_chain_triton.synthesis_chain_triton(blocks[0].const[None], styled)


def test_stylegan2_runs_layer_by_layer_for_gradients() -> None:
    network = rounded(build(**STYLEGAN2 | {"resolution": 4}))
    ws = torch.randn(1, network.num_ws, 8)
    image = network.synthesis(ws, "const")
    assert image.grad_fn is not None
    with torch.no_grad():
        torch.testing.assert_close(network.synthesis(ws, "const"), image)


def test_stylegan2_names_what_the_chain_does_not_take() -> None:
    network = build(**STYLEGAN2 | {"resolution": 8, "resample_filter": (1.0,) * 25})
    ws = torch.zeros(1, network.num_ws, 8)
    with torch.no_grad(), pytest.raises(KernelUnavailableError, match="up to 24 taps along an axis"):
        network.synthesis(ws, "const")


@pytest.mark.parametrize("blocks", [2])
def test_stylegan_t_agrees_with_float64_reference(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.functional.group_norm", None)  # its statistics are those of convolutions
    channels = {"channel_base": 256, "channel_max": 24, "gn_groups": 4}
    small = {"resolution": 16, "z_dim": 8, "mapping_layers": 1, "num_res_blocks": blocks, "layer_scale_init": 0.5}
    network = rounded(stylegan_t.build(**small, **channels))
    ws = torch.randn(2, network.num_ws, network.config.w_dim, generator=torch.Generator().manual_seed(3)).half().float()
    with torch.no_grad():
        image = network.synthesis(ws, "const")
        monkeypatch.undo()
        with use("reference"):
            want = network.double().synthesis(ws.double(), "const")
    assert error(image, want) < 1e-5


@pytest.mark.parametrize("radial", [False, True], ids=["t", "r"])
def test_stylegan3_agrees_with_float64_reference(radial: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[int] = []

    def counted(x: Tensor, *rest: Any) -> Any:
        inputs.append(x.shape[1])
        return convolve(x, *rest)

    monkeypatch.setattr(modulated_conv_triton, "convolve", counted)
    channels = {"channel_base": 40, "channel_max": 11, "conv_kernel": 1 if radial else 3}
    small = {"resolution": 8, "z_dim": 8, "w_dim": 8, "mapping_layers": 1, "num_layers": 3, "margin_size": 1}
    network = rounded(stylegan3.build(**small, **channels, use_radial_filters=radial))
    ws = torch.randn(2, network.num_ws, 8, generator=torch.Generator().manual_seed(3)).half().float()
    with torch.no_grad():
        image = network.synthesis(ws)
        with use("reference"):
            want = network.double().synthesis(ws.double())
    assert image.shape == want.shape
    assert error(image, want) < 1e-5
    assert inputs == [10, 16, 8, 8]


def test_stylegan3_magnitudes_count_no_channels_of_zeros() -> None:
    network = rounded(stylegan3.build(resolution=8, z_dim=8, w_dim=8, mapping_layers=1, num_layers=2, num_critical=1,
                                      margin_size=1, channel_base=40, channel_max=5))  # fmt: skip
    ws = torch.randn(1, network.num_ws, 8, generator=torch.Generator().manual_seed(3))
    found = []
    for implementation in ("triton", "reference"):
        again = copy.deepcopy(network)
        with torch.no_grad(), use(implementation):
            again.synthesis(ws, update_emas=True)
        found.append(torch.stack([layer.magnitude_ema for layer in again.synthesis.layers()]))
    torch.testing.assert_close(*found)
