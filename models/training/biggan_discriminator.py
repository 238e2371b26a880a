"""The BigGAN and BigGAN-deep discriminators: residual networks with projection of the label.

Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (arXiv:1809.11096), appendix B;
Miyato and Koyama, "cGANs with Projection Discriminator" (arXiv:1802.05637). Parameters and buffers have the names of
the official PyTorch networks, so that their state dicts load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.biggan_config import Shapes, attention_of, check_choice, check_relu, count, official_arguments, recovered
from models.biggan_layers import SelfAttention, SpectralConv2d
from models.spectral_norm import Init, SpectralEmbedding, SpectralLinear, SpectralNorm, WeightSpec

# Widths after the stages in multiples of the base width, and how many stages from the first on halve the resolution.
_WIDTHS: Mapping[int, tuple[int, ...]] = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
_HALVINGS: Mapping[int, int] = {32: 2, 64: 4, 128: 5, 256: 6}


@dataclass(frozen=True, slots=True)
class BlockShape:
    """One residual block of a discriminator."""

    in_channels: int
    out_channels: int
    down: bool
    activated: bool = True  # a ReLU comes first


@dataclass(frozen=True, slots=True)
class BigGANDiscriminatorConfig:
    """Everything that decides the shapes and the arithmetic of a discriminator; the defaults are BigGAN at 128x128."""

    resolution: int
    num_classes: int = 1000
    channels: int = 96
    depth: int = 0  # blocks of a stage of BigGAN-deep; 0: BigGAN
    wide: bool = True  # a block of BigGAN changes the width in its first convolution, not in its second
    attention: tuple[int, ...] = (64,)  # after the stages of these resolutions; at 32x32 all stages count as 16
    output_dim: int = 1
    num_svs: int = 1
    num_itrs: int = 1
    sn_eps: float = 1e-6
    init: Init = "ortho"

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention", tuple(self.attention))  # JSON has lists
        check_choice("resolution", self.resolution, _WIDTHS)
        check_choice("init", self.init, get_args(Init))
        if self.num_classes < 1:
            raise ValueError(f"num_classes {self.num_classes}: a BigGAN needs one class or more. Use labelled data")

    @property
    def stages(self) -> list[list[BlockShape]]:
        """The blocks of each stage; the first of a stage changes the width and, where it does, the resolution."""
        # BigGAN-deep has a convolution of its own before the first stage, BigGAN takes the image
        widths = [width * self.channels for width in _WIDTHS[self.resolution]]
        ins, outs = (widths, widths[1:]) if self.depth else ([3, *widths], widths)
        stages = []
        for i, (channels, out_channels) in enumerate(zip(ins, outs, strict=False)):
            down = i < _HALVINGS[self.resolution]
            first = BlockShape(channels, out_channels, down, activated=bool(self.depth or i))
            rest = BlockShape(out_channels, out_channels, down=False)
            stages.append([first, *[rest] * (self.depth - 1)])
        return stages

    def has_attention(self, stage: int) -> bool:
        """Whether attention ends this stage."""
        return _called(self.resolution, stage) in self.attention

    @property
    def weights(self) -> WeightSpec:
        """How weights are normalised."""
        return WeightSpec(SpectralNorm(self.num_svs, self.num_itrs, self.sn_eps), self.init)


def _called(resolution: int, stage: int) -> int:
    """The size that official arguments call a stage by: that of its output, but 16 for all stages at 32x32."""
    return 16 if resolution == 32 else resolution >> min(stage + 1, _HALVINGS[resolution])


class DiscriminatorBlock(nn.Module):
    """The residual block of BigGAN (figure 15c): two 3x3 convolutions, then averages of 2x2 pixels."""

    def __init__(self, shape: BlockShape, wide: bool, weights: WeightSpec) -> None:
        super().__init__()
        self.shape = shape
        channels, out_channels = shape.in_channels, shape.out_channels
        hidden = out_channels if wide else channels
        self.conv1 = SpectralConv2d((channels, hidden, 3), weights)
        self.conv2 = SpectralConv2d((hidden, out_channels, 3), weights)
        if shape.down or channels != out_channels:
            self.conv_sc = SpectralConv2d((channels, out_channels, 1), weights)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H, W]`, or half the size."""
        h = self.conv2(F.relu(self.conv1(F.relu(x) if self.shape.activated else x)))
        if self.shape.down:  # a 1x1 convolution is the same after averaging, and has a quarter of the pixels there
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return cast("Tensor", h + (self.conv_sc(x) if hasattr(self, "conv_sc") else x))


