"""When a kernel counts as slower: an exact test, a bootstrap interval and a threshold that the same run supplies.

In every round the versions run in an order drawn at random and then in its mirror image. Where two versions are the
same code, swapping their names changes nothing, so each round's log-ratio is as likely positive as negative, whatever
the noise: heavy tails, drift and load that comes and goes included (Fisher's randomisation argument). The count of
rounds above a threshold of zero or more is then at most binomial with probability 1/2, which bounds the rate of false
alarms without any model of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

SMALLEST = 0.02  # a slow-down below this is never called one
LARGEST = 0.05  # a kernel passes when a slow-down of this is excluded
ALARM_RATE = 0.005  # of one measurement of all kernels together, if no code changed; an alarm needs two in agreement
CONFIDENCE = 0.99
REPLICATES = 1000
MIN_ROUNDS, MAX_ROUNDS = 100, 4000
Z = 2.576  # half-width of a 99 % interval in standard errors
MEDIAN_SPREAD = 1.2533  # standard error of a median in those of a mean, for normal noise
NORMAL_MAD = 1.4826  # standard deviation of normal noise in median absolute deviations

Verdict = Literal["ok", "improved", "regressed", "inconclusive"]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Head against base; all but `p_value` are relative changes of time, 0.05 is 5 % slower."""

    change: float
    interval: tuple[float, float]
    control: tuple[float, float]  # interval of head against a second copy of head
    threshold: float
    p_value: float  # that head is no slower than the threshold
    rounds: int


def compare(head: Array, base: Array, control: Array) -> Comparison:
    """Compare the durations of rounds, each `[rounds, calls]`: a round counts with the quickest call of a version."""
    quickest = [np.log(durations.min(axis=1)) for durations in (head, base, control)]
    log_ratios, control_ratios = quickest[0] - quickest[1], quickest[2] - quickest[0]
    control_interval = median_interval(control_ratios)
    threshold = max(SMALLEST, 3 * max(map(abs, control_interval)))
    return Comparison(
        change=math.expm1(float(np.median(log_ratios))),
        interval=median_interval(log_ratios),
        control=control_interval,
        threshold=threshold,
        p_value=exceedance_p_value(log_ratios, threshold),
        rounds=len(log_ratios),
    )


def median_interval(log_ratios: Array) -> tuple[float, float]:
    """A 99 % interval of the median of dependent log-ratios, as relative changes.

    Circular block bootstrap (Politis and Romano 1992) with blocks of `n^(1/3)` rounds (Hall, Horowitz and Jing 1995).
    """
    n = len(log_ratios)
    length = math.ceil(n ** (1 / 3))
    starts = np.random.default_rng(0).integers(0, n, size=(REPLICATES, math.ceil(n / length)))
    places = (starts[:, :, None] + np.arange(length)) % n
    medians = np.median(log_ratios[places.reshape(REPLICATES, -1)[:, :n]], axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return math.expm1(low), math.expm1(high)


def exceedance_p_value(log_ratios: Array, threshold: float) -> float:
    """The probability of so many rounds above the threshold if head is base: exact sign test, ties count as below."""
    above = int((log_ratios > math.log1p(threshold)).sum())
    return float(binom.sf(above - 1, len(log_ratios), 0.5))


def rounds_needed(head: Array, base: Array) -> int:
    """How many rounds make the interval's half-width a quarter of `SMALLEST`, by the spread of a pilot's rounds.

    The pilot must not enter the comparison: rounds chosen by what they showed would not be fair any more.
    """
    log_ratios = np.log(head.min(axis=1)) - np.log(base.min(axis=1))
    spread = NORMAL_MAD * float(np.median(np.abs(log_ratios - np.median(log_ratios))))
    wanted = (4 * Z * MEDIAN_SPREAD * spread / SMALLEST) ** 2
    return int(min(max(wanted, MIN_ROUNDS), MAX_ROUNDS))


def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
    """Judge all kernels of one measurement together; Holm's procedure (1979) keeps `ALARM_RATE` over all of them."""
    slower = [False] * len(comparisons)
    order = sorted(range(len(comparisons)), key=lambda i: comparisons[i].p_value)
    for rank, i in enumerate(order):
        if comparisons[i].p_value > ALARM_RATE / (len(comparisons) - rank):
            break
        slower[i] = True
    return [_verdict(comparison, significant) for comparison, significant in zip(comparisons, slower, strict=True)]


def _verdict(comparison: Comparison, significant: bool) -> Verdict:
    low, high = comparison.interval
    if significant and low > comparison.threshold:
        return "regressed"
    if high > LARGEST:
        return "inconclusive"
    return "improved" if high < -comparison.threshold else "ok"
