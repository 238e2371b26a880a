"""Images of noise and random weights, on which a network here is held against the same one of another library."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import cleanfid.inception_pytorch
import pytest
import torch
import torchvision
from cleanfid.inception_torchscript import InceptionV3W
from torch import Tensor, nn

CPU = torch.device("cpu")
SHA256 = "3fa2b81c" + "0" * 56


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


class NvidiaLayout(nn.Module):
    """pytorch-fid's network behind the interface of the TorchScript file's `layers`: pixels in [-1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.network((x + 1) / 2)[0]
        return pooled


def clean_fid_network(state_dict: dict[str, Tensor], mode: str) -> Callable[[Tensor], Tensor]:
    """What clean-fid calls on resized pixels in this mode."""
    network = pytorch_fid_network(state_dict)
    if mode == "legacy_pytorch":
        return lambda x: network(x / 255)[0].flatten(1)
    wrapper = InceptionV3W.__new__(InceptionV3W)  # its constructor downloads and runs a TorchScript file
    nn.Module.__init__(wrapper)
    wrapper.layers, wrapper.resize_inside = NvidiaLayout(network), False
    return wrapper  # type: ignore[no-any-return]


def random_inception(seed: int) -> dict[str, Tensor]:
    """Random weights under the names of pytorch-fid."""
    tensors = pytorch_fid_network(None).state_dict()
    fill_with_noise(tensors, seed)
    return tensors
