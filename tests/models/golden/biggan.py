"""BigGAN and BigGAN-deep: images, features, gradients and buffers of a generator; logits of a discriminator."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.biggan import BigGANGenerator
from models.biggan_config import official_config
from models.spec import Latents
from models.training.biggan_discriminator import BigGANDiscriminator, official_discriminator_config
from tests.golden_cases import GoldenFile


def generator(case: GoldenFile) -> Latents:
    network = BigGANGenerator(official_config(case.meta["class"], case.meta["kwargs"])).eval()
    network.load_state_dict(case.group("state/"), strict=True)
    z, y = case.tensors["in/z"][:, : network.z_dim], case.tensors["in/y"]
    c = F.one_hot(y, network.num_classes).float()
    shared = network.shared(c).detach()
    values = _image_and_features(network, z, c)
    between = 0.3 * shared[:1] + 0.7 * shared[1:2]
    values["img_interp"] = network.synthesis(torch.cat([z[:1], between], 1).unsqueeze(1))
    # without a shared embedding the official layers take the integer labels themselves
    values["shared"] = shared if network.config.shared_dim else y
    z = z.clone().requires_grad_()
    torch.autograd.backward((network(z, c) * case.tensors["in/gy"]).sum())
    assert z.grad is not None
    values |= {"grad_z": z.grad, **_parameter_gradients(network, "grad_param/")}
    trained = copy.deepcopy(network).train()
    values["train/img"] = trained(z.detach(), c)
    return values | _buffers(trained)


def discriminator(case: GoldenFile) -> Latents:
    network = BigGANDiscriminator(official_discriminator_config(case.meta["class"], case.meta["kwargs"]))
    network.load_state_dict(case.group("state/"), strict=True)
    c = F.one_hot(case.tensors["in/y"], network.config.num_classes).float()
    values: Latents = {}
    for mode in ("eval", "train"):
        network.train(mode == "train").zero_grad()
        images = case.tensors["in/img"].clone().requires_grad_()
        logits = network(images, c)
        torch.autograd.backward((logits * case.tensors["in/gy"]).sum())
        assert images.grad is not None
        values |= {f"{mode}/logits": logits, f"{mode}/grad_img": images.grad}
        values |= _parameter_gradients(network, f"{mode}/grad_param/")
    return values | _buffers(network)


def _image_and_features(network: BigGANGenerator, z: Tensor, c: Tensor) -> Latents:
    values: Latents = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            values[f"feat/{name}"] = output[:1]

        return hook

    handles = [
        layer.register_forward_hook(keep(f"blocks.{i}.{j}"))
        for i, block in enumerate(network.blocks)
        for j, layer in enumerate(block.children())
    ]
    with torch.no_grad():
        values["img"] = network(z, c)
    for handle in handles:
        handle.remove()
    return values


def _parameter_gradients(network: nn.Module, prefix: str) -> Latents:
    gradients = {f"{prefix}{name}": value.grad for name, value in network.named_parameters()}
    return {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}


def _buffers(network: nn.Module) -> Latents:
    return {f"train_buffers/{name}": value for name, value in network.named_buffers()}
