"""How sure a number is: bootstrap and Student intervals, paired tests, and the difference that can be seen at all.

An interval needs a value per image, or per seed. Metrics that are means over images have one by nature; the Frechet
and the kernel distance get one from `frechet_contributions` and `kernel_contributions`. All else (density, a median)
is resampled whole by `resampled_interval`. Everything is a function of its arguments and its seed.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 13.3 and 15.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm, t

from bench.statistics import checked_features

RESAMPLES = 1000
Interval = tuple[float, float]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference with its interval and two-sided p-value; it is shown where the interval leaves 0 out."""

    value: float
    interval: Interval
    p_value: float


def bootstrap_interval(values: torch.Tensor, seed: int, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean of per-image values `[N]`, from 1000 resamples.

    Only for metrics that are means over images; ValueError for values that aren't finite (cap PSNR first).
    """
    means = _resampled_means(_checked(values), seed)
    return _quantiles(means, level)


def resampled_interval(
    functional: Callable[[torch.Tensor], float], n: int, seed: int, level: float = 0.95, resamples: int = 200
) -> Interval:
    """Bootstrap interval of any functional of how often each of n images counts, an int64 tensor `[n]` of sum n.

    The interval is the spread of the resamples around their mean, laid around the value itself (all counts 1): drawing
    with replacement leaves a third of the images out, which shifts a Frechet distance by more than its spread.
    Costs one call a resample.
    """
    rng = np.random.default_rng(seed)
    shares = np.full(n, 1 / n)
    drawn = np.array([functional(torch.from_numpy(rng.multinomial(n, shares))) for _ in range(resamples)])
    value = functional(torch.ones(n, dtype=torch.int64))
    low, high = _quantiles(drawn - drawn.mean(), level)
    return value + low, value + high


def t_interval(values: torch.Tensor, level: float = 0.95) -> Interval:
    """Student's interval of the mean over several seeds `[n]`, n >= 2, one value each."""
    sample = _checked(values, least=2)
    half = float(t.ppf(_upper(level), len(sample) - 1)) * standard_error(values)
    return float(sample.mean()) - half, float(sample.mean()) + half


def paired_bootstrap(a: torch.Tensor, b: torch.Tensor, seed: int, level: float = 0.95) -> Difference:
    """Mean of `a - b`, values `[N]` of two models for the same prompts, targets or sample ids, on one reference.

    Resamples pairs, so what both models share cancels. The p-value is the share of resamples beyond 0, twice the
    smaller side, and never below 2 / 1001.
    """
    steps = _pairs(a, b)
    means = _resampled_means(steps, seed)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(float(steps.mean()), _quantiles(means, level), min(1.0, 2 * float(beyond + 1) / (RESAMPLES + 1)))


def paired_t(a: torch.Tensor, b: torch.Tensor, level: float = 0.95) -> Difference:
    """Mean of `a - b` over seeds `[n]`, n >= 2, by Student's paired test: one value of each model a seed."""
    steps = _pairs(a, b)
    tensor = torch.from_numpy(steps)
    error, mean = standard_error(tensor), float(steps.mean())
    if error == 0:
        return Difference(mean, (mean, mean), float(mean == 0))
    return Difference(mean, t_interval(tensor, level), 2 * float(t.sf(abs(mean) / error, len(steps) - 1)))


def standard_error(values: torch.Tensor) -> float:
    """Standard error of the mean of values `[N]`, N >= 2: their deviation (ddof 1) over the root of N."""
    sample = _checked(values, least=2)
    return float(sample.std(ddof=1)) / math.sqrt(len(sample))


def detectable_difference(error: float, num_seeds: int | None = None, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at `level` finds with probability `power`.

    `(q(1 - (1 - level) / 2) + q(power)) x error`, with `error` the standard error of the difference, which is
    `hypot(error_a, error_b)` for unpaired values: Cohen, Statistical Power Analysis (1988), section 2.4. `q` are
    quantiles of the normal distribution, or of Student's with `num_seeds - 1` degrees of freedom.
    """
    if not 0 < power < 1:
        raise ValueError(f"power {power} isn't between 0 and 1; 0.8 is usual")
    law = norm if num_seeds is None else t(num_seeds - 1)
    return float(law.ppf(_upper(level)) + law.ppf(power)) * error


def _checked(values: torch.Tensor, least: int = 1) -> Floats:
    sample: Floats = checked_features(values[:, None])[:, 0].cpu().numpy()
    if len(sample) < least:
        raise ValueError(f"{len(sample)} value has no spread; needs {least} or more")
    return sample


def _pairs(a: torch.Tensor, b: torch.Tensor) -> Floats:
    if a.shape != b.shape:
        raise ValueError(f"{list(a.shape)} and {list(b.shape)} values can't be paired; expected one of each model")
    return _checked(a, least=2) - _checked(b, least=2)


def _resampled_means(sample: Floats, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return np.array([sample[rng.integers(len(sample), size=len(sample))].mean() for _ in range(RESAMPLES)])


def _quantiles(values: Floats, level: float) -> Interval:
    upper = _upper(level)
    low, high = np.quantile(values, [1 - upper, upper])
    return float(low), float(high)


def _upper(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level {level} isn't between 0 and 1; 0.95 is usual")
    return (1 + level) / 2
