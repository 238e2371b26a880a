"""The layers of an alias-free synthesis network, the configuration of StyleGAN3, and its official arguments.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv:2106.12423), section 3.2, on flexible layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from models.mapping import MappingConfig

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The Fourier features that a synthesis network starts from."""

    channels: int
    size: int
    sampling_rate: float
    bandwidth: float


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Everything that decides the shapes and the arithmetic of one synthesis layer; frequencies per image width."""

    index: int
    in_channels: int
    out_channels: int
    in_size: int  # with the margin around the image
    out_size: int
    in_sampling_rate: float
    out_sampling_rate: float
    in_cutoff: float
    out_cutoff: float
    in_half_width: float  # half the transition band of the filter
    out_half_width: float
    conv_kernel: int
    radial: bool  # whether the downsampling filter is radially symmetric
    is_torgb: bool
    is_critically_sampled: bool
    use_fp16: bool  # on CUDA only
    filter_size: int = 6  # taps per sample of the lower rate
    lrelu_upsampling: int = 2  # rate of the leaky ReLU over that of the layer
    conv_clamp: float | None = 256
    magnitude_ema_beta: float = 0.999

    @property
    def name(self) -> str:
        """Name of the module in a state dict."""
        return f"L{self.index}_{self.out_size}_{self.out_channels}"

    @property
    def tmp_sampling_rate(self) -> float:
        """Rate at which the leaky ReLU runs."""
        return max(self.in_sampling_rate, self.out_sampling_rate) * (1 if self.is_torgb else self.lrelu_upsampling)

    @property
    def up_factor(self) -> int:
        """Upsampling before the leaky ReLU."""
        return round(self.tmp_sampling_rate / self.in_sampling_rate)

    @property
    def down_factor(self) -> int:
        """Downsampling after the leaky ReLU."""
        return round(self.tmp_sampling_rate / self.out_sampling_rate)

    @property
    def up_taps(self) -> int:
        """Taps of the upsampling filter; 1 is no filter."""
        return self._taps(self.up_factor)

    @property
    def down_taps(self) -> int:
        """Taps of the downsampling filter along either axis; 1 is no filter."""
        return self._taps(self.down_factor)

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Padding (x0, x1, y0, y1) of the zero-stuffed image that centres the output on the input."""
        wanted = (self.out_size - 1) * self.down_factor + 1
        total = wanted - (self.in_size + self.conv_kernel - 1) * self.up_factor + self.up_taps + self.down_taps - 2
        before = (total + self.up_factor) // 2
        return before, total - before, before, total - before

    def _taps(self, factor: int) -> int:
        return self.filter_size * factor if factor > 1 and not self.is_torgb else 1


@dataclass(frozen=True, slots=True)
class Bands:
    """Cutoffs, half widths, sampling rates and sizes along a network; entry i is of what layer i gives."""

    cutoffs: Floats
    half_widths: Floats
    sampling_rates: Floats
    sizes: list[int]


