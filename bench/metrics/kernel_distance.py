"""Kernel distance (KID): the squared maximum mean discrepancy with a polynomial kernel, over random subsets.

Binkowski et al., Demystifying MMD GANs (2018), section 4. StyleGAN3, clean-fid and torch-fidelity share the estimator
and differ only in how they draw the subsets; papers print the value times 1000.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from bench.statistics import check_features, checked_features

TILE = 2048  # rows of either set at a time, where each image gets a value
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
    draws: Iterable[Draw] = subset_draws(len(real), len(fake), spec)
    if len(real) == len(fake) <= spec.subset_size:  # each subset is both sets whole, in another order
        draws = itertools.islice(draws, 1)
    values = subset_distances(real, fake, draws, spec)
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


def kernel_contributions(real: torch.Tensor, fake: torch.Tensor, spec: KernelDistance = DEFAULT) -> torch.Tensor:
    """What each fake adds to the unbiased MMD^2 of all images, float64 `[M]` with it as its mean: for intervals, tests.

    `2 (mean k(y, others) - mean k(y, real)) + mean k(real, real) - mean k(fake, fake)`, the projection of the
    U-statistic (Gretton et al. 2012, section 4; Hoeffding 1948); the real images count as given. Only the kernel of
    `spec` matters. Where both sets have one distribution this first order vanishes and the interval is too short.
    Takes (N + M)^2 products; memory is a few tiles of 32 MiB beside the features, which keep their dtype.
    """
    check_features(real)
    check_features(fake, real.shape[1])
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"{len(real)} real and {len(fake)} generated images; needs 2 or more of each")
    own_real, own_fake = (_mean_kernel_to_others(features, spec) for features in (real, fake))
    across = _kernel_sums(fake, real, spec) / len(real)
    return 2 * (own_fake - across) + own_real.mean() - own_fake.mean()


def _mean_kernel_to_others(features: torch.Tensor, spec: KernelDistance) -> torch.Tensor:
    squares = torch.cat([block.double().square().sum(dim=1) for block in torch.split(features, TILE)])
    itself = squares.mul_(_scale(features, spec)).add_(spec.coef0).pow_(spec.degree)
    return (_kernel_sums(features, features, spec) - itself) / (len(features) - 1)


def _kernel_sums(x: torch.Tensor, y: torch.Tensor, spec: KernelDistance) -> torch.Tensor:
    """Sums `[N]` over the rows of y of the kernel with each row of x."""
    sums = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), TILE):
        block = x[start : start + TILE].double() * _scale(x, spec)
        for other in torch.split(y, TILE):
            sums[start : start + TILE] += (block @ other.double().T).add_(spec.coef0).pow_(spec.degree).sum(dim=1)
    return sums


def _scale(features: torch.Tensor, spec: KernelDistance) -> float:
    return 1 / features.shape[1] if spec.gamma is None else spec.gamma


def _mean_off_diagonal(kernel: torch.Tensor) -> torch.Tensor:
    n = len(kernel)
    if kernel.shape != (n, n) or n == 1:
        raise ValueError(f"kernel matrix {list(kernel.shape)} has no mean off its diagonal; expected [N, N] with N > 1")
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))
