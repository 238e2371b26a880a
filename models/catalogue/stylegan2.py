"""The published StyleGAN2 and StyleGAN2-ADA models, and the configurations without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.spec import CheckpointSpec, Conditioning, ModelSpec

WEIGHTS_DIR = Path(__file__).parents[1] / "weights"
_NVIDIA = "NVIDIA Source Code License (non-commercial)"
_NGC = "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan2/versions/1/files"
_ADA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained"
_TRANSFER = f"{_ADA}/transfer-learning-source-nets"
_TF = "https://nvlabs-fi-cdn.nvidia.com/stylegan2/networks"


def _reported_as(name: str, *, ada: bool, conditional: bool) -> str:
    system = "StyleGAN2-ADA" if ada else "StyleGAN2"
    if conditional:
        return f"{system}: conditional"
    return f"{system}: config F" if name == "stylegan2-ffhq-1024" else system


def _stylegan2(name: str, dataset: str, url: str | None = None, *, ada: bool = False, **kwargs: Any) -> ModelSpec:
    """One StyleGAN2; the resolution is the last part of the name, `num_classes` says that it is conditional."""
    num_classes = kwargs.pop("num_classes", 0)
    conditioning: Conditioning = "class" if num_classes else "none"
    return ModelSpec(
        name=name,
        family="StyleGAN2",
        target="models.stylegan2:build",
        dataset=dataset,
        resolution=int(name.rpartition("-")[2]),
        conditioning=conditioning,
        num_classes=num_classes,
        kwargs=kwargs,
        checkpoint=CheckpointSpec(url, _NVIDIA) if url else None,
        reported_as=_reported_as(name, ada=ada, conditional=bool(num_classes)) if url else None,
    )


# Trained by the PyTorch code: the four highest resolutions in float16, convolutions clamped to 256.
_FULL: dict[str, Any] = {"channel_base": 32768, "num_fp16_res": 4, "conv_clamp": 256}
_HALF: dict[str, Any] = {"channel_base": 16384, "num_fp16_res": 4, "conv_clamp": 256}
_CIFAR: dict[str, Any] = {**_FULL, "mapping_layers": 2, "num_classes": 10}
# Trained by the TensorFlow code: float32 throughout.
_CONFIG_F: dict[str, Any] = {"channel_base": 32768}
_CONFIG_E: dict[str, Any] = {"channel_base": 16384}

SPECS = [
    # the StyleGAN2 models that were published beside StyleGAN3
    _stylegan2("stylegan2-ffhq-1024", "ffhq", f"{_NGC}/stylegan2-ffhq-1024x1024.pkl", **_FULL),
    _stylegan2("stylegan2-ffhq-512", "ffhq", f"{_NGC}/stylegan2-ffhq-512x512.pkl", **_FULL),
    _stylegan2("stylegan2-ffhq-256", "ffhq", f"{_NGC}/stylegan2-ffhq-256x256.pkl", **_HALF),
    _stylegan2("stylegan2-ffhqu-1024", "ffhqu", f"{_NGC}/stylegan2-ffhqu-1024x1024.pkl", **_FULL),
    _stylegan2("stylegan2-ffhqu-256", "ffhqu", f"{_NGC}/stylegan2-ffhqu-256x256.pkl", **_HALF),
    _stylegan2("stylegan2-metfaces-1024", "metfaces", f"{_NGC}/stylegan2-metfaces-1024x1024.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-metfacesu-1024", "metfacesu", f"{_NGC}/stylegan2-metfacesu-1024x1024.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-afhqv2-512", "afhqv2", f"{_NGC}/stylegan2-afhqv2-512x512.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-afhqcat-512", "afhqcat", f"{_NGC}/stylegan2-afhqcat-512x512.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-afhqdog-512", "afhqdog", f"{_NGC}/stylegan2-afhqdog-512x512.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-afhqwild-512", "afhqwild", f"{_NGC}/stylegan2-afhqwild-512x512.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-brecahad-512", "brecahad", f"{_NGC}/stylegan2-brecahad-512x512.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-celebahq-256", "celebahq", f"{_NGC}/stylegan2-celebahq-256x256.pkl", ada=True, **_HALF),
    _stylegan2("stylegan2-lsundog-256", "lsundog", f"{_NGC}/stylegan2-lsundog-256x256.pkl", **_HALF),
    _stylegan2("stylegan2-cifar10-32", "cifar10", f"{_NGC}/stylegan2-cifar10-32x32.pkl", ada=True, **_CIFAR),
    # the files of the StyleGAN2-ADA repository: some of these data sets again, at an address of their own
    _stylegan2("stylegan2-ada-ffhq-1024", "ffhq", f"{_ADA}/ffhq.pkl", **_CONFIG_F),  # "original StyleGAN2"
    _stylegan2("stylegan2-ada-metfaces-1024", "metfaces", f"{_ADA}/metfaces.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-ada-afhqcat-512", "afhqcat", f"{_ADA}/afhqcat.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-ada-afhqdog-512", "afhqdog", f"{_ADA}/afhqdog.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-ada-afhqwild-512", "afhqwild", f"{_ADA}/afhqwild.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-ada-brecahad-512", "brecahad", f"{_ADA}/brecahad.pkl", ada=True, **_FULL),
    _stylegan2("stylegan2-ada-cifar10-32", "cifar10", f"{_ADA}/cifar10.pkl", ada=True, **_CIFAR),
    _stylegan2(
        "stylegan2-ada-transfer-ffhq-1024", "ffhq", f"{_TRANSFER}/ffhq-res1024-mirror-stylegan2-noaug.pkl", **_FULL
    ),
    _stylegan2(
        "stylegan2-ada-transfer-ffhq-512", "ffhq", f"{_TRANSFER}/ffhq-res512-mirror-stylegan2-noaug.pkl", **_FULL
    ),
    _stylegan2(
        "stylegan2-ada-transfer-ffhq-256", "ffhq", f"{_TRANSFER}/ffhq-res256-mirror-paper256-noaug.pkl", **_HALF
    ),
    _stylegan2(
        "stylegan2-ada-transfer-celebahq-256",
        "celebahq",
        f"{_TRANSFER}/celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
        ada=True,
        **_HALF,
    ),
    _stylegan2(
        "stylegan2-ada-transfer-lsundog-256",
        "lsundog",
        f"{_TRANSFER}/lsundog-res256-paper256-kimg100000-noaug.pkl",
        **_HALF,
    ),
    # the TensorFlow models; configurations A to D are other architectures. Of car, only rows 64 to 448 are the picture
    _stylegan2("stylegan2-f-ffhq-1024", "ffhq", f"{_TF}/stylegan2-ffhq-config-f.pkl", **_CONFIG_F),
    _stylegan2("stylegan2-e-ffhq-1024", "ffhq", f"{_TF}/stylegan2-ffhq-config-e.pkl", **_CONFIG_E),
    _stylegan2("stylegan2-lsun-car-512", "lsun-car", f"{_TF}/stylegan2-car-config-f.pkl", **_CONFIG_F),
    _stylegan2("stylegan2-e-lsun-car-512", "lsun-car", f"{_TF}/stylegan2-car-config-e.pkl", **_CONFIG_E),
    _stylegan2("stylegan2-lsun-cat-256", "lsun-cat", f"{_TF}/stylegan2-cat-config-f.pkl", **_CONFIG_F),
    _stylegan2("stylegan2-lsun-church-256", "lsun-church", f"{_TF}/stylegan2-church-config-f.pkl", **_CONFIG_F),
    _stylegan2("stylegan2-lsun-horse-256", "lsun-horse", f"{_TF}/stylegan2-horse-config-f.pkl", **_CONFIG_F),
    # without published weights, for a data set of one's own
    _stylegan2("stylegan2-f-32", "any", **_FULL),
    _stylegan2("stylegan2-f-64", "any", **_FULL),
    _stylegan2("stylegan2-f-128", "any", **_FULL),
    _stylegan2("stylegan2-f-256", "any", **_FULL),
    _stylegan2("stylegan2-f-512", "any", **_FULL),
    _stylegan2("stylegan2-f-1024", "any", **_FULL),
    _stylegan2("stylegan2-half-32", "any", **_HALF),
    _stylegan2("stylegan2-half-64", "any", **_HALF),
    _stylegan2("stylegan2-half-128", "any", **_HALF),
    _stylegan2("stylegan2-half-256", "any", **_HALF),
    _stylegan2("stylegan2-half-512", "any", **_HALF),
    _stylegan2("stylegan2-half-1024", "any", **_HALF),
    # trained by `python -m bench train` on the embedded data set; small enough to come with the program
    ModelSpec(
        name="stylegan2-shapes-32",
        family="StyleGAN2",
        target="models.stylegan2:build",
        dataset="shapes",
        resolution=32,
        conditioning="class",
        num_classes=10,
        kwargs={"z_dim": 256, "w_dim": 64, "mapping_layers": 2, "channel_base": 768, "channel_max": 64},
        shipped_weights=WEIGHTS_DIR / "stylegan2-shapes-32.safetensors",
    ),
]
