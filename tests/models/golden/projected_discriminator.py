"""StyleGAN-XL: mixed features, logits, their gradients and the statistics that training changes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.spec import Latents
from models.training.projected_discriminator import HeadsConfig, MultiScaleHeads, ProjectionConfig, RandomProjection
from tests.golden_cases import GoldenFile


def heads(case: GoldenFile) -> Latents:
    projection = RandomProjection(_projection_config(case))
    discriminator = MultiScaleHeads(_heads_config(case, projection.config.out_channels))
    projection.load_state_dict(case.group("state/feature_network.scratch."), strict=True)
    discriminator.load_state_dict(case.group("state/discriminator."), strict=True)
    features = [case.tensors[f"in/feat{i}"] for i in range(4)]
    values = {f"proj/{i}": x for i, x in enumerate(projection(features))}
    for mode in ("eval", "train"):
        judge = copy.deepcopy(discriminator).train(mode == "train")
        outputs = _judged(projection, judge, case, features)
        values |= {f"{mode}/{name}": value for name, value in outputs.items()}
    buffers = {f"train_buffers/discriminator.{name}": value for name, value in judge.named_buffers()}
    return values | buffers


def _judged(projection: nn.Module, judge: nn.Module, case: GoldenFile, features: list[Tensor]) -> Latents:
    leaves = [x.clone().requires_grad_() for x in features]
    labels = case.tensors["in/c"] if case.meta["params"]["backbone_kwargs"].get("cond") else None
    logits = judge(projection(leaves), labels)
    gradients = torch.autograd.grad((logits * case.tensors["in/gy"]).sum(), leaves, materialize_grads=True)
    return {"logits": logits} | {f"dfeat{i}": gradient for i, gradient in enumerate(gradients)}


def _projection_config(case: GoldenFile) -> ProjectionConfig:
    given = case.meta["params"]["backbone_kwargs"]
    return ProjectionConfig(
        channels=tuple(case.meta["params"]["channels"]),
        width=given.get("cout", 64),
        expand=given.get("expand", True),
        kind=given.get("proj_type", 2),
    )


def _heads_config(case: GoldenFile, channels: tuple[int, ...]) -> HeadsConfig:
    params = case.meta["params"]
    labels = params.get("cond_kwargs", {})
    return HeadsConfig(
        channels=channels,
        resolutions=tuple(params["resolutions"]),
        num_heads=params["backbone_kwargs"].get("num_discs", 4),
        num_classes=case.tensors["in/c"].shape[1] if params["backbone_kwargs"].get("cond") else 0,
        embedding_shape=tuple(params["embedding_shape"]),
        label_width=labels.get("cmap_dim", 64),
        width=params.get("ndf"),
        patch=params["backbone_kwargs"].get("patch", False),
    )
