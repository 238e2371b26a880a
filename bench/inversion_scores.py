"""How close inversions come to their targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bench.features import View
from bench.intervals import bootstrap_interval
from bench.inversion import PerceptualLoss
from bench.metrics.frechet import frechet_distance_from_features
from bench.metrics.psnr import mean_squared_errors, psnr, psnr_of_mean_error
from bench.metrics.ssim import ssim
from bench.sampling import ImageBatch

MAX_PSNR_DB = 100.0  # identical images have no finite PSNR; records hold finite numbers


@dataclass(frozen=True, slots=True)
class InversionScore:
    """A number of a set of inversions; the interval is a bootstrap over its targets."""

    metric: str
    unit: str
    higher_is_better: bool
    value: float
    interval: tuple[float, float] | None = None


def pixel_scores(targets: Tensor, inverted: Tensor) -> Iterator[InversionScore]:
    """PSNR as the mean over images and of the mean squared error, SSIM and squared error, of uint8 `[N, 3, H, W]`."""
    yield _mean("PSNR", psnr(inverted, targets).clamp(max=MAX_PSNR_DB), "dB", higher_is_better=True)
    of_mean_db = min(psnr_of_mean_error(inverted, targets), MAX_PSNR_DB)
    yield InversionScore("PSNR of mean error", "dB", True, of_mean_db)
    yield _mean("SSIM", ssim(inverted, targets), higher_is_better=True)
    yield _mean("MSE", mean_squared_errors(inverted, targets), "squared grey levels")


def perceptual_score(targets: Tensor, inverted: Tensor, perceptual: PerceptualLoss) -> InversionScore:
    """LPIPS of uint8 images `[N, 3, H, W]` at their own size, or what stands in for it, under its own name."""
    return _mean("LPIPS" if perceptual.official else perceptual.name, perceptual.distance(targets, inverted).cpu())


def frechet_score(targets: Tensor, inverted: Tensor, view: View) -> InversionScore:
    """The Fréchet distance between the features of inversions and of their targets, uint8 `[N, 3, H, W]`, N >= 2.

    Covariances are divided by N, as StyleGAN's code does.
    """
    features = [view(ImageBatch(images))["pool"].cpu() for images in (inverted, targets)]
    value = frechet_distance_from_features(features[0], features[1], ddof=0)
    return InversionScore(frechet_name(view), "", False, value)


def frechet_name(view: View) -> str:
    """The name that the distance through a view may carry."""
    return "Inversion FID" if view.official else f"Inversion FD-{view.name}"


def _mean(metric: str, values: Tensor, unit: str = "", *, higher_is_better: bool = False) -> InversionScore:
    interval = bootstrap_interval(values, seed=0) if len(values) > 1 else None
    return InversionScore(metric, unit, higher_is_better, float(values.double().mean()), interval)
