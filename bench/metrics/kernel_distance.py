"""Kernel distance (KID): the squared maximum mean discrepancy with a polynomial kernel, over random subsets.

Binkowski et al., Demystifying MMD GANs (2018), section 4. StyleGAN3, clean-fid and torch-fidelity share the estimator
and differ only in how they draw the subsets; papers print the value times 1000.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from bench.statistics import checked_features

Estimator = Literal["unbiased", "biased", "u-statistic"]
Draw = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class KernelDistance:
    """Subsets and kernel `(gamma x.y + coef0)^degree`; `gamma` None is 1/D. The defaults are those of StyleGAN3."""

    num_subsets: int = 100
    subset_size: int = 1000
    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0
    seed: int = 0


DEFAULT = KernelDistance()


def kernel_distance(real: torch.Tensor, fake: torch.Tensor, spec: KernelDistance = DEFAULT) -> tuple[float, float]:
    """Mean and standard deviation (over the subsets, ddof 0) of the unbiased MMD^2 of features `[N, D]`, `[M, D]`.

    Subsets are drawn without replacement by a numpy Generator of `spec.seed`. As in StyleGAN3, a subset is no larger
    than the smaller set, so with few images all subsets hold the same ones and the deviation shrinks towards 0.
    """
    values = subset_distances(real, fake, subset_draws(len(real), len(fake), spec), spec)
    return float(values.mean()), float(values.std(correction=0))


def subset_draws(n_real: int, n_fake: int, spec: KernelDistance) -> Iterator[Draw]:
    """Row numbers of each subset of the real and of the fake set."""
    size = min(spec.subset_size, n_real, n_fake)
    rng = np.random.default_rng(spec.seed)
    for _ in range(spec.num_subsets):
        yield rng.choice(n_real, size, replace=False), rng.choice(n_fake, size, replace=False)


def subset_distances(
    real: torch.Tensor, fake: torch.Tensor, draws: Iterable[Draw], spec: KernelDistance = DEFAULT
) -> torch.Tensor:
    """Unbiased MMD^2 `[num_subsets]`, float64, of each pair of subsets given by their row numbers (real, fake)."""
    return torch.stack(
        [
            polynomial_mmd2(
                real[torch.from_numpy(rows_real)],
                fake[torch.from_numpy(rows_fake)],
                degree=spec.degree,
                gamma=spec.gamma,
                coef0=spec.coef0,
            )
            for rows_real, rows_fake in draws
        ]
    )


def polynomial_mmd2(
    x: torch.Tensor,
    y: torch.Tensor,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    estimator: Estimator = "unbiased",
) -> torch.Tensor:
    """MMD^2 of features `[N, D]` and `[M, D]` under `(gamma x.y + coef0)^degree`; a float64 scalar.

    Holds three kernel matrices, so it is for subsets and for small sets.
    """
    x = checked_features(x)
    y = checked_features(y, x.shape[1])
    scale = 1 / x.shape[1] if gamma is None else gamma

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T).mul_(scale).add_(coef0).pow_(degree)

    return mmd2(kernel(x, x), kernel(y, y), kernel(x, y), estimator)


def mmd2(k_xx: torch.Tensor, k_yy: torch.Tensor, k_xy: torch.Tensor, estimator: Estimator = "unbiased") -> torch.Tensor:
    """MMD^2 from kernel matrices `[N, N]`, `[M, M]`, `[N, M]` (Gretton et al. 2012, eq. 3 to 5).

    "biased" keeps the diagonals, "unbiased" leaves out those of `k_xx` and `k_yy`, "u-statistic" (N = M) also that of
    `k_xy`.
    """
    if estimator == "biased":
        return k_xx.mean() + k_yy.mean() - 2 * k_xy.mean()
    cross = _mean_off_diagonal(k_xy) if estimator == "u-statistic" else k_xy.mean()
    return _mean_off_diagonal(k_xx) + _mean_off_diagonal(k_yy) - 2 * cross


def _mean_off_diagonal(kernel: torch.Tensor) -> torch.Tensor:
    n = len(kernel)
    if kernel.shape != (n, n) or n == 1:
        raise ValueError(f"kernel matrix {list(kernel.shape)} has no mean off its diagonal; expected [N, N] with N > 1")
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))
