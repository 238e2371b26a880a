"""Pretrained BigGAN-deep: images at several truncations, features and the gradient of z."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.biggan_deep import BigGANDeepGenerator
from models.biggan_deep_config import official_config
from models.spec import Latents
from tests.golden_cases import GoldenFile


def generator(case: GoldenFile) -> Latents:
    network = BigGANDeepGenerator(official_config(case.meta["class"], case.meta["kwargs"])).eval()
    network.load_state_dict(case.group("state/"), strict=True)
    z, c = case.tensors["in/z"], case.tensors["in/y"]
    first, *others = case.meta["params"]["truncations"]
    values = _image_and_features(network, z, c, first)
    with torch.no_grad():
        for t in others:
            count = len(case.tensors[f"out/img_trunc{t}"])
            values[f"img_trunc{t}"] = network(z[:count], c[:count], t)
    z = z.clone().requires_grad_()
    torch.autograd.backward((network(z, c, 0.5) * case.tensors["in/gy"]).sum())
    assert z.grad is not None
    return values | {"grad_z": z.grad}


def _image_and_features(network: BigGANDeepGenerator, z: Tensor, c: Tensor, truncation: float) -> Latents:
    values: Latents = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            values[f"feat/{name}"] = output[:1]

        return hook

    layers = network.generator.layers
    handles = [layer.register_forward_hook(keep(f"generator.layers.{i}")) for i, layer in enumerate(layers)]
    with torch.no_grad():
        values[f"img_trunc{truncation}"] = network(z, c, truncation)
    for handle in handles:
        handle.remove()
    return values
