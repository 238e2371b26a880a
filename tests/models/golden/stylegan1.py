"""StyleGAN (2018): images at several lods, styles and gradients of a generator; scores of a discriminator."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from models.spec import Latents
from models.stylegan1 import StyleGAN1Generator
from models.stylegan1_config import official_config
from models.training.stylegan1_discriminator import StyleGAN1Discriminator, official_discriminator_config
from tests.golden_cases import GoldenFile


def generator(case: GoldenFile) -> Latents:
    network = StyleGAN1Generator(official_config(case.meta["class"], case.meta["kwargs"]))
    network.load_state_dict(case.group("state/"), strict=True)
    z, c = case.tensors["in/z"], case.tensors.get("in/label")
    ws = network.mapping(z, c)
    values = {"full/z": z, "full/wp": ws, "full/w": ws[:, 0] if network.config.repeat_w else ws.flatten(1)}
    if c is not None:
        values |= {"full/label": c, "full/embedding": network.mapping.embed(c)}
    values |= _image_with_styles(network, ws)
    for name in case.group("out/"):
        if match := re.fullmatch(r"(image|wp)_psi(-?[\d.]+)_layers(\d+)", name):
            truncated = network.mapping(z, c, float(match[2]), int(match[3]))
            values[name] = truncated if match[1] == "wp" else network.synthesis(truncated, "const")
        if match := re.fullmatch(r"image_lod([\d.]+)", name):
            values[name] = network.synthesis(ws[:1], "const", lod=float(match[1]))
    return values | _gradients(network, case)


def discriminator(case: GoldenFile) -> Latents:
    network = StyleGAN1Discriminator(official_discriminator_config(case.meta["kwargs"]))
    network.load_state_dict(case.group("state/"), strict=True)
    image, c = case.tensors["in/img"].clone().requires_grad_(), case.tensors.get("in/label")
    score = network(image, c)
    (gradient,) = torch.autograd.grad(score.sum(), image)
    names = [name for name in case.group("out/") if name.startswith("score_lod")]
    at_lods = {name: network(image, c, lod=float(name.removeprefix("score_lod"))) for name in names}
    return {"score": score, "grad_img": gradient, **at_lods}


def _image_with_styles(network: StyleGAN1Generator, ws: Tensor) -> Latents:
    values: Latents = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, style: Tensor) -> None:
            values[name] = style

        return hook

    layers = [network.synthesis.get_submodule(f"layer{i}.style") for i in range(network.num_ws)]
    handles = [layer.register_forward_hook(keep(f"full/style{i:02d}")) for i, layer in enumerate(layers)]
    values["image"] = values["full/image"] = network.synthesis(ws, "const")
    for handle in handles:
        handle.remove()
    return values


def _gradients(network: StyleGAN1Generator, case: GoldenFile) -> Latents:
    ws = case.tensors["in/wp"].clone().requires_grad_()
    image = network.synthesis(ws, "const")
    (gradient,) = torch.autograd.grad((image * case.tensors["in/gy"]).sum(), ws)
    return {"image_from_wp": image, "grad_wp": gradient}
