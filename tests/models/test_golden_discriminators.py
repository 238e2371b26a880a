"""Every StyleGAN2 discriminator case of the golden files: logits, features, gradients, gradients of the R1 penalty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.spec import Latents
from models.training.losses import r1_penalty
from models.training.stylegan2_discriminator import StyleGAN2Discriminator, official_discriminator_config
from tests.conftest import golden_root
from tests.golden_cases import GoldenFile, assert_close_to_golden, golden_meta, load_golden

OFFICIAL = "training.networks.Discriminator"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "discriminator_case" in metafunc.fixturenames:
        found = sorted(golden_root(metafunc.config).rglob("d_*.safetensors"))
        paths = [path for path in found if golden_meta(path)["class"] == OFFICIAL]
        metafunc.parametrize("discriminator_case", paths, ids=[f"{path.parent.name}/{path.stem}" for path in paths])


def test_discriminator_agrees_with_golden_case(discriminator_case: Path) -> None:
    case = load_golden(discriminator_case)
    discriminator = StyleGAN2Discriminator(official_discriminator_config(case.meta["kwargs"]))
    discriminator.load_state_dict(case.group("state/"), strict=True)
    values = golden_outputs(discriminator, case)
    for name in case.group("out/"):
        assert_close_to_golden(name, values[name], case)


def golden_outputs(discriminator: StyleGAN2Discriminator, case: GoldenFile) -> Latents:
    values: Latents = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
            values[f"feat/{name}.x"] = outputs[0]

        return hook

    for resolution in discriminator.config.resolutions:
        discriminator.get_submodule(f"b{resolution}").register_forward_hook(keep(f"b{resolution}"))
    image = case.tensors["in/img"].clone().requires_grad_()
    logits = discriminator(image, case.tensors.get("in/c"))
    (gradient,) = torch.autograd.grad(logits.sum(), image, retain_graph=True)
    penalty = r1_penalty(logits, image)
    torch.autograd.backward(penalty.mean())
    values |= {"logits": logits, "grad_img": gradient, "r1_penalty": penalty}
    parameters = {f"r1_grad_param/{name}": value.grad for name, value in discriminator.named_parameters()}
    return values | {name: gradient for name, gradient in parameters.items() if gradient is not None}
