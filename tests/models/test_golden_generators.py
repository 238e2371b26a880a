"""Every StyleGAN2 generator case of the golden files: images, intermediate features, gradients, moving average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from models.spec import Latents
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import OFFICIAL_DEFAULTS, official_config
from tests.conftest import golden_root
from tests.golden_cases import GoldenFile, assert_close_to_golden, golden_meta, load_golden

NOT_YET = {
    "models.stylegan_generator.StyleGANGenerator": "StyleGAN1",
    "training.networks_stylegan3.Generator": "StyleGAN3",
    "training.networks_stylegan3_resetting.Generator": "StyleGAN-XL",
    "training.networks_stylegan3_resetting.SuperresGenerator": "StyleGAN-XL",
    "networks.generator.Generator": "StyleGAN-T",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "generator_case" in metafunc.fixturenames:
        paths = sorted(golden_root(metafunc.config).rglob("g_*.safetensors"))
        metafunc.parametrize("generator_case", paths, ids=[f"{path.parent.name}/{path.stem}" for path in paths])


def test_generator_agrees_with_golden_case(generator_case: Path) -> None:
    class_name = golden_meta(generator_case)["class"]
    if class_name in NOT_YET:
        pytest.skip(f"{NOT_YET[class_name]} is not implemented yet")
    assert class_name in OFFICIAL_DEFAULTS, f"{generator_case.name}: no generator for class {class_name}"
    case = load_golden(generator_case)
    values = golden_outputs(load_official(case), case)
    for name in case.group("out/"):
        assert_close_to_golden(name, values[name], case)


def load_official(case: GoldenFile) -> StyleGAN2Generator:
    generator = StyleGAN2Generator(official_config(case.meta["class"], case.meta["kwargs"]))
    generator.load_state_dict(case.group("state/"), strict=True)
    return generator


def golden_outputs(generator: StyleGAN2Generator, case: GoldenFile) -> Latents:
    """All that the cases of both official StyleGAN2 classes record, under the names of either."""
    z, c = case.tensors["in/z"], case.tensors.get("in/c")
    values = {
        "ws_psi1": generator.mapping(z, c),
        "ws_psi0.7": generator.mapping(z, c, 0.7),
        "ws_psi0.7_cutoff3": generator.mapping(z, c, 0.7, 3),
    }
    images = synthesis_with_features(generator, values["ws_psi1"])
    values |= images | {"img_none": generator.synthesis(values["ws_psi1"], "none")}
    values["img_psi0.7_const"] = generator(z, c, truncation_psi=0.7, noise_mode="const")
    values |= gradients(generator, case)
    # the cases of the StyleGAN3 repository keep the first two images, and move the average by these
    first = slice(2 if case.meta["system"] == "stylegan3" else None)
    values |= {"img": values["img_const"][first], "img_psi0.7": values["img_psi0.7_const"][first]}
    generator.mapping(z[first], c if c is None else c[first], update_emas=True)
    w_avg = generator.mapping.w_avg
    return values | {"ema/img": values["img"], "train/mapping.w_avg": w_avg, "ema/mapping.w_avg": w_avg}


def synthesis_with_features(generator: StyleGAN2Generator, ws: Tensor) -> Latents:
    features: Latents = {}

    def keep(resolution: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor | None]) -> None:
            x, image = outputs
            features[f"feat/{resolution}.x"] = x
            if image is not None:
                features[f"feat/{resolution}.img"] = image

        return hook

    handles = [block.register_forward_hook(keep(name)) for name, block in generator.synthesis.named_children()]
    features["img_const"] = generator.synthesis(ws, "const")
    for handle in handles:
        handle.remove()
    return features


def gradients(generator: StyleGAN2Generator, case: GoldenFile) -> Latents:
    ws = case.tensors["in/ws"].clone().requires_grad_()
    image = generator.synthesis(ws, "const")
    (image * case.tensors["in/gy"]).sum().backward()
    assert ws.grad is not None
    parameters = {f"grad_param/{name}": value.grad for name, value in generator.named_parameters()}
    of_parameters = {name: grad for name, grad in parameters.items() if grad is not None}
    return {"img_from_ws": image, "grad_ws": ws.grad, **of_parameters}
