"""The published StyleGAN (2018) models, and the configurations without weights."""

from __future__ import annotations

from models.spec import CheckpointSpec, ModelSpec

_LICENCE = "CC BY-NC 4.0 (non-commercial)"
# confirm=t: the file itself, not a page that asks whether one wants it unscanned
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


def _stylegan(name: str, dataset: str, drive_id: str | None = None, reported_as: str | None = None) -> ModelSpec:
    """One StyleGAN of config F, without classes; the resolution is the last part of the name."""
    return ModelSpec(
        name=name,
        family="StyleGAN",
        target="models.stylegan1:build",
        dataset=dataset,
        resolution=int(name.rpartition("-")[2]),
        checkpoint=CheckpointSpec(_DRIVE + drive_id, _LICENCE) if drive_id else None,
        reported_as=reported_as,
    )


SPECS = [
    _stylegan("stylegan-ffhq-1024", "ffhq", "1MEGjdvVpUsu1jB4zrXZN7Y4kBBOzizDQ", "StyleGAN: config F"),
    _stylegan("stylegan-celebahq-1024", "celebahq", "1MGqJl28pN4t7SAtSrPdSRJSQJqahkzUf", "StyleGAN"),
    _stylegan("stylegan-lsun-bedroom-256", "lsun-bedroom", "1MOSKeGF0FJcivpBI7s63V9YHloUTORiF", "StyleGAN"),
    # of car, only rows 64 to 448 are the picture
    _stylegan("stylegan-lsun-car-512", "lsun-car", "1MJ6iCfNtMIRicihwRorsM3b7mmtmK9c3", "StyleGAN"),
    _stylegan("stylegan-lsun-cat-256", "lsun-cat", "1MQywl0FNt6lHu8E_EUqnRbviagS7fbiJ", "StyleGAN"),
    # without published weights, for a data set of one's own
    *(_stylegan(f"stylegan-f-{resolution}", "any") for resolution in (32, 64, 256)),
]
