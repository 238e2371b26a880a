"""Structural similarity of image pairs.

Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity (2004), eq. 13 to 17.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bench.metrics.psnr import DATA_RANGE, checked_pair

WINDOW = 11
WINDOW_SIGMA = 1.5
WINDOW_NAME = f"Gaussian {WINDOW}x{WINDOW}, sigma {WINDOW_SIGMA}, RGB, no padding"
C1 = (0.01 * DATA_RANGE) ** 2
C2 = (0.03 * DATA_RANGE) ** 2


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean SSIM `[N]`, float64, of each pair of uint8 images `[N, 3, H, W]`, H and W at least 11.

    Gaussian window of 11 x 11 pixels with sigma 1.5 and sum 1, K1 = 0.01, K2 = 0.03, data range 255, weighted moments
    without bias correction, no padding (only windows that lie wholly within the image), no downsampling. The index is
    computed on each RGB channel and averaged over windows and channels; the paper's experiments used grey images.
    """
    a, b = checked_pair(a, b)
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(
            f"images of {list(a.shape[2:])} pixels are smaller than the window; SSIM needs {WINDOW} or more"
        )
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a = _windowed(a * a) - mean_a**2
    variance_b = _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _windowed(images: torch.Tensor) -> torch.Tensor:
    """Gaussian-weighted means of all windows, as two one-dimensional filters."""
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / WINDOW_SIGMA) ** 2)
    weights = (weights / weights.sum()).view(1, 1, 1, WINDOW)
    planes = images.flatten(0, 1).unsqueeze(1)
    filtered = F.conv2d(F.conv2d(planes, weights), weights.mT)
    return filtered.view(*images.shape[:2], *filtered.shape[2:])
