from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.clip_text import OPENAI_VIT_L_14
from models.layers import initialise
from models.stylegan_t import StyleGANTGenerator
from models.stylegan_t_config import StyleGANTConfig, config_from_state, official_config, official_layer_config

TINY = StyleGANTConfig(resolution=16, z_dim=12, channel_base=256, channel_max=16, num_res_blocks=1, gn_groups=4)
TINY_CLIP = {"embed_dim": 10, "text_cfg": {"width": 16, "heads": 2, "layers": 1}, "quick_gelu": True}


def shapes_of(generator: StyleGANTGenerator) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}


def make(**changes: Any) -> StyleGANTGenerator:
    generator = StyleGANTGenerator(replace(TINY, **changes))
    initialise(generator, 0)
    return generator


def test_config_sizes_are_those_of_the_paper() -> None:
    config = StyleGANTConfig(resolution=512, channel_base=65536, channel_max=2048, num_res_blocks=3)
    assert [config.channels(r) for r in config.resolutions] == [2048, 2048, 2048, 1024, 512, 256, 128]
    assert [r for r in config.resolutions if config.is_half(r)] == [64, 128, 256, 512]
    assert not any(replace(config, num_fp16_res=0).is_half(r) for r in config.resolutions)
    assert [r for r in (8, 16) if TINY.is_half(r)] == [8, 16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 48}, "48 is not a power of two from 8"),
        ({"resolution": 4}, "4 is not a power of two from 8"),
        ({"architecture": "resnet"}, "skip, orig"),
        ({"gn_groups": 5}, "gn_groups=5"),
        ({"text_encoder": TINY_CLIP}, "without text_dim"),
        ({"text_encoder": TINY_CLIP, "text_dim": 9}, "the features have 10"),
        ({"activation": "gelu"}, "gelu"),
    ],
)
def test_generator_refuses_a_configuration_that_has_no_network(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_official_config_translates_every_argument() -> None:
    synthesis = {"channel_base": 1024, "channel_max": 32, "num_res_blocks": 1, "architecture": "orig", "gn_groups": 8}
    flags = {"fused_modconv_default": False, "fp16_channels_last": True, "num_fp16_res": 2, "conv_clamp": None}
    got = official_config(
        "networks.generator.Generator",
        {
            "z_dim": 24,
            "conditional": False,
            "img_resolution": 32,
            "img_channels": 1,
            "train_mode": "freeze64",
            "mapping_kwargs": {"num_layers": 3, "lr_multiplier": 0.1, "activation": "relu", "x_avg_beta": 0.9},
            "synthesis_kwargs": {**synthesis, **flags},
        },
    )
    mapping = {"mapping_layers": 3, "mapping_lr_multiplier": 0.1, "mapping_activation": "relu", "x_avg_beta": 0.9}
    expected = {"z_dim": 24, "img_channels": 1, "num_fp16_res": 2, "conv_clamp": None, **mapping, **synthesis}
    assert got == StyleGANTConfig(32, **expected)  # type: ignore[arg-type]


def test_official_config_of_a_conditional_generator_has_the_text_encoder_of_the_official_one() -> None:
    got = official_config("networks.generator.Generator", {"z_dim": 64, "conditional": True, "img_resolution": 64})
    expected = StyleGANTConfig(64, text_dim=768, text_encoder=OPENAI_VIT_L_14, num_res_blocks=3, architecture="orig")
    assert got == expected  # the defaults of the official class are not those of the published generators
    with torch.device("meta"):
        generator = StyleGANTGenerator(got)
    names = generator.state_dict().keys()
    assert {"mapping.clip.model.ln_final.weight", "mapping.clip.model.transformer.resblocks.11.ln_1.bias"} <= names
    assert sum(p.numel() for p in generator.mapping.clip.parameters()) == 123_650_304  # the paper: 123 million


def test_official_config_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="unknown arguments freeze"):
        official_config("networks.generator.Generator", {"img_resolution": 64, "synthesis_kwargs": {"freeze": 3}})
    with pytest.raises(ValueError, match="no StyleGAN-T generator"):
        official_config("training.networks.Generator", {"img_resolution": 64})
    with pytest.raises(ValueError, match="unknown arguments down"):
        official_layer_config({"in_channels": 8, "out_channels": 8, "w_dim": 4, "resolution": 8, "down": 2})
    with pytest.raises(ValueError, match="from 8 to 16 channels"):
        official_layer_config({"in_channels": 8, "out_channels": 16, "w_dim": 4, "resolution": 8, "residual": True})


@pytest.mark.parametrize(
    "changes",
    [
        {"text_dim": 10},
        {"architecture": "orig", "use_noise": False, "num_res_blocks": 2, "mapping_layers": 3},
        {"base_mult": 2, "img_channels": 1, "kernel_size": 1, "resample_filter": (1, 2, 1)},
        {"resolution": 64},
        {"resolution": 8},
    ],
)
def test_config_is_read_from_the_shapes_of_a_state_dict(changes: dict[str, Any]) -> None:
    generator = make(**changes)
    config = config_from_state(shapes_of(generator), gn_groups=4)
    again = StyleGANTGenerator(config)
    again.load_state_dict(generator.state_dict(), strict=True)
    ws = torch.ones(1, generator.num_ws, generator.config.w_dim)
    assert torch.equal(again.synthesis(ws, "const"), generator.synthesis(ws, "const"))


def test_config_of_an_official_file_has_the_text_encoder_that_the_file_has() -> None:
    with torch.device("meta"):
        generator = StyleGANTGenerator(StyleGANTConfig(64, text_dim=768, text_encoder=OPENAI_VIT_L_14, conv_clamp=9))
    assert config_from_state(shapes_of(generator), conv_clamp=9) == generator.config


@pytest.mark.parametrize("name", ["mapping.x_avg", "synthesis.b8.input.affine.weight", "synthesis.b16.resample_filter"])
def test_state_dict_of_another_model_has_no_config(name: str) -> None:
    shapes = shapes_of(make())
    del shapes[name]
    with pytest.raises(ValueError, match=f"not the tensors of a StyleGAN-T generator: no '{name}'"):
        config_from_state(shapes, gn_groups=4)
    with pytest.raises(ValueError, match="not the tensors of a StyleGAN-T generator"):
        config_from_state({"synthesis.b4.const": (8, 4, 4)})


def test_state_dict_of_irregular_widths_is_refused() -> None:
    shapes = shapes_of(make()) | {"synthesis.b8.convs1.0.bias": (7,)}
    with pytest.raises(ValueError, match=r"blocks of \{8: 7, 16: 16\} channels"):
        config_from_state(shapes, gn_groups=4)
