"""The published StyleGAN-XL models, and the configurations without weights."""

from __future__ import annotations

from typing import Any

from models.spec import CheckpointSpec, Conditioning, ModelSpec

# the repository's own code is under MIT; no terms are given for the weights themselves
_LICENCE = "MIT; parts NVIDIA Source Code License (non-commercial)"
_FILES = "https://s3.eu-central-1.amazonaws.com/avg-projects/stylegan_xl/models"
IMAGENET_CENTROIDS_URL = f"{_FILES}/imagenet_centroids.npy"  # float [10000, 512], for multi-modal truncation

_HEAD: dict[str, Any] = {"conv_kernel": 3, "use_radial_filters": False}


def _stem(resolution: int, channel_base: int, channel_max: int, num_layers: int) -> dict[str, Any]:
    """Rotation-equivariant layers, with the widths that the training script gives after doubling its arguments."""
    return {
        "resolution": resolution,
        "channel_base": channel_base,
        "channel_max": channel_max,
        "num_layers": num_layers,
        "conv_kernel": 1,
        "use_radial_filters": True,
    }


def _chain(stem: dict[str, Any], *head_layers: int) -> dict[str, Any]:
    """A stem and stages of twice the resolution each; `head_layers` has the layers of each."""
    return {"stem": stem, "stages": [{"up_factor": 2, "head_layers": number, **_HEAD} for number in head_layers]}


def _stylegan_xl(name: str, dataset: str, file: str | None, num_classes: int, kwargs: dict[str, Any]) -> ModelSpec:
    """One StyleGAN-XL; the resolution is the last part of the name."""
    conditioning: Conditioning = "class" if num_classes else "none"
    return ModelSpec(
        name=name,
        family="StyleGAN-XL",
        target="models.stylegan_xl:build",
        dataset=dataset,
        resolution=int(name.rpartition("-")[2]),
        conditioning=conditioning,
        num_classes=num_classes,
        kwargs=kwargs,
        checkpoint=CheckpointSpec(f"{_FILES}/{file}.pkl", _LICENCE) if file else None,
        reported_as="StyleGAN-XL: released checkpoint" if file else None,
    )


# Kernels and filters of the stem against those of the stages are inferred from the parameter counts in the paper's
# tables, which this split meets for every resolution. A loaded file tells its own.
_WIDE = _stem(16, 65536, 1024, 10)
# A single network at 32 pixels: the stem's layers alone give the 18.0 million parameters that others have counted.
_CIFAR = _chain(_stem(32, 65536, 1024, 10))
# The settings that the authors recommend for small data sets; that the published files have them is not certain.
_NARROW = _stem(16, 32768, 512, 7)

SPECS = [
    _stylegan_xl("stylegan-xl-imagenet-16", "imagenet", "imagenet16", 1000, _chain(_WIDE)),
    _stylegan_xl("stylegan-xl-imagenet-32", "imagenet", "imagenet32", 1000, _chain(_WIDE, 7)),
    _stylegan_xl("stylegan-xl-imagenet-64", "imagenet", "imagenet64", 1000, _chain(_WIDE, 7, 7)),
    _stylegan_xl("stylegan-xl-imagenet-128", "imagenet", "imagenet128", 1000, _chain(_WIDE, 7, 7, 7)),
    _stylegan_xl("stylegan-xl-imagenet-256", "imagenet", "imagenet256", 1000, _chain(_WIDE, 7, 7, 7, 7)),
    _stylegan_xl("stylegan-xl-imagenet-512", "imagenet", "imagenet512", 1000, _chain(_WIDE, 7, 7, 7, 7, 7)),
    _stylegan_xl("stylegan-xl-imagenet-1024", "imagenet", "imagenet1024", 1000, _chain(_WIDE, 7, 7, 7, 7, 7, 5)),
    _stylegan_xl("stylegan-xl-cifar10-32", "cifar10", "cifar10", 10, _CIFAR),
    _stylegan_xl("stylegan-xl-ffhq-256", "ffhq", "ffhq256", 0, _chain(_NARROW, 4, 4, 4, 4)),
    _stylegan_xl("stylegan-xl-ffhq-512", "ffhq", "ffhq512", 0, _chain(_NARROW, 4, 4, 4, 4, 4)),
    _stylegan_xl("stylegan-xl-ffhq-1024", "ffhq", "ffhq1024", 0, _chain(_NARROW, 4, 4, 4, 4, 4, 4)),
    _stylegan_xl("stylegan-xl-pokemon-256", "pokemon", "pokemon256", 0, _chain(_NARROW, 4, 4, 4, 4)),
    _stylegan_xl("stylegan-xl-pokemon-512", "pokemon", "pokemon512", 0, _chain(_NARROW, 4, 4, 4, 4, 4)),
    _stylegan_xl("stylegan-xl-pokemon-1024", "pokemon", "pokemon1024", 0, _chain(_NARROW, 4, 4, 4, 4, 4, 4)),
    # without published weights, for a data set of one's own
    _stylegan_xl("stylegan-xl-32", "any", None, 0, _chain(_NARROW, 4)),
    _stylegan_xl("stylegan-xl-64", "any", None, 0, _chain(_NARROW, 4, 4)),
    _stylegan_xl("stylegan-xl-256", "any", None, 0, _chain(_NARROW, 4, 4, 4, 4)),
]
