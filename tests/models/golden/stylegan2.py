"""StyleGAN2: images, features, gradients and moving average of a generator; logits and R1 of a discriminator."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from models.spec import Latents
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import official_config
from models.training.losses import r1_penalty
from models.training.stylegan2_discriminator import StyleGAN2Discriminator, official_discriminator_config
from tests.golden_cases import GoldenFile

# "ws_psi0.7_cutoff3", "img_none", "img_psi0.5_const"; a part that is missing has its default
_NAME = re.compile(r"(ws|img)(?:_psi(-?[\d.]+))?(?:_cutoff(-?\d+))?(?:_(const|none))?")


def generator(case: GoldenFile) -> Latents:
    network = StyleGAN2Generator(official_config(case.meta["class"], case.meta["kwargs"]))
    network.load_state_dict(case.group("state/"), strict=True)
    golden = case.group("out/")
    values = _mapped_and_painted(network, case) | _features(network, case) | _gradients(network, case)
    for mode in ("train", "ema"):  # the cases of the StyleGAN3 repository call it ema
        values |= {f"{mode}/{name}": value for name, value in _moved_average(network, case, mode).items()}
    # some cases keep the first images only
    return {name: value[: len(golden[name])] if _has_batch(name, golden) else value for name, value in values.items()}


def discriminator(case: GoldenFile) -> Latents:
    network = StyleGAN2Discriminator(official_discriminator_config(case.meta["class"], case.meta["kwargs"]))
    network.load_state_dict(case.group("state/"), strict=True)
    return _discriminator_outputs(network, case)


def _has_batch(name: str, golden: Latents) -> bool:
    return name in golden and (name.startswith(("feat/", "ema/img")) or bool(_NAME.fullmatch(name)))


def _inputs(network: StyleGAN2Generator, case: GoldenFile) -> tuple[Tensor, Tensor | None]:
    return case.tensors["in/z"], case.tensors["in/c"] if network.num_classes else None


def _mapped_and_painted(network: StyleGAN2Generator, case: GoldenFile) -> Latents:
    values: Latents = {}
    for name in case.group("out/"):
        if match := _NAME.fullmatch(name):
            psi, cutoff = float(match[2] or 1), None if match[3] is None else int(match[3])
            ws = network.mapping(*_inputs(network, case), psi, cutoff)
            values[name] = ws if match[1] == "ws" else network.synthesis(ws, match[4] or "const")
    return values


def _moved_average(network: StyleGAN2Generator, case: GoldenFile, mode: str) -> Latents:
    """The average after one training step, and the image of that step; "ema" steps are those of fewer samples."""
    z, c = _inputs(network, case)
    count = len(case.tensors.get("out/ema/img", z[:2])) if mode == "ema" else len(z)
    network.load_state_dict(case.group("state/"), strict=True)
    ws = network.mapping(z[:count], None if c is None else c[:count], update_emas=True)
    moved = {name: value.clone() for name, value in network.named_buffers()}
    network.load_state_dict(case.group("state/"), strict=True)
    return moved | {"img": network.synthesis(ws, "const")}


def _features(network: StyleGAN2Generator, case: GoldenFile) -> Latents:
    features: Latents = {}

    def keep(resolution: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor | None]) -> None:
            x, image = outputs
            features[f"feat/{resolution}.x"] = x
            if image is not None:
                features[f"feat/{resolution}.img"] = image

        return hook

    handles = [block.register_forward_hook(keep(name)) for name, block in network.synthesis.named_children()]
    network(*_inputs(network, case), noise_mode="const")
    for handle in handles:
        handle.remove()
    return features


def _gradients(network: StyleGAN2Generator, case: GoldenFile) -> Latents:
    ws = case.tensors["in/ws"].clone().requires_grad_()
    image = network.synthesis(ws, "const")
    (image * case.tensors["in/gy"]).sum().backward()
    assert ws.grad is not None
    parameters = {f"grad_param/{name}": value.grad for name, value in network.named_parameters()}
    of_parameters = {name: grad for name, grad in parameters.items() if grad is not None}
    return {"img_from_ws": image, "grad_ws": ws.grad, **of_parameters}


def _discriminator_outputs(discriminator: StyleGAN2Discriminator, case: GoldenFile) -> Latents:
    values: Latents = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
            values[f"feat/{name}.x"], values[f"feat/{name}.img"] = outputs

        return hook

    for resolution in discriminator.config.resolutions:
        discriminator.get_submodule(f"b{resolution}").register_forward_hook(keep(f"b{resolution}"))
    image = case.tensors["in/img"].clone().requires_grad_()
    logits = discriminator(image, case.tensors["in/c"] if discriminator.num_classes else None)
    (gradient,) = torch.autograd.grad(logits.sum(), image, retain_graph=True)
    penalty = r1_penalty(logits, image)
    torch.autograd.backward(penalty.mean())
    values |= {"logits": logits, "grad_img": gradient, "r1_penalty": penalty}
    parameters = {f"r1_grad_param/{name}": value.grad for name, value in discriminator.named_parameters()}
    return values | {name: gradient for name, gradient in parameters.items() if gradient is not None}
