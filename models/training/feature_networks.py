"""Frozen feature networks of the projected discriminators: EfficientNet-lite, distilled DeiT and DINO, from timm.

Sauer et al., "StyleGAN-XL" (arXiv:2202.00273), section 3.2, and "StyleGAN-T" (arXiv:2301.09515), section 3.2. Nothing
is fetched: weights are random, and the same in each run, until `load_backbone` is given a state dict of timm's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.training.spectral_convolution import reset_convolution

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of the channels
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
DINO = "vit_small_patch16_224.dino"
TAPPED_BLOCKS = (2, 5, 8, 11)  # transformer blocks whose outputs are features
_VIT_SIZE = 224
_EFFICIENTNET_TAPS = ((0, 1), (2,), (3, 4), (5, 6))  # blocks that end in one feature map each
_DEIT_TOKENS = 2  # class and distillation


class FeatureNetwork(nn.Module):
    """A network whose parameters take no gradient and which never leaves evaluation mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, normalization: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), normalization, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> FeatureNetwork:  # noqa: ARG002
        """Stay in evaluation mode."""
        return super().train(False)

    def normalize(self, images: Tensor) -> Tensor:
        """Bring images `[N, 3, H, W]` of [0, 1] to the statistics that the network was trained with."""
        return (images - self.mean) / self.std


class EfficientNetFeatures(FeatureNetwork):
    """EfficientNet-lite without its last layers; feature maps at 1/4, 1/8, 1/16 and 1/32 of the resolution."""

    input_size: int | None = None  # any

    def __init__(self, name: str) -> None:
        super().__init__(HALF)
        model = _create(name)
        # the activation, which timm has since put into the normalisation, was a layer of its own
        stem = [model.conv_stem, model.bn1, nn.Identity()]
        for i, blocks in enumerate(_EFFICIENTNET_TAPS):
            layer = nn.Sequential(*(stem if i == 0 else []), *(model.blocks[block] for block in blocks))
            self.add_module(f"layer{i}", layer)
        self.channels = tuple(model.blocks[blocks[-1]][-1].conv_pwl.out_channels for blocks in _EFFICIENTNET_TAPS)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn normalised images `[N, 3, H, W]` into four maps, `[N, C, H / 4, W / 4]` to `[N, C, H / 32, W / 32]`."""
        features = []
        for i in range(len(_EFFICIENTNET_TAPS)):
            images = self.get_submodule(f"layer{i}")(images)
            features.append(images)
        return features

    def load_backbone(self, weights: Mapping[str, Tensor]) -> None:
        """Load a state dict of timm's whole network.

        Raises:
            RuntimeError: tensors are missing, unknown or of other shapes.
        """
        unused = re.compile(r"(conv_head|bn2|classifier)\.")
        renamed = {_efficientnet_name(name): tensor for name, tensor in weights.items() if not unused.match(name)}
        self.load_state_dict(renamed, strict=True)


class DeitFeatures(FeatureNetwork):
    """Distilled DeiT with random, fixed convolutions behind four blocks; maps at 1/4, 1/8, 1/16 and 1/32 of 224."""

    input_size: int | None = _VIT_SIZE

    def __init__(self, name: str) -> None:
        super().__init__(IMAGENET)
        self.model = _create(name)
        width = self.model.embed_dim
        self.channels = (width // 8, width // 4, width // 2, width)
        resample: list[Callable[[int], nn.Module] | None] = [
            lambda channels: nn.ConvTranspose2d(channels, channels, 4, stride=4),
            lambda channels: nn.ConvTranspose2d(channels, channels, 2, stride=2),
            None,
            lambda channels: nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        ]
        for i, (channels, make) in enumerate(zip(self.channels, resample, strict=True)):
            # the first three steps of the official sequences have no parameters
            steps = {"3": nn.Conv2d(width, channels, 1)} | ({} if make is None else {"4": make(channels)})
            self.add_module(f"layer{i + 1}", nn.ModuleDict(steps))
        self.requires_grad_(False).eval()

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the random convolutions."""
        for i in range(len(TAPPED_BLOCKS)):
            for layer in self.get_submodule(f"layer{i + 1}").children():
                assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
                reset_convolution(layer.weight, layer.bias, rng)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn normalised images `[N, 3, 224, 224]` into four maps, `[N, C, 56, 56]` to `[N, C, 7, 7]`."""
        features = []
        for i, tokens in enumerate(_tapped(self.model, images)[1:]):
            x = tokens[:, _DEIT_TOKENS:].transpose(1, 2).unflatten(2, self.model.patch_embed.grid_size)
            for layer in self.get_submodule(f"layer{i + 1}").children():
                x = layer(x)
            features.append(x)
        return features

    def load_backbone(self, weights: Mapping[str, Tensor]) -> None:
        """Load a state dict of timm's whole network; the convolutions behind it keep their values.

        Raises:
            RuntimeError: tensors are missing, unknown or of other shapes.
        """
        self.model.load_state_dict(weights, strict=True)


class DinoFeatures(FeatureNetwork):
    """A vision transformer with a class token, by default ViT-S/16 of DINO (Caron et al. 2021, arXiv:2104.14294)."""

    def __init__(self, name: str = DINO, vit_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__(IMAGENET)
        vit = _create(name, **{"num_classes": 0, **(vit_kwargs or {})})
        self.model = nn.ModuleDict({"model": vit})
        if len(vit.blocks) <= TAPPED_BLOCKS[-1]:
            raise ValueError(f"{name} has {len(vit.blocks)} blocks; the features are those of {TAPPED_BLOCKS}")
        self.channels: int = vit.embed_dim
        self.input_size: int = vit.patch_embed.img_size[0]
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images `[N, 3, H, W]` of [0, 1] into five sequences `[N, C, T]` of T patches.

        The last one is what enters the transformer. To each patch the class token is added.
        """
        resized = nn.functional.interpolate(images, self.input_size, mode="area")
        embedded, *tapped = _tapped(self.model["model"], self.normalize(resized))
        return [(tokens[:, 1:] + tokens[:, :1]).transpose(1, 2) for tokens in (*tapped, embedded)]

    def load_backbone(self, weights: Mapping[str, Tensor]) -> None:
        """Load a state dict of timm's network without a classifier.

        Raises:
            RuntimeError: tensors are missing, unknown or of other shapes.
        """
        self.model["model"].load_state_dict(weights, strict=True)


