"""Peak signal-to-noise ratio of image pairs, in dB, on uint8 RGB: `10 log10(255^2 / MSE)`."""

from __future__ import annotations

import torch

DATA_RANGE = 255


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR in dB `[N]`, float64, of each pair of uint8 images `[N, 3, H, W]`, over all its pixels and channels.

    Identical images give infinity: cap it before a mean is recorded, since records hold finite values only.
    """
    return _decibel(mean_squared_errors(a, b))


def psnr_of_mean_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of the squared error averaged over all pairs of uint8 images `[N, 3, H, W]`; never above the mean."""
    return float(_decibel(mean_squared_errors(a, b).mean()))


def checked_pair(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two batches of uint8 images `[N, 3, H, W]`, N >= 1, as float64; anything else is a ValueError."""
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape or a.ndim != 4 or len(a) == 0:
        raise ValueError(
            f"images {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}; "
            "expected two uint8 batches of one shape [N, 3, H, W]"
        )
    return a.double(), b.double()


def mean_squared_errors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared error `[N]`, float64, in squared grey levels, of each pair of uint8 images `[N, 3, H, W]`."""
    a, b = checked_pair(a, b)
    return (a - b).square().mean(dim=(1, 2, 3))


def _decibel(squared_error: torch.Tensor) -> torch.Tensor:
    return 10 * torch.log10(DATA_RANGE**2 / squared_error)