class DeepDiscriminatorBlock(nn.Module):
    """The residual block of BigGAN-deep (figure 16c): a bottleneck; the shortcut adds channels to those it has."""

    def __init__(self, shape: BlockShape, weights: WeightSpec) -> None:
        super().__init__()
        self.shape = shape
        channels, out_channels = shape.in_channels, shape.out_channels
        hidden = out_channels // 4
        self.conv1 = SpectralConv2d((channels, hidden, 1), weights)
        self.conv2 = SpectralConv2d((hidden, hidden, 3), weights)
        self.conv3 = SpectralConv2d((hidden, hidden, 3), weights)
        self.conv4 = SpectralConv2d((hidden, out_channels, 1), weights)
        if channels != out_channels:
            self.conv_sc = SpectralConv2d((channels, out_channels - channels, 1), weights)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, Cin, H, W]` to `[N, Cout, H, W]`, or half the size."""
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        h = F.relu(self.conv3(F.relu(h)))
        if self.shape.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if hasattr(self, "conv_sc"):
            x = torch.cat([x, self.conv_sc(x)], dim=1)
        return cast("Tensor", x + self.conv4(h))


class BigGANDiscriminator(nn.Module):
    """Images and labels to logits. All weights are zero until set."""

    target: ClassVar[str] = "models.training.biggan_discriminator:build"

    def __init__(self, config: BigGANDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.resolution, self.num_classes = config.resolution, config.num_classes
        weights, stages = config.weights, config.stages
        if config.depth:
            self.input_conv = SpectralConv2d((3, stages[0][0].in_channels, 3), weights)
        self.blocks = nn.ModuleList(self._stage(i, shapes) for i, shapes in enumerate(stages))
        channels = stages[-1][-1].out_channels
        self.linear = SpectralLinear(channels, config.output_dim, weights)
        self.embed = SpectralEmbedding(config.num_classes, channels, weights)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of `build` that make this discriminator again."""
        return asdict(self.config)

    def _stage(self, index: int, shapes: list[BlockShape]) -> nn.ModuleList:
        config = self.config
        blocks: list[nn.Module] = [
            DeepDiscriminatorBlock(shape, config.weights)
            if config.depth
            else DiscriminatorBlock(shape, config.wide, config.weights)
            for shape in shapes
        ]
        if config.has_attention(index):
            blocks.append(SelfAttention(shapes[-1].out_channels, config.weights))
        return nn.ModuleList(blocks)

    def forward(self, images: Tensor, c: Tensor) -> Tensor:
        """Judge images `[N, 3, H, W]` of [-1, 1] with one-hot labels `[N, num_classes]`: logits `[N, output_dim]`."""
        x = self.input_conv(images) if self.config.depth else images
        for stage in self.blocks:
            for block in stage.children():
                x = block(x)
        features = F.relu(x).sum(dim=(2, 3))
        return cast("Tensor", self.linear(features) + (self.embed(c) * features).sum(dim=1, keepdim=True))


def build(**kwargs: Any) -> BigGANDiscriminator:
    """Make a discriminator of these `BigGANDiscriminatorConfig` fields; its weights are zero until set."""
    return BigGANDiscriminator(BigGANDiscriminatorConfig(**kwargs))


# Official names of the arguments of both discriminators. The kernel size is 3 whatever they say.
_OFFICIAL_DEFAULTS: Mapping[str, Any] = {
    "D_ch": 64,
    "D_wide": True,
    "D_depth": 2,
    "resolution": 128,
    "D_attn": "64",
    "n_classes": 1000,
    "num_D_SVs": 1,
    "num_D_SV_itrs": 1,
    "D_activation": "relu",
    "SN_eps": 1e-12,
    "output_dim": 1,
    "D_init": "ortho",
    "D_param": "SN",
}
_WITHOUT_INFLUENCE = ("D_kernel_size", "D_lr", "D_B1", "D_B2", "adam_eps", "D_mixed_precision", "D_fp16", "skip_init")
_CLASSES = ("BigGAN.Discriminator", "BigGANdeep.Discriminator")


def official_discriminator_config(class_name: str, kwargs: Mapping[str, Any]) -> BigGANDiscriminatorConfig:
    """Translate the keyword arguments of an official class, "BigGAN.Discriminator" or "BigGANdeep.Discriminator".

    Raises:
        ValueError: the class, an argument or the value of an argument is none that this discriminator has.
    """
    check_choice("discriminator", class_name, _CLASSES)
    given = official_arguments(class_name, kwargs, _OFFICIAL_DEFAULTS, _WITHOUT_INFLUENCE)
    check_relu(class_name, "D_activation", given["D_activation"])
    check_choice(f"{class_name}: D_param", given["D_param"], ["SN"])  # the official class has no other either
    return BigGANDiscriminatorConfig(
        resolution=given["resolution"],
        num_classes=given["n_classes"],
        channels=given["D_ch"],
        depth=given["D_depth"] if class_name == "BigGANdeep.Discriminator" else 0,
        wide=given["D_wide"],
        attention=attention_of(given["D_attn"]),
        output_dim=given["output_dim"],
        num_svs=given["num_D_SVs"],
        num_itrs=given["num_D_SV_itrs"],
        sn_eps=given["SN_eps"],
        init=given["D_init"],
    )


def discriminator_config_from_state(shapes: Shapes) -> BigGANDiscriminatorConfig:
    """Recover the configuration from the names and shapes of a discriminator's tensors.

    What leaves no trace there takes the published values: epsilons, iterations, initialisation.

    Raises:
        ValueError: these are not the tensors of a BigGAN or BigGAN-deep discriminator.
    """
    return recovered(_discriminator_of, shapes, "BigGAN discriminator")


def _discriminator_of(shapes: Shapes) -> BigGANDiscriminatorConfig:
    deep = "input_conv.weight" in shapes
    last = "conv4" if deep else "conv2"
    depth = count(shapes, "blocks.0.{}.conv4.weight")
    outs = [shapes[f"blocks.{i}.0.{last}.weight"][0] for i in range(count(shapes, "blocks.{}.0.conv1.weight"))]
    resolution, channels = _stages_of(outs, depth)
    attended = [i for i in range(len(outs)) if f"blocks.{i}.{depth or 1}.gamma" in shapes]
    return BigGANDiscriminatorConfig(
        resolution=resolution,
        num_classes=shapes["embed.weight"][0],
        channels=channels,
        depth=depth,
        wide=deep or shapes["blocks.0.0.conv1.weight"][0] == outs[0],
        attention=tuple({_called(resolution, i): None for i in attended}),
        output_dim=shapes["linear.weight"][0],
        num_svs=max(count(shapes, "linear.u{}"), 1),
    )


def _stages_of(outs: list[int], depth: int) -> tuple[int, int]:
    """Resolution and base width of the discriminator whose stages have these widths."""
    for resolution, widths in _WIDTHS.items():
        channels = outs[0] // widths[1 if depth else 0]
        config = BigGANDiscriminatorConfig(resolution, channels=channels, depth=depth)
        if outs == [stage[-1].out_channels for stage in config.stages]:
            return resolution, channels
    raise LookupError(f"no discriminator has stages of the widths {outs}")
