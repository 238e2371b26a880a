"""The augmentation pipe with all its changes at a fixed percentile: images, gradients and filters."""

from __future__ import annotations

import torch

from models.spec import Latents
from models.training.augment import AugmentPipe, official_augment_config
from tests.golden_cases import GoldenFile


def pipe(case: GoldenFile) -> Latents:
    values: Latents = {}
    for index, call in enumerate(case.meta["cases"]):
        kwargs = {**case.meta["kwargs"], **call}
        percentile, p = kwargs.pop("debug_percentile"), kwargs.pop("p", 1.0)
        network = AugmentPipe(official_augment_config(kwargs))
        network.p.fill_(p)
        values |= {"Hz_geom": network.Hz_geom, "Hz_fbank": network.Hz_fbank}
        inputs = case.group("in/") | case.group(f"in/{index:03d}/")
        images = inputs["images"].clone().requires_grad_()
        changed = network(images, debug_percentile=percentile)
        (gradient,) = torch.autograd.grad((changed * inputs["gy"]).sum(), images)
        values |= {f"{index:03d}/y": changed, f"{index:03d}/dx": gradient}
    return values