@dataclass(frozen=True, slots=True)
class SynthesisConfig:
    """What decides the layers of a synthesis network; the defaults are those of configuration T."""

    resolution: int
    img_channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    num_layers: int = 14  # ToRGB not counted
    num_critical: int = 2  # so many last layers are sampled critically
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    last_stopband_rel: float = 2**0.3  # over the cutoff of the last layer
    margin_size: int = 10
    output_scale: float = 0.25
    num_fp16_res: int = 4  # so many of the highest resolutions run in float16, on CUDA only
    conv_kernel: int = 3
    use_radial_filters: bool = False
    filter_size: int = 6
    lrelu_upsampling: int = 2
    conv_clamp: float | None = 256
    magnitude_ema_beta: float = 0.999

    def __post_init__(self) -> None:
        if self.resolution < 4:
            raise ValueError(f"resolution {self.resolution} is below 4")

    @property
    def input(self) -> InputSpec:
        """The start of the network."""
        bands = self.bands()
        return InputSpec(
            self._channels(bands)[0], bands.sizes[0], float(bands.sampling_rates[0]), float(bands.cutoffs[0])
        )

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers, ToRGB last."""
        bands = self.bands()
        return tuple(layer_specs(self, bands, self._channels(bands)))

    @property
    def num_ws(self) -> int:
        """How many style vectors an image takes: one for the input, one for each layer, one for ToRGB."""
        return self.num_layers + 2

    def bands(self) -> Bands:
        """Cutoffs and stopbands in geometric progression from the first to the last layer (section 3.2)."""
        return progression(self, self.first_cutoff, self.first_stopband)

    def _channels(self, bands: Bands) -> list[int]:
        return [*channels_at(self, bands.cutoffs)[:-1], self.img_channels]


def progression(
    config: SynthesisConfig, first_cutoff: float, first_stopband: float, first_rate: float | None = None
) -> Bands:
    """Bands that grow from these values to those of `config.resolution`; None leaves the first rate to the stopband.

    Raises:
        ValueError: no layer is left to grow in.
    """
    if not 0 <= config.num_critical < config.num_layers:
        raise ValueError(f"num_critical {config.num_critical} is not within 0 to {config.num_layers - 1}")
    last_cutoff = config.resolution / 2
    last_stopband = last_cutoff * config.last_stopband_rel
    steps = config.num_layers - config.num_critical
    exponents = np.minimum(np.arange(config.num_layers + 1) / steps, 1)
    cutoffs = first_cutoff * (last_cutoff / first_cutoff) ** exponents
    stopbands = first_stopband * (last_stopband / first_stopband) ** exponents
    rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, config.resolution))))
    if first_rate is not None:
        rates[0] = first_rate
    half_widths = np.maximum(stopbands, rates / 2) - cutoffs
    sizes = [int(size) for size in rates + config.margin_size * 2]
    sizes[-2:] = [config.resolution] * 2
    return Bands(cutoffs, half_widths, rates, sizes)


def channels_at(config: SynthesisConfig, cutoffs: Floats) -> list[int]:
    """Widths of the layers; halves are rounded to even."""
    return [int(n) for n in np.rint(np.minimum(config.channel_base / 2 / cutoffs, config.channel_max))]


def layer_specs(config: SynthesisConfig, bands: Bands, channels: list[int], first_index: int = 0) -> list[LayerSpec]:
    """One specification for each entry of `bands`; the input of the first layer has the bands of its output."""
    last = len(channels) - 1
    specs = []
    for i in range(last + 1):
        before = max(i - 1, 0)
        rate, is_critical = float(bands.sampling_rates[i]), i >= last - config.num_critical
        spec = LayerSpec(
            index=first_index + i,
            in_channels=channels[before],
            out_channels=channels[i],
            in_size=bands.sizes[before],
            out_size=bands.sizes[i],
            in_sampling_rate=float(bands.sampling_rates[before]),
            out_sampling_rate=rate,
            in_cutoff=float(bands.cutoffs[before]),
            out_cutoff=float(bands.cutoffs[i]),
            in_half_width=float(bands.half_widths[before]),
            out_half_width=float(bands.half_widths[i]),
            conv_kernel=1 if i == last else config.conv_kernel,
            radial=config.use_radial_filters and not is_critical,
            is_torgb=i == last,
            is_critically_sampled=is_critical,
            use_fp16=rate * 2**config.num_fp16_res > config.resolution,
            filter_size=config.filter_size,
            lrelu_upsampling=config.lrelu_upsampling,
            conv_clamp=config.conv_clamp,
            magnitude_ema_beta=config.magnitude_ema_beta,
        )
        specs.append(spec)
    return specs


@dataclass(frozen=True, slots=True)
class StyleGAN3Config(SynthesisConfig):
    """A whole generator: its synthesis network, and the mapping network before it."""

    num_classes: int = 0
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    mapping_lr_multiplier: float = 0.01
    w_avg_beta: float = 0.998

    @property
    def mapping(self) -> MappingConfig:
        """The mapping network's part."""
        return MappingConfig(
            z_dim=self.z_dim,
            num_classes=self.num_classes,
            w_dim=self.w_dim,
            num_ws=self.num_ws,
            num_layers=self.mapping_layers,
            lr_multiplier=self.mapping_lr_multiplier,
            w_avg_beta=self.w_avg_beta,
        )


OFFICIAL_CLASS = "training.networks_stylegan3.Generator"
_OFFICIAL_NAMES = {"img_resolution": "resolution", "c_dim": "num_classes"}
_OFFICIAL_MAPPING_NAMES = {"num_layers": "mapping_layers", "lr_multiplier": "mapping_lr_multiplier"}


def official_config(class_name: str, kwargs: Mapping[str, Any]) -> StyleGAN3Config:
    """Translate the keyword arguments of the official generator class.

    Raises:
        ValueError: the class or an argument is none that this generator has.
    """
    if class_name != OFFICIAL_CLASS:
        raise ValueError(f"{class_name!r} is no StyleGAN3 generator; known: {OFFICIAL_CLASS}")
    return StyleGAN3Config(**our_names(kwargs, {field.name for field in fields(StyleGAN3Config)}, class_name))


def our_names(kwargs: Mapping[str, Any], known: set[str], class_name: str) -> dict[str, Any]:
    """Official arguments, those of `mapping_kwargs` among them, under the names of configuration fields.

    Raises:
        ValueError: an argument has none of the `known` names.
    """
    flat = {_OFFICIAL_NAMES.get(name, name): value for name, value in kwargs.items() if name != "mapping_kwargs"}
    flat |= {_OFFICIAL_MAPPING_NAMES.get(name, name): value for name, value in kwargs.get("mapping_kwargs", {}).items()}
    if unknown := sorted(set(flat) - known):
        raise ValueError(f"{class_name}: unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return flat
