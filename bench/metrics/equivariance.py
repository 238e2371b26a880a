"""Equivariance to translation and rotation: EQ-T, EQ-T_frac and EQ-R, in dB.

Karras et al., Alias-Free Generative Adversarial Networks (arXiv:2106.12423), section 2.2 and appendix E. An image that
a generator made under a transformed input is compared with the transformed image. The latter is band-limited as a
resampling by Lanczos-windowed sinc filters makes it; after a rotation the former as well, since the corners of the
square spectrum are lost. Pixels for which a filter would read past the edges don't count.

All functions take images `[N, C, H, W]` of one range of width 2, [-1, 1], neither clamped nor rounded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

MAX_SHIFT = 0.125  # of the width and of the height, to either side
MAX_ANGLE = math.pi
LOBES = 3  # of the Lanczos window, on each side
OVERSAMPLING = 4  # of the rotated image, which is then read bilinearly
REACH = 64  # pixels to each side on which the filter of a rotation is computed
WINDOW_REACH = 8  # the same of its window, which ends after 7.3 pixels
DYNAMIC_RANGE = 2.0
CPU = torch.device("cpu")

Profile = Callable[[torch.Tensor], torch.Tensor]  # values of a filter along one axis, at places in pixels


class Transformed(NamedTuple):
    """Images `[N, C, H, W]`, and a mask bool `[H, W]` of the pixels that count."""

    images: torch.Tensor
    mask: torch.Tensor


def shift_input(right: float, down: float) -> torch.Tensor:
    """The matrix `[3, 3]`, float64, from output to input position, of a shift by parts of the image's width."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 2] = torch.tensor([-right, -down])
    return matrix


def rotate_input(angle: float) -> torch.Tensor:
    """The matrix `[3, 3]`, float64, from output to input position, of a counter-clockwise rotation."""
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def shift_whole(images: torch.Tensor, right: int, down: int) -> Transformed:
    """Shift by whole pixels (appendix E.1); what comes in from outside doesn't count."""
    return _placed(images, images.shape[-2:], right, down)


def shift(images: torch.Tensor, right: float, down: float) -> Transformed:
    """Shift by pixels and fractions of pixels with a Lanczos filter of six taps (appendix E.2)."""
    whole_x, whole_y = math.floor(right), math.floor(down)
    taps = [_lanczos_taps(fraction).to(images) for fraction in (right - whole_x, down - whole_y)]
    n, c, height, width = images.shape
    planes = images.reshape(n * c, 1, height, width)
    # a convolution is a correlation with the taps turned round
    planes = F.conv2d(F.conv2d(planes, taps[0].flip(0)[None, None, None]), taps[1].flip(0)[None, None, :, None])
    filtered = planes.reshape(n, c, *planes.shape[-2:])
    return _placed(filtered, (height, width), whole_x + LOBES, whole_y + LOBES)


def rotate(images: torch.Tensor, angle: float) -> Transformed:
    """Rotate about the centre, counter-clockwise by radians (appendix E.3).

    The image is oversampled through the low-pass filter of the rotation and read bilinearly.
    """
    n, c, height, width = images.shape
    phases = _phases(rotation_filter(angle, OVERSAMPLING, images.device), OVERSAMPLING)
    kernels = phases.flip(1, 2).to(images).unsqueeze(1)
    fine = F.pixel_shuffle(F.conv2d(images.reshape(n * c, 1, height, width), kernels), OVERSAMPLING)
    fine = fine.reshape(n, c, *fine.shape[-2:])
    x, y = _positions(angle, (height, width), images.device)
    # the filters' full support begins at fine pixel 0, and the centre of image pixel i is at 4 i + 2 - 23
    lag = OVERSAMPLING * phases.shape[1] // 2 - 1
    x, y = (OVERSAMPLING * place - lag for place in (x + width / 2, y + height / 2))
    rows, columns = fine.shape[-2:]
    grid = torch.stack([(2 * x + 1) / columns - 1, (2 * y + 1) / rows - 1], dim=-1).to(images)
    read = F.grid_sample(fine, grid.expand(n, -1, -1, -1), mode="bilinear", align_corners=False)
    # as in the original, one fine pixel on the near side and three on the far side don't count though they are whole
    mask = [(place.round() >= 1) & (place.round() < size - 3) for place, size in ((x, columns), (y, rows))]
    return Transformed(read, mask[0] & mask[1])


def limit_as_rotation(images: torch.Tensor, angle: float) -> Transformed:
    """Take away the frequencies that a rotation by `angle` would take away, without rotating (appendix E.3)."""
    n, c, height, width = images.shape
    taps = rotation_filter(-angle, 1, images.device)
    kernel = (taps / taps.sum()).flip(0, 1).to(images)
    planes = F.conv2d(images.reshape(n * c, 1, height, width), kernel[None, None])
    margin = len(taps) // 2
    return _placed(planes.reshape(n, c, *planes.shape[-2:]), (height, width), margin, margin)


def squared_errors(reference: Transformed, images: torch.Tensor) -> torch.Tensor:
    """Sums `[N, 2]`, float64: squared error and number of values over the pixels that count."""
    errors = (reference.images - images).square() * reference.mask
    count = reference.mask.sum() * images.shape[1]
    total = errors.double().sum(dim=(1, 2, 3))
    return torch.stack([total, count.double().expand_as(total)], dim=1)


