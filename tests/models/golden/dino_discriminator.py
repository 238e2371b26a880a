"""StyleGAN-T: features, logits, their gradients and the singular vectors that training changes."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from models.spec import Latents
from models.training.dino_discriminator import DinoDiscriminator, DiscriminatorHead, official_dino_config
from tests.golden_cases import GoldenFile

_VIT_DEFAULTS = {"embed_dim": 768, "num_heads": 12, "num_classes": 1000}  # of timm's class, which the cases make


def heads(case: GoldenFile) -> Latents:
    params = case.meta["params"]
    build = partial(
        DiscriminatorHead, params["channels"], params["c_dim"], params.get("head_kwargs", {}).get("cmap_dim", 64)
    )
    judges = nn.ModuleDict({"heads": nn.ModuleList(build() for _ in range(params["n_heads"]))})
    judges.load_state_dict(case.group("state/"), strict=True)
    values: Latents = {}
    for mode in ("eval", "train"):
        judging = copy.deepcopy(judges).train(mode == "train")
        values |= {f"{mode}/{name}": value for name, value in _judged(judging["heads"], case).items()}
    return values | {f"train_buffers/{name}": value for name, value in judging.named_buffers()}


def _judged(judges: nn.Module, case: GoldenFile) -> Latents:
    c = case.tensors.get("in/c")
    heads = list(judges.children())
    features = [case.tensors[f"in/feat{i}"].clone().requires_grad_() for i in range(len(heads))]
    logits = torch.cat([head(x, c) for head, x in zip(heads, features, strict=True)], dim=1)
    gradients = torch.autograd.grad((logits * case.tensors["in/gy"]).sum(), features)
    return {"logits": logits} | {f"dfeat{i}": gradient for i, gradient in enumerate(gradients)}


def discriminator(case: GoldenFile) -> Latents:
    vit = {**_VIT_DEFAULTS, **case.meta["params"]["vit_kwargs"]}
    network = DinoDiscriminator(official_dino_config(case.meta["kwargs"], vit)).eval()
    network.load_state_dict(case.group("state/"), strict=True)
    image: Tensor = case.tensors["in/img"].clone().requires_grad_()
    logits = network(image, case.tensors.get("in/c"))
    (gradient,) = torch.autograd.grad((logits * case.tensors["in/gy"]).sum(), image)
    features = network.dino((image + 1) / 2)
    return {"logits": logits, "dimg": gradient} | {f"dino/{i}": x for i, x in enumerate(features)}
