"""Low-pass filters of alias-free synthesis layers: windowed sinc, and its radially symmetric counterpart.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv:2106.12423), section 3.2 and appendix C.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy import signal, special
from torch import Tensor

MAX_TAPS = 256  # far above any that is used; a file can ask for more memory than it fills


def lowpass_filter(num_taps: int, cutoff: float, width: float, fs: float, *, radial: bool = False) -> Tensor | None:
    """Design a low-pass filter of unit gain at zero frequency under a Kaiser window; None if it has a single tap.

    `cutoff` is the middle and `width` the extent of the transition band, in the unit of the sampling rate `fs`.
    Returns float32 `[num_taps]`, to be run along x and y, or, if `radial`, `[num_taps, num_taps]`.
    """
    if num_taps == 1:
        return None
    if num_taps > MAX_TAPS:
        raise ValueError(f"low-pass filter of {num_taps} taps; allowed are {MAX_TAPS} at most. Check filter_size")
    design = _jinc if radial else _sinc
    return torch.tensor(design(num_taps, cutoff, width, fs), dtype=torch.float32)


@lru_cache(maxsize=256)
def _sinc(num_taps: int, cutoff: float, width: float, fs: float) -> npt.NDArray[np.float64]:
    taps: npt.NDArray[np.float64] = signal.firwin(num_taps, cutoff, width=width, fs=fs)
    return taps


@lru_cache(maxsize=256)
def _jinc(num_taps: int, cutoff: float, width: float, fs: float) -> npt.NDArray[np.float64]:
    """The impulse response of a disc in the frequency plane, `J1(2 pi fc r) / (pi r)`, under a separable window."""
    x = (np.arange(num_taps) - (num_taps - 1) / 2) / fs
    r = np.hypot(*np.meshgrid(x, x))
    center = r == 0  # of filters with an odd number of taps; J1(x) is x / 2 there
    taps = np.where(center, cutoff, special.j1(2 * cutoff * np.pi * r) / (np.pi * np.where(center, 1, r)))
    window = np.kaiser(num_taps, signal.kaiser_beta(signal.kaiser_atten(num_taps, width / (fs / 2))))
    taps = taps * np.outer(window, window)
    normalised: npt.NDArray[np.float64] = taps / taps.sum()
    return normalised