def equivariance_psnr(sums: torch.Tensor) -> float:
    """PSNR in dB of all images together, from their `squared_errors` `[N, 2]`; infinite where nothing differs.

    The error is averaged over all pixels that count before the logarithm is taken. ValueError if none does.
    """
    error, count = sums.double().sum(dim=0)
    if not count > 0:
        raise ValueError(f"no pixel counts in {len(sums)} images; the transformations moved all of them out of sight")
    return float(10 * torch.log10(DYNAMIC_RANGE**2 * count / error))


def rotation_filter(angle: float, oversampling: int, device: torch.device = CPU) -> torch.Tensor:
    """Low-pass taps `[n, n]`, float64, of a rotation, `oversampling` of them a pixel; n = 12 * `oversampling` - 1.

    What passes lies in the spectrum's square before and after the rotation: a convolution of two sinc filters, along
    the axes of the one and of the other, under the convolution of two such Lanczos windows.
    """
    parts = []
    for profile, reach in ((torch.sinc, REACH), (_lanczos, WINDOW_REACH)):
        spectrum = torch.fft.rfft2(_separable(profile, *_turned(_taps(reach, oversampling, device), angle)))
        spectrum = spectrum * _upright_spectrum(profile, reach, oversampling, device)
        parts.append(_middle(spectrum, 2 * LOBES * oversampling - 1))
    return parts[0] * parts[1]


def _middle(spectrum: torch.Tensor, half: int) -> torch.Tensor:
    """The `2 * half + 1` rows and columns around the origin of the array whose `rfft2` this is; its size is odd."""
    size = len(spectrum)
    places = torch.arange(-half, half + 1, dtype=torch.float64, device=spectrum.device)
    frequencies = torch.arange(size, dtype=torch.float64, device=spectrum.device)
    angles = torch.outer(places, frequencies) * (2 * math.pi / size)
    waves = torch.polar(torch.ones_like(angles), angles)
    weights = torch.full((spectrum.shape[1],), 2.0, dtype=torch.float64, device=spectrum.device)
    weights[0] = 1  # all others stand for their conjugates too
    return (waves @ spectrum @ (waves[:, : spectrum.shape[1]] * weights).T).real / size**2


@functools.lru_cache(maxsize=4)
def _upright_spectrum(profile: Profile, reach: int, oversampling: int, device: torch.device) -> torch.Tensor:
    spectrum: torch.Tensor = torch.fft.rfft2(_separable(profile, *_taps(reach, oversampling, device)))
    return spectrum


def _taps(reach: int, oversampling: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y `[m, m]` in pixels of taps up to `reach`, in the order of an FFT: from the origin."""
    size = 2 * reach * oversampling - 1
    taps = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=device) / oversampling
    y, x = torch.meshgrid(taps, taps, indexing="ij")
    return x, y


def _turned(places: tuple[torch.Tensor, torch.Tensor], angle: float) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = places
    return math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x


def _separable(profile: Profile, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = profile(x) * profile(y)
    return values


def _lanczos(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < LOBES, torch.sinc(x / LOBES), 0.0)


def _lanczos_taps(fraction: float) -> torch.Tensor:
    """Taps `[6]`, float64, from -2 to 3, that shift by a fraction of a pixel; they add up to 1."""
    places = torch.arange(1 - LOBES, LOBES + 1, dtype=torch.float64) - fraction
    taps = torch.sinc(places) * torch.sinc(places / LOBES)
    return taps / taps.sum()


def _phases(taps: torch.Tensor, oversampling: int) -> torch.Tensor:
    """The filter of each fine pixel within a pixel, `[oversampling^2, m, m]`, each adding up to 1."""
    padded = F.pad(taps, (0, 1, 0, 1))
    size = len(padded) // oversampling
    phases = padded.reshape(size, oversampling, size, oversampling).permute(1, 3, 0, 2).flatten(0, 1)
    return phases / phases.sum(dim=(1, 2), keepdim=True)


def _positions(angle: float, size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each pixel `[H, W]` of a rotated image comes from: x and y in pixels from the centre, float64."""
    rows, columns = (torch.arange(n, dtype=torch.float64, device=device) + 0.5 - n / 2 for n in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return _turned((x, y), -angle)


def _placed(block: torch.Tensor, size: tuple[int, int] | torch.Size, right: int, down: int) -> Transformed:
    """A block on an empty image of `size` (height, width); the pixels it covers count."""
    height, width = size
    x0, y0 = max(right, 0), max(down, 0)
    x1, y1 = min(right + block.shape[-1], width), min(down + block.shape[-2], height)
    images = block.new_zeros(*block.shape[:2], height, width)
    mask = torch.zeros(height, width, dtype=torch.bool, device=block.device)
    if x0 < x1 and y0 < y1:
        images[:, :, y0:y1, x0:x1] = block[:, :, y0 - down : y1 - down, x0 - right : x1 - right]
        mask[y0:y1, x0:x1] = True
    return Transformed(images, mask)
