"""The published StyleGAN3 models, and the configurations without weights."""

from __future__ import annotations

from typing import Any, Literal

from models.spec import CheckpointSpec, ModelSpec

_NVIDIA = "NVIDIA Source Code License (non-commercial)"
_NGC = "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files"
_R: dict[str, Any] = {"conv_kernel": 1, "use_radial_filters": True}
# those for 256 pixels and less have half the channels per frequency
_FULL = {"t": {"channel_base": 32768, "channel_max": 512}, "r": {"channel_base": 65536, "channel_max": 1024, **_R}}
_HALF = {"t": {"channel_base": 16384, "channel_max": 512}, "r": {"channel_base": 32768, "channel_max": 1024, **_R}}


def _stylegan3(variant: Literal["t", "r"], dataset: str, resolution: int) -> ModelSpec:
    """One StyleGAN3; that of data set "any" has no published weights."""
    published = dataset != "any"
    name = f"stylegan3-{variant}-{dataset}-{resolution}" if published else f"stylegan3-{variant}-{resolution}"
    return ModelSpec(
        name=name,
        family="StyleGAN3",
        target="models.stylegan3:build",
        dataset=dataset,
        resolution=resolution,
        kwargs=(_HALF if resolution <= 256 else _FULL)[variant],
        checkpoint=CheckpointSpec(f"{_NGC}/{name}x{resolution}.pkl", _NVIDIA) if published else None,
        reported_as=f"StyleGAN3: {variant.upper()}" if published else None,
    )


SPECS = [
    _stylegan3("t", "ffhq", 1024),
    _stylegan3("r", "ffhq", 1024),
    _stylegan3("t", "ffhqu", 1024),
    _stylegan3("r", "ffhqu", 1024),
    _stylegan3("t", "ffhqu", 256),
    _stylegan3("r", "ffhqu", 256),
    _stylegan3("t", "metfaces", 1024),
    _stylegan3("r", "metfaces", 1024),
    _stylegan3("t", "metfacesu", 1024),
    _stylegan3("r", "metfacesu", 1024),
    _stylegan3("t", "afhqv2", 512),
    _stylegan3("r", "afhqv2", 512),
    # without published weights, for a data set of one's own
    _stylegan3("t", "any", 32),
    _stylegan3("t", "any", 64),
    _stylegan3("t", "any", 256),
    _stylegan3("r", "any", 32),
    _stylegan3("r", "any", 64),
    _stylegan3("r", "any", 256),
]
