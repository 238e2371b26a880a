"""Every golden case below a folder, run by its metadata: networks here, operators as in the tests of the kernels.

`pytest tests/models --golden DIR` takes any folder. A case whose class is unknown fails; a case of a system that this
program does not have yet is skipped by name.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from torch import Tensor

from tests.conftest import golden_root
from tests.golden_cases import GoldenFile, assert_close_to_golden, golden_meta, load_golden
from tests.golden_operators import check_operator, is_operator

# class of the file: "module:function" in tests/models/golden, which returns every output of the file by its name
RUNNERS = {
    "models.stylegan_generator.StyleGANGenerator": "stylegan1:generator",
    "models.stylegan_discriminator.StyleGANDiscriminator": "stylegan1:discriminator",
    "training.networks.Generator": "stylegan2:generator",
    "training.networks_stylegan2.Generator": "stylegan2:generator",
    "training.networks.Discriminator": "stylegan2:discriminator",
    "training.networks_stylegan2.Discriminator": "stylegan2:discriminator",
    "training.augment.AugmentPipe": "augment:pipe",
    "training.networks_stylegan3.Generator": "stylegan3:generator",
    "training.networks_stylegan3.SynthesisNetwork": "stylegan3:layer_specs",
    "training.networks_stylegan3.SynthesisLayer.design_lowpass_filter": "stylegan3:lowpass_filters",
    "training.networks_stylegan3.modulated_conv2d": "stylegan3:modulated_conv",
    "training.networks_stylegan3_resetting.Generator": "stylegan_xl:generator",
    "training.networks_stylegan3_resetting.SuperresGenerator": "stylegan_xl:superres_generator",
    "pg_modules.projector.F_RandomProj + pg_modules.discriminator.MultiScaleD": "projected_discriminator:heads",
    "networks.generator.Generator": "stylegan_t:generator",
    "networks.generator.SynthesisLayer": "stylegan_t:synthesis_layers",
    "open_clip.model.CLIP": "stylegan_t:text_encoder",
    "networks.discriminator.DiscHead": "dino_discriminator:heads",
    "networks.discriminator.ProjectedDiscriminator": "dino_discriminator:discriminator",
    "BigGAN.Generator": "biggan:generator",
    "BigGANdeep.Generator": "biggan:generator",
    "BigGAN.Discriminator": "biggan:discriminator",
    "BigGANdeep.Discriminator": "biggan:discriminator",
    "pytorch_pretrained_biggan.model.BigGAN": "biggan_deep:generator",
}
NOT_HERE = {
    "metrics": "cases of metrics are run by tests/bench",
    **dict.fromkeys(("edm", "pfgmpp", "mdt", "dit"), "diffusion models are not implemented yet"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_path" in metafunc.fixturenames:
        root = golden_root(metafunc.config)
        paths = sorted(root.rglob("*.safetensors"))
        metafunc.parametrize("golden_path", paths, ids=[str(path.relative_to(root).with_suffix("")) for path in paths])


def test_case_agrees_with_official_implementation(golden_path: Path) -> None:
    meta = golden_meta(golden_path)
    if reason := NOT_HERE.get(meta.get("system", "")):
        pytest.skip(reason)
    case = load_golden(golden_path)
    if is_operator(meta):
        for index in range(len(meta["cases"]) or 1):
            check_operator(case, index)
        return
    assert meta["class"] in RUNNERS, f"{golden_path}: no test knows the class {meta['class']!r}"
    values = _runner(meta["class"])(case)
    golden = case.group("out/")
    assert golden, f"{golden_path}: has no outputs"
    assert not golden.keys() - values.keys(), f"{golden_path}: not computed: {sorted(golden.keys() - values.keys())}"
    for name in golden:
        assert_close_to_golden(name, values[name], case)


def _runner(class_name: str) -> Callable[[GoldenFile], dict[str, Tensor]]:
    module, _, function = RUNNERS[class_name].partition(":")
    found: Callable[[GoldenFile], dict[str, Tensor]] = getattr(import_module(f"tests.models.golden.{module}"), function)
    return found
