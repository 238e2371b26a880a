"""The published BigGAN and BigGAN-deep models, and the configurations without weights."""

from __future__ import annotations

from typing import Any

from models.spec import CheckpointSpec, ModelSpec

_AUTHOR = "MIT"  # the code's; the weights come with it
_DEEPMIND = "MIT (code); weights converted from DeepMind's TF Hub modules"
# confirm=t: the file itself, not a page that asks whether one wants it unscanned
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_PACKAGE = "https://s3.amazonaws.com/models.huggingface.co/biggan"


def _biggan(name: str, dataset: str, num_classes: int, file_id: str | None = None, **kwargs: Any) -> ModelSpec:
    reported_as = kwargs.pop("reported_as", None)
    return ModelSpec(
        name=name,
        family="BigGAN",
        target="models.biggan:build",
        dataset=dataset,
        resolution=int(name.rpartition("-")[2]),
        conditioning="class",
        num_classes=num_classes,
        kwargs=kwargs,
        checkpoint=CheckpointSpec(f"{_DRIVE}{file_id}", _AUTHOR) if file_id else None,
        reported_as=reported_as,
    )


def _deep(resolution: int) -> ModelSpec:
    url = f"{_PACKAGE}/biggan-deep-{resolution}-pytorch_model.bin"
    return ModelSpec(
        name=f"biggan-deep-imagenet-{resolution}",
        family="BigGAN-deep",
        target="models.biggan_deep:build",
        dataset="imagenet",
        resolution=resolution,
        conditioning="class",
        num_classes=1000,
        checkpoint=CheckpointSpec(url, _DEEPMIND),
        reported_as="BigGAN-deep: truncation 1.0",
    )


# As the author's script trained CIFAR-10: no shared embedding, no parts of z, no attention.
_CIFAR: dict[str, Any] = {
    "channels": 64,
    "z_dim": 128,
    "shared_dim": 0,
    "hierarchical": False,
    "attention": (),
    "sn_eps": 1e-8,
    "init": "N02",
}

SPECS: list[ModelSpec] = [
    _biggan(
        "biggan-imagenet-128",
        "imagenet",
        1000,
        "1nAle7FCVFZdix2--ks0r5JBkFnKw8ctW",
        reported_as="BigGAN: PyTorch reimplementation by the author",
    ),
    # an earlier state of the same training, of which no number was published
    _biggan(
        "biggan-100k-imagenet-128",
        "imagenet",
        1000,
        "1dmZrcVJUAWkPBGza_XgswSuT-UODXZcO",
        reported_as="BigGAN: PyTorch reimplementation, 100k iterations",
    ),
    *(_deep(resolution) for resolution in (128, 256, 512)),
    # without published weights, for a data set of one's own
    _biggan("biggan-32", "any", 10, **_CIFAR),
    _biggan("biggan-64", "any", 1000, channels=64, z_dim=100, attention=(32,)),
    _biggan("biggan-256", "any", 1000, z_dim=140),
]
