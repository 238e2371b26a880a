from __future__ import annotations

import pytest
import torch

from bench.inversion_scores import frechet_score, perceptual_score, pixel_scores
from bench.metrics.frechet import frechet_distance_from_features
from bench.networks.standin import StandinExtractor
from bench.views import ImageView
from tests.bench.inversion_cases import CPU, PixelLoss


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of 10 and of 20 grey levels everywhere."""
    targets = torch.randint(40, 200, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return targets, targets + torch.tensor([10, 20], dtype=torch.uint8)[:, None, None, None]


def test_both_averages_of_psnr() -> None:
    scores = {score.metric: score for score in pixel_scores(*pair())}
    errors = torch.tensor([100.0, 400.0], dtype=torch.float64)
    assert scores["MSE"].value == 250
    assert scores["PSNR"].value == pytest.approx(float((10 * torch.log10(255**2 / errors)).mean()))
    assert scores["PSNR of mean error"].value == pytest.approx(float(10 * torch.log10(255**2 / errors.mean())))
    assert scores["PSNR"].value > scores["PSNR of mean error"].value
    assert scores["PSNR"].interval is not None
    assert [score.higher_is_better for score in scores.values()] == [True, True, True, False]


def test_perfect_inversion_has_finite_numbers() -> None:
    targets, _ = pair()
    scores = {score.metric: score.value for score in pixel_scores(targets, targets)}
    assert scores == {"PSNR": 100, "PSNR of mean error": 100, "SSIM": pytest.approx(1), "MSE": 0}


def test_standins_carry_their_own_names() -> None:
    targets, inverted = pair()
    view = ImageView(StandinExtractor(CPU))
    distance = frechet_score(targets, inverted, view)
    assert distance.metric == "Inversion FD-standin-v1"
    made, real = (view.extractor(images)["pool"] for images in (inverted, targets))
    assert distance.value == frechet_distance_from_features(made, real, ddof=0)
    assert perceptual_score(targets, inverted, PixelLoss()).metric == "pixels"
