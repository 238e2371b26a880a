"""StyleGAN-XL: images, features, gradients and moving averages of stems and of super-resolution generators."""

from __future__ import annotations

from models.spec import Latents
from models.stylegan_xl import StyleGANXLGenerator
from models.stylegan_xl_config import StyleGANXLConfig, fitted_to_state, official_config
from tests.golden_cases import GoldenFile
from tests.models.golden.stylegan3 import generator_outputs


def generator(case: GoldenFile) -> Latents:
    return _outputs(official_config(case.meta["class"], case.meta["kwargs"]), case)


def superres_generator(case: GoldenFile) -> Latents:
    params = case.meta["params"]
    return _outputs(official_config(case.meta["class"], params["stem_kwargs"], params["stages"]), case)


def _outputs(config: StyleGANXLConfig, case: GoldenFile) -> Latents:
    state = case.group("state/")
    network = StyleGANXLGenerator(fitted_to_state(config, state))
    network.load_state_dict(state, strict=True)
    return generator_outputs(network, case, slice(None))
