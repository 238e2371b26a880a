"""The StyleGAN-T configurations of the paper; no weights of any were published."""

from __future__ import annotations

from typing import Any

from models.spec import ModelSpec


def _stylegan_t(name: str, reported_as: str | None = None, **kwargs: Any) -> ModelSpec:
    """One StyleGAN-T; the resolution is the last part of the name, `text_dim` says that texts condition it."""
    return ModelSpec(
        name=name,
        family="StyleGAN-T",
        target="models.stylegan_t:build",
        dataset="any",
        resolution=int(name.rpartition("-")[2]),
        conditioning="text" if "text_dim" in kwargs else "none",
        kwargs=kwargs,
        reported_as=reported_as,
    )


_LITE: dict[str, Any] = {"channel_base": 32768, "channel_max": 512, "num_res_blocks": 2}
_FULL: dict[str, Any] = {"channel_base": 65536, "channel_max": 2048, "num_res_blocks": 3}
# Features of CLIP ViT-L/14 are given: without weights, its text encoder would be 124 million zeros more.
_TEXT: dict[str, Any] = {"text_dim": 768}

SPECS = [
    _stylegan_t("stylegan-t-lite-64", "StyleGAN-T: lite: + CLIP guidance loss", **_LITE, **_TEXT),
    _stylegan_t("stylegan-t-lite-128", **_LITE, **_TEXT),
    _stylegan_t("stylegan-t-lite-256", **_LITE, **_TEXT),
    _stylegan_t("stylegan-t-full-64", "StyleGAN-T: full", **_FULL, **_TEXT),
    _stylegan_t("stylegan-t-full-128", **_FULL, **_TEXT),
    _stylegan_t("stylegan-t-full-256", **_FULL, **_TEXT),
    _stylegan_t("stylegan-t-full-512", "StyleGAN-T: full", **_FULL, **_TEXT),  # reported at 256, scaled down
    _stylegan_t("stylegan-t-uncond-32", **_LITE),
    _stylegan_t("stylegan-t-uncond-64", **_LITE),
    _stylegan_t("stylegan-t-uncond-128", **_LITE),
    _stylegan_t("stylegan-t-uncond-256", **_LITE),
]