def build_feature_network(name: str) -> EfficientNetFeatures | DeitFeatures:
    """Build a backbone of StyleGAN-XL's discriminator by its name in timm.

    Raises:
        ValueError: no discriminator uses such a network.
    """
    if re.fullmatch(r"tf_efficientnet_lite[0-4]", name):
        return EfficientNetFeatures(name)
    if re.fullmatch(r"deit_(tiny|small|base)_distilled_patch16_224", name):
        return DeitFeatures(name)
    raise ValueError(
        f"no feature network {name!r}; allowed are tf_efficientnet_lite0 to 4 and "
        "deit_{tiny,small,base}_distilled_patch16_224"
    )


def _create(name: str, **kwargs: Any) -> Any:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # else each process would have another network until weights are loaded
        return timm.create_model(name, pretrained=False, **kwargs)


def _tapped(vit: Any, images: Tensor) -> list[Tensor]:
    """Tokens `[N, T, C]` that enter the transformer, then those behind each tapped block."""
    tokens = vit._pos_embed(vit.patch_embed(images))
    tapped = [tokens]
    tokens = vit.norm_pre(vit.patch_drop(tokens))
    for i, block in enumerate(vit.blocks[: TAPPED_BLOCKS[-1] + 1]):
        tokens = block(tokens)
        if i in TAPPED_BLOCKS:
            tapped.append(tokens)
    return tapped


def _efficientnet_name(name: str) -> str:
    """Name in `EfficientNetFeatures` of a tensor of timm's network: "blocks.4.0.bn1.bias" is "layer2.1.0.bn1.bias"."""
    module, _, rest = name.partition(".")
    if module == "blocks":
        block, _, rest = rest.partition(".")
        for i, blocks in enumerate(_EFFICIENTNET_TAPS):
            if int(block) in blocks:
                return f"layer{i}.{blocks.index(int(block)) + (3 if i == 0 else 0)}.{rest}"
    stem = {"conv_stem": "layer0.0", "bn1": "layer0.1"}
    return f"{stem.get(module, module)}.{rest}"
